package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
)

// PollConfig configures a Poll. It is copied by NewPoll.
type PollConfig struct {
	Server Server // the replica. A role with LOGIN will do: see the package's Timelines

	// While somebody waits, the pause before the next query is an eighth of the
	// time that the lowest position has been waited for, within these bounds:
	// fine at first, coarse when the replica is far behind.
	// 0 means DefaultMinInterval and DefaultMaxInterval.
	MinInterval, MaxInterval time.Duration

	// IdleInterval is the pause while nobody waits, when a query only shows that
	// the server still answers. 0 means DefaultIdleInterval.
	IdleInterval time.Duration
}

// What a zero field of PollConfig means.
const (
	DefaultMinInterval  = 100 * time.Microsecond
	DefaultMaxInterval  = 25 * time.Millisecond
	DefaultIdleInterval = 10 * time.Second
)

// replicationRetry is how long a refused replication connection is not tried
// again.
const replicationRetry = time.Minute

// Poll is a tracker.Source that asks: at once when somebody begins to wait,
// then ever less often until the position is replayed. While nobody waits it
// only listens for the end of its connection, which ends the epoch at once.
// It works on a primary too, whose position is that of its last commit.
type Poll struct {
	cfg PollConfig
}

var _ tracker.Source = (*Poll)(nil)

// NewPoll returns a Poll. It does no I/O; an error names the field that is
// wrong.
func NewPoll(cfg PollConfig) (*Poll, error) {
	server, err := cfg.Server.checked()
	if err != nil {
		return nil, err
	}
	cfg.Server = server
	if cfg.MinInterval == 0 {
		cfg.MinInterval = DefaultMinInterval
	}
	if cfg.MaxInterval == 0 {
		cfg.MaxInterval = max(DefaultMaxInterval, cfg.MinInterval)
	}
	if cfg.IdleInterval == 0 {
		cfg.IdleInterval = max(DefaultIdleInterval, cfg.MaxInterval)
	}
	if cfg.MinInterval < 0 || cfg.MaxInterval < cfg.MinInterval || cfg.IdleInterval < cfg.MaxInterval {
		return nil, fmt.Errorf("replication: PollConfig.MinInterval %s, MaxInterval %s, IdleInterval %s: want 0 < Min <= Max <= Idle",
			cfg.MinInterval, cfg.MaxInterval, cfg.IdleInterval)
	}
	return &Poll{cfg: cfg}, nil
}

// Name returns "poll".
func (p *Poll) Name() string { return "poll" }

// Observe connects and polls until ctx ends or the connection fails. Where a
// plain connection does not tell the timeline, it goes on over a replication
// connection, if the role may have one.
func (p *Poll) Observe(ctx context.Context, feed *tracker.Feed) error {
	run := &pollRun{cfg: p.cfg, feed: feed}
	walsender := false
	for {
		err := run.observe(ctx, walsender)
		var refused *refusedError
		switch {
		case errors.Is(err, errWantWalsender):
			walsender = true
		case errors.As(err, &refused):
			walsender = false
			run.refused, run.refusedAt = refused, time.Now()
		default:
			return err
		}
	}
}

// errWantWalsender ends a run over a plain connection that does not tell the
// timeline.
var errWantWalsender = errors.New("replication: a replication connection is wanted")

// refusedError says why a replication connection could not be had.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// pollRun is one call of Observe.
type pollRun struct {
	cfg       PollConfig
	feed      *tracker.Feed
	refused   *refusedError // why no replication connection could be had; nil while none was refused
	refusedAt time.Time
}

// observe polls over one connection, for as long as it lasts.
func (r *pollRun) observe(ctx context.Context, walsender bool) error {
	s, err := openSession(ctx, r.cfg.Server, walsender)
	if err != nil {
		if walsender && ctx.Err() == nil {
			return &refusedError{err}
		}
		return err
	}
	defer s.close()
	var epoch *tracker.Epoch
	defer func() {
		if epoch != nil {
			epoch.End()
		}
	}()
	pace := pace{min: r.cfg.MinInterval, max: r.cfg.MaxInterval, idle: r.cfg.IdleInterval}
	for {
		reading, newBackend, err := s.look(ctx)
		if err != nil {
			return err
		}
		if epoch == nil || newBackend {
			if epoch != nil {
				epoch.End()
			}
			epoch = r.feed.Begin()
		}
		if err := r.report(ctx, s, epoch, reading); err != nil {
			return err
		}
		if err := s.sleep(ctx, pace.next(r.feed.Demand(), time.Now()), r.feed.Changed()); err != nil {
			return err
		}
	}
}

func (r *pollRun) report(ctx context.Context, s *session, epoch *tracker.Epoch, rd reading) error {
	if rd.standby && rd.timeline == 0 && rd.known && r.mayTryWalsender() {
		return errWantWalsender
	}
	if rd.timeline == 0 && r.refused != nil {
		rd.reason += " (" + r.refused.Error() + ")"
	}
	history, err := s.historyFor(ctx, rd.timeline)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		rd.reason = err.Error()
	}
	r.feed.Note(rd.reason)
	if rd.known {
		epoch.Observe(tracker.Observation{
			LSN:      rd.lsn,
			System:   s.system,
			Timeline: rd.timeline,
			History:  history,
			Primary:  !rd.standby,
		})
	}
	return nil
}

func (r *pollRun) mayTryWalsender() bool {
	return r.refused == nil || time.Since(r.refusedAt) > replicationRetry
}

// pace decides when to look again.
type pace struct {
	min, max, idle time.Duration
	target         tracker.LSN
	since          time.Time // when target became the lowest that is waited for
	waiting        bool
}

func (p *pace) next(d tracker.Demand, now time.Time) time.Duration {
	if d.Waiting == 0 {
		p.waiting = false
		return p.idle
	}
	if !p.waiting || d.Lowest != p.target {
		p.waiting, p.target, p.since = true, d.Lowest, now
	}
	return min(max(now.Sub(p.since)/8, p.min), p.max)
}

// listenFrom is the shortest pause that is spent listening to the connection.
const listenFrom = time.Millisecond

// sleep waits for d, or until changed receives. It returns an error as soon as
// the connection has ended: a position must not outlive it, and one that nobody
// reads from would not be seen to end.
func (s *session) sleep(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	if d < listenFrom {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		return nil
	}
	listen, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		select {
		case <-changed:
			cancel()
		case <-listen.Done():
		}
	}()
	err := s.conn.PgConn().WaitForNotification(listen) // nothing is LISTENed for: it returns when listen or the connection ends
	cancel()
	<-woken
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.conn.IsClosed():
		return fmt.Errorf("replication: the connection has ended: %w", err)
	}
	return nil
}
