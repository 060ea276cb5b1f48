package replication

import (
	"context"
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
)

// waitForFrom is the first PostgreSQL that has WAIT FOR LSN.
const waitForFrom = 19

// waitFor asks with WAIT FOR LSN: the server answers when the position is
// replayed. The main session waits for the lowest position in demand. A lower
// one that comes later must not be held up by that, so a second session then
// waits for any replay at all, as often as it takes.
type waitFor struct {
	target tracker.LSN // what the main session waits for; meaningful while it is busy
	second *session    // of the same life of the same server as the main one
	pauses pauses      // after a WAIT FOR LSN that failed
	off    time.Time   // until when it is not used
}

// openWaitFor opens the second session, where WAIT FOR LSN is to be used.
func (r *run) openWaitFor(ctx context.Context) {
	if !r.board.has(WaitFor) {
		return
	}
	switch {
	case !r.s.standby:
		r.board.set(WaitFor, false, "the server is a primary")
	case r.s.major < waitForFrom:
		r.board.set(WaitFor, false, fmt.Sprintf("needs PostgreSQL %d, the server is %d", waitForFrom, r.s.major))
	case r.s.walsender:
		r.board.set(WaitFor, false, "a replication connection, which is needed to see the timeline, cannot WAIT FOR LSN: GRANT pg_read_all_stats")
	default:
		second, err := openSession(ctx, r.cfg.Replica, false, r.s)
		if err != nil {
			r.board.set(WaitFor, false, err.Error())
			return
		}
		second.listen(func(a answer) { r.take(second, a) })
		r.mu.Lock()
		r.waits = &waitFor{second: second}
		r.mu.Unlock()
		r.board.set(WaitFor, true, "")
	}
}

func (w *waitFor) usableLocked(r *run, now time.Time) bool {
	return w != nil && r.last.known && r.last.timeline != 0 && !now.Before(w.off)
}

// actLocked asks what is to be asked now, and returns when to act again at the
// latest.
func (w *waitFor) actLocked(r *run, d tracker.Demand, pause time.Duration, now time.Time) (time.Duration, error) {
	pos := r.last.lsn
	if r.s.busy {
		if pos < d.Lowest && d.Lowest < w.target && !w.second.busy {
			return pause, w.second.askAfter(pos+1, r.cfg.IdleInterval)
		}
		return pause, nil
	}
	switch {
	case d.Lowest > pos:
		w.target = d.Lowest
	case d.Waiting == 0 && now.Sub(r.wanted) < freshFor:
		if left := freshGap - now.Sub(r.asked); left > 0 {
			return left, nil
		}
		w.target = pos + 1
	case r.again && (d.Waiting > 0 || now.Sub(r.asked) >= r.cfg.IdleInterval):
		// They wait for a timeline, which no position announces, or it is time
		// for a sign of life.
		r.again, r.asked = false, now
		return pause, r.s.ask(r.questionLocked(now))
	default:
		r.again = false
		return pause, nil
	}
	r.again, r.asked = false, now
	return pause, r.s.askAfter(w.target, r.cfg.IdleInterval)
}

// tookLocked notes how WAIT FOR LSN itself went. Where it fails, by a recovery
// conflict or an administrator, the position is polled for a while.
func (w *waitFor) tookLocked(r *run, a answer) {
	if a.waitErr == nil {
		w.pauses.reset()
		r.board.set(WaitFor, true, "")
		return
	}
	w.off = time.Now().Add(w.pauses.next())
	r.board.set(WaitFor, false, "WAIT FOR LSN: "+a.waitErr.Error())
}
