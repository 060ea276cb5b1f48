package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
)

// waitFor asks with WAIT FOR LSN: the server answers when the position is
// replayed. The main session waits for the lowest position in demand. A lower
// one that comes later must not be held up by that, so a second session then
// waits for any replay at all, as often as it takes.
type waitFor struct {
	target tracker.LSN // what the main session waits for; meaningful while it is busy
	second *session    // of the same life of the same server as the main one
	slept  bool        // the last WAIT FOR LSN timed out
	failed chan error  // room for one: why it cannot be used
}

// waitSlice is how long one WAIT FOR LSN lasts at the most. After it the server
// is asked why replay does not move; one that is gone without a word is missed
// QueryTimeout later.
const waitSlice = 250 * time.Millisecond

// errUnseen is why WAIT FOR LSN is of no use: a position without its timeline is no
// token's, and each question would have to say why there is none.
var errUnseen = errors.New("the timeline is not visible over a plain connection: GRANT pg_read_all_stats")

// listenWaitFor opens the second session and has the main one wait, until ctx
// ends or nobody has waited for a while.
func listenWaitFor(ctx context.Context, l *listener) error {
	r := l.run
	if r.s.walsender {
		return errors.New("a replication connection, which is needed to see the timeline, cannot WAIT FOR LSN: GRANT pg_read_all_stats")
	}
	r.mu.Lock()
	unseen := r.last.unseen()
	r.mu.Unlock()
	if unseen {
		return errUnseen
	}
	second, err := openSession(ctx, l.cfg.Replica, false, r.s)
	if err != nil {
		return err
	}
	w := &waitFor{second: second, failed: make(chan error, 1)}
	r.mu.Lock()
	r.waits, r.two = w, true
	r.mu.Unlock()
	second.listen(func(a answer) { r.take(second, a) })
	defer w.leave(r)
	l.up()
	r.event(true)
	linger := time.NewTimer(l.cfg.Linger)
	defer linger.Stop()
	for {
		select {
		case err := <-w.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-linger.C:
			idle := l.idle()
			if idle >= l.cfg.Linger {
				return errNobodyWaits
			}
			linger.Reset(l.cfg.Linger - idle)
		}
	}
}

// leave gives the main session back: a wait that it is in is cancelled, since
// nothing else can be asked meanwhile.
func (w *waitFor) leave(r *run) {
	r.mu.Lock()
	r.waits = nil
	waiting, secondBusy := r.s.busy && r.s.waiting.Load(), w.second.busy
	r.mu.Unlock()
	if waiting {
		r.s.interrupt()
	}
	w.second.close(secondBusy)
}

// usableLocked reports whether to ask with WAIT FOR LSN now.
func (w *waitFor) usableLocked(r *run) bool {
	if w != nil && r.last.unseen() {
		w.fail(errUnseen)
	}
	return w != nil && r.last.known && r.last.timeline != 0
}

// fail ends the use of WAIT FOR LSN for a while.
func (w *waitFor) fail(err error) {
	select {
	case w.failed <- err:
	default: // it has failed already
	}
}

// actLocked asks what is to be asked now, and returns when to act again at the
// latest.
func (w *waitFor) actLocked(r *run, d tracker.Demand, pause time.Duration, now time.Time) (time.Duration, error) {
	pos := r.last.lsn
	if r.s.busy {
		if pos < d.Lowest && d.Lowest < w.target && !w.second.busy {
			return pause, w.second.askAfter(pos+1, waitSlice)
		}
		return pause, nil
	}
	switch {
	case d.Lowest > pos && w.slept:
		w.slept = false
		r.again, r.asked, r.fullAt = false, now, now
		return pause, r.s.ask(full)
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
	return pause, r.s.askAfter(w.target, waitSlice)
}

// tookLocked notes how WAIT FOR LSN itself went. Where it fails, by a recovery
// conflict or an administrator, another kind is used for a while.
func (w *waitFor) tookLocked(a answer) {
	if w == nil {
		return
	}
	w.slept = a.waited == "timeout"
	if a.waitErr == nil {
		return
	}
	w.fail(fmt.Errorf("WAIT FOR LSN: %w", a.waitErr))
}
