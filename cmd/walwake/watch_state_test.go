package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/tracker"
)

func TestWatchLag(t *testing.T) {
	t.Parallel()
	now := time.Now()
	standby := tracker.Observation{LSN: 100, System: 1, Timeline: 1, Epoch: 1}
	primary := tracker.Token{System: 1, Timeline: 1, LSN: 150}
	for _, c := range []struct {
		name     string
		alone    bool
		interval time.Duration
		said     string
		state    tracker.State
		want     lagNow
	}{
		{"the replica is down", false, 1, "", tracker.State{Primary: primary, PrimaryHeard: now}, lagNow{reason: "the replica's position is not known"}},
		{"a primary", false, 1, "", tracker.State{Known: true, Position: tracker.Observation{Primary: true}}, lagNow{known: true, from: "measured"}},
		{"none is named", true, 1, "", tracker.State{Known: true, Position: standby}, lagNow{reason: "name the primary in --primary"}},
		{"it has not answered yet", false, 1, "", tracker.State{Known: true, Position: standby}, lagNow{reason: "the primary's position is not known"}},
		{"it cannot be asked", false, 1, "connection refused", tracker.State{Known: true, Position: standby}, lagNow{reason: "connection refused"}},
		{
			"it has not answered lately", false, time.Second, "connection refused",
			tracker.State{Known: true, Position: standby, Primary: primary, PrimaryHeard: now.Add(-11 * time.Second)},
			lagNow{reason: "connection refused"},
		},
		{
			"it is asked seldom", false, time.Minute, "",
			tracker.State{Known: true, Position: standby, Primary: primary, PrimaryHeard: now.Add(-2 * time.Minute), BehindKnown: true},
			lagNow{known: true, from: "measured"},
		},
		{
			"it has not answered for long, though it is asked seldom", false, time.Minute, "no answer",
			tracker.State{Known: true, Position: standby, Primary: primary, PrimaryHeard: now.Add(-4 * time.Minute)},
			lagNow{reason: "no answer"},
		},
		{
			"the system is not known", false, 1, "",
			tracker.State{Known: true, Position: tracker.Observation{LSN: 100}, Primary: primary, PrimaryHeard: now},
			lagNow{reason: "the replica's cluster is not known"},
		},
		{
			"the primary is on another timeline", false, 1, "",
			tracker.State{Known: true, Position: standby, Primary: tracker.Token{System: 1, Timeline: 2, LSN: 50}, PrimaryHeard: now},
			lagNow{reason: "the primary is on timeline 2, and the replica is not known to follow it there"},
		},
		{
			"behind for a time", false, 1, "",
			tracker.State{Known: true, Position: standby, Primary: primary, PrimaryHeard: now, BehindKnown: true, Behind: 50, BehindFor: time.Second, ETA: time.Minute},
			lagNow{known: true, bytes: 50, late: time.Second, from: "measured"},
		},
		{
			"behind, by its speed", false, 1, "",
			tracker.State{Known: true, Position: standby, Primary: primary, PrimaryHeard: now, BehindKnown: true, Behind: 50, ETA: time.Minute},
			lagNow{known: true, bytes: 50, late: time.Minute, from: "estimated"},
		},
		{
			"behind, for it is not known how long", false, 1, "",
			tracker.State{Known: true, Position: standby, Primary: primary, PrimaryHeard: now, BehindKnown: true, Behind: 50},
			lagNow{known: true, bytes: 50},
		},
	} {
		w := &watched{interval: c.interval, said: c.said, primary: &server{}}
		if c.alone {
			w.primary = nil
		}
		if got := w.lagLocked(c.state, now); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestWatchKeepsSomeOfWhatItSaw(t *testing.T) {
	t.Parallel()
	w := &watched{interval: time.Second, changed: make(chan struct{}, 1)}
	const looks = 5000
	for i := range looks {
		w.sample(tracker.State{Known: true, Position: tracker.Observation{LSN: tracker.LSN(i), Epoch: 1}})
		w.failed(fmt.Errorf("failure %d", i/2))
	}
	samples, n := w.kept()
	if last := samples[len(samples)-1]; n != looks || last.lsn != looks-1 || len(samples) < int(watchSpan/time.Second) || len(samples) > 1000 {
		t.Errorf("%d of %d samples, the last at %s", len(samples), n, last.lsn)
	}
	for i := range samples[1:] {
		if samples[i].lsn+1 != samples[i+1].lsn {
			t.Fatalf("a sample is missing between %s and %s", samples[i].lsn, samples[i+1].lsn)
		}
	}
	if len(w.events) != maxHappened {
		t.Errorf("got %d events, want %d", len(w.events), maxHappened)
	}
	for i, e := range w.events {
		if want := fmt.Sprintf("failure %d", looks/2-maxHappened+i); e.text != want || e.times != 2 || e.kind != "failed" {
			t.Errorf("got %+v, want %s twice", e, want)
		}
	}
}

func TestWatchTellsOfAnotherTimelineRoleAndNote(t *testing.T) {
	t.Parallel()
	w := &watched{interval: time.Second, changed: make(chan struct{}, 1)}
	is := func(o tracker.Observation, note string) {
		w.sample(tracker.State{Known: o.Epoch != 0, Position: o, Note: note})
	}
	is(tracker.Observation{Epoch: 1, Timeline: 1}, "")
	is(tracker.Observation{Epoch: 1}, "") // the timeline is not known just now
	is(tracker.Observation{Epoch: 1, Timeline: 1}, "paused")
	is(tracker.Observation{Epoch: 1, Timeline: 1}, "paused")
	is(tracker.Observation{Epoch: 1, Timeline: 1}, "")
	is(tracker.Observation{Epoch: 1}, "paused")
	is(tracker.Observation{}, "") // with which the pause is over, but not so that replay goes on
	is(tracker.Observation{Epoch: 2, Timeline: 2, Primary: true}, "")
	w.failed(errors.New("two\nlines"))
	var got []string
	for _, e := range w.events {
		got = append(got, e.kind+": "+e.text)
	}
	want := []string{
		"note: paused", "note: nothing holds it back any more", "note: paused",
		"timeline: timeline 2 is replayed, it was 1", "role: it is a primary now, it was a standby", "failed: two; lines",
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// That the primary answers is no reason why the lag is not known.
func TestTheReasonOfAnUnknownLagIsAFailure(t *testing.T) {
	t.Parallel()
	w := &watched{interval: time.Second, primary: &server{}, changed: make(chan struct{}, 1)}
	for _, c := range []struct {
		text    string
		failing bool
		want    string
	}{
		{"the primary cannot be asked: connection refused", true, "the primary cannot be asked: connection refused"},
		{"the primary answers", false, "the primary's position is not known"},
	} {
		w.tellPrimary(c.text, c.failing)
		lag := w.lagLocked(tracker.State{Known: true, Position: tracker.Observation{System: 7, Timeline: 2, LSN: 1}}, time.Now())
		if last := w.events[len(w.events)-1]; lag.reason != c.want || last.kind != "primary" || last.text != c.text {
			t.Errorf("after %q: %q, and the event %+v", c.text, lag.reason, last)
		}
	}
}

// A sidecar knows how seldom it asks its primary, and so from when on the lag is not known.
func TestTheLagThroughASidecarIsKnownForAsLongAsThatSays(t *testing.T) {
	t.Parallel()
	now := time.Now()
	primary := tracker.Token{System: 1, Timeline: 1, LSN: 150}
	w := &watched{interval: time.Second, side: &watchedSidecar{}, changed: make(chan struct{}, 1)}
	lagAt := func(at time.Time) lagNow {
		st := tracker.State{
			Known: true, Position: tracker.Observation{LSN: 100, System: 1, Timeline: 1, Epoch: 1},
			Primary: primary, PrimaryHeard: at, BehindKnown: true, Behind: 50,
		}
		w.adaptLocked(&st)
		return w.lagLocked(st, at)
	}
	age := int64(80e6) // of 90 s with --primary-interval 30s
	w.heard(&sidecar.Position{Lag: sidecar.Lag{Known: true, Primary: &primary, PrimaryAgeUS: &age}}, now)
	if lag := lagAt(now); !lag.known || lag.bytes != 50 {
		t.Errorf("got %+v", lag)
	}
	if lag := lagAt(now.Add(staleAfter + 1)); lag.known {
		t.Errorf("the sidecar has said nothing for longer than %s: %+v", staleAfter, lag)
	}
	w.heard(&sidecar.Position{Lag: sidecar.Lag{Primary: &primary, PrimaryAgeUS: &age, Reason: "no answer"}}, now)
	if lag := lagAt(now); lag != (lagNow{reason: "no answer"}) {
		t.Errorf("got %+v", lag)
	}
}
