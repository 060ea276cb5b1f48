package sidecar

import (
	"testing"
	"testing/synctest"
	"time"
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
