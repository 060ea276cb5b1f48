package ryw_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/tracker/ryw"
)

// unheld counts queries over a pool of which nobody holds a connection.
type unheld struct {
	pool  atomic.Pointer[pgxpool.Pool]
	times atomic.Int64
}

func (u *unheld) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if p := u.pool.Load(); p != nil && p.Stat().AcquiredConns() == 0 {
		u.times.Add(1)
	}
	return ctx
}
func (*unheld) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A connection is not asked any more once Ping has given it back.
func TestAPingThatFailsDoesNotGiveBackTwice(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	rep := follow(t, n.Name(), n.DSN(), n.DSN())
	cfg := rep.Pool.Config()
	var u unheld
	cfg.ConnConfig.Tracer = &u
	traced, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer traced.Close()
	rep.Pool = traced
	r := newRouter(t, ryw.Config{Options: ryw.Options{Monotonic: true}, Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{rep}})
	db := r.ReadDB()
	defer db.Close()
	conn, err := db.Conn(fresh(t))
	if err != nil {
		t.Fatal(err)
	}
	u.pool.Store(traced)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = conn.PingContext(ended)
	_ = conn.Close()
	if n := u.times.Load(); n > 0 {
		t.Errorf("%d queries over a connection that was in the pool again, where others may use it", n)
	}
}

// Rows of which some were read before ctx ended.
func TestRowsThatWereReadBeforeTheEndAreNoted(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	r := newRouter(t, ryw.Config{Options: ryw.Options{Monotonic: true}, Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{follow(t, n.Name(), n.DSN(), n.DSN())}})
	db := r.ReadDB()
	defer db.Close()
	s := new(ryw.Session)
	ctx, cancel := context.WithCancel(ryw.NewContext(t.Context(), s))
	defer cancel()
	rows, err := db.QueryContext(ctx, `SELECT id FROM (SELECT generate_series(1, 10000000) id) x`)
	if err != nil {
		t.Fatal(err)
	}
	if !rows.Next() {
		t.Fatal(rows.Err())
	}
	cancel()
	_ = rows.Close() //nolint:sqlclosecheck // that it notes what was read is what is tested
	for db.Stats().OpenConnections > 0 {
		time.Sleep(time.Millisecond)
	}
	if s.Token().IsZero() && !s.OnPrimary() {
		t.Error("a row was read, and the session knows nothing of it")
	}
}

// Who sets SetMaxIdleConns, as many do by habit.
func TestReadDBKeepsNothingWhateverItsLimits(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	rep := follow(t, n.Name(), n.DSN(), n.DSN())
	r := newRouter(t, ryw.Config{Options: ryw.Options{Monotonic: true, Budget: 30 * time.Second, Fallback: ryw.Refuse}, Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{rep}})
	db := r.ReadDB()
	defer db.Close()
	db.SetMaxIdleConns(2)
	s := new(ryw.Session)
	ctx := ryw.NewContext(t.Context(), s)
	if _, err := thereIn(ctx, db, -1); err != nil {
		t.Fatal(err)
	}
	if s.Token().IsZero() || rep.Pool.Stat().AcquiredConns() != 0 {
		t.Errorf("the session has %v, %d connections are kept from the pool, Reading %d", s.Token(), rep.Pool.Stat().AcquiredConns(), r.Stats().Replicas[0].Reading)
	}
}
