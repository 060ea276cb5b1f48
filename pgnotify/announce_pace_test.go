package pgnotify

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// wire stands for the primary where time has to be exact: the rest is for real
// servers.
type wire struct {
	mu    sync.Mutex
	said  []string
	at    []time.Time
	dials int
	open  int
	fail  error // of dials and NOTIFYs; guarded by mu
	hang  bool  // until their context ends; guarded by mu
}

func (w *wire) dial(ctx context.Context) (notifier, error) {
	w.mu.Lock()
	w.dials++
	fail, hang := w.fail, w.hang
	if fail == nil && !hang {
		w.open++
	}
	w.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return w, fail
}

func (w *wire) notify(ctx context.Context, _ string, payloads []string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hang {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return ctx.Err()
	}
	if w.fail != nil {
		return w.fail
	}
	w.said = append(w.said, payloads...)
	for range payloads {
		w.at = append(w.at, time.Now())
	}
	return nil
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open--
}

func (w *wire) set(fail error, hang bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail, w.hang = fail, hang
}

func (w *wire) snapshot() (said []string, at []time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.said), slices.Clone(w.at)
}

// wired returns an Announcer over w that runs until the test ends.
func wired(t *testing.T, w *wire, cfg AnnouncerConfig) *Announcer {
	t.Helper()
	cfg.Primary = replication.Server{DSN: "host=127.0.0.1"}
	a, err := NewAnnouncer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.s.dial = w.dial
	ended := make(chan error, 1)
	go func() { ended <- a.Run(context.Background()) }()
	t.Cleanup(func() {
		a.Close()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v, want nil after Close", err)
		}
		if w.open != 0 {
			t.Errorf("%d connections are open at the end", w.open)
		}
	})
	return a
}

func on(timeline uint32, lsn tracker.LSN) tracker.Token {
	return tracker.Token{System: 7, Timeline: timeline, LSN: lsn}
}

func TestAnnouncementsAreOneInAnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		a := wired(t, w, AnnouncerConfig{})
		time.Sleep(time.Hour)
		if _, at := w.snapshot(); len(at) != 0 || w.dials != 0 {
			t.Fatalf("idle, and %d NOTIFYs, %d connections", len(at), w.dials)
		}
		start := time.Now()
		for i := range 10_000 { // in 10 s
			a.Announce(on(1, tracker.LSN(i+1)))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(DefaultInterval)
		synctest.Wait()
		said, at := w.snapshot()
		if len(at) != 500 && len(at) != 501 {
			t.Errorf("%d NOTIFYs in 10 s, want one each 20 ms", len(at))
		}
		if !at[0].Equal(start) {
			t.Errorf("the first took %s", at[0].Sub(start))
		}
		for i := range at[1:] {
			if gap := at[i+1].Sub(at[i]); gap < DefaultInterval {
				t.Errorf("%d comes %s after the one before", i+1, gap)
			}
		}
		if last, want := said[len(said)-1], "p1 "+on(1, 10_000).String(); last != want {
			t.Errorf("the last is %q, want %q", last, want)
		}
		time.Sleep(time.Hour)
		if again, _ := w.snapshot(); len(again) != len(said) || w.dials != 1 {
			t.Errorf("idle, and %d NOTIFYs more; %d connections", len(again)-len(said), w.dials)
		}
		a.Announce(on(1, 10_000)) // nothing new
		a.Announce(on(1, 1))
		time.Sleep(time.Minute)
		if again, _ := w.snapshot(); len(again) != len(said) {
			t.Errorf("said again: %q", again[len(said):])
		}
	})
}

