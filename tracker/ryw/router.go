package ryw

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	// ToPrimary reads from the primary.
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
	take    func(context.Context) (link, error)

	reading atomic.Int64
	reads   atomic.Int64
	failed  atomic.Int64
	strange atomic.Int64 // connections that led elsewhere
}

// core routes, whatever the driver is.
type core struct {
	Options
	primary  func(context.Context) (link, error)
	replicas []*replica
	set      *tracker.Set

	onPrimary, waited atomic.Int64
}

func newCore(o Options, primary func(context.Context) (link, error), replicas []*replica) (*core, error) {
	o.Budget = cmp.Or(o.Budget, DefaultBudget)
	if o.Fallback < ToPrimary || o.Fallback > Refuse {
		return nil, fmt.Errorf("ryw: Options.Fallback %d: want ToPrimary, WaitOn or Refuse", o.Fallback)
	}
	c := &core{Options: o, primary: primary, replicas: replicas}
	var trackers []*tracker.Tracker
	for i, r := range replicas {
		if r.tracker == nil || r.source == nil {
			return nil, fmt.Errorf("ryw: replica %d: Tracker or Source is nil: a replica is read only when it is followed", i)
		}
		r.name = cmp.Or(r.name, fmt.Sprint(i))
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
	var tok tracker.Token
	if s != nil {
		if s.OnPrimary() {
			return c.readPrimary(ctx, s, f)
		}
		tok = s.Token()
	}
	tried := make([]*replica, 0, 2)
	var failed error // of f, which may be called once more
	for {
		r, err := c.pick(ctx, tok, tried)
		switch {
		case errors.Is(err, ErrNoReplica) && c.Fallback == WaitOn:
			tried = tried[:0]
			select {
			case <-time.After(waitOnPause):
				continue
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("ryw: wait for a replica: %w", context.Cause(ctx)), failed)
			}
		case err != nil:
			return errors.Join(err, failed)
		case r == nil:
			return c.readPrimary(ctx, s, f)
		}
		how, err := c.readReplica(ctx, r, s, tok, f)
		switch {
		case how == read, how == mayRepeat && (!c.Repeat || failed != nil):
			return err
		case how == mayRepeat:
			failed = err
		}
		if ctx.Err() != nil { // f was not called, or may not be once more: that is no success
			return errors.Join(fmt.Errorf("ryw: read from replica %s: %w", r.name, context.Cause(ctx)), err)
		}
		tried = append(tried, r)
	}
}

// waitOnPause is between two looks at the replicas, when none of those that have
// the token could be read from.
const waitOnPause = 10 * time.Millisecond

// pick returns a replica that has replayed tok, the one with the fewest reads under
// way, waiting for one if none has; nil: the primary.
func (c *core) pick(ctx context.Context, tok tracker.Token, not []*replica) (*replica, error) {
	if r := c.ready(tok, not); r != nil {
		return r, nil
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
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("ryw: wait for a replica: %w", err)
		case c.Fallback != ToPrimary && (errors.Is(err, tracker.ErrDiverged) || errors.Is(err, tracker.ErrWrongSystem) || errors.Is(err, tracker.ErrClosed)):
			return nil, fmt.Errorf("ryw: wait for a replica: %w", err)
		}
		if r := c.ready(tok, not); r != nil {
			return r, nil
		}
	}
	if c.Fallback != ToPrimary {
		return nil, ErrNoReplica
	}
	return nil, nil
}

func (c *core) ready(tok tracker.Token, not []*replica) (best *replica) {
	for _, r := range c.replicas {
		if slices.Contains(not, r) || !r.tracker.Replayed(tok) {
			continue
		}
		if _, known := r.tracker.LastReplay(); known && (best == nil || r.reading.Load() < best.reading.Load()) {
			best = r
		}
	}
	return best
}

// How a read from a replica has ended.
type how int

const (
	read      how = iota // f was called, and its error stands
	mayRepeat            // f was called, and may succeed elsewhere
	unread               // f was not called
)

// readReplica runs f over a connection to r that has been shown to have tok.
func (c *core) readReplica(ctx context.Context, r *replica, s *Session, tok tracker.Token, f func(link) error) (how, error) {
	r.reading.Add(1)
	defer r.reading.Add(-1)
	l, err := r.take(ctx)
	if err != nil {
		r.failed.Add(1)
		return unread, err
	}
	defer l.release()
	ok, err := r.vouched(ctx, l, tok)
	if err != nil || !ok {
		r.failed.Add(1)
		return unread, err
	}
	r.reads.Add(1)
	err = f(l)
	switch {
	case err == nil:
		return read, c.note(ctx, l, s)
	case l.lost() || repeatable(err):
		return mayRepeat, err
	}
	return read, err
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

func (c *core) readPrimary(ctx context.Context, s *Session, f func(link) error) error {
	c.onPrimary.Add(1)
	l, err := c.primary(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	if err := f(l); err != nil {
		return err
	}
	if s != nil && s.OnPrimary() { // what the primary shows now is all that it can have seen
		unknown := s.unknown()
		if tok, err := l.seen(ctx); err == nil {
			s.covered(tok, unknown)
		}
		return nil
	}
	return c.note(ctx, l, s)
}

// note has the session go on to what was read, where reads are monotonic.
func (c *core) note(ctx context.Context, l link, s *Session) error {
	if !c.Monotonic || s == nil {
		return nil
	}
	tok, err := l.seen(ctx)
	if err != nil {
		s.RequirePrimary()
		return nil //nolint:nilerr // the read has succeeded; the session is safe where it was sent
	}
	s.Advance(tok)
	return nil
}

// repeatable reports whether what was read may succeed elsewhere: a conflict with
// recovery is a serialization failure or a deadlock to the client, or ends the
// connection (src/backend/tcop/postgres.c, ProcessRecoveryConflictInterrupt).
func repeatable(err error) bool {
	e, is := errors.AsType[*pgconn.PgError](err)
	return is && (e.Code == "40001" || e.Code == "40P01") || pgconn.SafeToRetry(err)
}
