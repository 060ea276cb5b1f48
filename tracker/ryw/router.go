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

// DefaultBudget is a multiple of what a replica that keeps up takes, a fifth to
// half a millisecond, and little beside a round trip to a primary elsewhere.
const DefaultBudget = 20 * time.Millisecond

// link is a connection that was taken out of a pool.
type link interface {
	query(ctx context.Context, sql string, dest ...any) error
	exec(ctx context.Context, sql string) error
	ping(ctx context.Context) error
	met(ctx context.Context, p replication.Peer) (bool, error)
	seen(ctx context.Context) (tracker.Token, error)
	mark() *mark // what is known of the connection; nil: that cannot be kept
	lost() bool  // whether the connection has ended
	release()
}

// mark is what is known of a connection, for as long as it lasts.
type mark struct {
	of       *tracker.Tracker // whose positions it has been shown to stand for: epochs of others have the same numbers
	epoch    uint64
	readOnly bool
}

// replica is one that reads may go to.
type replica struct {
	name    string
	tracker *tracker.Tracker
	source  *replication.Ladder
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
	strange atomic.Int64 // connections that led elsewhere
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
		if r.tracker == nil || r.source == nil {
			return nil, fmt.Errorf("ryw: replica %d: Tracker or Source is nil: a replica is read only when it is followed", i)
		}
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

// lease is a connection that may be read over for a session. Whoever has it
// releases it.
type lease struct {
	link
	core    *core
	from    *replica // nil: the primary
	session *Session
	token   tracker.Token // that it was shown to have
	missing bool          // the session's token is of writes that are lost
	unknown int           // see Session.unknown
}

// lease returns a connection to a server that has all that s has seen. tried are
// those not to be tried, and get those that could not be read from.
func (c *core) lease(ctx context.Context, s *Session, tried *[]*replica) (lease, error) {
	if s != nil && s.OnPrimary() {
		return c.leasePrimary(ctx, s, false)
	}
	tok := needed(s)
	for {
		r, lost, err := c.pick(ctx, tok, *tried)
		switch {
		case errors.Is(err, ErrNoReplica) && c.Fallback == WaitOn:
			*tried = (*tried)[:0]
			select {
			case <-time.After(waitOnPause):
				continue
			case <-ctx.Done():
				return lease{}, fmt.Errorf("ryw: wait for a replica: %w", context.Cause(ctx))
			}
		case err != nil:
			return lease{}, err
		case r == nil:
			return c.leasePrimary(ctx, s, lost)
		}
		l, err := r.lease(ctx, c, s, tok)
		if l.link != nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return lease{}, errors.Join(fmt.Errorf("ryw: read from replica %s: %w", r.name, context.Cause(ctx)), err)
		}
		*tried = append(*tried, r)
	}
}

// needed is the token that a replica must have to be read by s: where that has seen
// nothing, or is nil, it is only to be known where the replica is.
func needed(s *Session) tracker.Token {
	if s != nil {
		if tok := s.Token(); tok != (tracker.Token{}) {
			return tok
		}
	}
	return tracker.Token{LSN: 1}
}

// waitOnPause is between two looks at the replicas, when none of those that have
// the token could be read from.
const waitOnPause = 10 * time.Millisecond

// lease returns a connection to r that has been shown to have tok; one without a
// link, perhaps with the reason, where none can be had.
func (r *replica) lease(ctx context.Context, c *core, s *Session, tok tracker.Token) (lease, error) {
	r.reading.Add(1)
	l, err := r.take(ctx)
	if err == nil {
		var ok bool
		if ok, err = r.vouched(ctx, l, tok); ok && err == nil {
			r.reads.Add(1)
			return lease{link: l, core: c, from: r, session: s, token: tok}, nil
		}
		l.release()
	}
	r.reading.Add(-1)
	r.failed.Add(1)
	return lease{}, err
}

func (c *core) leasePrimary(ctx context.Context, s *Session, lost bool) (lease, error) {
	c.totals.primary.Add(1)
	l, err := c.primary(ctx)
	if err != nil {
		return lease{}, err
	}
	if s == nil {
		return lease{link: l, core: c}, nil
	}
	if lost {
		c.lost.Add(1)
	}
	return lease{link: l, core: c, session: s, missing: lost, unknown: s.unknown()}, nil
}

// run calls f, and reports whether it may succeed elsewhere.
func (l *lease) run(ctx context.Context, f func(link) error) (again bool, err error) {
	defer l.release()
	if err := f(l.link); err != nil {
		return l.from != nil && (l.lost() || repeatable(err)), err
	}
	l.note(ctx)
	return false, nil
}

