package replication_test

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// shared is a primary with one standby for the tests that break nothing, started
// when the first of them wants it.
var shared = sync.OnceValues(func() (*replicationtest.Cluster, error) {
	c, err := replicationtest.New(context.Background(), replicationtest.Options{})
	if err != nil {
		return nil, err
	}
	closeShared = c.Close
	return c, c.Primary.Exec(context.Background(), `CREATE TABLE writes (id bigint PRIMARY KEY, v text)`)
})

func TestMain(m *testing.M) {
	m.Run()
	_ = closeShared()
}

var closeShared = func() error { return nil }

var ids atomic.Int64

// newID is a row of writes that is not there yet, however often the tests run. What
// tests add above the highest one stays below the next.
func newID() int64 { return ids.Add(1_000_000) }

func cluster(t *testing.T) *replicationtest.Cluster {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func connect(t *testing.T, n *replicationtest.Node) *pgx.Conn {
	t.Helper()
	return dial(t, n.DSN())
}

func dial(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func value[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func capture(t *testing.T, conn replication.Querier) tracker.Token {
	t.Helper()
	tok, err := replication.Capture(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// poll runs a tracker that polls the server at dsn until the test ends.
func poll(t *testing.T, dsn string, cfg tracker.Config) *tracker.Tracker {
	t.Helper()
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: dsn}, Use: []replication.Kind{replication.Poll}})
	if err != nil {
		t.Fatal(err)
	}
	return track(t, source, cfg)
}

func track(t *testing.T, source tracker.Source, cfg tracker.Config) *tracker.Tracker {
	t.Helper()
	cfg.Source = source
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute) // the machine may be busy
	tr, err := tracker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	t.Cleanup(tr.Close)
	return tr
}

func wait(t *testing.T, tr *tracker.Tracker, tok tracker.Token) {
	t.Helper()
	if err := tr.Wait(t.Context(), tok); err != nil {
		t.Fatal(err)
	}
}

var roles = struct {
	sync.Mutex
	n int
}{}

// role creates a role on c with what attributes and grants say, and returns its
// name and password.
func role(t *testing.T, c *replicationtest.Cluster, attributes string, grants ...string) (name, password string) {
	t.Helper()
	roles.Lock()
	roles.n++
	name, password = fmt.Sprint("role", roles.n), "wachtwoord"
	roles.Unlock()
	conn := connect(t, c.Primary)
	exec(t, conn, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s' %s`, name, password, attributes))
	for _, g := range grants {
		exec(t, conn, fmt.Sprintf(`GRANT %s TO %s`, g, name))
	}
	for _, s := range c.Standbys {
		lsn := capture(t, conn).LSN
		if err := s.WaitForReplay(t.Context(), lsn.String()); err != nil {
			t.Fatal(err)
		}
	}
	return name, password
}
