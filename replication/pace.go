package replication

import (
	"math/rand/v2"
	"time"

	"github.com/walwake/walwake/tracker"
)

// pace decides when to look again at the latest.
type pace struct {
	min, max, idle time.Duration
	target         tracker.LSN
	since          time.Time // when target became the lowest that is waited for
	waiting        bool
	asked          int // how often it was eager for target
}

// Where no stream tells, the server is asked again at once at first: a replica
// that keeps up replays within that time. Where the session can stand in WAIT FOR
// LSN that is better after a few: of 1, 2, 3 and 10, 3 was the quickest at p50 and
// within 2 % of WAIT FOR LSN alone at p90, where 10 took up to 17 % more.
const (
	eagerFor  = 500 * time.Microsecond
	eagerMost = 10
	eagerFew  = 3
)

// next returns how long to wait before looking again.
func (p *pace) next(d tracker.Demand, now time.Time) time.Duration {
	if d.Waiting == 0 {
		p.waiting = false
		return p.idle
	}
	if !p.waiting || d.Lowest != p.target {
		p.waiting, p.target, p.since, p.asked = true, d.Lowest, now, 0
	}
	return min(max(now.Sub(p.since)/8, p.min), p.max)
}

// eager reports whether to look again at once all the same, which it says most
// times for a target.
func (p *pace) eager(now time.Time, most int) bool {
	if !p.waiting || p.target == 0 || p.asked >= most || now.Sub(p.since) > eagerFor {
		return false
	}
	p.asked++
	return true
}

// pauses grow from one failure to the next, with jitter.
type pauses struct{ failures int }

const (
	firstPause = 500 * time.Millisecond
	lastPause  = time.Minute
)

func (p *pauses) next() time.Duration {
	d := min(firstPause<<min(p.failures, 10), lastPause)
	p.failures++
	return d/2 + rand.N(d/2+1)
}

func (p *pauses) reset() { p.failures = 0 }
