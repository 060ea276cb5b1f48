package tracker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// place says which list a waiter stands in.
type place uint8

const (
	over   place = iota // it has ended
	ahead               // in Tracker.ahead: its position is not replayed
	parked              // in Tracker.parked: its position is replayed, its timeline is not there
)

// A Waiter is one request to be told when a token is replayed. It ends once:
// replayed, cancelled, timed out in Await, or with an error. One goroutine may
// hold any number of them. All methods may be called by several goroutines.
//
// A Waiter that nobody Awaits or Cancels stays until it is replayed or the
// Tracker is closed, and counts against Config.MaxWaiters.
type Waiter struct {
	t        *Tracker
	lsn      LSN           // the token's parts, in the order in which they pack: a waiter is 64 bytes
	system   uint64        //
	seq      uint64        // order of arrival; fixed once in a list
	done     chan struct{} // made when somebody asks for it; guarded by t.mu until over
	err      error         // guarded by t.mu; fixed once over, and then to be read by who knows that
	timeline uint32        //
	place    place         // guarded by t.mu

	uncounted bool // it is Refresh's, and no wait
}

// closedChan is the Done of all waiters that ended before anybody asked.
var closedChan = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (w *Waiter) key() key { return key{w.lsn, w.seq} }

// Token returns what is waited for.
func (w *Waiter) Token() Token { return Token{w.system, w.timeline, w.lsn} }

// Done returns a channel that is closed when the wait has ended; Err then says
// how. The channel is the waiter's largest part, and made by the first call.
func (w *Waiter) Done() <-chan struct{} {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	if w.place == over {
		if w.done == nil {
			return closedChan
		}
		return w.done
	}
	if w.done == nil {
		w.done = make(chan struct{})
	}
	return w.done
}

// Err returns nil while the wait goes on and when the token was replayed, and
// why the wait ended otherwise.
func (w *Waiter) Err() error {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	return w.err
}

// Cancel ends the wait with ErrCanceled and takes the waiter out of the list
// at once. It does not block, and does nothing when the wait has ended.
func (w *Waiter) Cancel() { w.t.end(w, func() error { return ErrCanceled }) }

// Await blocks until the wait has ended, and returns nil when the token is
// replayed. When ctx ends first, or has no deadline and Config.Timeout passes
// first, the wait ends with it: a *TimeoutError where a time ran out, the
// context's error and cause where ctx was cancelled. A token that is replayed
// is a success even when ctx has ended.
func (w *Waiter) Await(ctx context.Context) error {
	done := w.Done()
	select {
	case <-done:
		return w.err
	default:
	}
	t := w.t
	start := time.Now()
	if o := t.cfg.Observer; o.WaitStart != nil {
		ctx = o.WaitStart(ctx, w.Token())
	}
	var timeout <-chan time.Time
	if _, has := ctx.Deadline(); !has && t.cfg.Timeout > 0 {
		timer := time.NewTimer(t.cfg.Timeout)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-done:
	case <-timeout:
		t.end(w, func() error { return t.timeoutErrorLocked(w.Token(), time.Since(start), nil) })
	case <-ctx.Done():
		t.end(w, func() error { return t.contextErrorLocked(ctx, w.Token(), time.Since(start)) })
	}
	err := w.err // it is over; without the mutex, for which all who are woken at once would queue
	if o := t.cfg.Observer; o.WaitEnd != nil {
		o.WaitEnd(ctx, WaitResult{Token: w.Token(), Waited: time.Since(start), Err: err})
	}
	return err
}

// finishLocked marks w, which is in no list any more, as over, and counts it. The
// caller closes w.done, if there is one, once it has released the mutex: see wake.
func (w *Waiter) finishLocked(err error) {
	w.place = over
	w.err = err
	if !w.uncounted {
		w.t.countLocked(err)
	}
}

// wake tells those who wait on ws, all of them over. Called without the mutex.
// Nobody writes done any more once a waiter is over.
func wake(ws []*Waiter) {
	for i, w := range ws {
		if w.done != nil {
			close(w.done)
		}
		ws[i] = nil
	}
}

// end takes w out of its list and finishes it with reason's error, unless it
// is over.
func (t *Tracker) end(w *Waiter, reason func() error) {
	t.mu.Lock()
	if w.place == over {
		t.mu.Unlock()
		return
	}
	t.listOf(w).remove(w)
	w.finishLocked(reason())
	idle := t.waitingLocked() == 0
	t.mu.Unlock()
	wake([]*Waiter{w})
	if idle {
		t.signalDemand()
	}
}

func (t *Tracker) listOf(w *Waiter) *waitlist {
	if w.place == parked {
		return &t.parked
	}
	return &t.ahead
}

func (t *Tracker) contextErrorLocked(ctx context.Context, tok Token, waited time.Duration) error {
	cause := contextError(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return t.timeoutErrorLocked(tok, waited, cause)
	}
	return fmt.Errorf("tracker: wait for %s: %w", tok.LSN, cause)
}

func (t *Tracker) timeoutErrorLocked(tok Token, waited time.Duration, cause error) *TimeoutError {
	e := &TimeoutError{
		Replica: t.cfg.Name,
		Target:  tok,
		Waited:  waited,
		Source:  t.sourceLocked(),
		Reason:  t.reasonLocked(),
		cause:   cause,
	}
	v := t.view.Load()
	if v != nil {
		e.Last, e.Known = v.observation(), true
		e.Behind = e.Last.LSN.Behind(tok.LSN)
		e.ETA = t.etaLocked(e.Behind)
	}
	if p, _ := t.primaryLocked(v); !p.at.IsZero() {
		e.Primary, e.PrimaryAge = p.at, time.Since(p.heard)
		e.Ahead = p.aheadOf(tok, waited)
	}
	if e.Ahead > 0 {
		e.ETA = 0 // it is not for the replica to say
	}
	return e
}
