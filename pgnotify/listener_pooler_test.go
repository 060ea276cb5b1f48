package pgnotify_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	osexec "os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication/replicationtest"
)

// pooler runs a PgBouncer before a node until the test ends, and returns the DSN
// by way of it.
func pooler(t *testing.T, n *replicationtest.Node, mode, more string) string {
	t.Helper()
	program, err := osexec.LookPath("pgbouncer")
	switch {
	case err != nil && os.Getenv("WALWAKE_PGBOUNCER") != "":
		t.Fatal("pgbouncer is not installed, and .ci/run installs it")
	case err != nil:
		t.Skip("pgbouncer is not installed: apt-get install pgbouncer")
	}
	dir, err := os.MkdirTemp("", "walwake-pooler") //nolint:usetesting // another user has to get there
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755)) //nolint:gosec // see above
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	port := free.Addr().(*net.TCPAddr).Port
	must(t, free.Close())
	at, err := url.Parse(n.DSN())
	must(t, err)
	config := fmt.Sprintf(`[databases]
postgres = host=127.0.0.1 port=%d user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
%s
`, n.Port(), at.User.Username(), password(t, n), port, mode, more)
	file := filepath.Join(dir, "pgbouncer.ini")
	must(t, os.WriteFile(file, []byte(config), 0o644)) //nolint:gosec // see above
	args := []string{file}
	if os.Geteuid() == 0 { // it does not run as root
		args = append([]string{"-u", unprivileged(t)}, args...)
	}
	var log bytes.Buffer
	cmd := osexec.Command(program, args...)
	cmd.Stderr = &log
	must(t, cmd.Start())
	var running sync.WaitGroup
	running.Go(func() { _ = cmd.Wait() })
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		running.Wait()
		if t.Failed() {
			t.Logf("pgbouncer's log:\n%s", log.String())
		}
	})
	dsn := strings.Replace(n.DSN(), ":"+strconv.Itoa(n.Port()), ":"+strconv.Itoa(port), 1)
	eventually(t, "the pooler is up", func() bool {
		conn, err := pgx.Connect(t.Context(), dsn)
		if err == nil {
			_ = conn.Close(t.Context())
		}
		return err == nil
	})
	return dsn
}

func unprivileged(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		if _, err := user.Lookup(name); err == nil {
			return name
		}
	}
	t.Fatal("there is no user postgres or nobody to run pgbouncer as")
	return ""
}

// With one server process it is the same one that answers always; with several
// it is another one at times.
func TestAPoolerInTransactionModeCannotListen(t *testing.T) {
	c := cluster(t)
	for name, more := range map[string]string{"one process": "default_pool_size = 1", "several": "default_pool_size = 5\nserver_round_robin = 1", "as it comes": ""} {
		t.Run(name, func(t *testing.T) {
			dsn := pooler(t, c.Primary, "transaction", more)
			if name == "several" { // so that there are some
				var used []*pgx.Conn
				for range 4 {
					conn, err := pgx.Connect(t.Context(), dsn)
					must(t, err)
					defer conn.Close(t.Context())
					simply(t, conn, `BEGIN`)
					used = append(used, conn)
				}
				for _, conn := range used {
					simply(t, conn, `COMMIT`)
				}
			}
			l, ended := start(t, quickly(dsn, follow(t, c.Standbys[0].DSN()), pgnotify.Channel{Name: "c", Handler: pgnotify.HandlerFunc(nothing)}))
			err := ends(t, l, ended)
			if !errors.Is(err, pgnotify.ErrCannotListen) || !strings.Contains(err.Error(), "pooler in transaction mode") {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
}

func simply(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	must(t, err)
}

func TestAPoolerInSessionModeWillDo(t *testing.T) {
	c := cluster(t)
	dsn := pooler(t, c.Primary, "session", "")
	book := newLedger(t, c.Primary, c.Standbys[0])
	l := listen(t, quickly(dsn, follow(t, c.Standbys[0].DSN()), book.channel()))
	book.write(c.Primary, 1, 2, 3)
	if got := told(book.heard(3)); got != "1 2 3" {
		t.Errorf("got %s", got)
	}
	eventually(t, "it was probed", func() bool { return l.Stats().Connected })
}
