package ryw

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// Fallback says where a read goes when no replica has the session's token within
// the budget.
type Fallback int

const (
	// ToPrimary reads from the primary. Where the replicas say that what the session
	// has written was lost in a failover (tracker.ErrDiverged), or is of another
	// cluster, the read shows what the primary has instead, counts in Stats.Lost, and
	// the session goes on from there. WaitOn and Refuse return that error.
	ToPrimary Fallback = iota
	// WaitOn waits on, until the context ends.
	WaitOn
	// Refuse returns ErrNoReplica.
	Refuse
)

// ErrNoReplica is of a read that no replica could serve in time.
var ErrNoReplica = errors.New("ryw: no replica has the session's writes in time")

// Options are what routers have in common.
type Options struct {
	// Budget is how long a read waits for a replica that has the session's token,
	// when none has. 0 means DefaultBudget; negative: it does not wait.
	Budget time.Duration

	// Fallback is what a read does then.
	Fallback Fallback

	// Monotonic has each read of a session note how far the server was that it read
	// from, so that no later one goes back behind it. It costs a round trip.
	Monotonic bool

	// Nearest has a read go to the nearest of the replicas that have the session's
	// token: the one with the shortest round trip, which is measured every 10 seconds.
	// Of those about as near, as of all without it, the one with the fewest reads under
	// way is taken.
	Nearest bool

	// Repeat has a read that fails for what another server may not, a conflict with
	// recovery, a serialization failure or a connection that is lost, called once more, elsewhere:
	// for functions that may be called twice.
	Repeat bool
}

// DefaultBudget is where a longer one gained nothing: of reads just after a write, with
// two standbys, none went to the primary from 10 ms on while others wrote 500 times a
// second; with 3,000, which took all of the machine, 3.2 % did at 10 ms, 0.9 % at 20 and
// 0.9 % at 50. The median read took 0.4 and 2 ms whatever the budget: BenchmarkBudget.
const DefaultBudget = 20 * time.Millisecond

// link is a connection that was taken out of a pool.
type link interface {
	query(ctx context.Context, sql string, dest ...any) error
	exec(ctx context.Context, sql string) error
	ping(ctx context.Context) error
	met(ctx context.Context, p replication.Peer) (bool, error)
	seen(ctx context.Context) (tracker.Token, error)
	pid() uint32 // of the server process, as it was told when the connection was made; 0: that is not known
	mark() *mark // what is known of the connection; nil: that cannot be kept
	lost() bool  // whether the connection has ended
	release()
}

// replica is one that reads may go to.
type replica struct {
	name    string
	tracker *tracker.Tracker
	source  peers // nil: each connection is asked for each read
	take    take
	*counts
}

// take takes a connection out of a server's pool.
type take func(context.Context) (link, error)

// counts are of one replica, however connections to it are taken.
type counts struct {
	reading atomic.Int64
	reads   atomic.Int64
	failed  atomic.Int64
	strange atomic.Int64 // reads over connections that led elsewhere, or through a pooler
	distance
}

// totals are of all.
type totals struct {
	primary, waited, lost atomic.Int64
	turn                  atomic.Uint64
}

// core routes, whatever the driver is.
type core struct {
	Options
	primary  take
	replicas []*replica
	set      *tracker.Set
	*totals
}

func newCore(o Options, primary take, replicas []*replica) (*core, error) {
	o.Budget = cmp.Or(o.Budget, DefaultBudget)
	if o.Fallback < ToPrimary || o.Fallback > Refuse {
		return nil, fmt.Errorf("ryw: Options.Fallback %d: want ToPrimary, WaitOn or Refuse", o.Fallback)
	}
	c := &core{Options: o, primary: primary, replicas: replicas, totals: new(totals)}
	var trackers []*tracker.Tracker
	for i, r := range replicas {
		if r.tracker == nil {
			return nil, fmt.Errorf("ryw: replica %d: Tracker is nil: a replica is read only when it is followed", i)
		}
		r.source, _ = r.tracker.Source().(peers)
		r.name, r.counts = cmp.Or(r.name, fmt.Sprint(i)), new(counts)
		if slices.ContainsFunc(replicas[:i], func(o *replica) bool { return o.name == r.name }) {
			return nil, fmt.Errorf("ryw: two replicas are named %q", r.name)
		}
		trackers = append(trackers, r.tracker)
	}
	c.set = tracker.NewSet(trackers...)
	return c, nil
}

