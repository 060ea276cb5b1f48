package replication

import (
	"time"

	"github.com/walwake/walwake/tracker"
)

// standing has the session itself WAIT FOR LSN, for whatever is replayed next,
// once a replica that keeps up would have replayed and before a stream is worth
// opening. No position that is waited for can be below that, so nobody is held up.
type standing struct {
	usable bool
	failed time.Time // when it last did; not tried again for a while
}

// possibleLocked reports whether to wait for replay now.
func (st *standing) possibleLocked(r *run, d tracker.Demand, now time.Time) bool {
	if !st.usable || r.last.lsn >= d.Lowest || !r.last.known || r.last.timeline == 0 || now.Sub(r.pace.since) >= streamAfter {
		return false
	}
	stream, _ := r.board.better(Poll)
	return !stream && (st.failed.IsZero() || now.Sub(st.failed) > lastPause)
}

func (st *standing) tookLocked(a answer) {
	if a.waitErr != nil {
		st.failed = time.Now()
	}
}
