package tracker

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"
)

// A Source observes one server and reports to a Feed. Package replication has
// the sources for PostgreSQL.
type Source interface {
	// Name is short and stable, such as "poll": it appears in State, errors
	// and metrics.
	Name() string

	// Observe reports until ctx ends or the source fails, and says why. The
	// Tracker calls it again after a pause, from one goroutine at a time. All
	// that it started has ended when it returns.
	Observe(ctx context.Context, feed *Feed) error
}

// Observation is what a source saw: up to LSN, everything is replayed.
type Observation struct {
	LSN LSN

	// System and Timeline are what LSN is a position of; 0 says that the source
	// could not tell, and such an observation satisfies no token that names
	// one. They must have been read no earlier than LSN: a timeline read before
	// it may already have been left when LSN was reached.
	System   uint64
	Timeline uint32

	// History is how Timeline came about; nil says that the source does not
	// know, and then no token of an older timeline is satisfied. It must not be
	// changed after it was handed over.
	History History

	// Primary says that the server is not in recovery; LSN is then the end of
	// what is written, all of which can be read.
	Primary bool

	// Epoch numbers the life of the connection that saw it, within the Tracker.
	// Observe sets it.
	Epoch uint64
}

// Demand is what a source has to know about who waits.
type Demand struct {
	Waiting int // how many wait
	// Lowest is the lowest position that is waited for and not replayed. It is
	// 0 when nobody waits, and when all who wait have their position and miss
	// only its timeline or system.
	Lowest LSN
}

// Feed is a source's line to its Tracker. Its methods do not block and may be
// called by several goroutines. A feed that Observe has returned from is dead:
// what still comes over it is ignored.
type Feed struct {
	t        *Tracker
	name     string
	began    time.Time
	onDemand atomic.Pointer[func()]

	// guarded by t.mu
	dead     bool
	observed bool   // whether anything came over it
	note     string // see Note
	using    string // the highest rung that is up; name where there is no ladder
	ladder   []Rung
}

// Rung is one of the ways in which a source may learn of replay.
type Rung struct {
	Source  string    // its name
	Up      bool      // whether it works now
	Resting bool      // not up because no wait needs it: nothing is wrong with it, as far as is known
	Reason  string    // why it is not up, or what is wrong with it; may be empty
	Since   time.Time // when Up last changed
}

// Epoch is the life of one connection, and the positions seen over it. A
// standby that crashes comes back lower than it was, and each of its
// connections dies with it (PostgreSQL's postmaster.c, HandleChildCrash), so a
// position is only known as long as the connection that saw it.
type Epoch struct {
	f     *Feed
	n     uint64
	ended bool // guarded by t.mu
}

// Begin starts an epoch: call it when a connection is ready to observe. With
// its first observation everything that earlier epochs said is forgotten.
func (f *Feed) Begin() *Epoch {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	f.t.epochs++
	return &Epoch{f: f, n: f.t.epochs}
}

// Number is the epoch's, which its Observations have: later epochs have higher
// ones.
func (e *Epoch) Number() uint64 { return e.n }

// Observe takes an observation, and wakes who waited for it. It is ignored after
// End, and while a newer epoch observes.
func (e *Epoch) Observe(o Observation) {
	o.Epoch = e.n
	e.f.t.observe(e, o)
}

// End says that the connection is gone: if the position came over it, it is now
// unknown. Who waits goes on waiting.
func (e *Epoch) End() {
	t := e.f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	e.ended = true
	if v := t.view.Load(); v != nil && v.epoch == e.n {
		t.view.Store(nil)
	}
}

// Demand returns who waits now.
func (f *Feed) Demand() Demand {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	lowest, _ := f.t.ahead.min()
	return Demand{Waiting: f.t.waitingLocked(), Lowest: lowest}
}

// OnDemand has fn called after the first waiter came, after one came that waits
// for less than all others, and after the last one went. It is a hint: several
// changes may come as one, so fn reads Demand. It is called from the goroutine
// that made the change, which waits for it, by several at once, and without a
// lock held; it must not block.
func (f *Feed) OnDemand(fn func()) { f.onDemand.Store(&fn) }

// Note records what holds the source back just now, for State and
// TimeoutError; "" takes it back.
func (f *Feed) Note(reason string) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	f.note = reason
}

// Ladder says which ways the source has, best first, and which of them are up.
// The first that is up is the one in use, which State calls the Source. The
// slice must not be changed after it was handed over.
func (f *Feed) Ladder(rungs []Rung) {
	using, reason := f.name, ""
	for _, r := range rungs {
		if r.Up {
			using = r.Source
			break
		}
		reason = cmp.Or(reason, r.Reason)
	}
	t := f.t
	t.mu.Lock()
	f.ladder = rungs
	from := f.using
	f.using = using
	if f.dead || from == using {
		t.mu.Unlock()
		return
	}
	t.stats.SourceChanges++
	t.mu.Unlock()
	t.cfg.Logger.Info("source changed", "replica", t.cfg.Name, "from", from, "to", using, "reason", reason)
	if fn := t.cfg.Observer.SourceChanged; fn != nil {
		fn(from, using)
	}
}

// observe is Epoch.Observe.
func (t *Tracker) observe(e *Epoch, o Observation) {
	now := time.Now()
	t.mu.Lock()
	v := t.view.Load()
	if e.ended || e.f.dead || t.closed || v != nil && o.Epoch < v.epoch {
		t.mu.Unlock()
		return
	}
	e.f.observed = true
	t.stats.Observations++
	t.observedAt = now
	recovered := t.failure
	t.failure = nil
	next := successor(v, o)
	moved := next != nil || o.LSN > LSN(v.lsn.Load())
	switch {
	case next != nil:
		t.adoptLocked(next)
	case moved:
		v.lsn.Store(uint64(o.LSN))
	}
	t.rate.observe(max(o.LSN, LSN(t.view.Load().lsn.Load())), now)
	t.mu.Unlock()
	if recovered != nil {
		t.cfg.Logger.Info("source observes again", "replica", t.cfg.Name, "source", e.f.name, "epoch", o.Epoch)
	}
	switch {
	case next != nil:
		t.sweep(next)
	case moved:
		t.wakeReplayed()
	default:
		return
	}
	t.readyOnce.Do(func() { close(t.ready) })
	if fn := t.cfg.Observer.Position; fn != nil {
		fn(o)
	}
}

// successor returns the view that o opens after v, and nil when o only moves v
// on.
func successor(v *view, o Observation) *view {
	if v != nil && v.epoch == o.Epoch && v.system == o.System && v.timeline == o.Timeline &&
		v.primary == o.Primary && (v.history == nil) == (o.History == nil) {
		return nil
	}
	next := &view{system: o.System, timeline: o.Timeline, primary: o.Primary, history: o.History, epoch: o.Epoch}
	next.lsn.Store(uint64(o.LSN))
	if v != nil && v.epoch == o.Epoch && v.system == o.System && o.Timeline == 0 {
		if next.vouched = v; v.timeline == 0 {
			next.vouched = v.vouched
		}
	}
	return next
}

func (t *Tracker) adoptLocked(next *view) {
	if v := t.view.Load(); v == nil || v.epoch != next.epoch {
		t.rate = rate{}
		t.stats.Epochs++
	}
	t.view.Store(next)
	if was := t.latest; next.history != nil && (was == nil || was.system != next.system || was.timeline <= next.timeline) {
		t.latest = next
	}
}
