package tracker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// sourceFunc is a Source made of a function.
type sourceFunc func(ctx context.Context, f *Feed) error

func (sourceFunc) Name() string                                 { return "func" }
func (s sourceFunc) Observe(ctx context.Context, f *Feed) error { return s(ctx, f) }

// noSource never sees anything.
type noSource struct{}

func (noSource) Name() string { return "none" }
func (noSource) Observe(ctx context.Context, _ *Feed) error {
	<-ctx.Done()
	return ctx.Err()
}

// running returns a Tracker whose Run has reached its source, with the feed of
// that run. Close ends it.
func running(t *testing.T, cfg Config) (*Tracker, *Feed) {
	t.Helper()
	feeds := make(chan *Feed, 1)
	if cfg.Source == nil {
		cfg.Source = sourceFunc(func(ctx context.Context, f *Feed) error {
			feeds <- f
			<-ctx.Done()
			return ctx.Err()
		})
	}
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	t.Cleanup(tr.Close)
	return tr, <-feeds
}

func at(lsn LSN) Observation {
	return Observation{System: 7, Timeline: 1, LSN: lsn, History: History{}}
}

func tok(lsn LSN) Token { return Token{System: 7, Timeline: 1, LSN: lsn} }

// inBubble runs f in a bubble whose cleanups run inside it.
func inBubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

func TestWaitEndsAfterThreeSecondsWhenNobodySaysOtherwise(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{Name: "r1"})
		feed.Begin().Observe(at(100))
		start := time.Now()
		err := tr.Wait(t.Context(), tok(164))
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("waited %s, want 3s", d)
		}
		e, ok := errors.AsType[*TimeoutError](err)
		if !ok || !errors.Is(err, ErrTimeout) {
			t.Fatalf("got %v, want a *TimeoutError that is ErrTimeout", err)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("it is context.DeadlineExceeded, though no deadline of the caller's passed")
		}
		if e.Behind != 64 || e.Last.LSN != 100 || !e.Known || e.Source != "func" || e.Replica != "r1" || e.Waited != 3*time.Second {
			t.Errorf("got %+v", e)
		}
		if s := tr.Stats(); s.Waiting != 0 || s.TimedOut != 1 {
			t.Errorf("it left %+v", s)
		}
	})
}

func TestWaitTellsTheCallersDeadlineFromOurs(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{Timeout: time.Hour})
		feed.Begin().Observe(at(100))
		why := errors.New("request budget")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, why)
		defer cancel()
		err := tr.Wait(ctx, tok(200))
		for _, want := range []error{ErrTimeout, context.DeadlineExceeded, why} {
			if !errors.Is(err, want) {
				t.Errorf("%v is not %v", err, want)
			}
		}
		ctx, stop := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { stop(why) })
		err = tr.Wait(ctx, tok(200))
		if !errors.Is(err, context.Canceled) || !errors.Is(err, why) || errors.Is(err, ErrTimeout) {
			t.Errorf("cancelled: got %v", err)
		}
		if s := tr.Stats(); s.Waiting != 0 || s.TimedOut != 1 || s.Canceled != 1 {
			t.Errorf("left %+v", s)
		}
	})
}

func TestTimeoutsOfZeroAndBelow(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{Timeout: -1})
		feed.Begin().Observe(at(100))
		for _, d := range []time.Duration{0, -time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			start := time.Now()
			if err := tr.Wait(ctx, tok(200)); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 0 {
				t.Errorf("%s: %v after %s", d, err, time.Since(start))
			}
			if err := tr.Wait(ctx, tok(100)); err != nil {
				t.Errorf("%s: what is replayed is a success, got %v", d, err)
			}
			cancel()
		}
		// A negative Config.Timeout bounds nothing.
		w := tr.Request(tok(200))
		ended := make(chan error, 1)
		go func() { ended <- w.Await(context.Background()) }()
		time.Sleep(1000 * time.Hour)
		synctest.Wait()
		select {
		case err := <-ended:
			t.Errorf("ended with %v", err)
		default:
		}
		w.Cancel()
		if err := <-ended; !errors.Is(err, ErrCanceled) {
			t.Errorf("got %v, want ErrCanceled", err)
		}
	})
}

