package tracker

import (
	"slices"
	"time"
)

// trail is what PrimaryAt was told that is not replayed yet, thinned out: by it
// State says for how long the replica has been behind.
//
// Steps rise in position and time, and the last is the latest. The one before it
// is kept if it came late enough after its own predecessor, measured by how long
// the trail is, so there are few of them, however much is announced and however far
// the replica falls behind: some 500 in a day.
type trail []announced

const (
	trailFinest = 10 * time.Millisecond // between two steps, at least
	trailGrain  = 32                    // and this part of the trail's length
)

// told adds p, of the same timeline as the steps.
func (tr *trail) told(p announced, replayed LSN) {
	steps := (*tr)[tr.next(replayed):]
	n := len(steps)
	switch {
	case n > 0 && p.at.LSN <= steps[n-1].at.LSN:
	case n > 1 && steps[n-1].heard.Sub(steps[n-2].heard) < max(trailFinest, p.heard.Sub(steps[0].heard)/trailGrain):
		steps[n-1] = p
	default:
		steps = append(steps, p)
	}
	*tr = steps
}

// upTo forgets what lies beyond lsn.
func (tr *trail) upTo(lsn LSN) { *tr = (*tr)[:tr.next(lsn)] }

// next is the index of the first step beyond lsn.
func (tr trail) next(lsn LSN) int {
	i, _ := slices.BinarySearchFunc(tr, lsn, func(p announced, lsn LSN) int {
		if p.at.LSN > lsn {
			return 1
		}
		return -1
	})
	return i
}

// behindFor is how long ago the first position beyond lsn was told; 0 when there
// is none.
func (tr trail) behindFor(lsn LSN) time.Duration {
	if i := tr.next(lsn); i < len(tr) {
		return time.Since(tr[i].heard)
	}
	return 0
}
