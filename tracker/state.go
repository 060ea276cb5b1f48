package tracker

import (
	"context"
	"errors"
	"time"
)

// Observer has functions that are called as things happen, for metrics and
// tracing. Each may be nil. They are called without a lock held, from the
// goroutine that the thing happens in, which waits for them; several may be
// called at once. They must not call Close.
//
// A Wait that found its token replayed calls none of them: it takes less time
// than counting it would.
type Observer struct {
	// Position is called when the position has moved or has become known.
	Position func(Observation)
	// Failed is called when the source has failed, before the pause.
	Failed func(source string, err error)
	// SourceChanged is called when another rung of the source's ladder is in use.
	SourceChanged func(from, to string)
	// WaitStart is called by Await when it begins to block; the context that it
	// returns is used for the wait and handed to WaitEnd.
	WaitStart func(ctx context.Context, tok Token) context.Context
	// WaitEnd is called when that wait is over.
	WaitEnd func(ctx context.Context, r WaitResult)
}

// WaitResult is how a wait ended.
type WaitResult struct {
	Token  Token
	Waited time.Duration
	Err    error // nil: replayed
}

// Stats counts what has happened since New. Waits that found their token
// replayed are not in it: see Observer.
type Stats struct {
	Waiting       int    // now
	Woken         uint64 // replayed while they waited
	TimedOut      uint64 // ErrTimeout
	Canceled      uint64 // by Cancel or the caller's context
	Diverged      uint64 // ErrDiverged
	WrongSystem   uint64 // ErrWrongSystem
	Refused       uint64 // ErrTooManyWaiters and ErrClosed
	Observations  uint64
	Epochs        uint64 // connections that a position came from
	Failures      uint64 // runs of the source that failed
	SourceChanges uint64 // rungs of the source's ladder that took over from another
}

// State is a snapshot of what a Tracker knows.
type State struct {
	Name       string // Config.Name
	Position   Observation
	Known      bool      // whether Position is
	ObservedAt time.Time // when the source last observed; zero before it did
	Rate       float64   // bytes replayed a second, lately; 0 when not known

	// Primary is where the primary is at least, as PrimaryAt was told; zero before
	// it was, and when it is of another cluster than the replica or of an earlier
	// timeline. Position is of ObservedAt, and Behind with it: see Refresh.
	Primary      Token
	PrimaryHeard time.Time // when PrimaryAt was told of it

	// BehindKnown says that the replica is on the way to Primary: it replays Primary's
	// timeline, or an older one that is known to lead there from Position on. It is
	// false of a replica past the point where Primary's timeline has left its own,
	// which never comes there, whatever the numbers say; and after a failover as long
	// as where that point is, or the replica's timeline, is not known. The replica has
	// then not followed the primary, or is just about to.
	BehindKnown bool

	Behind    uint64        // bytes from Position to Primary; 0 when there are none, or BehindKnown is false
	BehindFor time.Duration // since PrimaryAt was first told of more than Position; the replica is as late as that at least. 0 when Behind is
	ETA       time.Duration // estimate of the time that Behind takes; 0 when there is none, as while Note says what holds replay back

	Source  string // the source, or rung of it, in use; empty when none runs
	Ladder  []Rung // the source's rungs, best first; empty where it has none. Not to be changed
	Note    string // what holds the source back; empty when nothing does
	Failure error  // why the source last failed; nil while it observes
	Demand  Demand
	Closed  bool
}

// Stats returns the counts. It does not block.
func (t *Tracker) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Waiting = t.waitingLocked()
	return s
}