func TestCloseWakesAThousandWaitersAndWaitsForRun(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		ran := make(chan error, 1)
		left := false
		tr, err := New(Config{Source: sourceFunc(func(ctx context.Context, f *Feed) error {
			f.Begin().Observe(at(1))
			<-ctx.Done()
			time.Sleep(time.Second) // a source that takes its time to end
			left = true
			return ctx.Err()
		})})
		if err != nil {
			t.Fatal(err)
		}
		go func() { ran <- tr.Run(context.Background()) }()
		<-tr.Ready()
		var wg sync.WaitGroup
		errs := make(chan error, 1000)
		for i := range 1000 {
			wg.Go(func() { errs <- tr.Wait(context.Background(), tok(LSN(2+i%7))) })
		}
		synctest.Wait()
		start := time.Now()
		go tr.Close()
		wg.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("the waiters took %s to learn of it", d)
		}
		close(errs)
		for err := range errs {
			if !errors.Is(err, ErrClosed) {
				t.Fatalf("got %v, want ErrClosed", err)
			}
		}
		tr.Close()
		if !left {
			t.Error("Close returned before the source had ended")
		}
		if err := <-ran; err != nil {
			t.Errorf("Run returned %v after Close, want nil", err)
		}
		if err := tr.Wait(t.Context(), tok(1)); !errors.Is(err, ErrClosed) {
			t.Errorf("Wait after Close: %v, want ErrClosed", err)
		}
		if _, known := tr.LastReplay(); known || tr.Replayed(tok(1)) {
			t.Error("a closed tracker still knows a position")
		}
		if err := tr.Run(t.Context()); err == nil {
			t.Error("a second Run is not an error")
		}
	})
}

func TestRunReturnsTheContextsCauseAndLeavesNobodyWaiting(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, err := New(Config{Source: noSource{}})
		if err != nil {
			t.Fatal(err)
		}
		why := errors.New("shutdown")
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- tr.Wait(t.Context(), tok(1)) }()
		time.AfterFunc(time.Second, func() { cancel(why) })
		if err := tr.Run(ctx); !errors.Is(err, why) {
			t.Errorf("Run returned %v, want %v", err, why)
		}
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Errorf("the wait ended with %v, want ErrClosed", err)
		}
		tr.Close() // after Run: returns at once
	})
}

