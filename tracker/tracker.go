package tracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a Tracker. It is copied by New.
type Config struct {
	// Source observes the replica. Required.
	Source Source

	// Name names the replica in errors, State and log lines.
	// Empty means "replica".
	Name string

	// Timeout bounds a Wait or Await whose context has no deadline.
	// 0 means DefaultTimeout; negative: no bound.
	Timeout time.Duration

	// MaxWaiters bounds the waiters outstanding at once; one more gets
	// ErrTooManyWaiters. 0 means DefaultMaxWaiters; negative: no bound.
	MaxWaiters int

	// RetryMin and RetryMax bound the pause before a failed Source is run again:
	// it doubles from the one to the other, with jitter, and starts anew after a
	// run that observed something. While somebody waits it is at most a tenth of
	// RetryMax. 0 means DefaultRetryMin and DefaultRetryMax.
	RetryMin, RetryMax time.Duration

	// Observer's functions are called as things happen.
	Observer Observer

	// Logger gets the source's failures and recoveries. nil: silence.
	Logger *slog.Logger
}

// What a zero field of Config means.
const (
	DefaultTimeout    = 3 * time.Second
	DefaultMaxWaiters = 1 << 20
	DefaultRetryMin   = 10 * time.Millisecond
	DefaultRetryMax   = 5 * time.Second
)

// A Tracker knows how far one replica has replayed, and wakes who waits for a
// position. Run drives it; all other methods may be called by any number of
// goroutines, before Run as well.
type Tracker struct {
	cfg  Config
	view atomic.Pointer[view] // nil while the position is unknown; stored under mu

	mu     sync.Mutex
	ahead  waitlist // in order: who waits for more replay
	parked waitlist // who has its position, and misses the timeline or system of its token
	seq    uint64   // of the latest waiter
	epochs uint64   // of the latest epoch
	closed bool
	cancel context.CancelFunc // ends Run; nil before it

	feed       *Feed // of the running source; nil when none runs
	failure    error // why the source last failed; nil once it observed again
	failures   int   // runs in a row that failed
	observedAt time.Time
	announced  announced // see PrimaryAt
	lowerSince time.Time // since when PrimaryAt has been told of lower positions alone; zero: it was not
	trail      trail     // of announced's system and timeline
	latest     *view     // of the latest timeline, for its history; nil before one was known
	rate       rate
	stats      Stats

	listener  atomic.Pointer[Feed] // feed, for signalDemand, which holds no mutex
	readyOnce sync.Once
	ready     chan struct{}
	ran       atomic.Bool
	stopped   chan struct{} // closed when Run has returned
}

