package replication

import (
	"context"
	"time"

	"github.com/walwake/walwake/tracker"
)

// freshFor is how long after the last waiter went the position is kept fresh,
// so that the next one, who comes with a token that has just been written, need
// not ask. freshGap is the pause between two looks for nobody.
const (
	freshFor = 250 * time.Millisecond
	freshGap = time.Millisecond
)

// run is one call of Observe: the session that is the epoch, and what decides
// when to ask it. One goroutine runs it.
type run struct {
	cfg       Config
	feed      *tracker.Feed
	board     *board
	histories histories
	refused   *refusedError // why no replication connection could be had; nil while none was refused
	refusedAt time.Time

	s       *session
	waits   *waitFor // nil where WAIT FOR LSN is not used
	epoch   *tracker.Epoch
	pace    pace
	last    reading   // the latest
	asked   time.Time // when it was asked for
	wanted  time.Time // when somebody last waited
	again   bool      // something came up while a request was under way
	hints   chan struct{}
	streams *streams
}

// observe asks over one connection, for as long as it lasts.
func (r *run) observe(ctx context.Context, walsender bool) error {
	s, err := openSession(ctx, r.cfg.Replica, walsender, nil)
	if err != nil {
		if walsender && ctx.Err() == nil {
			return &refusedError{err}
		}
		return err
	}
	defer s.close()
	r.s, r.epoch = s, r.feed.Begin()
	defer r.epoch.End()
	r.pace = pace{min: r.cfg.MinInterval, max: r.cfg.MaxInterval, idle: r.cfg.IdleInterval}
	r.hints = make(chan struct{}, 1)
	r.board.reset()
	if err := r.first(ctx); err != nil {
		return err
	}
	r.openWaitFor(ctx)
	defer r.waits.close()
	r.openStreams(ctx)
	defer r.streams.close()
	return r.loop(ctx)
}

// first asks once, before anything else is opened.
func (r *run) first(ctx context.Context) error {
	r.asked = time.Now()
	if err := r.s.askNow(); err != nil {
		return err
	}
	select {
	case a := <-r.s.answers:
		r.s.done()
		return r.report(ctx, a)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *run) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case a := <-r.s.answers:
			r.s.done()
			if err := r.report(ctx, a); err != nil {
				return err
			}
		case a := <-r.waits.secondAnswers():
			r.waits.second.done()
			if err := r.report(ctx, a); err != nil {
				return err
			}
		case <-r.feed.Changed():
			r.streams.kick()
			r.again = true
		case <-r.hints:
			r.again = true
		case <-timer.C:
			r.again = true
		case <-ctx.Done():
			return ctx.Err()
		}
		next, err := r.act()
		if err != nil {
			return err
		}
		timer.Reset(next)
	}
}

// act asks what is to be asked now, and returns when to act again at the latest.
func (r *run) act() (time.Duration, error) {
	now, d := time.Now(), r.feed.Demand()
	if d.Waiting > 0 {
		r.wanted = now
	}
	pause := r.pace.next(d, now)
	wanted := d.Waiting > 0
	switch {
	case r.waits.usable(r):
		return r.waits.act(r, d, pause, now)
	case r.s.busy || !r.again:
		return pause, nil
	case wanted, now.Sub(r.asked) >= r.cfg.IdleInterval:
	case now.Sub(r.wanted) > freshFor:
		r.again = false
		return pause, nil
	case now.Sub(r.asked) < freshGap:
		return freshGap, nil // for nobody: not at every hint
	}
	r.again, r.asked = false, now
	return pause, r.s.askNow()
}

// report tells the tracker what an answer said.
func (r *run) report(ctx context.Context, a answer) error {
	if a.err != nil {
		return a.err
	}
	if a.waited != "" || a.waitErr != nil {
		r.waits.took(r, a)
	}
	rd := a.reading
	if rd.standby && rd.timeline == 0 && rd.known && (r.refused == nil || time.Since(r.refusedAt) > refusedFor) {
		return errWantWalsender
	}
	if rd.timeline == 0 && rd.known && r.refused != nil {
		rd.reason += " (" + r.refused.Error() + ")"
	}
	history, err := r.histories.of(ctx, r.s.system, rd.timeline)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		rd.reason = err.Error()
	}
	if rd.reason != r.last.reason {
		r.feed.Note(rd.reason)
	}
	r.last = rd
	if rd.known {
		r.epoch.Observe(tracker.Observation{
			LSN:      rd.lsn,
			System:   r.s.system,
			Timeline: rd.timeline,
			History:  history,
			Primary:  !rd.standby,
		})
	}
	return nil
}
