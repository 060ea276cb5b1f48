package ryw

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// ReadDB returns a *sql.DB of which each statement, transaction and *sql.Conn reads
// from a server that has what the Session in its own context has seen, as Read does:
// for GORM, ent and whatever else wants one. It takes its connections from the
// Router's pools and keeps none: limit those, not the *sql.DB (SetMaxOpenConns), whose
// Close leaves them open. Who keeps a *sql.Tx or *sql.Conn and writes meanwhile gets
// driver.ErrBadConn or sql.ErrConnDone from it where the replica does not have the
// write yet; a transaction of isolation level REPEATABLE READ goes on to show what it
// showed. A replica refuses to write. Nothing is repeated.
func (r *Router) ReadDB() *sql.DB {
	c := *r.core
	c.primary = takenStd(r.primary)
	c.replicas = nil
	for i, rep := range r.core.replicas {
		std := *rep // with the same counts
		pool := r.replicas[i]
		std.take = soon(takenStd(pool), func() bool { return pool.Stat().IdleConns() > 0 })
		c.replicas = append(c.replicas, &std)
	}
	db := sql.OpenDB(readConnector{&c})
	db.SetMaxIdleConns(0)
	return db
}

// Wrote has the Session in ctx go on to all that is committed on the primary, and
// returns a token for it: for what was written in another way than by Write, as
// through GORM. It takes a round trip or two; for errors see ErrNoToken.
func (r *Router) Wrote(ctx context.Context) (tracker.Token, error) {
	conn, err := r.primary.Acquire(ctx)
	if err != nil {
		if s := FromContext(ctx); s != nil {
			s.RequirePrimary()
		}
		return tracker.Token{}, fmt.Errorf("%w: %w", ErrNoToken, err)
	}
	defer conn.Release()
	return noted(ctx, func() (tracker.Token, error) { return replication.Capture(ctx, conn) })
}

// readConnector leads each connection where its context's session can be read.
type readConnector struct{ core *core }

// Driver implements driver.Connector.
func (c readConnector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// Connect implements driver.Connector.
func (c readConnector) Connect(ctx context.Context) (driver.Conn, error) {
	var tried []*replica
	l, err := c.core.lease(ctx, FromContext(ctx), &tried)
	if err != nil {
		return nil, err
	}
	return &readConn{l.link.(*pgxLink).std, l}, nil //nolint:forcetypeassert // made by takenStd
}

// readConn is a connection of a ReadDB. What pgx's driver can do it can too; Raw finds
// a *pgx.Conn by its method Conn.
type readConn struct {
	*stdlib.Conn
	lease lease
}

// Close gives the connection back to its pool. Where reads are monotonic the
// session first goes on to what was read.
func (c *readConn) Close() error {
	c.lease.note(context.Background())
	c.lease.release()
	return nil
}

// IsValid implements driver.Validator: none is kept, whatever SetMaxIdleConns says.
func (c *readConn) IsValid() bool { return false }

// Ping implements driver.Pinger. The driver's own gives the connection back to its
// pool when it fails, and database/sql closes it then, once more.
func (c *readConn) Ping(ctx context.Context) error {
	if c.lease.ping(ctx) != nil {
		return driver.ErrBadConn
	}
	return nil
}

// shows reports with driver.ErrBadConn that the connection may not be read over for
// ctx's session: database/sql then takes another. It may have been opened for
// somebody else, or the session has written since.
func (c *readConn) shows(ctx context.Context) error {
	l, s := &c.lease, FromContext(ctx)
	switch {
	case s == nil:
		return nil
	case l.session == nil && l.from != nil: // database/sql opened it for whoever comes
		l.session = s
	case s != l.session:
		return driver.ErrBadConn
	}
	switch {
	case l.from == nil:
		return nil
	case s.OnPrimary():
		return driver.ErrBadConn
	}
	tok := needed(s)
	if tok == l.token {
		return nil
	}
	if ok, err := l.from.vouched(ctx, l.link, tok); err != nil || !ok {
		return driver.ErrBadConn
	}
	l.token = tok
	return nil
}

// QueryContext implements driver.QueryerContext.
func (c *readConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.shows(ctx); err != nil {
		return nil, err
	}
	return c.Conn.QueryContext(ctx, query, args)
}

// ExecContext implements driver.ExecerContext.
func (c *readConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.shows(ctx); err != nil {
		return nil, err
	}
	return c.Conn.ExecContext(ctx, query, args)
}

// PrepareContext implements driver.ConnPrepareContext.
func (c *readConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.shows(ctx); err != nil {
		return nil, err
	}
	stmt, err := c.Conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return readStmt{stmt.(*stdlib.Stmt), c}, nil //nolint:forcetypeassert // what the driver makes
}

// BeginTx implements driver.ConnBeginTx.
func (c *readConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.shows(ctx); err != nil {
		return nil, err
	}
	return c.Conn.BeginTx(ctx, opts)
}

// readStmt is a statement of a readConn.
type readStmt struct {
	*stdlib.Stmt
	conn *readConn
}

// QueryContext implements driver.StmtQueryContext.
func (s readStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.conn.shows(ctx); err != nil {
		return nil, err
	}
	return s.Stmt.QueryContext(ctx, args)
}

// ExecContext implements driver.StmtExecContext.
func (s readStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.conn.shows(ctx); err != nil {
		return nil, err
	}
	return s.Stmt.ExecContext(ctx, args)
}

// takenStd takes connections out of pool as pgx's driver for database/sql has them.
func takenStd(pool *pgxpool.Pool) take {
	connector := stdlib.GetPoolConnector(pool)
	return func(ctx context.Context) (link, error) {
		c, err := connector.Connect(ctx)
		if err != nil {
			return nil, err
		}
		std := c.(*stdlib.Conn) //nolint:forcetypeassert // what the connector makes
		return &pgxLink{Conn: std.Conn(), std: std}, nil
	}
}
