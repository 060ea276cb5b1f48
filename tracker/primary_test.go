package tracker

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestStateSaysHowFarBehindTheAnnouncedPrimaryTheReplicaIs(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		tr.PrimaryAt(tok(100)) // before anything is observed
		if s := tr.State(); s.Primary != tok(100) || s.Behind != 0 || !s.PrimaryHeard.Equal(time.Now()) {
			t.Errorf("the replica is not known: %+v", s)
		}
		e := feed.Begin()
		for i := range 21 { // 1,000 bytes a second
			e.Observe(at(LSN(i * 100)))
			time.Sleep(100 * time.Millisecond)
		}
		heard := time.Now()
		tr.PrimaryAt(tok(7000))
		time.Sleep(time.Millisecond)
		tr.PrimaryAt(tok(6000)) // another announcer, that is not as far
		if s := tr.State(); s.Primary != tok(7000) || s.Behind != 5000 || s.ETA != 5*time.Second || !s.PrimaryHeard.Equal(heard) {
			t.Errorf("got %+v, want 5000 bytes and 5 s behind 7000", s)
		}
		e.Observe(at(8000))
		if s := tr.State(); s.Primary != tok(7000) || s.Behind != 0 || s.ETA != 0 {
			t.Errorf("got %+v, want it to be level", s)
		}
	})
}

func TestWhichAnnouncementsCount(t *testing.T) {
	on := func(system uint64, timeline uint32, lsn LSN) Token {
		return Token{System: system, Timeline: timeline, LSN: lsn}
	}
	forked := Observation{System: 7, Timeline: 2, LSN: 100, History: History{{Timeline: 1, End: 90}}}
	for _, c := range []struct {
		name string
		tell []Token
		view *Observation
		want Token
	}{
		{"nothing was announced", nil, nil, Token{}},
		{"the furthest", []Token{on(7, 1, 50), on(7, 1, 70), on(7, 1, 60)}, nil, on(7, 1, 70)},
		{"without a system", []Token{on(7, 1, 50), on(0, 1, 70)}, nil, on(7, 1, 50)},
		{"without a timeline", []Token{on(7, 1, 50), on(7, 0, 70)}, nil, on(7, 1, 50)},
		{"a later timeline, that is lower", []Token{on(7, 1, 50), on(7, 2, 40)}, nil, on(7, 2, 40)},
		{"an earlier timeline, that is higher", []Token{on(7, 2, 40), on(7, 1, 50)}, nil, on(7, 2, 40)},
		{"another cluster, while the replica's is not known: the last", []Token{on(8, 3, 50), on(7, 1, 40)}, nil, on(7, 1, 40)},
		{"another cluster than the replica's, before that was known", []Token{on(8, 3, 50)}, new(at(10)), Token{}},
		{"the replica has followed a failover that nobody has announced", []Token{on(7, 1, 150)}, &forked, Token{}},
		{"the same, while the timeline is not known", []Token{on(7, 1, 150)}, &Observation{System: 7, LSN: 100}, on(7, 1, 150)},
		{"a failover that the replica has not followed", []Token{on(7, 2, 95)}, new(at(90)), on(7, 2, 95)},
	} {
		tr, feed := running(t, Config{})
		for _, tok := range c.tell {
			tr.PrimaryAt(tok)
		}
		if c.view != nil {
			feed.Begin().Observe(*c.view)
		}
		if got := tr.State().Primary; got != c.want {
			t.Errorf("%s: the primary is at %v, want %v", c.name, got, c.want)
		}
	}

	tr, feed := running(t, Config{})
	e := feed.Begin()
	e.Observe(at(10))
	tr.PrimaryAt(on(8, 9, 50))
	if got := tr.State().Primary; got != (Token{}) {
		t.Errorf("another cluster's position was taken: %v", got)
	}
	tr.PrimaryAt(on(7, 1, 50))
	e.Observe(forked)
	e.Observe(Observation{System: 7, LSN: 110}) // what it was vouched for remains
	if got := tr.State().Primary; got != (Token{}) {
		t.Errorf("the replica has left timeline 1, and the primary is at %v", got)
	}
}

func TestTimeoutErrorSaysWhatThePrimaryHasNotAnnounced(t *testing.T) {
	for _, c := range []struct {
		name   string
		told   []Token
		token  Token
		waits  time.Duration
		beyond uint64
	}{
		{"beyond", []Token{tok(500)}, tok(564), time.Second, 64},
		{"beyond, a bare LSN", []Token{tok(500)}, Token{LSN: 564}, time.Second, 64},
		{"announced", []Token{tok(500)}, tok(500), time.Second, 0},
		{"nothing announced", nil, tok(564), time.Second, 0},
		{"the announcement may be under way", []Token{tok(500)}, tok(564), 200 * time.Millisecond, 0},
		{"another timeline", []Token{tok(500)}, Token{System: 7, Timeline: 2, LSN: 564}, time.Second, 0},
		{"what is announced is of another timeline", []Token{{System: 7, Timeline: 2, LSN: 400}}, tok(564), time.Second, 0},
	} {
		inBubble(t, func(t *testing.T) {
			tr, feed := running(t, Config{Timeout: c.waits})
			feed.Begin().Observe(at(100))
			for _, tok := range c.told {
				tr.PrimaryAt(tok)
			}
			start := time.Now()
			err := tr.Wait(t.Context(), c.token)
			e, is := errors.AsType[*TimeoutError](err)
			if !is || !errors.Is(err, ErrTimeout) || time.Since(start) != c.waits {
				t.Fatalf("%s: %v after %s", c.name, err, time.Since(start))
			}
			if e.Ahead != c.beyond || errors.Is(err, ErrFutureToken) != (c.beyond > 0) {
				t.Errorf("%s: %d bytes beyond, want %d: %v", c.name, e.Ahead, c.beyond, err)
			}
			if len(c.told) > 0 && (e.Primary != c.told[0] || e.PrimaryAge != c.waits) {
				t.Errorf("%s: announced %v %s before", c.name, e.Primary, e.PrimaryAge)
			}
			if want := "64 bytes beyond 0/1F4, which the primary announced 1s ago"; c.beyond > 0 && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", c.name, err, want)
			}
			if s := tr.Stats(); s.TimedOut != 1 {
				t.Errorf("%s: %+v", c.name, s)
			}
		})
	}
}

