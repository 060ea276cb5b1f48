package tracker

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Run runs the source, and runs it again when it fails, until ctx ends or Close
// is called. It blocks, is called once, and belongs to the caller's goroutine.
// It returns nil after Close, and ctx's cause otherwise. When it has returned
// the Tracker is closed: everybody who waited got ErrClosed.
func (t *Tracker) Run(ctx context.Context) error {
	if !t.ran.CompareAndSwap(false, true) {
		return errors.New("tracker: Run was called before: make a new Tracker")
	}
	defer close(t.stopped)
	defer t.shut()
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	t.mu.Lock()
	t.cancel = cancel
	closed := t.closed
	t.mu.Unlock()
	for !closed && ctx.Err() == nil {
		feed := t.openFeed()
		err := t.cfg.Source.Observe(run, feed)
		closed = t.closeFeed(feed, err)
		if !closed && ctx.Err() == nil {
			t.pause(run, feed)
		}
	}
	if closed {
		return nil
	}
	return context.Cause(ctx)
}

// Close ends all waits with ErrClosed, ends Run and waits for it to return. It
// may be called several times, and without Run; not by the Source or an
// Observer's function, for which Run would wait.
func (t *Tracker) Close() {
	t.shut()
	if t.ran.Load() {
		<-t.stopped
	}
}

// shut closes the Tracker without waiting for Run.
func (t *Tracker) shut() {
	t.mu.Lock()
	t.closed = true
	if t.cancel != nil {
		t.cancel()
	}
	t.view.Store(nil)
	t.mu.Unlock()
	var ws [batch]*Waiter
	for _, list := range []*waitlist{&t.ahead, &t.parked} {
		for n := batch; n == batch; {
			t.mu.Lock()
			n = list.popUpTo(^LSN(0), ws[:])
			for _, w := range ws[:n] {
				w.finishLocked(ErrClosed)
			}
			t.mu.Unlock()
			wake(ws[:n])
		}
	}
}

// lasted is how long a run of the source goes on at least, if it is to count as a
// success: what fails at once each time is not tried without a pause.
const lasted = time.Second

func (t *Tracker) openFeed() *Feed {
	name := t.cfg.Source.Name()
	f := &Feed{t: t, name: name, using: name, began: time.Now()}
	t.mu.Lock()
	t.feed = f
	t.listener.Store(f)
	t.mu.Unlock()
	return f
}

// closeFeed makes the position unknown and takes down why the source ended. It
// reports whether the Tracker is closed, and the end therefore no failure.
func (t *Tracker) closeFeed(f *Feed, err error) (closed bool) {
	if err == nil {
		err = errors.New("the source ended without an error")
	}
	t.mu.Lock()
	f.dead = true
	t.view.Store(nil)
	t.feed = nil
	if t.closed {
		t.mu.Unlock()
		return true
	}
	if f.observed && time.Since(f.began) > lasted {
		t.failures = 0
	}
	t.failures++
	t.failure = err
	t.stats.Failures++
	failures := t.failures
	t.mu.Unlock()
	t.cfg.Logger.Warn("source failed", "replica", t.cfg.Name, "source", f.name, "err", err, "failures", failures)
	if fn := t.cfg.Observer.Failed; fn != nil {
		fn(f.name, err)
	}
	return false
}

// pause waits before the next run: as long as the failures in a row say, and
// less once somebody waits. It returns when ctx ends.
func (t *Tracker) pause(ctx context.Context, f *Feed) {
	t.mu.Lock()
	failures := t.failures
	t.mu.Unlock()
	d := t.cfg.RetryMax
	if shift := min(failures-1, 30); t.cfg.RetryMin < d>>shift {
		d = t.cfg.RetryMin << shift
	}
	d = d/2 + rand.N(d/2+1)
	hurried := min(d, max(t.cfg.RetryMin, t.cfg.RetryMax/10))
	timer := time.NewTimer(d)
	defer timer.Stop()
	changed := make(chan struct{}, 1)
	f.OnDemand(func() {
		select {
		case changed <- struct{}{}:
		default: // the last one is not taken yet
		}
	})
	for start := time.Now(); ; {
		if f.Demand().Waiting > 0 {
			timer.Reset(hurried - time.Since(start))
		}
		select {
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
