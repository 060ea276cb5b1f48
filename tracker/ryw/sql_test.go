package ryw_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

func openDB(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestTheSameOverDatabaseSQL(t *testing.T) {
	c := cluster(t)
	cfg := ryw.SQLConfig{Options: ryw.Options{Budget: 30 * time.Second, Monotonic: true, Repeat: true}, Primary: openDB(t, c.Primary.DSN())}
	for _, n := range c.Standbys {
		r := follow(t, n.Name(), n.DSN(), n.DSN())
		cfg.Replicas = append(cfg.Replicas, ryw.SQLReplica{Name: r.Name, DB: openDB(t, n.DSN()), Tracker: r.Tracker})
	}
	r, err := ryw.NewSQL(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := new(ryw.Session)
	ctx := ryw.NewContext(t.Context(), s)
	insert := func() int64 {
		t.Helper()
		id := ids.Add(1)
		tok, err := r.Write(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO rows VALUES ($1)`, id)
			return err
		})
		if err != nil || s.Token() != tok {
			t.Fatalf("%v, %v, the session has %v", tok, err, s.Token())
		}
		return id
	}
	has := func(id int64) bool {
		t.Helper()
		var is bool
		err := r.Read(ctx, func(q ryw.SQLQueries) error {
			return q.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM rows WHERE id = $1)`, id).Scan(&is)
		})
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	for range 50 {
		if id := insert(); !has(id) {
			t.Fatalf("row %d is not there", id)
		}
	}
	st := r.Stats()
	if st.Primary != 0 || st.Replicas[0].Strange+st.Replicas[1].Strange != 0 || st.Replicas[0].Reads+st.Replicas[1].Reads != 50 {
		t.Errorf("%+v", st)
	}

	broken := errors.New("broken")
	before := s.Token()
	tok, err := r.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO rows VALUES (-3)`)
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) || tok != (tracker.Token{}) || s.Token() != before || has(-3) {
		t.Errorf("a write that fails: %v, %v", tok, err)
	}
	err = r.Read(ctx, func(q ryw.SQLQueries) error {
		_, err := q.ExecContext(ctx, `INSERT INTO rows VALUES (-4)`)
		return err
	})
	if err == nil {
		t.Error("a replica lets write")
	}

	for _, n := range c.Standbys {
		if err := n.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Budget = -1
	if r, err = ryw.NewSQL(cfg); err != nil {
		t.Fatal(err)
	}
	if id := insert(); !has(id) || r.Stats().Primary != 1 {
		t.Errorf("both lag: %+v", r.Stats())
	}
}