// How fast replay is does not matter for what is not written yet.
func TestTimeoutErrorHasNoEstimateForWhatIsNotWritten(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{Timeout: time.Second})
		e := feed.Begin()
		for i := range 21 {
			e.Observe(at(LSN(i * 100)))
			time.Sleep(100 * time.Millisecond)
		}
		tr.PrimaryAt(tok(7000))
		for lsn, want := range map[LSN]time.Duration{7000: 5 * time.Second, 7001: 0} {
			err, is := errors.AsType[*TimeoutError](tr.Wait(t.Context(), tok(lsn)))
			if !is || err.ETA != want || err.Behind != uint64(lsn-2000) {
				t.Errorf("%s: %v, want an estimate of %s", lsn, err, want)
			}
		}
	})
}

// What was announced last may be overtaken the next moment.
func TestATokenBeyondWhatIsAnnouncedIsWaitedFor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		e := feed.Begin()
		e.Observe(at(100))
		tr.PrimaryAt(tok(150))
		w := tr.Request(tok(200))
		time.Sleep(time.Second)
		tr.PrimaryAt(tok(300)) // announced, and not replayed
		if s := tr.Stats(); s.Waiting != 1 || tr.Replayed(tok(150)) {
			t.Fatalf("an announcement has ended a wait: %v, %+v", w.Err(), s)
		}
		e.Observe(at(200))
		if err := w.Await(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestStateSaysForHowLongTheReplicaHasBeenBehind(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		e := feed.Begin()
		e.Observe(at(100))
		behind := func(want time.Duration) {
			t.Helper()
			if s := tr.State(); s.BehindFor != want {
				t.Errorf("at %s, with the primary at %s: behind for %s, want %s", s.Position.LSN, s.Primary.LSN, s.BehindFor, want)
			}
		}
		behind(0)
		tr.PrimaryAt(tok(100))
		time.Sleep(time.Hour)
		behind(0) // the primary is idle
		tr.PrimaryAt(tok(200))
		time.Sleep(time.Second)
		tr.PrimaryAt(tok(200)) // said again, or by another announcer
		behind(time.Second)
		tr.PrimaryAt(tok(300))
		time.Sleep(time.Second)
		behind(2 * time.Second)
		e.Observe(at(199))
		behind(2 * time.Second)
		e.Observe(at(200))
		behind(time.Second)
		e.Observe(at(300))
		tr.PrimaryAt(tok(400))
		time.Sleep(time.Millisecond)
		tr.PrimaryAt(tok(500))
		time.Sleep(time.Second)
		tr.PrimaryAt(tok(500))
		e.Observe(at(400))
		behind(time.Second)                                   // since the first time it was said
		tr.PrimaryAt(Token{System: 7, Timeline: 2, LSN: 650}) // a failover, that the replica has not followed
		time.Sleep(time.Second)
		behind(0) // whether it will is not known
		e.Observe(Observation{System: 7, Timeline: 2, LSN: 610, History: History{{Timeline: 1, End: 605}}})
		behind(time.Second)
		e.End()
		behind(0) // nothing is known
		e = feed.Begin()
		e.Observe(Observation{System: 7, Timeline: 2, LSN: 649})
		behind(time.Second)
		e.Observe(Observation{System: 7, Timeline: 2, LSN: 650})
		behind(0)
	})
}

// A replica that follows at a distance in time, which grows and shrinks, beside a
// primary that is announced fifty times a second.
func TestHowLongTheReplicaHasBeenBehindIsNeverTooLongAndHardlyTooShort(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		e := feed.Begin()
		const every = 20 * time.Millisecond
		distance, most, longest := 0, 0, time.Duration(0)
		for i := range 100_000 { // over half an hour
			tr.PrimaryAt(tok(LSN(i + 1)))
			if distance++; i%25_000 > 12_500 { // twice as fast as the primary
				distance = max(0, distance-2)
			}
			e.Observe(at(LSN(i + 1 - distance)))
			got, want := tr.State().BehindFor, max(0, time.Duration(distance-1)*every)
			if got > want || want-got > max(longest, want)/trailGrain+trailFinest+every {
				t.Fatalf("step %d: behind for %s, want %s", i, got, want)
			}
			if longest = max(longest, want); distance == 0 {
				longest = 0
			}
			most = max(most, len(tr.trail))
			time.Sleep(every)
		}
		if most < trailGrain || most > 10*trailGrain {
			t.Errorf("it took %d steps", most)
		}
	})
}

func TestTheTrailOfAReplicaThatStandsStillStaysShort(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		feed.Begin().Observe(at(1))
		for i := range 24 * 60 * 60 {
			tr.PrimaryAt(tok(LSN(i + 10)))
			time.Sleep(time.Second)
		}
		if s := tr.State(); s.BehindFor != 24*time.Hour || len(tr.trail) > 500 {
			t.Errorf("behind for %s, in %d steps", s.BehindFor, len(tr.trail))
		} else {
			t.Logf("%d steps", len(tr.trail))
		}
	})
}