// read runs f on a server that has all that the session has seen.
func (c *core) read(ctx context.Context, f func(link) error) error {
	s := FromContext(ctx)
	var tried []*replica
	var failed error // of f, which may be called once more
	for {
		l, err := c.lease(ctx, s, &tried)
		if err != nil {
			return errors.Join(err, failed)
		}
		again, err := l.run(ctx, f)
		if !again || !c.Repeat || failed != nil {
			return err
		}
		if ctx.Err() != nil { // f may not be called once more: that is no success
			return errors.Join(fmt.Errorf("ryw: read from replica %s: %w", l.from.name, context.Cause(ctx)), err)
		}
		failed, tried = err, append(tried, l.from)
	}
}

// pick returns a replica that has replayed tok, waiting for one if none has; nil:
// the primary, and whether that is because tok is of writes that are lost.
func (c *core) pick(ctx context.Context, tok tracker.Token, not []*replica) (r *replica, lost bool, err error) {
	if len(c.replicas) == 0 {
		return nil, false, nil
	}
	if r := c.ready(tok, not); r != nil {
		return r, false, nil
	}
	wait := c.Budget
	if c.Fallback == WaitOn {
		wait = -1
	}
	if len(not) == 0 && (wait > 0 || c.Fallback == WaitOn) {
		c.waited.Add(1)
		waiting, cancel := ctx, context.CancelFunc(func() {})
		if wait > 0 {
			waiting, cancel = context.WithTimeout(ctx, wait)
		}
		_, err := c.set.Any(waiting, tok)
		cancel()
		lost = errors.Is(err, tracker.ErrDiverged) || errors.Is(err, tracker.ErrWrongSystem)
		hopeful := errors.Is(err, tracker.ErrTimeout) || errors.Is(err, tracker.ErrTooManyWaiters) // of another of them
		switch {
		case ctx.Err() != nil:
			return nil, false, fmt.Errorf("ryw: wait for a replica: %w", cmp.Or(err, context.Cause(ctx)))
		case c.Fallback != ToPrimary && !hopeful && (lost || errors.Is(err, tracker.ErrClosed)):
			return nil, false, fmt.Errorf("ryw: wait for a replica: %w", err)
		}
		if r := c.ready(tok, not); r != nil {
			return r, false, nil
		}
	}
	if c.Fallback != ToPrimary {
		return nil, false, ErrNoReplica
	}
	return nil, lost, nil
}

// ready returns, of the replicas that have replayed tok, the nearest where that
// counts, and of those the one with the fewest reads under way.
func (c *core) ready(tok tracker.Token, not []*replica) (best *replica) {
	near := time.Duration(math.MaxInt64)
	if c.Nearest {
		near = c.near(tok, not)
	}
	first := int(c.turn.Add(1) % uint64(max(len(c.replicas), 1))) // of equals, each in its turn
	for i := range c.replicas {
		r := c.replicas[(first+i)%len(c.replicas)]
		if r.may(tok, not) && (!c.Nearest || r.roundTrip() <= near) && (best == nil || r.reading.Load() < best.reading.Load()) {
			best = r
		}
	}
	return best
}

// may reports whether r may be read from for tok.
func (r *replica) may(tok tracker.Token, not []*replica) bool {
	return r.tracker.Replayed(tok) && !slices.Contains(not, r)
}

// repeatable reports whether what was read may succeed elsewhere: a conflict with
// recovery is a serialization failure or a deadlock to the client, or ends the
// connection (src/backend/tcop/postgres.c, ProcessRecoveryConflictInterrupt).
func repeatable(err error) bool {
	e, is := errors.AsType[*pgconn.PgError](err)
	return is && (e.Code == "40001" || e.Code == "40P01") || pgconn.SafeToRetry(err)
}
