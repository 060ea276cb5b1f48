package tracker

import (
	"errors"
	"testing"
)

func TestRefreshHasTheSourceLookAndLeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tr, feed := running(t, Config{})
		var asked []Demand
		tr.Refresh() // nothing is known
		e := feed.Begin()
		e.Observe(at(100))
		feed.OnDemand(func() { asked = append(asked, feed.Demand()) })
		tr.Refresh()
		if len(asked) != 2 || asked[0] != (Demand{Waiting: 1, Lowest: 101}) || asked[1] != (Demand{}) {
			t.Errorf("the source heard of %+v", asked)
		}
		w := tr.Request(tok(500))
		asked = nil
		tr.Refresh()
		if len(asked) != 1 || asked[0] != (Demand{Waiting: 2, Lowest: 101}) {
			t.Errorf("while somebody waits the source heard of %+v", asked)
		}
		feed.OnDemand(func() { e.Observe(at(200)) }) // answered before Refresh is over
		tr.Refresh()
		feed.OnDemand(func() { tr.shut() }) // closed before it is over
		tr.Refresh()
		tr.Refresh()
		if s := tr.Stats(); s.Waiting != 0 || s.Woken != 0 || s.Canceled != 0 || s.TimedOut != 0 || s.Refused != 1 || !errors.Is(w.Err(), ErrClosed) {
			t.Errorf("it left %+v, %v", s, w.Err())
		}
	})
}

// Counts only rise: one that falls is a new process to Prometheus, which then adds all of it once more.
func TestARefreshIsCountedAsAWaitAtNoTime(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var tr *Tracker
		var most Stats
		looks := 0
		look := func() { // as a scrape would
			looks++
			s := tr.Stats()
			most.Woken, most.Refused = max(most.Woken, s.Woken), max(most.Refused, s.Refused)
		}
		tr, feed := running(t, Config{Observer: Observer{Position: func(Observation) { look() }}})
		e := feed.Begin()
		e.Observe(at(100))
		feed.OnDemand(func() {
			if d := feed.Demand(); d.Waiting > 0 { // replay moves while Refresh is under way
				e.Observe(at(d.Lowest))
			}
		})
		tr.Refresh()
		feed.OnDemand(func() {
			tr.shut()
			look()
		})
		tr.Refresh()
		if looks != 4 || most != (Stats{}) {
			t.Errorf("in %d looks it was seen to count %+v", looks, most)
		}
	})
}
