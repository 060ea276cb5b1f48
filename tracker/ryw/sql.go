package ryw

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// SQLConfig is Config for package database/sql.
type SQLConfig struct {
	Options

	Primary  *sql.DB
	Replicas []SQLReplica
}

// SQLReplica is Replica for package database/sql. What a connection leads to is
// remembered with pgx's driver (package stdlib of pgx); with another one each read
// takes two round trips more.
type SQLReplica struct {
	Name    string
	DB      *sql.DB
	Tracker *tracker.Tracker
}

// SQLRouter is Router for package database/sql, and what is built on it.
type SQLRouter struct {
	core    *core
	primary *sql.DB
}

// NewSQL returns an SQLRouter. It does no I/O; an error names the field that is
// wrong.
func NewSQL(cfg SQLConfig) (*SQLRouter, error) {
	if cfg.Primary == nil {
		return nil, errors.New("ryw: SQLConfig.Primary is nil: it is where to write")
	}
	var replicas []*replica
	for i, r := range cfg.Replicas {
		switch r.DB {
		case nil:
			return nil, fmt.Errorf("ryw: SQLConfig.Replicas[%d].DB is nil", i)
		case cfg.Primary:
			return nil, fmt.Errorf("ryw: SQLConfig.Replicas[%d].DB is that of the primary: open another one, its connections are made read-only", i)
		}
		replicas = append(replicas, &replica{name: r.Name, tracker: r.Tracker, take: soon(takenSQL(r.DB), func() bool { return r.DB.Stats().Idle > 0 })})
	}
	c, err := newCore(cfg.Options, takenSQL(cfg.Primary), replicas)
	if err != nil {
		return nil, err
	}
	return &SQLRouter{c, cfg.Primary}, nil
}

// SQLQueries is Queries for package database/sql: what sqlc's DBTX has. It is one
// connection as well.
type SQLQueries interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Write is Router.Write.
func (r *SQLRouter) Write(ctx context.Context, f func(tx *sql.Tx) error) (tracker.Token, error) {
	conn, err := r.primary.Conn(ctx)
	if err != nil {
		return tracker.Token{}, err
	}
	defer conn.Close()
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return tracker.Token{}, err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	if err := f(tx); err != nil {
		return tracker.Token{}, err
	}
	if err := tx.Commit(); err != nil {
		return tracker.Token{}, failed(ctx, err, true)
	}
	return noted(ctx, func() (tracker.Token, error) { return replication.CaptureSQL(ctx, conn) })
}

// Read is Router.Read.
func (r *SQLRouter) Read(ctx context.Context, f func(q SQLQueries) error) error {
	return r.core.read(ctx, func(l link) error { return f(l.(*sqlLink)) }) //nolint:forcetypeassert // made by takenSQL
}

// Stats returns what was read from where.
func (r *SQLRouter) Stats() Stats { return r.core.stats() }

func takenSQL(db *sql.DB) take {
	return func(ctx context.Context) (link, error) {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		l := &sqlLink{Conn: conn}
		l.over, l.end = context.WithCancel(context.Background())
		return l, nil
	}
}

type sqlLink struct {
	*sql.Conn
	over     context.Context //nolint:containedctx // ends with the link
	end      func()
	prepared bool
}

// until is ctx until l is released: Close waits for rows that were left open.
func (l *sqlLink) until(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(l.over, cancel)
	return ctx
}

// QueryContext is that of the Conn, until l is released.
func (l *sqlLink) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return l.Conn.QueryContext(l.until(ctx), query, args...)
}

// QueryRowContext is that of the Conn, until l is released.
func (l *sqlLink) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return l.Conn.QueryRowContext(l.until(ctx), query, args...)
}

// PrepareContext is that of the Conn.
func (l *sqlLink) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	l.prepared = true
	return l.Conn.PrepareContext(ctx, query)
}

func (l *sqlLink) release() {
	l.end()
	if l.prepared { // whose rows may have been left open for as long as their own context lasts
		go l.Close()
		return
	}
	_ = l.Close() // a connection that is gone is no loss
}

func (l *sqlLink) ping(ctx context.Context) error { return l.PingContext(ctx) }

func (l *sqlLink) query(ctx context.Context, sql string, dest ...any) error {
	return l.QueryRowContext(ctx, sql).Scan(dest...)
}

func (l *sqlLink) exec(ctx context.Context, sql string) error {
	_, err := l.ExecContext(ctx, sql)
	return err
}

func (l *sqlLink) met(ctx context.Context, p replication.Peer) (bool, error) { return p.MetSQL(ctx, l) }

func (l *sqlLink) seen(ctx context.Context) (tracker.Token, error) {
	return replication.SeenSQL(ctx, l)
}

func (l *sqlLink) pid() (pid uint32) {
	l.raw(func(conn *pgconn.PgConn) { pid = conn.PID() })
	return pid
}

func (l *sqlLink) mark() (m *mark) {
	l.raw(func(conn *pgconn.PgConn) { m = markOf(conn) })
	return m
}

// raw calls f where the driver is pgx's, and the connection is there.
func (l *sqlLink) raw(f func(*pgconn.PgConn)) {
	_ = l.Raw(func(driver any) error {
		if c, is := driver.(*stdlib.Conn); is {
			f(c.Conn().PgConn())
		}
		return nil
	})
}

func (l *sqlLink) lost() (is bool) {
	err := l.Raw(func(driver any) error {
		if c, pgx := driver.(*stdlib.Conn); pgx {
			is = c.Conn().IsClosed()
		}
		return nil
	})
	return is || err != nil
}
