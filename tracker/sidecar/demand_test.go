package sidecar

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/walwake/walwake/tracker"
)

// deaf is a source that hands demands to whoever reads its pipe, and observes nothing more.
type deaf struct {
	d     chan *demands
	feeds chan *tracker.Feed
}

func (deaf) Name() string { return "deaf" }
func (s deaf) Observe(ctx context.Context, feed *tracker.Feed) error {
	e := feed.Begin()
	defer e.End()
	d := newDemands(feed)
	go func() { _, _ = io.Copy(io.Discard, d.body) }()
	defer d.close()
	feed.OnDemand(d.changed)
	e.Observe(tracker.Observation{LSN: 1, System: 7, Timeline: 1})
	s.d <- d
	s.feeds <- feed
	<-ctx.Done()
	return ctx.Err()
}

// demanding runs a tracker of a deaf source until the test ends.
func demanding(t *testing.T) (*tracker.Tracker, *demands, *tracker.Feed) {
	t.Helper()
	s := deaf{make(chan *demands, 1), make(chan *tracker.Feed, 1)}
	tr, err := tracker.New(tracker.Config{Source: s})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(context.Background()) })
	t.Cleanup(func() { tr.Close(); running.Wait() })
	return tr, <-s.d, <-s.feeds
}

// What was said last is what is waited for, however many come and go at once.
func TestTheLatestDemandIsSaid(t *testing.T) {
	tr, d, feed := demanding(t)
	wrong, none := 0, 0
	const rounds = 20000
	for range rounds {
		var all sync.WaitGroup
		kept := make([]*tracker.Waiter, 4)
		for i := range kept {
			all.Go(func() {
				w := tr.Request(tracker.Token{System: 7, Timeline: 1, LSN: tracker.LSN(100 + rand.IntN(50))})
				if i == 0 {
					w.Cancel()
				}
				kept[i] = w
			})
		}
		all.Wait() // every call of OnDemand has returned
		d.mu.Lock()
		now := d.now
		d.mu.Unlock()
		if want := feed.Demand().Lowest; now == 0 || now > want { // a lower one does no harm
			if wrong++; now == 0 {
				none++
			}
		}
		for _, w := range kept {
			w.Cancel()
		}
	}
	if wrong > 0 {
		t.Errorf("in %d of %d rounds the sidecar is told of a higher demand than there is: who waits for less is not told, in %d of them it is told that nobody waits", wrong, rounds, none)
	}
}

// The last goes as the next comes: it is the case of one worker after the other.
func TestTheDemandOfWhoComesAsTheLastGoes(t *testing.T) {
	tr, d, _ := demanding(t)
	lost := 0
	const rounds = 50000
	last := tr.Request(tracker.Token{System: 7, Timeline: 1, LSN: 100})
	for range rounds {
		var all sync.WaitGroup
		var next *tracker.Waiter
		all.Go(last.Cancel)
		all.Go(func() { next = tr.Request(tracker.Token{System: 7, Timeline: 1, LSN: 200}) })
		all.Wait()
		d.mu.Lock()
		if d.now == 0 {
			lost++
		}
		d.mu.Unlock()
		last = next
	}
	if lost > 0 {
		t.Errorf("in %d of %d rounds somebody waits, and the sidecar is told that nobody does", lost, rounds)
	}
}
