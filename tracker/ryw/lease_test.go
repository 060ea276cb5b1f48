package ryw_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// cutting loses the answer to COMMIT.
type cutting struct {
	net.Conn
	armed *atomic.Bool
	cut   atomic.Bool
}

func (c *cutting) Write(b []byte) (int, error) {
	if c.armed.Load() && bytes.Contains(bytes.ToLower(b), []byte("commit")) {
		c.cut.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *cutting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut.Load() && err == nil { // it has been answered
		_ = c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// A COMMIT whose answer was lost may have been made: the session may not read behind it.
func TestAWriteWhoseCommitIsUncertainIsNotReadBehind(t *testing.T) {
	c := cluster(t)
	var armed atomic.Bool
	cfg, err := pgxpool.ParseConfig(c.Primary.DSN())
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &cutting{Conn: conn, armed: &armed}, err
	}
	primary, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer primary.Close()
	n := c.Standbys[0]
	r := newRouter(t, ryw.Config{Options: ryw.Options{Budget: 30 * time.Second}, Primary: primary, Replicas: []ryw.Replica{follow(t, "lags", n.DSN(), n.DSN())}})
	ctx := fresh(t)
	if is, err := there(ctx, r, mustWrite(ctx, t, r)); err != nil || !is { // the replica has what the session has seen so far
		t.Fatalf("%v %v", is, err)
	}
	pause(t, n)
	armed.Store(true)
	id, err := write(ctx, r)
	if !errors.Is(err, ryw.ErrUncertain) {
		t.Fatalf("want an uncertain commit, got %v", err)
	}
	armed.Store(false)
	if is, err := there(ctx, r, id); err != nil || !is {
		t.Errorf("after %q the session reads behind it: there %v, %v; OnPrimary %v, %+v", "lost COMMIT", is, err, ryw.FromContext(ctx).OnPrimary(), r.Stats())
	}
}

// A function that leaves its rows open does not hang the read.
func TestRowsLeftOpenDoNotHangARead(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	rep := follow(t, n.Name(), n.DSN(), n.DSN())
	r, err := ryw.NewSQL(ryw.SQLConfig{Primary: openDB(t, c.Primary.DSN()), Replicas: []ryw.SQLReplica{{DB: openDB(t, n.DSN()), Tracker: rep.Tracker}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		_ = r.Read(ctx, func(q ryw.SQLQueries) error {
			rows, err := q.QueryContext(ctx, `SELECT generate_series(1, 3)`) //nolint:sqlclosecheck // what is tested
			if err != nil {
				return err
			}
			rows.Next()
			_ = rows.Err()
			panic("in the middle of the rows")
		})
	}()
	select {
	case p := <-done:
		t.Log("panicked with", p)
	case <-time.After(10 * time.Second):
		t.Error("Read hangs in release: sql.Conn.Close waits for the rows that nobody closes any more")
		cancel()
		t.Log("once ctx ends:", <-done)
	}
}

// A replica of which no connection can be had is left within about the Budget.
func TestAReplicaWithoutAConnectionIsLeft(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	rep := follow(t, n.Name(), n.DSN(), n.DSN("pool_max_conns=1"))
	held, err := rep.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	r := newRouter(t, ryw.Config{Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{rep}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	start := time.Now()
	err = r.Read(ctx, func(q ryw.Queries) error { _, err := q.Exec(ctx, `SELECT 1`); return err })
	if err != nil {
		t.Errorf("after %s with a Budget of 20ms and the primary idle: %v", time.Since(start), err)
	}
}

// What a read has seen is noted also when its function returns an error, such as ErrNoRows.
func TestAReadThatFailsIsMonotonicToo(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{Monotonic: true, Budget: -1})
	lagging, ahead := c.Standbys[0], c.Standbys[1]
	id := mustWrite(t.Context(), t, r)
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	pause(t, lagging)
	err := c.Primary.Exec(t.Context(), `DELETE FROM rows WHERE id = $1`, id)
	if err != nil {
		t.Fatal(err)
	}
	probe := pool(t, ahead.DSN())
	for n := 1; n != 0; {
		if err := probe.QueryRow(t.Context(), `SELECT count(*) FROM rows WHERE id = $1`, id).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	ctx := fresh(t)
	gone := false
	for range 4 {
		err := r.Read(ctx, func(q ryw.Queries) error {
			return q.QueryRow(ctx, `SELECT id FROM rows WHERE id = $1`, id).Scan(new(int64))
		})
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			gone = true
		case err != nil:
			t.Fatal(err)
		case gone:
			t.Fatal("the row was gone for this session, and is there again")
		}
	}
}

// The pool of the primary leads to a standby.
func TestThePrimarysPoolLeadsToAStandby(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	r := newRouter(t, ryw.Config{Primary: pool(t, n.DSN()), Replicas: []ryw.Replica{follow(t, n.Name(), n.DSN(), n.DSN())}})
	s := new(ryw.Session)
	s.RequirePrimary()
	ctx := ryw.NewContext(t.Context(), s)
	if err := r.Read(ctx, func(ryw.Queries) error { return nil }); !errors.Is(err, ryw.ErrNotPrimary) || !s.OnPrimary() {
		t.Errorf("%v, on the primary: %v", err, s.OnPrimary())
	}
}

// said is a source that says one thing, and goes on saying it.
type said struct{ o *tracker.Observation }

func (said) Name() string { return "said" }
func (s said) Observe(ctx context.Context, feed *tracker.Feed) error {
	if s.o != nil {
		feed.Begin().Observe(*s.o)
	}
	<-ctx.Done()
	return ctx.Err()
}

// nowhere is a pool that is never connected.
func nowhere(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return pool(t, "host=127.0.0.1 port=1 user=nobody dbname=nothing connect_timeout=1 sslmode=disable")
}

func saying(t *testing.T, name string, o *tracker.Observation) ryw.Replica {
	t.Helper()
	tr, err := tracker.New(tracker.Config{Source: said{o}, Name: name, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	t.Cleanup(tr.Close)
	if o != nil {
		<-tr.Ready()
	}
	return ryw.Replica{Name: name, Pool: nowhere(t), Tracker: tr}
}

// One replica has left the timeline, the other is only behind: WaitOn must wait for it.
func TestOneReplicaDivergedAndOneBehind(t *testing.T) {
	r := newRouter(t, ryw.Config{Options: ryw.Options{Fallback: ryw.WaitOn}, Primary: nowhere(t), Replicas: []ryw.Replica{
		saying(t, "forked", &tracker.Observation{System: 1, Timeline: 2, LSN: 0x300, History: tracker.History{{Timeline: 1, End: 0x100}}}),
		saying(t, "behind", &tracker.Observation{System: 1, Timeline: 1, LSN: 0x50, History: tracker.History{}}),
	}})
	ctx, cancel := context.WithCancel(ryw.NewContext(t.Context(), ryw.NewSession(tracker.Token{System: 1, Timeline: 1, LSN: 0x200})))
	defer time.AfterFunc(600*time.Millisecond, cancel).Stop()
	start := time.Now()
	// The wait of "behind" is bounded by the Tracker's Timeout, as ctx has no deadline.
	err := r.Read(ctx, func(ryw.Queries) error { return nil })
	t.Logf("after %s: %v", time.Since(start), err)
	if ctx.Err() == nil {
		t.Errorf("WaitOn gave up with a lost write, though a replica is only behind: %v", err)
	}
}

// No replicas: everything is read from the primary, whatever the Fallback.
func TestWithoutReplicasThePrimaryIsRead(t *testing.T) {
	c := cluster(t)
	for _, f := range []ryw.Fallback{ryw.Refuse, ryw.WaitOn} {
		r := newRouter(t, ryw.Config{Options: ryw.Options{Fallback: f}, Primary: pool(t, c.Primary.DSN())})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := r.Read(ctx, func(q ryw.Queries) error { _, err := q.Exec(ctx, `SELECT 1`); return err })
		cancel()
		if err != nil {
			t.Errorf("fallback %d: %v", f, err)
		}
	}
}

// The error of a context that has ended wraps it.
func TestAReadThatIsCanceledSaysSo(t *testing.T) {
	r := newRouter(t, ryw.Config{Primary: nowhere(t), Replicas: []ryw.Replica{saying(t, "unknown", nil)}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := r.Read(ctx, func(ryw.Queries) error { return nil })
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "%!") {
		t.Errorf("%v", err)
	}
}