func TestWhatIsAnnounced(t *testing.T) {
	other := tracker.Token{System: 8, Timeline: 1, LSN: 5}
	for _, c := range []struct {
		name string
		tell []tracker.Token
		want tracker.Token
	}{
		{"the highest", []tracker.Token{on(1, 5), on(1, 9), on(1, 7)}, on(1, 9)},
		{"a later timeline, that is lower", []tracker.Token{on(1, 9), on(2, 5)}, on(2, 5)},
		{"an earlier timeline, that is higher", []tracker.Token{on(2, 5), on(1, 9)}, on(2, 5)},
		{"without a timeline", []tracker.Token{on(1, 5), on(0, 9)}, on(1, 5)},
		{"without a system", []tracker.Token{on(1, 5), {Timeline: 1, LSN: 9}}, on(1, 5)},
		{"without a position", []tracker.Token{on(1, 5), on(2, 0)}, on(1, 5)},
		{"nothing at all", []tracker.Token{{}}, tracker.Token{}},
		{"another cluster: the last", []tracker.Token{on(1, 9), other}, other},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{}
			a, err := NewAnnouncer(AnnouncerConfig{Primary: replication.Server{DSN: "host=127.0.0.1"}})
			if err != nil {
				t.Fatal(err)
			}
			a.s.dial = w.dial
			for _, tok := range c.tell {
				a.Announce(tok) // before Run
			}
			go func() { _ = a.Run(t.Context()) }()
			synctest.Wait()
			var want []string
			if !c.want.IsZero() {
				want = []string{"p1 " + c.want.String()}
			}
			if said, _ := w.snapshot(); !slices.Equal(said, want) {
				t.Errorf("%s: said %q, want %q", c.name, said, want)
			}
			if got := a.Stats(); got.Latest != c.want || got.Announced != uint64(len(c.tell)) || got.Notifies != uint64(len(want)) {
				t.Errorf("%s: %+v", c.name, got)
			}
			a.Close()
		})
	}
}

func TestAnAnnouncementOutlivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		a := wired(t, w, AnnouncerConfig{RetryMin: 10 * time.Millisecond, RetryMax: time.Second})
		a.Announce(on(1, 1))
		synctest.Wait()
		down := errors.New("down")
		w.set(down, false)
		for i := range 1000 { // 100 s
			a.Announce(on(1, tracker.LSN(i+2)))
			time.Sleep(100 * time.Millisecond)
		}
		s := a.Stats()
		if !errors.Is(s.Failure, down) || s.Connected || s.Notifies != 1 {
			t.Errorf("while it is down: %+v", s)
		}
		if s.Failures < 100 || s.Failures > 220 { // from 0.5 to 1 s each, when it has come to that
			t.Errorf("%d attempts in 100 s", s.Failures)
		}
		w.set(nil, false)
		healed := time.Now()
		time.Sleep(2 * time.Second)
		said, at := w.snapshot()
		if want := []string{"p1 " + on(1, 1).String(), "p1 " + on(1, 1001).String()}; !slices.Equal(said, want) {
			t.Fatalf("said %q, want %q", said, want)
		}
		if late := at[1].Sub(healed); late > time.Second {
			t.Errorf("said %s after it was up again", late)
		}
		if s := a.Stats(); s.Failure != nil || !s.Connected || s.Notifies != 2 {
			t.Errorf("after it: %+v", s)
		}
		if w.open != 1 {
			t.Errorf("%d connections are open", w.open)
		}
	})
}

// Nobody announces anything that would have it tried again.
func TestOneAnnouncementOutlivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		w.set(errors.New("down"), false)
		a := wired(t, w, AnnouncerConfig{})
		a.Announce(on(1, 1))
		time.Sleep(time.Minute)
		w.set(nil, false)
		time.Sleep(DefaultRetryMax)
		synctest.Wait()
		if said, _ := w.snapshot(); len(said) != 1 {
			t.Errorf("said %q", said)
		}
		a.Close()
		if said, _ := w.snapshot(); len(said) != 1 {
			t.Errorf("said again at the end: %q", said)
		}
	})
}

func TestWhatIsAnnouncedLastIsSaidAtTheEnd(t *testing.T) {
	why := errors.New("enough")
	for name, end := range map[string]func(*Announcer, context.CancelCauseFunc){
		"Close":   func(a *Announcer, _ context.CancelCauseFunc) { a.Close(); a.Close() },
		"context": func(_ *Announcer, cancel context.CancelCauseFunc) { cancel(why) },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{}
			a, err := NewAnnouncer(AnnouncerConfig{Primary: replication.Server{DSN: "host=127.0.0.1"}, Interval: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			a.s.dial = w.dial
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- a.Run(ctx) }()
			a.Announce(on(1, 1))
			time.Sleep(time.Second)
			a.Announce(on(1, 2)) // an hour too early
			start := time.Now()
			end(a, cancel)
			err = <-ended
			if name == "Close" && err != nil || name == "context" && !errors.Is(err, why) || time.Since(start) != 0 {
				t.Errorf("%s: Run: %v after %s", name, err, time.Since(start))
			}
			if said, _ := w.snapshot(); len(said) != 2 || said[1] != "p1 "+on(1, 2).String() {
				t.Errorf("%s: said %q", name, said)
			}
			a.Announce(on(1, 3)) // nobody says it, and nothing blocks
			a.Announce(on(1, 4))
			if err := a.Run(t.Context()); !errors.Is(err, errRanBefore) || w.open != 0 {
				t.Errorf("%s: Run again: %v; %d connections are open", name, err, w.open)
			}
			a.Close()
		})
	}
}

