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
	change chan struct{}  // closed and made anew when a kind comes up or goes down
}

func newBoard(kinds []Kind, feed *tracker.Feed) *board {
	b := &board{feed: feed, change: make(chan struct{})}
	for _, k := range kinds {
		b.rungs = append(b.rungs, tracker.Rung{Source: string(k), Up: k == Poll, Since: time.Now()})
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
	b.mu.Lock()
	rungs := slices.Clone(b.rungs)
	b.mu.Unlock()
	for _, r := range rungs {
		if k := Kind(r.Source); k != Poll {
			b.set(k, false, "starts when somebody waits")
		}
	}
}

// set says whether a kind is up, and why it is not.
func (b *board) set(k Kind, up bool, reason string) {
	b.telling.Lock()
	defer b.telling.Unlock()
	b.mu.Lock()
	r := &b.rungs[b.indexLocked(k)]
	if r.Up == up && r.Reason == reason {
		b.mu.Unlock()
		return
	}
	if r.Up != up {
		r.Up, r.Since = up, time.Now()
		close(b.change)
		b.change = make(chan struct{})
	}
	r.Reason = reason
	rungs := slices.Clone(b.rungs)
	b.mu.Unlock()
	b.feed.Ladder(rungs)
}

// better reports whether a better kind than k is up, and returns a channel that
// is closed when that may have changed.
func (b *board) better(k Kind) (bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.rungs {
		if r.Source == string(k) {
			break
		}
		if r.Up {
			return true, b.change
		}
	}
	return false, b.change
}
