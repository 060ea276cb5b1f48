package stalecheck

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/tracker"
)

// write is one acknowledged commit.
type write struct {
	id     int64
	writer int64
	token  tracker.Token
}

// violation is something that must not be.
type violation struct {
	at   time.Duration // since the run began
	kind string
	what string
}

func (v violation) String() string {
	return fmt.Sprintf("%s after %s: %s", v.kind, v.at.Round(time.Millisecond), v.what)
}

// The kinds of violation.
const (
	stale     = "stale read"
	backwards = "read that went backwards"
	late      = "wake-up that was lost"
	wrongEnd  = "wait that ended wrongly"
	notLost   = "write called lost that is not"
	hidden    = "lost write called replayed"
	left      = "something left behind"
)

// history is what was acknowledged, and what was found to be wrong.
type history struct {
	began time.Time
	first chan struct{} // closed with the first write

	reads    atomic.Int64 // that were checked
	broken   atomic.Int64 // that failed with their connection
	timeouts atomic.Int64 // waits that timed out while the row could not be read
	refused  atomic.Int64 // waits that ended because the write was lost

	mu         sync.Mutex // guards what follows
	writes     []write
	lost       map[int64]string // by id: which tracker called it lost
	violations []violation
}

func newHistory() *history {
	return &history{began: time.Now(), first: make(chan struct{}), lost: map[int64]string{}}
}

func (h *history) acknowledged(w write) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes = append(h.writes, w)
	if len(h.writes) == 1 {
		close(h.first)
	}
}

// pick returns a write, most often one of the latest unless anyAge.
func (h *history) pick(rng *rand.Rand, anyAge bool) write {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.writes)
	if anyAge || rng.IntN(10) == 0 {
		return h.writes[rng.IntN(n)]
	}
	return h.writes[n-1-rng.IntN(min(n, 8))]
}

// calledLost notes that a tracker called a write lost.
func (h *history) calledLost(id int64, by string) {
	h.refused.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost[id] = by
}

func (h *history) violate(kind, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.violations = append(h.violations, violation{time.Since(h.began), kind, fmt.Sprintf(format, args...)})
}

// wrong returns the violations.
func (h *history) wrong() []violation {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]violation(nil), h.violations...)
}

// has reports whether there is a violation of one of these kinds.
func (h *history) has(kinds []string) bool {
	return slices.ContainsFunc(h.wrong(), func(v violation) bool { return slices.Contains(kinds, v.kind) })
}

func (h *history) all() []write {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]write(nil), h.writes...)
}

func (h *history) saidLost() map[int64]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.lost)
}