// State returns a snapshot. It does not block.
func (t *Tracker) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	lowest, _ := t.ahead.min()
	s := State{
		Name:       t.cfg.Name,
		ObservedAt: t.observedAt,
		Rate:       t.rate.now(),
		Source:     t.sourceLocked(),
		Failure:    t.failure,
		Demand:     Demand{Waiting: t.waitingLocked(), Lowest: lowest},
		Closed:     t.closed,
	}
	if t.feed != nil {
		s.Note, s.Ladder = t.feed.note, t.feed.ladder
	}
	v := t.view.Load()
	p, leads := t.primaryLocked(v)
	s.Primary, s.PrimaryHeard = p.at, p.heard
	if v != nil {
		s.Position, s.Known, s.Failure = v.observation(), true, nil
	}
	if leads {
		s.BehindKnown = true
		s.Behind = s.Position.LSN.Behind(p.at.LSN)
		s.ETA = t.etaLocked(s.Behind)
		if s.Behind > 0 {
			s.BehindFor = t.trail.behindFor(s.Position.LSN)
		}
	}
	return s
}

func (t *Tracker) sourceLocked() string {
	if t.feed == nil {
		return ""
	}
	return t.feed.using
}

// reasonLocked says what may keep the position from moving.
func (t *Tracker) reasonLocked() string {
	switch {
	case t.view.Load() == nil && t.failure != nil:
		return t.failure.Error()
	case t.feed != nil && t.feed.note != "":
		return t.feed.note
	case !t.ran.Load():
		return "Run was not called"
	}
	return ""
}

// countLocked counts a wait that ended with err.
func (t *Tracker) countLocked(err error) {
	switch {
	case err == nil:
		t.stats.Woken++
	case err == ErrCanceled: //nolint:errorlint // Cancel's own, and the commonest; the others are looked for one after the other
		t.stats.Canceled++
	case errors.Is(err, ErrTimeout):
		t.stats.TimedOut++
	case errors.Is(err, ErrDiverged):
		t.stats.Diverged++
	case errors.Is(err, ErrWrongSystem):
		t.stats.WrongSystem++
	case errors.Is(err, ErrTooManyWaiters), errors.Is(err, ErrClosed):
		t.stats.Refused++
	default:
		t.stats.Canceled++
	}
}

// rate estimates how fast replay moves while it moves, from the positions of one
// epoch: time in which there is nothing to replay is not counted.
type rate struct {
	perSecond float64
	lsn       LSN       // where the sample began
	at        time.Time // and when
	last      LSN       // the latest
	moved     time.Time // when it last changed
}

const (
	// rateWindow is the time over which one sample is taken; shorter ones would
	// measure how replay is reported, not how fast it is. Where replay stands
	// still for as long, or is looked at less than each rateGap, a sample begins
	// anew.
	rateWindow = 100 * time.Millisecond
	rateGap    = time.Second
	// rateOld is when an estimate counts for nothing: replay stands still.
	rateOld = 5 * time.Second
)

func (r *rate) observe(lsn LSN, now time.Time) {
	still := lsn == r.last && now.Sub(r.moved) > rateWindow
	if r.at.IsZero() || lsn < r.last || still || now.Sub(r.at) > rateGap {
		r.lsn, r.at = lsn, now
	}
	if lsn != r.last || r.moved.IsZero() {
		r.last, r.moved = lsn, now
	}
	dt := now.Sub(r.at)
	if dt < rateWindow || lsn == r.lsn {
		return
	}
	sample := float64(lsn-r.lsn) / dt.Seconds()
	if r.perSecond == 0 {
		r.perSecond = sample
	}
	r.perSecond += (sample - r.perSecond) * 0.3
	r.lsn, r.at = lsn, now
}

// now returns bytes a second; 0 when that cannot be told.
func (r *rate) now() float64 {
	if r.perSecond < 1 || time.Since(r.moved) > rateOld {
		return 0
	}
	return r.perSecond
}

// eta is the time that bytes would take; 0 when that cannot be told, or is too long to be believed.
func (r *rate) eta(bytes uint64) time.Duration {
	const longest = 24 * time.Hour
	perSecond := r.now()
	if perSecond == 0 {
		return 0
	}
	d := float64(bytes) / perSecond * float64(time.Second)
	if d >= float64(longest) {
		return 0
	}
	return time.Duration(d)
}

// etaLocked is eta, and 0 while something holds replay back: how fast it was does not matter then.
func (t *Tracker) etaLocked(bytes uint64) time.Duration {
	if t.feed != nil && t.feed.note != "" {
		return 0
	}
	return t.rate.eta(bytes)
}
