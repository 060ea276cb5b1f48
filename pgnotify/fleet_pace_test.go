package pgnotify

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// scripted is a tracker's source that sees what a test says.
type scripted struct {
	feeds chan *tracker.Feed
	fail  chan error
}

func (scripted) Name() string { return "scripted" }

func (s scripted) Observe(ctx context.Context, f *tracker.Feed) error {
	s.feeds <- f
	select {
	case err := <-s.fail:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// followed runs a tracker until the test ends.
func followed(t *testing.T, name string) (*tracker.Tracker, scripted) {
	t.Helper()
	s := scripted{make(chan *tracker.Feed, 10), make(chan error)}
	tr, err := tracker.New(tracker.Config{Source: s, Name: name, RetryMin: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	t.Cleanup(tr.Close)
	return tr, s
}

func seen(lsn tracker.LSN) tracker.Observation {
	return tracker.Observation{System: 7, Timeline: 1, LSN: lsn, History: tracker.History{}}
}

// publishing runs a Publisher over w until the test ends.
func publishing(t *testing.T, w *wire, cfg PublisherConfig) *Publisher {
	t.Helper()
	cfg.Primary = replication.Server{DSN: "host=127.0.0.1"}
	p, err := NewPublisher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.s.dial = w.dial
	go func() { _ = p.Run(context.Background()) }()
	t.Cleanup(func() {
		p.Close()
		if w.open != 0 {
			t.Errorf("%d connections are open at the end", w.open)
		}
	})
	return p
}

// members reads what was said.
func (w *wire) members(t *testing.T) []member {
	t.Helper()
	said, _ := w.snapshot()
	all := make([]member, len(said))
	for i, payload := range said {
		m, ok := parseMember(payload)
		if !ok {
			t.Fatalf("%d: %q cannot be read", i, payload)
		}
		all[i] = m
	}
	return all
}

func TestAReplicaIsPublishedOnceASecondAndWhenItsStateChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		tr, source := followed(t, "r1")
		feed := <-source.feeds
		publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{tr}, Instance: "p1"})
		synctest.Wait()
		// says has exactly one more said, soon, and returns it.
		said := 0
		says := func(what string, within time.Duration) member {
			t.Helper()
			time.Sleep(within)
			synctest.Wait()
			all := w.members(t)
			if len(all) != said+1 {
				t.Fatalf("%s: said %+v, want one", what, all[said:])
			}
			said++
			return all[said-1]
		}
		if m := says("at first", 0); m != (member{Name: "r1", Instance: "p1", Source: "scripted"}) {
			t.Errorf("at first: %+v", m)
		}
		epoch := feed.Begin()
		epoch.Observe(seen(100))
		if m := says("known", DefaultSoonest); !m.Known || m.At != on(1, 100) {
			t.Errorf("known: %+v", m)
		}
		// Positions that move are no reason: each NOTIFY moves them.
		start := len(w.members(t))
		for i := range 1000 { // 10 s
			epoch.Observe(seen(tracker.LSN(101 + i)))
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		if n := len(w.members(t)) - start; n < 9 || n > 10 {
			t.Errorf("said %d times in 10 s, want one a second", n)
		}
		said = len(w.members(t))
		// What is announced, and replayed, is said at once.
		tr.PrimaryAt(on(1, 2000))
		time.Sleep(DefaultSoonest)
		synctest.Wait()
		if n := len(w.members(t)); n > said+1 { // its second may be over
			t.Errorf("announced, not replayed: said %d times", n-said)
		}
		said = len(w.members(t))
		epoch.Observe(seen(2000))
		if m := says("replayed what was announced", DefaultSoonest); m.At != on(1, 2000) {
			t.Errorf("replayed what was announced: %+v", m)
		}
		feed.Ladder([]tracker.Rung{{Source: "quick", Up: true}})
		if m := says("another source", DefaultSoonest); m.Source != "quick" {
			t.Errorf("another source: %+v", m)
		}
		epoch.Observe(tracker.Observation{System: 7, Timeline: 2, LSN: 2000, History: tracker.History{{Timeline: 1, End: 1500}}})
		if m := says("another timeline", DefaultSoonest); m.At != on(2, 2000) {
			t.Errorf("another timeline: %+v", m)
		}
		epoch.End()
		if m := says("unknown", DefaultSoonest); m.Known || !m.At.IsZero() {
			t.Errorf("unknown: %+v", m)
		}
		tr.Close()
		if m := says("closed", DefaultSoonest); !m.Left {
			t.Errorf("closed: %+v", m)
		}
		time.Sleep(time.Hour)
		if all := w.members(t); len(all) != said {
			t.Errorf("after the tracker was closed: said %+v", all[said:])
		}
	})
}