func TestTheEndDoesNotWaitForAPrimaryThatHangs(t *testing.T) {
	for name, prepare := range map[string]func(*wire, *Announcer){
		"connecting": func(w *wire, a *Announcer) { w.set(nil, true); a.Announce(on(1, 1)) },
		"in a NOTIFY": func(w *wire, a *Announcer) {
			a.Announce(on(1, 1))
			time.Sleep(time.Second)
			w.set(nil, true)
			a.Announce(on(1, 2))
		},
		"down": func(w *wire, a *Announcer) { w.set(errors.New("down"), false); a.Announce(on(1, 1)) },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{}
			a := wired(t, w, AnnouncerConfig{Farewell: 300 * time.Millisecond})
			prepare(w, a)
			time.Sleep(time.Millisecond)
			start := time.Now()
			a.Close()
			if took := time.Since(start); took > 300*time.Millisecond {
				t.Errorf("%s: Close took %s", name, took)
			}
			if s := a.Stats(); s.Failure == nil || s.Connected {
				t.Errorf("%s: %+v", name, s)
			}
		})
	}
}

func TestCloseBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		a, err := NewAnnouncer(AnnouncerConfig{Primary: replication.Server{DSN: "host=127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		a.s.dial = w.dial
		a.Announce(on(1, 1))
		a.Close()
		if err := a.Run(t.Context()); err != nil || w.dials != 0 {
			t.Errorf("%v, %d connections", err, w.dials)
		}
	})
}

// Whatever the order of events: the last position is said, and never a lower one
// after a higher.
func TestManyAnnounceAtOnce(t *testing.T) {
	w := &wire{}
	a := wired(t, w, AnnouncerConfig{Interval: 50 * time.Microsecond, RetryMin: time.Microsecond, RetryMax: 10 * time.Microsecond})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5000 {
				a.Announce(on(1+rand.Uint32N(3), tracker.LSN(1+rand.Uint64N(1<<20))))
				if rand.IntN(1000) == 0 {
					w.set(errors.New("hiccup"), false)
					w.set(nil, false)
				}
			}
		})
	}
	all.Wait()
	a.Announce(on(4, 1))
	a.Close()
	said, _ := w.snapshot()
	var last tracker.Token
	for _, payload := range said {
		tok, ok := parseAnnouncement(payload)
		if !ok || tok.Compare(last) <= 0 {
			t.Fatalf("%q after %v", payload, last)
		}
		last = tok
	}
	if last != on(4, 1) {
		t.Errorf("the last is %v", last)
	}
}

func TestAnnouncerConfigErrorsNameTheField(t *testing.T) {
	ok := replication.Server{DSN: "host=127.0.0.1"}
	for field, cfg := range map[string]AnnouncerConfig{
		"Primary":  {},
		"Channel":  {Primary: ok, Channel: strings.Repeat("x", 64)},
		"Interval": {Primary: ok, Interval: -1},
		"Farewell": {Primary: ok, Farewell: -1},
		"RetryMin": {Primary: ok, RetryMin: 2, RetryMax: 1},
	} {
		if _, err := NewAnnouncer(cfg); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func FuzzAnnouncement(f *testing.F) {
	for _, s := range []string{"", "p1 ", "p2 x", "hello", announcement(on(1, 5)), announcement(on(1, 5)) + " ", "p1 v1.7.1.0-0", "p1 " + strings.Repeat("v", 9000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		tok, ok := parseAnnouncement(payload)
		if ok && (announcement(tok) != payload || !whole(tok) || len(payload) > 48) {
			t.Errorf("%q was read as %v", payload, tok)
		}
		if !ok && tok != (tracker.Token{}) {
			t.Errorf("%q was not read, and is %v", payload, tok)
		}
	})
}
