package sidecar

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

// A primary that answers each second is not one that has not answered.
func TestAPrimaryThatIsLowerThanItWasIsHeard(t *testing.T) {
	for name, timeline := range map[string]uint32{
		"it crashed, and lost what was not flushed":               1,
		"another server was the primary for a moment, and is not": 2,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := start(t, func(c *Config) { c.PrimaryInterval = time.Second })
				k.script.observe(on(1, 4000))
				k.tr.PrimaryAt(token(timeline, 5000))
				for range 60 {
					time.Sleep(time.Second)
					k.tr.PrimaryAt(token(1, 4000))
				}
				a := ok[ReadyAnswer](t, k.get("/readyz?max_lag=0"))
				if *a.Lag.Bytes != 0 || *a.Lag.Primary != token(1, 4000) {
					t.Errorf("got %+v, want no lag", a.Lag)
				}
			})
		})
	}
}

// A replica past the point where the primary's timeline has left its own never gets to where the
// primary is, higher or lower.
func TestAReplicaOfAnAbandonedTimelineIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.PrimaryInterval = time.Second })
		k.script.observe(on(1, 5000))
		for _, lsn := range []tracker.LSN{3000, 6000} {
			k.tr.PrimaryAt(token(2, lsn))
			p := k.get("/readyz?max_lag=1h").is(t, lagUnknown)
			if want := "the primary is on timeline 2, and the replica is not known to follow it there"; p.Detail != want {
				t.Errorf("got %q, want %q", p.Detail, want)
			}
			if a := ok[Position](t, k.get("/v1/position")); *a.Lag.Primary != token(2, lsn) || a.Lag.Bytes != nil || a.Lag.US != nil {
				t.Errorf("got %+v", a.Lag)
			}
		}
		ok[ReadyAnswer](t, k.get("/readyz")) // it can be read, as before
	})
}

// While nobody waits the source looks seldom, and the failover that it has to follow may be old.
func TestAReplicaThatHasFollowedAFailoverIsAskedBeforeItsLagIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.PrimaryInterval = time.Second })
		k.script.observe(on(1, 3000))
		k.tr.PrimaryAt(token(2, 3500))
		feed := k.script.running()
		feed.OnDemand(func() {
			if feed.Demand().Waiting > 0 {
				go k.script.observe(tracker.Observation{LSN: 3500, System: system, Timeline: 2, History: tracker.History{{Timeline: 1, End: 3100}}})
			}
		})
		ok[ReadyAnswer](t, k.get("/readyz?max_lag=0"))
		k.script.over()
		k.script.observe(on(1, 2500)) // it crashed, and replays once more
		feed.OnDemand(func() {})
		if p := k.get("/readyz?max_lag=999").is(t, lagging); p.Detail != "1000 bytes behind, more than 999 bytes" {
			t.Errorf("got %q", p.Detail)
		}
	})
}

// After an idle time the source has not looked for long, whether the probe limits the lag or not.
func TestAProbeTellsNoOldLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 1000))
		feed := k.script.running()
		feed.OnDemand(func() {
			if feed.Demand().Waiting > 0 {
				go k.script.observe(on(1, 5000))
			}
		})
		k.tr.PrimaryAt(token(1, 5000))
		if a := ok[ReadyAnswer](t, k.get("/readyz")); !a.Lag.Known || *a.Lag.Bytes != 0 || *a.Lag.US != 0 {
			t.Errorf("got %d bytes, %d us: want none", *a.Lag.Bytes, *a.Lag.US)
		}
		feed.OnDemand(func() {})
		k.tr.PrimaryAt(token(1, 6000)) // a replica that does not answer holds the probe up for freshWithin
		began := time.Now()
		if a := ok[ReadyAnswer](t, k.get("/readyz")); *a.Lag.Bytes != 1000 || time.Since(began) > freshWithin+10*time.Millisecond {
			t.Errorf("after %s: got %+v", time.Since(began), a.Lag)
		}
	})
}