// note has the session go on to what was read.
func (l *lease) note(ctx context.Context) {
	s := l.session
	switch {
	case s == nil:
	case l.from == nil && (l.missing || s.OnPrimary()):
		// What the primary shows now is all that the session can have seen.
		if tok, err := l.seen(ctx); err == nil {
			s.covered(tok, l.unknown)
		}
	case l.core.Monotonic:
		tok, err := l.seen(ctx)
		if err != nil {
			s.RequirePrimary() // the read has succeeded; the session is safe there
			return
		}
		s.Advance(tok)
	}
}

func (l *lease) release() {
	l.link.release()
	if l.from != nil {
		l.from.reading.Add(-1)
	}
}

// pick returns a replica that has replayed tok, waiting for one if none has; nil:
// the primary, and whether that is because tok is of writes that are lost.
func (c *core) pick(ctx context.Context, tok tracker.Token, not []*replica) (r *replica, lost bool, err error) {
	if r := c.ready(tok, not); r != nil {
		return r, false, nil
	}
	wait := c.Budget
	if c.Fallback == WaitOn {
		wait = -1
	}
	if len(not) == 0 && len(c.replicas) > 0 && (wait > 0 || c.Fallback == WaitOn) {
		c.waited.Add(1)
		waiting, cancel := ctx, context.CancelFunc(func() {})
		if wait > 0 {
			waiting, cancel = context.WithTimeout(ctx, wait)
		}
		_, err := c.set.Any(waiting, tok)
		cancel()
		lost = errors.Is(err, tracker.ErrDiverged) || errors.Is(err, tracker.ErrWrongSystem)
		switch {
		case ctx.Err() != nil:
			return nil, false, fmt.Errorf("ryw: wait for a replica: %w", err)
		case c.Fallback != ToPrimary && (lost || errors.Is(err, tracker.ErrClosed)):
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

// vouched reports whether what is read over l shows tok. No round trip is needed
// when l has been shown to lead to the same life of the same server as the session
// that the tracker's positions come from: both end with the same crash.
func (r *replica) vouched(ctx context.Context, l link, tok tracker.Token) (bool, error) {
	m := l.mark()
	if m == nil {
		m = new(mark)
	}
	if !m.readOnly {
		if err := l.exec(ctx, `SET default_transaction_read_only = on`); err != nil {
			return false, err
		}
		m.readOnly = true
	}
	for range 2 {
		before, known := r.tracker.LastReplay()
		if !known || !r.tracker.Replayed(tok) {
			return false, nil
		}
		if m.of == r.tracker && m.epoch == before.Epoch {
			// Of this epoch before and after: so was the answer between.
			if now, known := r.tracker.LastReplay(); known && now.Epoch == m.epoch {
				return true, nil
			}
			continue
		}
		p, is := r.source.Peer()
		if !is || p.Epoch != before.Epoch {
			return false, nil
		}
		met, err := l.met(ctx, p)
		if err != nil {
			return false, err
		}
		if !met {
			r.strange.Add(1)
			return shows(ctx, l, tok)
		}
		m.of, m.epoch = r.tracker, p.Epoch
	}
	return false, nil
}

// showsQuery asks the position first and its timeline after it.
const showsQuery = `SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, (SELECT system_identifier FROM pg_control_system()),
       (SELECT received_tli::bigint FROM pg_stat_wal_receiver)`

// shows asks the very connection whether its server has replayed tok, for
// connections that lead to another server than the tracker's.
func shows(ctx context.Context, l link, tok tracker.Token) (bool, error) {
	var recovery bool
	var at *string
	var system int64
	var timeline *int64
	if err := l.query(ctx, showsQuery, &recovery, &at, &system, &timeline); err != nil {
		return false, err
	}
	if !recovery || at == nil {
		return false, nil
	}
	lsn, err := tracker.ParseLSN(*at)
	switch {
	case err != nil:
		return false, err
	case tok.System != 0 && tok.System != uint64(system):
		return false, nil
	case tok.Timeline != 0 && (timeline == nil || int64(tok.Timeline) != *timeline):
		return false, nil
	}
	return lsn >= tok.LSN, nil
}

// repeatable reports whether what was read may succeed elsewhere: a conflict with
// recovery is a serialization failure or a deadlock to the client, or ends the
// connection (src/backend/tcop/postgres.c, ProcessRecoveryConflictInterrupt).
func repeatable(err error) bool {
	e, is := errors.AsType[*pgconn.PgError](err)
	return is && (e.Code == "40001" || e.Code == "40P01") || pgconn.SafeToRetry(err)
}