func TestTheReplicaIsAskedOnceForEachNotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		tr, source := followed(t, "r1")
		feed := <-source.feeds
		feed.Begin().Observe(seen(100))
		asked := 0
		feed.OnDemand(func() {
			if feed.Demand().Waiting > 0 {
				asked++
			}
		})
		publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{tr}})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(w.members(t)); asked < n-1 || asked > n+1 {
			t.Errorf("idle: asked %d times for %d NOTIFYs", asked, n)
		}
		asked = 0
		tr.PrimaryAt(on(1, 2000))
		time.Sleep(time.Minute)
		synctest.Wait()
		if asked < 590 || asked > 610 {
			t.Errorf("behind what is announced: asked %d times in a minute, want ten a second", asked)
		}
	})
}

func TestAFlappingReplicaIsPublishedNoMoreThanTenTimesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		tr, source := followed(t, "r1")
		feed := <-source.feeds
		publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{tr}})
		for range 10_000 { // 10 s
			e := feed.Begin()
			e.Observe(seen(100))
			time.Sleep(500 * time.Microsecond)
			e.End()
			time.Sleep(500 * time.Microsecond)
		}
		_, at := w.snapshot()
		if len(at) > 101 {
			t.Errorf("%d NOTIFYs in 10 s", len(at))
		}
		for i := range at[1:] {
			if gap := at[i+1].Sub(at[i]); gap < DefaultSoonest {
				t.Errorf("%d comes %s after the one before", i+1, gap)
			}
		}
	})
}

func TestAPublisherOutlivesFailuresAndLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		a, one := followed(t, "a")
		b, two := followed(t, "b")
		(<-one.feeds).Begin().Observe(seen(10))
		(<-two.feeds).Begin().Observe(seen(20))
		down := errors.New("down")
		w.set(down, false)
		p := publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{a, b}})
		time.Sleep(time.Minute)
		if s := p.Stats(); s.Failures < 10 || !errors.Is(s.Failure, down) || s.Connected || s.Notifies != 0 {
			t.Errorf("while it is down: %+v", s)
		}
		w.set(nil, false)
		time.Sleep(DefaultRetryMax)
		synctest.Wait()
		all := w.members(t)
		if len(all) < 2 || all[0].Name != "a" || all[0].At != on(1, 10) || all[1].Name != "b" || all[1].At != on(1, 20) {
			t.Fatalf("after it: %+v", all)
		}
		s := p.Stats()
		if s.Failure != nil || !s.Connected || s.Notifies != uint64(len(all)) || all[0].Instance != s.Instance || all[1].Instance != s.Instance {
			t.Errorf("after it: %+v", s)
		}
		p.Close()
		all = w.members(t)[len(all):]
		if len(all) < 2 || !all[len(all)-2].Left || !all[len(all)-1].Left {
			t.Errorf("at the end: %+v", all)
		}
		if err := p.Run(t.Context()); !errors.Is(err, errRanBefore) {
			t.Errorf("Run again: %v", err)
		}
	})
}

func TestPublisherAndFleetConfigErrorsNameTheField(t *testing.T) {
	ok := replication.Server{DSN: "host=127.0.0.1"}
	named := func(name string) *tracker.Tracker {
		tr, err := tracker.New(tracker.Config{Source: scripted{}, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	one := []*tracker.Tracker{named("a")}
	for want, cfg := range map[string]PublisherConfig{
		"Primary":            {Trackers: one},
		"Trackers is empty":  {Primary: ok},
		"Trackers[0] is nil": {Primary: ok, Trackers: []*tracker.Tracker{nil}},
		`two are named "a"`:  {Primary: ok, Trackers: []*tracker.Tracker{one[0], named("a")}},
		`its name "a\nb"`:    {Primary: ok, Trackers: []*tracker.Tracker{named("a\nb")}},
		"Instance":           {Primary: ok, Trackers: one, Instance: strings.Repeat("x", maxName+1)},
		`Instance "\xff"`:    {Primary: ok, Trackers: one, Instance: "\xff"},
		"Interval 50ms":      {Primary: ok, Trackers: one, Interval: 50 * time.Millisecond},
		"Soonest -1ns":       {Primary: ok, Trackers: one, Soonest: -1},
	} {
		if _, err := NewPublisher(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, cfg := range []FleetConfig{{Silent: -1}, {Silent: 2, Forget: 1}, {MaxMembers: -1}} {
		if _, err := NewFleet(cfg); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
	if f := newFleet(t, FleetConfig{Silent: time.Hour}); f.cfg.Forget != time.Hour {
		t.Errorf("%+v", f.cfg)
	}
}
