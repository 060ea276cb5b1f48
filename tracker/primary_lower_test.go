package tracker

import (
	"testing"
	"time"
)

// A primary that has crashed comes back without what was not flushed, and one that was on a
// timeline of its own for a moment is one no more.
func TestAPrimaryThatStaysLowerIsBelieved(t *testing.T) {
	for _, first := range []Token{tok(5000), {System: 7, Timeline: 2, LSN: 3000}} {
		inBubble(t, func(t *testing.T) {
			tr, feed := running(t, Config{})
			feed.Begin().Observe(at(3000))
			tr.PrimaryAt(first)
			for i := range 10 {
				time.Sleep(time.Second)
				tr.PrimaryAt(tok(LSN(4000 + i)))
				want := first
				if i >= 3 { // since 3 s nothing else is said
					want = tok(LSN(4000 + i))
				}
				if s := tr.State(); s.Primary != want {
					t.Fatalf("%s after the first that is lower: the primary is at %v, want %v", time.Duration(i)*time.Second, s.Primary, want)
				}
			}
			if s := tr.State(); s.Behind != 1009 || !s.PrimaryHeard.Equal(time.Now()) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

// Announcements come in any order, and one that was held up may come late by any time.
func TestLowerAnnouncementsBesideOthersAreLate(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, _ := running(t, Config{})
		tr.PrimaryAt(tok(5000))
		time.Sleep(time.Hour)
		heard := time.Now().Add(-time.Hour)
		for range 5 { // what a writer says at once that could not say it for long
			tr.PrimaryAt(tok(4000))
			time.Sleep(100 * time.Millisecond)
		}
		if s := tr.State(); s.Primary != tok(5000) || !s.PrimaryHeard.Equal(heard) {
			t.Errorf("what came late has moved it: %v, of %s ago", s.Primary, time.Since(s.PrimaryHeard))
		}
		for range 100 { // an idle primary, and a writer that is late each time
			time.Sleep(2 * time.Second)
			tr.PrimaryAt(tok(4000))
			time.Sleep(2 * time.Second)
			tr.PrimaryAt(tok(5000))
			if s := tr.State(); s.Primary != tok(5000) || !s.PrimaryHeard.Equal(time.Now()) {
				t.Fatalf("the primary is at %v, of %s ago", s.Primary, time.Since(s.PrimaryHeard))
			}
		}
	})
}

// What a primary that crashed had flushed was there before it crashed.
func TestHowLongTheReplicaHasBeenBehindSurvivesACrashOfThePrimary(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		e := feed.Begin()
		e.Observe(at(1000))
		for lsn := LSN(2000); lsn <= 5000; lsn += 1000 {
			tr.PrimaryAt(tok(lsn))
			time.Sleep(time.Minute)
		}
		for range 5 {
			tr.PrimaryAt(tok(3500))
			time.Sleep(time.Second)
		}
		for lsn, want := range map[LSN]time.Duration{1000: 245 * time.Second, 2000: 185 * time.Second, 3000: 2 * time.Second, 3500: 0} {
			e.End()
			e = feed.Begin()
			e.Observe(at(lsn))
			if s := tr.State(); s.BehindFor != want || s.Behind != uint64(3500-lsn) {
				t.Errorf("at %d: behind for %s, want %s", lsn, s.BehindFor, want)
			}
		}
	})
}
