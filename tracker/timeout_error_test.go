package tracker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestTimeoutErrorEstimatesTheTimeBehind(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		e := feed.Begin()
		for i := range 21 { // 1,000 bytes a second
			e.Observe(at(LSN(i * 100)))
			time.Sleep(100 * time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 0)
		defer cancel()
		te, ok := errors.AsType[*TimeoutError](tr.Wait(ctx, tok(7000)))
		if !ok || te.Behind != 5000 || te.ETA != 5*time.Second {
			t.Fatalf("got %+v, want 5000 bytes and 5s", te)
		}
		if want := "5000 bytes behind, about 5s"; !strings.Contains(te.Error(), want) {
			t.Errorf("%q does not say %q", te, want)
		}
		feed.Note("replay is paused")
		if te, ok = errors.AsType[*TimeoutError](tr.Wait(ctx, tok(7000))); !ok || te.ETA != 0 || strings.Contains(te.Error(), "about") {
			t.Errorf("while replay is paused: %v, want no estimate", te)
		}
		tr.PrimaryAt(tok(7000))
		if s := tr.State(); s.Behind != 5000 || s.ETA != 0 {
			t.Errorf("while replay is paused: %d bytes behind, estimate %s, want none", s.Behind, s.ETA)
		}
		feed.Note("")
		tr.PrimaryAt(tok(1 << 50))
		if te, ok = errors.AsType[*TimeoutError](tr.Wait(ctx, tok(1<<50))); !ok || te.ETA != 0 {
			t.Errorf("of what takes years: estimate %s, want none", te.ETA)
		}
		for range 100 { // replay stands still
			e.Observe(at(2000))
			time.Sleep(100 * time.Millisecond)
		}
		if te, ok = errors.AsType[*TimeoutError](tr.Wait(ctx, tok(7000))); !ok || te.ETA != 0 {
			t.Errorf("after 10 s without replay: estimate %s, want none", te.ETA)
		}
		for i := range 11 { // and moves again, as fast as before
			time.Sleep(100 * time.Millisecond)
			e.Observe(at(LSN(2000 + i*100)))
		}
		if te, ok = errors.AsType[*TimeoutError](tr.Wait(ctx, tok(7000))); !ok || te.ETA != 4*time.Second {
			t.Errorf("after a pause: estimate %s, want 4s: time in which nothing was to be replayed does not count", te.ETA)
		}
	})
}

func TestTimeoutErrorSaysWhyNothingIsKnown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, err := New(Config{Source: sourceFunc(func(context.Context, *Feed) error { return errors.New("connection refused") })})
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Wait(t.Context(), tok(1)); !strings.Contains(err.Error(), "Run was not called") {
			t.Errorf("before Run: %v", err)
		}
		go func() { _ = tr.Run(context.Background()) }()
		defer tr.Close()
		if err := tr.Wait(t.Context(), tok(1)); !strings.Contains(err.Error(), "position is not known: connection refused") {
			t.Errorf("got %v", err)
		}
	})
}

func TestTimeoutErrorRoundsItsTimes(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1234567 * time.Microsecond: "1.235s", 155709 * time.Millisecond: "2m36s", 100 * time.Millisecond: "100ms", 5*time.Hour + 29*time.Second: "5h0m0s",
	} {
		e := &TimeoutError{Replica: "db2", Known: true, Behind: 9, ETA: d, Waited: d, Ahead: 1, PrimaryAge: d}
		for _, text := range []string{"timeout after " + want + ":", "about " + want + ":", "announced " + want + " ago"} {
			if !strings.Contains(e.Error(), text) {
				t.Errorf("%q does not say %q", e, text)
			}
		}
	}
}
