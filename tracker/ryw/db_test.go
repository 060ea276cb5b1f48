package ryw_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker/ryw"
)

// rower is what *sql.DB, *sql.Conn, *sql.Tx have.
type rower interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func thereIn(ctx context.Context, db rower, id int64) (is bool, err error) {
	return is, db.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM rows WHERE id = $1)`, id).Scan(&is)
}

func mustWrite(ctx context.Context, t *testing.T, r *ryw.Router) int64 {
	t.Helper()
	id, err := write(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func pause(t *testing.T, nodes ...*replicationtest.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := n.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Resume(context.Background()) })
	}
}

func TestReadDBShowsTheSessionsWrites(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{Budget: 30 * time.Second, Fallback: ryw.Refuse})
	db := r.ReadDB()
	defer db.Close()
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			ctx := fresh(t)
			for range 30 {
				id, err := write(ctx, r)
				if err != nil {
					t.Error(err)
					return
				}
				if is, err := thereIn(ctx, db, id); err != nil || !is {
					t.Errorf("row %d: %v %v", id, is, err)
					return
				}
			}
		})
	}
	users.Wait()
	s := r.Stats()
	for _, rep := range s.Replicas {
		if rep.Reads == 0 || rep.Reading != 0 || rep.Strange != 0 {
			t.Errorf("%+v", rep)
		}
	}
	if n := db.Stats().OpenConnections; n != 0 {
		t.Errorf("it keeps %d connections", n)
	}
	_, err := db.ExecContext(t.Context(), `INSERT INTO rows VALUES (-1)`)
	if e, is := errors.AsType[*pgconn.PgError](err); !is || e.Code != "25006" {
		t.Errorf("a write in ReadDB: %v", err)
	}
}

// What is kept of a replica while the session writes does not show an older state.
func TestWhatIsKeptOfAReadDBIsNotStale(t *testing.T) {
	c := cluster(t)
	for name, keep := range map[string]func(context.Context, *sql.DB) (read func(context.Context, int64) (bool, error), done func() error, err error){
		"connection": func(ctx context.Context, db *sql.DB) (func(context.Context, int64) (bool, error), func() error, error) {
			conn, err := db.Conn(ctx)
			if err != nil {
				return nil, nil, err
			}
			return func(ctx context.Context, id int64) (bool, error) { return thereIn(ctx, conn, id) }, conn.Close, nil
		},
		"transaction": func(ctx context.Context, db *sql.DB) (func(context.Context, int64) (bool, error), func() error, error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return nil, nil, err
			}
			return func(ctx context.Context, id int64) (bool, error) { return thereIn(ctx, tx, id) }, tx.Rollback, nil
		},
		"statement of a connection": func(ctx context.Context, db *sql.DB) (func(context.Context, int64) (bool, error), func() error, error) {
			conn, err := db.Conn(ctx)
			if err != nil {
				return nil, nil, err
			}
			stmt, err := conn.PrepareContext(ctx, `SELECT EXISTS (SELECT FROM rows WHERE id = $1)`)
			if err != nil {
				return nil, nil, errors.Join(err, conn.Close())
			}
			return func(ctx context.Context, id int64) (is bool, err error) {
				return is, stmt.QueryRowContext(ctx, id).Scan(&is)
			}, func() error { return errors.Join(stmt.Close(), conn.Close()) }, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := router(t, c, ryw.Options{Budget: 30 * time.Second, Fallback: ryw.Refuse})
			ctx := fresh(t)
			first := mustWrite(ctx, t, r)
			db := r.ReadDB()
			defer db.Close()
			read, done, err := keep(ctx, db)
			if err != nil {
				t.Fatal(err)
			}
			if is, err := read(ctx, first); err != nil || !is {
				t.Fatalf("%v %v", is, err)
			}
			pause(t, c.Standbys...)
			second := mustWrite(ctx, t, r)
			if is, err := read(ctx, second); !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, sql.ErrConnDone) {
				t.Errorf("read what the replica does not have: %v %v", is, err)
			}
			if err := done(); err != nil && !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, sql.ErrConnDone) && !errors.Is(err, sql.ErrTxDone) {
				t.Error(err)
			}
			for _, rep := range r.Stats().Replicas {
				if rep.Reading != 0 {
					t.Errorf("%+v", rep)
				}
			}
		})
	}
}

// A limit on the *sql.DB has connections opened for nobody, and handed on.
func TestALimitedReadDBIsNotStale(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{})
	db := r.ReadDB()
	defer db.Close()
	db.SetMaxOpenConns(1)
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			ctx := fresh(t)
			for range 50 {
				id, err := write(ctx, r)
				if err != nil {
					t.Error(err)
					return
				}
				switch is, err := thereIn(ctx, db, id); {
				case errors.Is(err, driver.ErrBadConn): // refused, not stale
				case err != nil, !is:
					t.Errorf("row %d: %v %v", id, is, err)
				}
			}
		})
	}
	users.Wait()
}

func TestReadDBIsMonotonic(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{Monotonic: true})
	db := r.ReadDB()
	defer db.Close()
	doNotGoBack(t, c, r, func(ctx context.Context) (last int64, err error) {
		return last, db.QueryRowContext(ctx, lastRow).Scan(&last)
	})
}

// A write that the Router did not make.
func TestWroteCoversWhatOthersCommitted(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{Budget: 30 * time.Second, Fallback: ryw.Refuse})
	ctx := fresh(t)
	for range 30 {
		id := ids.Add(1)
		if err := c.Primary.Exec(ctx, `INSERT INTO rows VALUES ($1)`, id); err != nil {
			t.Fatal(err)
		}
		tok, err := r.Wrote(ctx)
		if err != nil || ryw.FromContext(ctx).Token() != tok {
			t.Fatalf("%v, %v, the session has %v", tok, err, ryw.FromContext(ctx).Token())
		}
		if is, err := there(ctx, r, id); err != nil || !is {
			t.Fatalf("%v %v", is, err)
		}
	}
	if s := r.Stats(); s.Primary != 0 {
		t.Errorf("%+v", s)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.Wrote(ended); !errors.Is(err, ryw.ErrNoToken) || !ryw.FromContext(ctx).OnPrimary() {
		t.Errorf("%v, on the primary: %v", err, ryw.FromContext(ctx).OnPrimary())
	}
}
