package ryw_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// What libraries ask of a connection, as their documentation has it.
type (
	// sqlc, with sql_package: pgx/v5.
	sqlcDBTX interface {
		Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
		Query(context.Context, string, ...any) (pgx.Rows, error)
		QueryRow(context.Context, string, ...any) pgx.Row
	}
	// sqlc with queries that are :batchexec, :batchmany or :batchone.
	sqlcBatchDBTX interface {
		sqlcDBTX
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	}
	// sqlc, with sql_package: database/sql.
	sqlcSQLDBTX interface {
		ExecContext(context.Context, string, ...any) (sql.Result, error)
		PrepareContext(context.Context, string) (*sql.Stmt, error)
		QueryContext(context.Context, string, ...any) (*sql.Rows, error)
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}
	// pgxscan of scany.
	pgxscanQuerier interface {
		Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
	}
	// GORM.
	gormConnPool interface {
		PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
		ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
		QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	}
	// Package dialect/sql of ent.
	entExecQuerier interface {
		ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
		QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	}
)

// A read's Queries and a write's transaction are all of it.
var (
	_ sqlcBatchDBTX  = ryw.Queries(nil)
	_ sqlcBatchDBTX  = pgx.Tx(nil)
	_ pgxscanQuerier = ryw.Queries(nil)
	_ pgxscanQuerier = pgx.Tx(nil)
	_ sqlcSQLDBTX    = ryw.SQLQueries(nil)
	_ sqlcSQLDBTX    = (*sql.Tx)(nil)
	_ gormConnPool   = ryw.SQLQueries(nil)
	_ gormConnPool   = (*sql.Tx)(nil)
	_ entExecQuerier = ryw.SQLQueries(nil)
	_ entExecQuerier = (*sql.Tx)(nil)
)

type note struct {
	ID   int64
	Text string
}

const (
	addNote   = `INSERT INTO notes (text) VALUES ($1)`
	listNotes = `SELECT id, text FROM notes ORDER BY id`
)

// notesPgx is what sqlc makes of these two for pgx.
type notesPgx struct{ db sqlcDBTX }

func newNotesPgx(db sqlcDBTX) *notesPgx { return &notesPgx{db} }

func (q *notesPgx) AddNote(ctx context.Context, text string) error {
	_, err := q.db.Exec(ctx, addNote, text)
	return err
}

func (q *notesPgx) ListNotes(ctx context.Context) ([]note, error) {
	rows, err := q.db.Query(ctx, listNotes)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var items []note
	for rows.Next() {
		var i note
		if err := rows.Scan(&i.ID, &i.Text); err != nil {
			return nil, err
		}
		items = append(items, i)
	}
	return items, rows.Err()
}

// notesSQL is what sqlc makes of them for database/sql.
type notesSQL struct{ db sqlcSQLDBTX }

func newNotesSQL(db sqlcSQLDBTX) *notesSQL { return &notesSQL{db} }

func (q *notesSQL) AddNote(ctx context.Context, text string) error {
	_, err := q.db.ExecContext(ctx, addNote, text)
	return err
}

func (q *notesSQL) ListNotes(ctx context.Context) ([]note, error) {
	rows, err := q.db.QueryContext(ctx, listNotes)
	if err != nil {
		return nil, err
	}
	return scanNotes(rows)
}

func scanNotes(rows *sql.Rows) (notes []note, err error) {
	defer rows.Close()
	for rows.Next() {
		var n note
		if err := rows.Scan(&n.ID, &n.Text); err != nil {
			return nil, err
		}
		notes = append(notes, n)
	}
	return notes, rows.Err()
}

// selectNotes scans as pgxscan.Select does.
func selectNotes(ctx context.Context, db pgxscanQuerier, text string) ([]note, error) {
	rows, err := db.Query(ctx, `SELECT id, text FROM notes WHERE text = $1`, text)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[note])
}

// findNotes asks in all the ways in which GORM does.
func findNotes(ctx context.Context, pool gormConnPool) ([]note, error) {
	stmt, err := pool.PrepareContext(ctx, listNotes) // GORM does it with PrepareStmt
	if err != nil {
		return nil, err
	}
	defer stmt.Close()
	var n int
	if err := pool.QueryRowContext(ctx, `SELECT count(*) FROM notes`).Scan(&n); err != nil {
		return nil, err
	}
	rows, err := stmt.QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	notes, err := scanNotes(rows)
	if err == nil && len(notes) != n {
		err = fmt.Errorf("%d notes, and %d were counted", len(notes), n)
	}
	return notes, err
}

// allNotes asks as ent does.
func allNotes(ctx context.Context, db entExecQuerier) ([]note, error) {
	rows, err := db.QueryContext(ctx, listNotes)
	if err != nil {
		return nil, err
	}
	return scanNotes(rows)
}

// habits is the primary and one replica of the tests' cluster, with no notes yet. What
// cannot be read from the replica is not read at all.
type habits struct {
	cfg       ryw.Config
	primaryDB *sql.DB
	replicaDB *sql.DB
	running   sync.WaitGroup
}

func newHabits() *habits {
	c, err := shared()
	must(err)
	ctx := context.Background()
	n := c.Standbys[0]
	must(n.Resume(ctx))
	must(c.Primary.Exec(ctx, `DROP TABLE IF EXISTS notes; CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text)`))
	must(c.WaitForReplay(ctx))
	var h habits
	rep := ryw.Replica{Name: n.Name()}
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: n.DSN()}})
	must(err)
	rep.Tracker, err = tracker.New(tracker.Config{Source: source, Name: rep.Name})
	must(err)
	h.running.Go(func() { _ = rep.Tracker.Run(ctx) })
	<-rep.Tracker.Ready()
	rep.Pool, err = pgxpool.New(ctx, n.DSN())
	must(err)
	h.cfg.Primary, err = pgxpool.New(ctx, c.Primary.DSN())
	must(err)
	h.cfg.Replicas = []ryw.Replica{rep}
	h.cfg.Options = ryw.Options{Fallback: ryw.WaitOn}
	h.primaryDB, err = sql.Open("pgx", c.Primary.DSN())
	must(err)
	h.replicaDB, err = sql.Open("pgx", n.DSN())
	must(err)
	return &h
}

func (h *habits) close() {
	h.cfg.Replicas[0].Tracker.Close()
	h.running.Wait()
	h.cfg.Replicas[0].Pool.Close()
	h.cfg.Primary.Close()
	_ = h.primaryDB.Close()
	_ = h.replicaDB.Close()
}

// pgx returns a router and the context of a request.
func (h *habits) pgx() (*ryw.Router, context.Context) {
	r, err := ryw.New(h.cfg)
	must(err)
	return r, ryw.NewContext(context.Background(), new(ryw.Session))
}

// sql is pgx for package database/sql.
func (h *habits) sql() (*ryw.SQLRouter, context.Context) {
	rep := h.cfg.Replicas[0]
	r, err := ryw.NewSQL(ryw.SQLConfig{
		Options: h.cfg.Options, Primary: h.primaryDB,
		Replicas: []ryw.SQLReplica{{Name: rep.Name, DB: h.replicaDB, Tracker: rep.Tracker}},
	})
	must(err)
	return r, ryw.NewContext(context.Background(), new(ryw.Session))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
