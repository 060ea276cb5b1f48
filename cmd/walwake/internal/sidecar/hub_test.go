package sidecar

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Who looks at a stream and waits for nothing hears of a replica that does not answer as who waits does: it is asked.
func TestTheReplicaIsAskedForThoseWhoLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		var asked atomic.Int32
		feed := k.script.running()
		feed.OnDemand(func() {
			if feed.Demand().Waiting > 0 {
				asked.Add(1)
			}
		})
		time.Sleep(time.Minute)
		if n := asked.Load(); n != 0 {
			t.Errorf("nobody looks, and it was asked %d times", n)
		}
		s := k.stream("")
		s.until("state")
		asked.Store(0)
		time.Sleep(10*tellEvery + tellEvery/2)
		if n := asked.Load(); n < 10 || n > 11 {
			t.Errorf("it was asked %d times in 10.5 s", n)
		}
	})
}

// A replica that is away fails again and again: what happened before stays known.
func TestRepeatsDoNotCrowdOutWhatHappenedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		s := k.stream("")
		first := s.until("event")
		s.until("state")
		refused := func() {
			k.script.fails <- errors.New("connection refused")
			<-k.script.feeds
		}
		refused()
		began := time.Now()
		e := s.until("event")
		if got := read[Event](t, e); got.Kind != "failed" || got.Text != "script: connection refused" || got.Times != 1 || !got.At.Equal(got.Since) {
			t.Errorf("got %+v", got)
		}
		const times = 2 * maxEvents
		for range times - 1 {
			time.Sleep(time.Second)
			refused()
		}
		var last Event
		for n := 1; n < times; n++ {
			was := read[Event](t, e)
			e = s.until("event")
			if last = read[Event](t, e); last.Times != n+1 || last.N <= was.N || !last.At.After(was.At) || !last.Since.Equal(was.Since) || last.Text != was.Text {
				t.Fatalf("after %+v: got %+v", was, last)
			}
		}

		late := k.stream("")
		if got := late.until("event"); got.data != first.data {
			t.Errorf("what happened before is not told of: got %s", got.data)
		}
		if got := read[Event](t, late.until("event")); got != last || got.Since.After(began) {
			t.Errorf("got %+v, want %+v", got, last)
		}
		back := k.stream("", "Last-Event-ID", e.id)
		if got, _ := back.next(); got.name != "state" {
			t.Errorf("what it has had comes again: %+v", got)
		}

		k.script.observe(on(1, 100)) // what comes after something else is counted anew
		synctest.Wait()
		refused()
		for _, want := range []struct {
			kind  string
			times int
		}{{"epoch", 1}, {"failed", 1}} {
			for _, s := range []*sse{s, late, back} {
				if got := read[Event](t, s.until("event")); got.Kind != want.kind || got.Times != want.times {
					t.Errorf("want %+v, got %+v", want, got)
				}
			}
		}
	})
}

// What happens before the server is made is shown as what happens after it.
func TestAnEventBeforeTheServerIsMadeFitToBeShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const told = "two\nlines"
		k := start(t, func(c *Config) {
			c.Text = func(s string) string { return strings.ReplaceAll(s, "\n", "; ") }
			c.Hub.Tell("failed", told)
		})
		k.server.cfg.Hub.Tell("failed", told)
		if e := read[Event](t, k.stream("").until("event")); e.Text != "two; lines" || e.Times != 2 {
			t.Errorf("got %+v", e)
		}
	})
}
