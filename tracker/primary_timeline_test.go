package tracker

import "testing"

// Numbers of two timelines are compared only where one leads to the other: a replica past the point
// where the primary's timeline has left its own never comes to where the primary is.
func TestTheLagIsKnownOnTheWayToThePrimaryAlone(t *testing.T) {
	second := History{{Timeline: 1, End: 2500}}
	third := History{{Timeline: 1, End: 2500}, {Timeline: 2, End: 2800}}
	skips := History{{Timeline: 1, End: 2500}} // of timeline 3, which does not come from 2
	on := func(timeline uint32, lsn LSN, h History) Observation {
		return Observation{System: 7, Timeline: timeline, LSN: lsn, History: h}
	}
	other := on(2, 2600, second)
	other.System = 8
	const not = -1
	for _, c := range []struct {
		name    string
		before  []Observation // in an epoch of its own each
		is      []Observation // in one
		primary Token
		behind  int
	}{
		{"the same timeline", nil, []Observation{on(2, 2900, second)}, written(2, 3000), 100},
		{"the same, beyond what was announced", nil, []Observation{on(2, 3100, second)}, written(2, 3000), 0},
		{"past the fork, higher than the primary", nil, []Observation{on(1, 5000, History{})}, written(2, 3000), not},
		{"past the fork, lower than the primary", nil, []Observation{on(1, 5000, History{})}, written(2, 6000), not},
		{"a fork that was not seen", nil, []Observation{on(1, 2000, History{})}, written(2, 3000), not},
		{"below a fork that was seen", []Observation{on(2, 2600, second)}, []Observation{on(1, 2000, History{})}, written(2, 3000), 1000},
		{"at the fork", []Observation{on(2, 2600, second)}, []Observation{on(1, 2500, History{})}, written(2, 3000), 500},
		{"past a fork that was seen", []Observation{on(2, 2600, second)}, []Observation{on(1, 2501, History{})}, written(2, 3000), not},
		{"below a fork that was seen before others", []Observation{on(2, 2600, second), on(1, 2400, History{})}, []Observation{on(1, 2000, nil)}, written(2, 3000), 1000},
		{"below the fork of a timeline between", []Observation{on(3, 2900, third)}, []Observation{on(1, 2000, History{})}, written(3, 3000), 1000},
		{"past the fork of the timeline between", []Observation{on(3, 2900, third)}, []Observation{on(2, 2900, second)}, written(3, 3000), not},
		{"a timeline that the primary's does not come from", []Observation{on(3, 2900, skips)}, []Observation{on(2, 2600, second)}, written(3, 3000), not},
		{"the history of another timeline is known", []Observation{on(3, 2900, third)}, []Observation{on(1, 2000, History{})}, written(2, 2700), not},
		{"the history of another cluster is known", []Observation{other}, []Observation{on(1, 2000, History{})}, written(2, 3000), not},
		{"a timeline that is not known", nil, []Observation{on(0, 2900, nil)}, written(2, 3000), not},
		{"the same, where there was no failover", nil, []Observation{on(0, 2900, nil)}, written(1, 3000), 100},
		{"not known any more, and it was the primary's", nil, []Observation{on(2, 2900, second), on(0, 2950, nil)}, written(2, 3000), 50},
		{"not known any more, and it was an older one", nil, []Observation{on(1, 2000, History{}), on(0, 2950, nil)}, written(2, 3000), not},
	} {
		tr, feed := running(t, Config{})
		for _, o := range c.before {
			e := feed.Begin()
			e.Observe(o)
			e.End()
		}
		e := feed.Begin()
		for _, o := range c.is {
			e.Observe(o)
		}
		tr.PrimaryAt(c.primary)
		s := tr.State()
		if s.Primary != c.primary || s.BehindKnown != (c.behind != not) || s.Behind != uint64(max(c.behind, 0)) {
			t.Errorf("%s: %d bytes behind, known: %t, want %d: %+v", c.name, s.Behind, s.BehindKnown, c.behind, s)
		}
		if !s.BehindKnown && (s.BehindFor != 0 || s.ETA != 0) {
			t.Errorf("%s: behind for %s, estimate %s, and not known", c.name, s.BehindFor, s.ETA)
		}
		e.End()
		if s := tr.State(); s.BehindKnown {
			t.Errorf("%s: known without a position", c.name)
		}
	}
	tr, feed := running(t, Config{})
	feed.Begin().Observe(at(100))
	if s := tr.State(); s.BehindKnown {
		t.Errorf("known without a primary: %+v", s)
	}
}

func written(timeline uint32, lsn LSN) Token { return Token{System: 7, Timeline: timeline, LSN: lsn} }