func TestAFailedSourceIsRunAgainAndItsPositionForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var starts []time.Time
		var failed []string
		tr, err := New(Config{
			RetryMin: 100 * time.Millisecond, RetryMax: 10 * time.Second, Timeout: time.Hour,
			Observer: Observer{Failed: func(s string, err error) { failed = append(failed, s+": "+err.Error()) }},
			Source: sourceFunc(func(ctx context.Context, f *Feed) error {
				starts = append(starts, time.Now())
				if len(starts) < 12 {
					return fmt.Errorf("no route %d", len(starts))
				}
				lsn := LSN(500)
				if len(starts) > 12 { // a standby that crashed and came back lower
					lsn = 300
				}
				f.Begin().Observe(at(lsn))
				select {
				case <-time.After(time.Minute):
					return errors.New("crash")
				case <-ctx.Done():
					return ctx.Err()
				}
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = tr.Run(context.Background()) }()
		defer tr.Close()
		<-tr.Ready()
		if !tr.Replayed(tok(400)) {
			t.Fatal("0/190 is not replayed at 0/1F4")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, known := tr.LastReplay(); known || tr.Replayed(tok(400)) {
			t.Error("the position outlived its source")
		}
		if s := tr.State(); s.Failure == nil || s.Failure.Error() != "crash" || s.Known {
			t.Errorf("State says %+v", s)
		}
		// Somebody who waits shortens the pause, and is not woken by the number
		// that was reached before the crash.
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err = tr.Wait(ctx, tok(400))
		if te, ok := errors.AsType[*TimeoutError](err); !ok || te.Last.LSN != 300 || te.Last.Epoch != 2 {
			t.Errorf("got %v", err)
		}
		tr.Close()
		for i := 2; i < 12; i++ {
			limit := min(100*time.Millisecond<<(i-1), 10*time.Second)
			if d := starts[i].Sub(starts[i-1]); d < limit/2 || d > limit {
				t.Errorf("pause %d was %s, want %s to %s", i, d, limit/2, limit)
			}
		}
		if len(failed) != 12 || failed[0] != "func: no route 1" {
			t.Errorf("Observer.Failed got %q", failed)
		}
		if d := starts[len(starts)-1].Sub(start); d > time.Second {
			t.Errorf("the source was run again %s after somebody waited, want at most RetryMax/10", d)
		}
	})
}

func TestDemandIsSignalledWhenItRisesAndWhenItEnds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		e := feed.Begin()
		e.Observe(at(100))
		var told atomic.Bool
		feed.OnDemand(func() { told.Store(true) })
		changed := func() bool {
			synctest.Wait()
			return told.Swap(false)
		}
		changed() // the start of an epoch is one
		a := tr.Request(tok(300))
		if d := feed.Demand(); !changed() || d != (Demand{1, 300}) {
			t.Errorf("first waiter: %+v", d)
		}
		b := tr.Request(tok(400))
		if changed() {
			t.Error("a waiter for more than the lowest was signalled")
		}
		c := tr.Request(tok(200))
		if d := feed.Demand(); !changed() || d != (Demand{3, 200}) {
			t.Errorf("a lower one: %+v", d)
		}
		c.Cancel()
		b.Cancel()
		if changed() {
			t.Error("a waiter that went was signalled while others wait")
		}
		e.Observe(at(300))
		<-a.Done()
		if d := feed.Demand(); !changed() || d != (Demand{}) {
			t.Errorf("the last one went: %+v", d)
		}
		// Who has the position and misses the timeline still waits, for no position.
		f := tr.Request(Token{7, 2, 50})
		if d := feed.Demand(); !changed() || d != (Demand{1, 0}) {
			t.Errorf("timeline missing: %+v", d)
		}
		e.Observe(Observation{System: 7, Timeline: 2, LSN: 310, History: History{{1, 40}}})
		if err := f.Err(); err != nil || !tr.Replayed(Token{7, 2, 50}) {
			t.Errorf("after the switch: %v", err)
		}
	})
}

func TestALateSourceCannotSpeak(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		e := feed.Begin()
		e.Observe(at(100))
		tr.Close()
		e.Observe(at(200))
		feed.Begin().Observe(at(200))
		if _, known := tr.LastReplay(); known {
			t.Error("a feed spoke after Close")
		}
	})
}

func TestSetWaitsForAnyAllAndN(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var trackers []*Tracker
		var epochs []*Epoch
		for i := range 3 {
			tr, feed := running(t, Config{Name: fmt.Sprint("r", i)})
			trackers, epochs = append(trackers, tr), append(epochs, feed.Begin())
			epochs[i].Observe(at(100))
		}
		set := NewSet(trackers...)
		for i, d := range []time.Duration{3 * time.Second, time.Second, 2 * time.Second} {
			time.AfterFunc(d, func() { epochs[i].Observe(at(200)) })
		}
		start := time.Now()
		first, err := set.Any(t.Context(), tok(200))
		if err != nil || first != trackers[1] || time.Since(start) != time.Second {
			t.Errorf("Any gave %v %v after %s", first.cfg.Name, err, time.Since(start))
		}
		two, err := set.N(t.Context(), 2, tok(200))
		if err != nil || len(two) != 2 || two[0] != trackers[1] || two[1] != trackers[2] || time.Since(start) != 2*time.Second {
			t.Errorf("N gave %d %v after %s", len(two), err, time.Since(start))
		}
		if err := set.All(t.Context(), tok(200)); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("All gave %v after %s", err, time.Since(start))
		}
		if _, err := set.N(t.Context(), 4, tok(200)); err == nil {
			t.Error("4 of 3 is not an error")
		}
		trackers[2].Close()
		if err := set.All(t.Context(), tok(300)); !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "r2: ") {
			t.Errorf("All with one closed: %v", err)
		}
		for _, tr := range trackers {
			if n := tr.Stats().Waiting; n != 0 {
				t.Errorf("%s: %d still wait", tr.cfg.Name, n)
			}
		}
	})
}
