package ryw

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// Config configures a Router. It is copied by New.
type Config struct {
	Options

	// Primary is where to write.
	Primary *pgxpool.Pool

	// Replicas are what to read from; none: everything is read from the primary.
	Replicas []Replica
}

// Replica is a server to read from.
type Replica struct {
	// Name is the replica's in Stats. Empty means its place in Config.Replicas.
	Name string

	// Pool leads to the replica. Its connections are made read-only and shown to lead
	// to the server that Tracker follows, which takes three round trips when a connection
	// is first read over; over one that leads to another server, each read takes two
	// more. Behind a pooler, such as PgBouncer, each read takes one more, since the next
	// statement may go to another server process, and nothing is made read-only: name
	// one server there, or the question may go to another one than the read. Its role is that of the Tracker's source, or has pg_read_all_stats: with
	// another one nobody can tell where it leads, and sessions are not read from it.
	Pool *pgxpool.Pool

	// Tracker follows the replica. Whoever made it runs it. Its source is one of package
	// replication: with another, that does not tell which server process positions come
	// from, each connection is asked for each read.
	Tracker *tracker.Tracker
}

// Router sends writes to the primary, and reads to a server that has what their
// Session has seen. Its methods may be called by any number of goroutines.
type Router struct {
	core     *core
	primary  *pgxpool.Pool
	replicas []*pgxpool.Pool
}

// New returns a Router. It does no I/O; an error names the field that is wrong.
func New(cfg Config) (*Router, error) {
	if cfg.Primary == nil {
		return nil, errors.New("ryw: Config.Primary is nil: it is where to write")
	}
	var replicas []*replica
	var pools []*pgxpool.Pool
	for i, r := range cfg.Replicas {
		switch r.Pool {
		case nil:
			return nil, fmt.Errorf("ryw: Config.Replicas[%d].Pool is nil", i)
		case cfg.Primary:
			return nil, fmt.Errorf("ryw: Config.Replicas[%d].Pool is that of the primary: make another one, its connections are made read-only", i)
		}
		replicas = append(replicas, &replica{name: r.Name, tracker: r.Tracker, take: soon(taken(r.Pool), func() bool { return r.Pool.Stat().IdleConns() > 0 })})
		pools = append(pools, r.Pool)
	}
	c, err := newCore(cfg.Options, taken(cfg.Primary), replicas)
	if err != nil {
		return nil, err
	}
	return &Router{c, cfg.Primary, pools}, nil
}

// Queries is what a read may call: what sqlc's DBTX has. It is one connection: all
// rows of a query have to be read, or closed, before the next one. It must not be used
// once the read's function has returned.
type Queries interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) // refused by a replica
}

// ErrNoToken is of a write that was committed and whose token could not be had:
// it is not to be written again. The Session in ctx reads from the primary then.
var ErrNoToken = errors.New("ryw: the write was committed, but its token is not known")

// ErrUncertain is of a write whose COMMIT was sent and whose answer did not come: it
// may have been committed. The Session in ctx reads from the primary then.
var ErrUncertain = errors.New("ryw: the connection failed during COMMIT: the write may have been committed")

// failed is err of a write, whose COMMIT was sent when committing is set.
func failed(ctx context.Context, err error, committing bool) error {
	e, answered := errors.AsType[*pgconn.PgError](err)
	// What ends the connection may have come after the commit, as in a wait for
	// synchronous standbys (src/backend/replication/syncrep.c).
	if !committing || answered && e.SeverityUnlocalized == "ERROR" || errors.Is(err, pgx.ErrTxCommitRollback) {
		return err
	}
	if s := FromContext(ctx); s != nil {
		s.RequirePrimary()
	}
	return fmt.Errorf("%w: %w", ErrUncertain, err)
}

// Write runs f in a transaction on the primary, commits, and returns a token for
// it, which the Session in ctx goes on to. It is rolled back when f returns an
// error or panics. An error that is neither ErrNoToken nor ErrUncertain says that it
// was not committed.
func (r *Router) Write(ctx context.Context, f func(tx pgx.Tx) error) (tracker.Token, error) {
	conn, err := r.primary.Acquire(ctx)
	if err != nil {
		return tracker.Token{}, err
	}
	defer conn.Release()
	committing := false
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		err := f(tx)
		committing = err == nil
		return err
	})
	if err != nil {
		return tracker.Token{}, failed(ctx, err, committing)
	}
	// Over the same connection: after a failover another one may lead elsewhere.
	return noted(ctx, func() (tracker.Token, error) { return replication.Capture(ctx, conn) })
}

