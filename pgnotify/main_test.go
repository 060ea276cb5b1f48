package pgnotify_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// shared is a primary with one standby for the tests that break nothing.
var shared = sync.OnceValues(func() (*replicationtest.Cluster, error) {
	c, err := replicationtest.New(context.Background(), replicationtest.Options{})
	if err != nil {
		return nil, err
	}
	toClose = c
	return c, c.Primary.Exec(context.Background(), `CREATE TABLE rows (id bigint PRIMARY KEY, v text)`)
})

var toClose *replicationtest.Cluster

func TestMain(m *testing.M) {
	code := m.Run()
	if toClose != nil {
		if err := toClose.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func cluster(t *testing.T) *replicationtest.Cluster {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func connect(t testing.TB, n *replicationtest.Node) *pgx.Conn {
	t.Helper()
	conn, err := n.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// follow runs a tracker of a node until the test ends.
func follow(t testing.TB, dsn string) *tracker.Tracker {
	t.Helper()
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: dsn}})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(context.Background()) })
	t.Cleanup(func() { tr.Close(); running.Wait() })
	return tr
}

// listen runs a Listener until the test ends, and returns it when it is ready.
func listen(t testing.TB, cfg pgnotify.Config) *pgnotify.Listener {
	t.Helper()
	l, ended := start(t, cfg)
	select {
	case <-l.Ready():
	case err := <-ended:
		t.Fatalf("the listener has ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatalf("not ready: %+v", l.Stats())
	}
	return l
}

// start runs a Listener until the test ends; ended gets what it ends with.
func start(t testing.TB, cfg pgnotify.Config) (l *pgnotify.Listener, ended <-chan error) {
	t.Helper()
	l, err := pgnotify.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	end, over := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(over)
		end <- l.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-over })
	return l, end
}

// events is a handler that passes events on.
type events chan pgnotify.Event

func (c events) Handle(ctx context.Context, e pgnotify.Event) error {
	select {
	case c <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c events) next(t *testing.T) pgnotify.Event {
	t.Helper()
	select {
	case e := <-c:
		return e
	case <-time.After(30 * time.Second):
		t.Fatal("no event")
		return nil
	}
}
