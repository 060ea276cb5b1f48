package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

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
	r.waits = nil
	if !r.board.has(WaitFor) {
		return
	}
	switch {
	case r.s.major < waitForFrom:
		r.board.set(WaitFor, false, fmt.Sprintf("needs PostgreSQL %d, the server is %d", waitForFrom, r.s.major))
	case r.s.walsender:
		r.board.set(WaitFor, false, "a replication connection cannot WAIT FOR LSN: "+r.last.reason)
	case !r.last.standby:
		r.board.set(WaitFor, false, "the server is a primary")
	default:
		second, err := openSession(ctx, r.cfg.Replica, false, r.s)
		if err != nil {
			r.board.set(WaitFor, false, err.Error())
			return
		}
		r.waits = &waitFor{second: second}
		r.board.set(WaitFor, true, "")
	}
}

func (w *waitFor) close() {
	if w != nil {
		w.second.close()
	}
}

func (w *waitFor) secondAnswers() <-chan answer {
	if w == nil {
		return nil
	}
	return w.second.answers
}

func (w *waitFor) usable(r *run) bool {
	return w != nil && r.last.standby && !time.Now().Before(w.off)
}

// act asks what is to be asked now, and returns when to act again at the latest.
func (w *waitFor) act(r *run, d tracker.Demand, pause time.Duration, now time.Time) (time.Duration, error) {
	pos := r.last.lsn
	reachable := d.Lowest > pos && r.last.known
	if r.s.busy {
		if reachable && d.Lowest < w.target && !w.second.busy {
			return pause, w.second.askAfter(pos+1, r.cfg.IdleInterval)
		}
		return pause, nil
	}
	switch {
	case reachable:
		w.target = d.Lowest
	case d.Waiting == 0 && now.Sub(r.wanted) < freshFor && r.last.known:
		if left := freshGap - now.Sub(r.asked); left > 0 {
			return left, nil
		}
		w.target = pos + 1
	case r.again && (d.Waiting > 0 || now.Sub(r.asked) >= r.cfg.IdleInterval):
		// They wait for a timeline, which replay of more does not announce, or
		// it is time for a sign of life.
		r.again, r.asked = false, now
		return pause, r.s.askNow()
	default:
		r.again = false
		return pause, nil
	}
	r.again, r.asked = false, now
	return pause, r.s.askAfter(w.target, r.cfg.IdleInterval)
}

// took notes how WAIT FOR LSN itself went. Where it fails, the position is
// polled for a while.
func (w *waitFor) took(r *run, a answer) {
	switch pgErr, is := errors.AsType[*pgconn.PgError](a.waitErr); {
	case a.waitErr == nil && a.waited != "":
		w.pauses.reset()
		r.board.set(WaitFor, true, "")
	case is && pgErr.Code == "57014": // cancelled, by a recovery conflict or an administrator
		fallthrough
	case a.waitErr != nil:
		w.off = time.Now().Add(w.pauses.next())
		r.board.set(WaitFor, false, a.waitErr.Error())
	}
}
