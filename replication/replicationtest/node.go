package replicationtest

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Node is one server of a cluster. Its methods may be called from any goroutine. Those that start, stop
// or promote the server wait for each other. Methods that take a context block until what they do is in
// force; a context without a deadline is given one of a minute.
type Node struct {
	cluster *Cluster
	name    string
	dir     string // holds data and log
	data    string

	op sync.Mutex // serialises what starts, stops, promotes or repoints the server

	mu       sync.Mutex
	port     int     // guarded by mu; changes only before New or AddStandby returns
	server   *server // guarded by mu; nil until the first start
	upstream *Node   // guarded by mu; nil for the one that started as primary
}

// Name is "primary", "standby1", "standby2" and so on. It is also the application_name with which a
// standby streams.
func (n *Node) Name() string { return n.name }

// Port is the port on 127.0.0.1. It stays the same when the node restarts.
func (n *Node) Port() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.port
}

// Dir is the data directory.
func (n *Node) Dir() string { return n.data }

// PID is the process id of the postmaster, 0 while it does not run.
func (n *Node) PID() int {
	if s := n.running(); s != nil {
		return s.cmd.Process.Pid
	}
	return 0
}

// DSN is a connection URL for the superuser and the database postgres, with the password in it: keep it
// out of logs. Parameters such as "replication=database" or "application_name=mine" are added to it.
func (n *Node) DSN(parameters ...string) string {
	return n.DSNFor(superuser, n.cluster.password, "postgres", parameters...)
}

// DSNFor is a connection URL for another role or database.
func (n *Node) DSNFor(user, password, database string, parameters ...string) string {
	query := url.Values{"sslmode": {"disable"}}
	for _, p := range parameters {
		key, value, _ := strings.Cut(p, "=")
		query.Set(key, value)
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password), Host: "127.0.0.1:" + strconv.Itoa(n.Port()),
		Path: "/" + database, RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20"),
	}
	return u.String()
}

// Connect opens a connection as the superuser. The caller closes it.
func (n *Node) Connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, n.DSN())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", n.name, err)
	}
	return conn, nil
}

// Exec runs SQL as the superuser, on a connection of its own. Without arguments it may be several
// statements, which then run in one transaction.
func (n *Node) Exec(ctx context.Context, sql string, args ...any) error {
	return n.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var err error
		if len(args) == 0 {
			_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
		} else {
			_, err = conn.Exec(ctx, sql, args...)
		}
		return err
	})
}

// Value gives the one value that a query on a node returns, as the superuser, on a connection of its own.
func Value[T any](ctx context.Context, n *Node, sql string, args ...any) (T, error) {
	var value T
	err := n.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sql, args...).Scan(&value)
	})
	return value, err
}

// with lends a connection for as long as f runs.
func (n *Node) with(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	conn, err := n.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := f(ctx, conn); err != nil {
		return fmt.Errorf("on %s: %w", n.name, err)
	}
	return nil
}

// LogTail gives the last lines of the server's log, without the password.
func (n *Node) LogTail(lines int) string {
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		return fmt.Sprintf("(the log cannot be read: %v)", err)
	}
	return strings.ReplaceAll(lastLines(string(text), lines), n.cluster.password, "********")
}

func (n *Node) logFile() string { return filepath.Join(n.dir, "server.log") }

// ownConfig is the file, within the data directory, that holds the kit's settings for a node.
const ownConfig = "walwake.conf"

// include makes postgresql.conf read the kit's file. Copies of the data directory have that already.
func (n *Node) include() error {
	f, err := os.OpenFile(filepath.Join(n.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open the configuration of %s: %w", n.name, err)
	}
	_, err = f.WriteString("\ninclude '" + ownConfig + "'\n")
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write the configuration of %s: %w", n.name, err)
	}
	return nil
}

// configure writes the node's settings, and what makes it a standby when it is one.
func (n *Node) configure() error {
	n.mu.Lock()
	upstream := n.upstream
	n.mu.Unlock()
	settings := maps.Clone(n.cluster.options.settingsFor(upstream != nil))
	settings["cluster_name"] = n.name
	settings["listen_addresses"] = "127.0.0.1"
	settings["logging_collector"] = "off"
	settings["port"] = strconv.Itoa(n.Port())
	settings["unix_socket_directories"] = ""
	if upstream != nil {
		settings["primary_conninfo"] = fmt.Sprintf(
			"host=127.0.0.1 port=%d user=%s passfile=%s application_name=%s sslmode=disable gssencmode=disable",
			upstream.Port(), superuser, quoteConninfo(n.cluster.passfile()), n.name)
		if err := n.cluster.write(filepath.Join(n.data, "standby.signal"), ""); err != nil {
			return err
		}
	}
	return n.cluster.write(filepath.Join(n.data, ownConfig), configText(settings))
}

// quoteConninfo quotes a value for a libpq connection string.
func quoteConninfo(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}