// noted has the Session in ctx go on to what was just committed.
func noted(ctx context.Context, capture func() (tracker.Token, error)) (tracker.Token, error) {
	s := FromContext(ctx)
	var unknown int
	if s != nil {
		unknown = s.unknown()
	}
	tok, err := capture()
	switch {
	case err == nil && s != nil:
		s.covered(tok, unknown)
	case err != nil && s != nil:
		s.RequirePrimary()
	}
	if err != nil {
		return tracker.Token{}, fmt.Errorf("%w: %w", ErrNoToken, err)
	}
	return tok, nil
}

// Read calls f with what reads from a server that has all that the Session in ctx
// has seen: a replica that has it already, the one with the fewest reads under way;
// or the first to have it within Options.Budget; or what Options.Fallback says.
// Each statement has a snapshot of its own. A replica refuses to write. f is called
// once, unless Options.Repeat is set; its error is returned.
func (r *Router) Read(ctx context.Context, f func(q Queries) error) error {
	return r.core.read(ctx, func(l link) error { return f(l.(*pgxLink).Conn) }) //nolint:forcetypeassert // made by taken
}

// Stats returns what was read from where.
func (r *Router) Stats() Stats { return r.core.stats() }

// taken takes connections out of pool.
func taken(pool *pgxpool.Pool) take {
	return func(ctx context.Context) (link, error) {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		return &pgxLink{Conn: conn.Conn(), pooled: conn}, nil
	}
}

// pgxLink is a connection of a pool, on its own or as pgx's driver has it.
type pgxLink struct {
	*pgx.Conn
	pooled *pgxpool.Conn
	std    *stdlib.Conn
}

func (l *pgxLink) release() {
	if l.std != nil {
		_ = l.std.Close() // into its pool
		return
	}
	l.pooled.Release()
}

func (l *pgxLink) ping(ctx context.Context) error { return l.Ping(ctx) }

func (l *pgxLink) query(ctx context.Context, sql string, dest ...any) error {
	return l.QueryRow(ctx, sql).Scan(dest...)
}

func (l *pgxLink) exec(ctx context.Context, sql string) error {
	_, err := l.Exec(ctx, sql)
	return err
}

func (l *pgxLink) met(ctx context.Context, p replication.Peer) (bool, error) { return p.Met(ctx, l) }

func (l *pgxLink) seen(ctx context.Context) (tracker.Token, error) { return replication.Seen(ctx, l) }

func (l *pgxLink) lost() bool  { return l.IsClosed() }
func (l *pgxLink) pid() uint32 { return l.PgConn().PID() }
func (l *pgxLink) mark() *mark { return markOf(l.PgConn()) }

// markKey is the mark's among a connection's data.
const markKey = "walwake/ryw"

func markOf(conn *pgconn.PgConn) *mark {
	data := conn.CustomData()
	m, is := data[markKey].(*mark)
	if !is {
		m = new(mark)
		data[markKey] = m
	}
	return m
}

// Stats is what a Router has done so far.
type Stats struct {
	Primary  int64 // reads from the primary
	Waited   int64 // reads that found no replica at once
	Lost     int64 // reads from the primary for a session whose writes are lost: see ToPrimary
	Replicas []ReplicaStats
}

// ReplicaStats is of one replica.
type ReplicaStats struct {
	Name      string
	Position  tracker.Observation
	Known     bool  // whether the position is
	Reading   int64 // now
	Reads     int64
	Failed    int64         // reads that went elsewhere: no connection, or one that could not be vouched for
	RoundTrip time.Duration // with Options.Nearest, the one measured last; 0: none yet
	Strange   int64         // times a connection led to another server than the tracker's, through a pooler, or to one that may not tell
}

func (c *core) stats() Stats {
	s := Stats{Primary: c.totals.primary.Load(), Waited: c.waited.Load(), Lost: c.lost.Load()}
	for _, r := range c.replicas {
		o, known := r.tracker.LastReplay()
		s.Replicas = append(s.Replicas, ReplicaStats{
			Name: r.name, Position: o, Known: known, Reading: r.reading.Load(), Reads: r.reads.Load(), Failed: r.failed.Load(),
			RoundTrip: r.roundTrip(), Strange: r.strange.Load(),
		})
	}
	return s
}
