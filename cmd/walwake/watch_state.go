package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/walwake/walwake/tracker"
)

const (
	watchSpan   = 5 * time.Minute        // of the samples that are kept, and more where it is asked seldom
	minSamples  = 400                    // that are kept at least: a wide terminal's
	maxHappened = 64                     // events that are kept
	staleAfter  = 10 * time.Second       // without an answer, it is not known where the primary is
	freshWithin = 100 * time.Millisecond // is how long the replica is given to answer
	freshLook   = 500 * time.Microsecond // is how often it is looked whether it has
)

// happening is an event that an operator may want to know of.
type happening struct {
	n     uint64 // rises
	at    time.Time
	kind  string // source, failed, epoch, timeline, role, note or primary
	text  string
	times int // that it happened one after the other
}

// sample is what one look has seen.
type sample struct {
	at    time.Time
	epoch uint64 // 0: the position was not known
	lsn   tracker.LSN
	lag   lagNow
}

// lagNow is how far behind the replica is.
type lagNow struct {
	known  bool
	bytes  uint64
	late   time.Duration // 0 when bytes is, or when not known
	from   string        // measured, estimated, or empty when late is not known
	reason string        // why it is not known
}

// sight is all that is shown at a time.
type sight struct {
	now      time.Time
	interval time.Duration
	server   string
	primary  string // empty: none was named
	sidecar  string // the URL of the one that server is watched through; empty: it is watched itself
	lags     bool   // whether somebody says where the primary is, so that there is a lag to show
	state    tracker.State
	stats    tracker.Stats
	lag      lagNow
	samples  []sample      // oldest first; only the screen has them
	looks    uint64        // the latest sample's number
	events   []happening   // oldest first
	last     tracker.State // the latest that had a ladder: while a standby is down no source runs
}

// watched is a replica that is followed, and what was seen of it.
type watched struct {
	*replica
	primary  *server         // nil: none was named
	side     *watchedSidecar // nil: the replica is watched itself
	interval time.Duration
	changed  chan struct{} // room for one: there is a sample, or an event, more

	mu      sync.Mutex
	samples []sample            // guarded by mu
	looks   uint64              // guarded by mu; samples ever taken
	events  []happening         // guarded by mu
	n       uint64              // guarded by mu; the latest event's
	epoch   uint64              // guarded by mu; the latest
	was     tracker.Observation // guarded by mu; of the look before; zero before it was known
	note    string              // guarded by mu; of the look before
	said    string              // guarded by mu; why the lag is not known, as the primary or the sidecar said last; empty: that says nothing
	last    tracker.State       // guarded by mu; the latest that had a ladder
}

// hold has somebody wait for what never comes, so that the best source is up.
func (w *watched) hold() { w.Request(tracker.Token{LSN: math.MaxUint64}) }

