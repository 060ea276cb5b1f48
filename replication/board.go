package replication

import (
	"slices"
	"sync"
	"time"

	"github.com/walwake/walwake/tracker"
)

// board keeps which kind is up, and why each other one is not.
type board struct {
	feed *tracker.Feed

	// telling is held from a change to where the tracker has it, so that changes
	// arrive in their order. mu may be taken under it.
	telling sync.Mutex

	mu     sync.Mutex
	rungs  []tracker.Rung // best first; the last is Poll
	states []state        // of the rungs
	change chan struct{}  // closed and made anew when a state changes
}

// state is a kind's.
type state uint8

const (
	resting state = iota // it starts when a wait lasts, and has not failed
	up
	failing // it cannot be used, or not now: see the rung's reason
)

func newBoard(kinds []Kind, feed *tracker.Feed) *board {
	b := &board{feed: feed, change: make(chan struct{})}
	for _, k := range kinds {
		b.rungs = append(b.rungs, tracker.Rung{Source: string(k), Up: k == Poll, Resting: k != Poll, Since: time.Now()})
		b.states = append(b.states, resting)
	}
	return b
}

func (b *board) has(k Kind) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.indexLocked(k) >= 0
}

func (b *board) indexLocked(k Kind) int {
	return slices.IndexFunc(b.rungs, func(r tracker.Rung) bool { return r.Source == string(k) })
}

// reset says that no kind but Poll is up: a session begins.
func (b *board) reset() {
	b.telling.Lock()
	defer b.telling.Unlock()
	b.mu.Lock()
	for i := range b.rungs {
		r := &b.rungs[i]
		if Kind(r.Source) == Poll {
			continue
		}
		if r.Up {
			r.Up, r.Since = false, time.Now()
		}
		r.Reason, r.Resting, b.states[i] = "starts when a wait lasts", true, resting
	}
	b.changedLocked()
	rungs := slices.Clone(b.rungs)
	b.mu.Unlock()
	b.feed.Ladder(rungs)
}

func (b *board) changedLocked() {
	close(b.change)
	b.change = make(chan struct{})
}

// set says how a kind is, and why it is not up.
func (b *board) set(k Kind, st state, reason string) {
	b.telling.Lock()
	defer b.telling.Unlock()
	b.mu.Lock()
	i := b.indexLocked(k)
	r := &b.rungs[i]
	if b.states[i] == st && r.Reason == reason {
		b.mu.Unlock()
		return
	}
	if b.states[i] != st {
		b.states[i] = st
		b.changedLocked()
	}
	if r.Up != (st == up) {
		r.Up, r.Since = st == up, time.Now()
	}
	r.Reason, r.Resting = reason, st == resting
	rungs := slices.Clone(b.rungs)
	b.mu.Unlock()
	b.feed.Ladder(rungs)
}

// better reports whether a better kind than k is up, and returns a channel that
// is closed when that may have changed.
func (b *board) better(k Kind) (bool, <-chan struct{}) {
	return b.above(k, func(st state) bool { return st == up })
}

// hopeful reports whether a better kind than k is up or has yet to be tried.
func (b *board) hopeful(k Kind) (bool, <-chan struct{}) {
	return b.above(k, func(st state) bool { return st != failing })
}

func (b *board) above(k Kind, is func(state) bool) (bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.states[:b.indexLocked(k)], is), b.change
}