// New returns a Tracker that knows nothing until Run is called. It does no I/O.
// An error names the field of Config that is wrong.
func New(cfg Config) (*Tracker, error) {
	if cfg.Source == nil {
		return nil, errors.New("tracker: Config.Source is nil: set it to a source of package replication")
	}
	if cfg.Name == "" {
		cfg.Name = "replica"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.MaxWaiters == 0 {
		cfg.MaxWaiters = DefaultMaxWaiters
	}
	if cfg.RetryMin == 0 {
		cfg.RetryMin = DefaultRetryMin
	}
	if cfg.RetryMax == 0 {
		cfg.RetryMax = max(DefaultRetryMax, cfg.RetryMin)
	}
	if cfg.RetryMin < 0 || cfg.RetryMax < cfg.RetryMin {
		return nil, fmt.Errorf("tracker: Config.RetryMin %s and RetryMax %s: want 0 < RetryMin <= RetryMax", cfg.RetryMin, cfg.RetryMax)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Tracker{
		cfg:     cfg,
		ready:   make(chan struct{}),
		stopped: make(chan struct{}),
	}, nil
}

// Source returns Config.Source.
func (t *Tracker) Source() Source { return t.cfg.Source }

// Ready returns a channel that is closed when the replica's position is known
// for the first time.
func (t *Tracker) Ready() <-chan struct{} { return t.ready }

// LastReplay returns what is known of the replica, and false while its position
// is unknown: before the first observation, and whenever the connection that
// observed it is gone.
func (t *Tracker) LastReplay() (Observation, bool) {
	v := t.view.Load()
	if v == nil {
		return Observation{}, false
	}
	return v.observation(), true
}

// Replayed reports whether a snapshot taken on the replica now sees everything
// up to tok. It is false while the position is unknown, and true for the zero
// Token. It does not block or allocate and may be called at any rate.
func (t *Tracker) Replayed(tok Token) bool {
	return t.view.Load().judge(tok) == replayed
}

// Wait blocks until tok is replayed, and returns nil at once when it is. See
// Await for ctx and time, and this package's errors for what else ends it. The
// zero Token is always replayed.
func (t *Tracker) Wait(ctx context.Context, tok Token) error {
	if v := t.view.Load(); v != nil && v.passed(tok) {
		return nil
	}
	return t.Request(tok).Await(ctx)
}

// Request asks to be told when tok is replayed. It does not block; where there
// is nothing to wait for, because tok is replayed, lost or of another cluster,
// or because the Tracker is closed or full, the Waiter has ended already and
// its Err says why.
func (t *Tracker) Request(tok Token) *Waiter {
	w := &Waiter{t: t, system: tok.System, timeline: tok.Timeline, lsn: tok.LSN}
	if t.Replayed(tok) {
		return w
	}
	t.mu.Lock()
	urgent := t.enterLocked(w)
	t.mu.Unlock()
	if urgent {
		t.signalDemand()
	}
	return w
}

// enterLocked puts w where it belongs: over, or into a list. It reports whether
// the source must hear of it.
func (t *Tracker) enterLocked(w *Waiter) (urgent bool) {
	v := t.view.Load()
	d := v.judge(w.Token())
	var err error
	switch {
	case t.closed:
		err = ErrClosed
	case !d.pending():
		err = v.err(d, w.Token(), t.cfg.Name)
	case t.cfg.MaxWaiters > 0 && t.waitingLocked() >= t.cfg.MaxWaiters:
		err = fmt.Errorf("%w: %d wait for %s already", ErrTooManyWaiters, t.cfg.MaxWaiters, t.cfg.Name)
	default:
		first := t.waitingLocked() == 0
		lowest, some := t.ahead.min()
		t.seq++
		w.seq = t.seq
		t.placeLocked(w, d)
		return first || d == behind && (!some || w.lsn < lowest)
	}
	w.finishLocked(err)
	return false
}

func (t *Tracker) placeLocked(w *Waiter, d verdict) {
	w.place = ahead
	if d == unvouched {
		w.place = parked
	}
	t.listOf(w).add(w)
}

func (t *Tracker) waitingLocked() int { return t.ahead.len() + t.parked.len() }

// signalDemand tells the source to look at Demand. Called without the mutex.
func (t *Tracker) signalDemand() {
	if f := t.listener.Load(); f != nil {
		if fn := f.onDemand.Load(); fn != nil {
			(*fn)()
		}
	}
}

// batch bounds how many waiters are taken out, or looked at, while the mutex is
// held once.
const batch = 256

// wakeReplayed finishes all in ahead whose position is replayed, and wakes them
// with the mutex released.
func (t *Tracker) wakeReplayed() {
	var popped, ended [batch]*Waiter
	for {
		t.mu.Lock()
		v := t.view.Load()
		if v == nil {
			t.mu.Unlock()
			return
		}
		n := t.ahead.popUpTo(LSN(v.lsn.Load()), popped[:])
		over := t.settleLocked(v, popped[:n], ended[:0])
		idle := n > 0 && t.waitingLocked() == 0
		t.mu.Unlock()
		wake(over)
		if idle {
			t.signalDemand()
		}
		if n < batch {
			return
		}
	}
}

// settleLocked judges ws, which are in no list: those still pending go into
// one, the others are appended to ended.
func (t *Tracker) settleLocked(v *view, ws, ended []*Waiter) []*Waiter {
	for _, w := range ws {
		d := v.judge(w.Token())
		if d.pending() {
			t.placeLocked(w, d)
			continue
		}
		w.finishLocked(v.err(d, w.Token(), t.cfg.Name))
		ended = append(ended, w)
	}
	return ended
}

// sweep judges everybody anew after v, with another epoch or timeline than
// before, was adopted. It stops when v is overtaken, whose successor sweeps too.
func (t *Tracker) sweep(v *view) {
	t.sweepList(v, &t.parked)
	t.sweepList(v, &t.ahead)
	t.signalDemand() // positions may have moved either way
}

func (t *Tracker) sweepList(v *view, list *waitlist) {
	var next, ended [batch]*Waiter
	var from key
	for {
		t.mu.Lock()
		if t.view.Load() != v {
			t.mu.Unlock()
			return
		}
		n := list.after(from, next[:])
		if n > 0 {
			from = next[n-1].key()
		}
		moved := next[:0]
		for _, w := range next[:n] {
			if d := v.judge(w.Token()); !d.pending() || (d == unvouched) != (w.place == parked) {
				list.remove(w)
				moved = append(moved, w)
			}
		}
		over := t.settleLocked(v, moved, ended[:0])
		t.mu.Unlock()
		wake(over)
		if n < batch {
			return
		}
	}
}