// look takes a sample each interval until ctx ends.
func (w *watched) look(ctx context.Context) {
	tick := time.NewTicker(w.interval)
	defer tick.Stop()
	for {
		w.sample(w.fresh(ctx))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// fresh returns the state after the replica was asked once more, or some time has passed.
func (w *watched) fresh(ctx context.Context) tracker.State {
	if w.side != nil {
		w.askSidecar(ctx)
		return w.State()
	}
	asked := time.Now()
	w.Refresh()
	look := time.NewTicker(freshLook)
	defer look.Stop()
	state := w.State()
	for state.Known && !state.ObservedAt.After(asked) && time.Since(asked) < min(freshWithin, w.interval/2) {
		select {
		case <-look.C:
		case <-ctx.Done():
			return state
		}
		state = w.State()
	}
	return state
}

func (w *watched) sample(state tracker.State) {
	defer w.poke()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.adaptLocked(&state)
	w.climbedLocked(state)
	s := sample{at: time.Now(), lag: w.lagLocked(state, time.Now())}
	if o := state.Position; state.Known {
		s.epoch, s.lsn = o.Epoch, o.LSN
		if was := w.was; was.Timeline != 0 && o.Timeline != 0 && o.Timeline != was.Timeline {
			w.tellLocked("timeline", fmt.Sprintf("timeline %d is replayed, it was %d", o.Timeline, was.Timeline))
		}
		if was := w.was; was.Epoch != 0 && o.Primary != was.Primary {
			w.tellLocked("role", "it is a "+roleOf(o)+" now, it was a "+roleOf(was))
		}
		if o.Timeline == 0 {
			o.Timeline = w.was.Timeline
		}
		w.was = o
	}
	if note := oneLine(plain(state.Note)); note != w.note {
		w.note = note
		switch {
		case note != "":
			w.tellLocked("note", note)
		case state.Known: // or it fell with the standby
			w.tellLocked("note", "nothing holds it back any more")
		}
	}
	keep := max(minSamples, int(watchSpan/w.interval)*3/2)
	if len(w.samples) >= 2*keep {
		w.samples = append(w.samples[:0], w.samples[len(w.samples)-keep:]...)
	}
	w.samples = append(w.samples, s)
	w.looks++
}

func roleOf(o tracker.Observation) string {
	if o.Primary {
		return "primary"
	}
	return "standby"
}

// moved is called with each position.
func (w *watched) moved(o tracker.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.Epoch <= w.epoch {
		return
	}
	w.epoch = o.Epoch
	text := "the position is known, " + o.LSN.String()
	if o.Timeline != 0 {
		text += fmt.Sprintf(" of timeline %d", o.Timeline)
	}
	w.tellLocked("epoch", text)
}

func (w *watched) sourceChanged(from, to string, state tracker.State) {
	if w.side != nil {
		w.sourceThereChanged(to, state)
		return
	}
	w.event("source", sourceText(from, to, state))
}

func (w *watched) failed(err error) {
	w.event("failed", w.failureText(err))
}

// tellPrimary is called by who asks the primary, with how that goes when it has changed.
func (w *watched) tellPrimary(text string, failing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = ""
	if failing {
		w.said = text
	}
	w.tellLocked("primary", text)
}

func (w *watched) event(kind, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tellLocked(kind, text)
}

// tellLocked adds an event. One that repeats the latest is counted there.
func (w *watched) tellLocked(kind, text string) {
	defer w.poke()
	w.n++
	now := time.Now()
	if last := len(w.events) - 1; last >= 0 && w.events[last].kind == kind && w.events[last].text == text {
		w.events[last] = happening{w.n, now, kind, text, w.events[last].times + 1}
		return
	}
	if len(w.events) == maxHappened {
		w.events = append(w.events[:0], w.events[1:]...)
	}
	w.events = append(w.events, happening{w.n, now, kind, text, 1})
}

func (w *watched) poke() {
	select {
	case w.changed <- struct{}{}:
	default: // the last one is not taken yet
	}
}

// sight returns what is to be shown, but for the samples.
func (w *watched) sight() sight {
	state, stats := w.State(), w.Stats()
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.adaptLocked(&state)
	w.climbedLocked(state)
	p := sight{
		now: now, interval: w.interval, server: w.server.address, state: state, stats: stats,
		lag: w.lagLocked(state, now), looks: w.looks, events: slices.Clone(w.events),
		last: w.last,
	}
	if w.primary != nil {
		p.primary, p.lags = w.primary.address, true
	}
	if s := w.side; s != nil {
		p.server, p.sidecar, p.lags = cmp.Or(s.name, p.server), p.server, s.primary
		p.stats.SourceChanges = s.changes
	}
	return p
}

// climbedLocked keeps a state that has a ladder.
func (w *watched) climbedLocked(st tracker.State) {
	if len(st.Ladder) > 0 {
		w.last = st
	}
}

// kept returns the samples, and how many there ever were.
func (w *watched) kept() ([]sample, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.samples), w.looks
}

// lagLocked says how far behind a state is.
func (w *watched) lagLocked(st tracker.State, now time.Time) lagNow {
	switch {
	case !st.Known:
		return lagNow{reason: "the replica's position is not known"}
	case st.Position.Primary:
		return lagNow{known: true, from: "measured"}
	case w.primary == nil && w.side == nil:
		return lagNow{reason: "name the primary in --primary"}
	case st.Primary.IsZero(), now.Sub(w.heardLocked(st)) > max(staleAfter, 3*w.interval):
		return lagNow{reason: cmp.Or(w.said, "the primary's position is not known")}
	case st.Position.System == 0:
		return lagNow{reason: "the replica's cluster is not known"}
	case !st.BehindKnown:
		return lagNow{reason: fmt.Sprintf("the primary is on timeline %d, and the replica is not known to follow it there", st.Primary.Timeline)}
	case st.Behind == 0:
		return lagNow{known: true, from: "measured"}
	case st.BehindFor > 0:
		return lagNow{known: true, bytes: st.Behind, late: st.BehindFor, from: "measured"}
	case st.ETA > 0:
		return lagNow{known: true, bytes: st.Behind, late: st.ETA, from: "estimated"}
	}
	return lagNow{known: true, bytes: st.Behind}
}
