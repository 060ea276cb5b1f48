package replication_test

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
)

var idleWaits = flag.Int("idlewaits", 300, "TestNoWakeUpIsLostOnAnIdlePrimary: waits with each kind")

// tooLong is what a wait on an idle primary does not take.
const tooLong = 5 * time.Millisecond

func TestNoWakeUpIsLostOnAnIdlePrimary(t *testing.T) {
	c := cluster(t)
	publish(t, c)
	for _, kind := range kinds(c.Version) {
		t.Run(string(kind), func(t *testing.T) {
			tr := follow(t, c, c.Standbys[0], kind, tracker.Config{Timeout: time.Minute})
			always := tr.Request(tracker.Token{LSN: 1 << 60}) // who keeps the stream open
			defer always.Cancel()
			writer := connect(t, c.Primary)
			o := &oracle{ctx: context.WithoutCancel(t.Context()), node: c.Standbys[0]}
			defer o.close()
			var slowest, latest, all time.Duration
			slow, late := 0, 0
			for range *idleWaits {
				exec(t, writer, `INSERT INTO writes SELECT coalesce(max(id), 0) + 1 FROM writes`)
				tok := capture(t, writer)
				// Where it takes long, the server is asked whether it was the one.
				var replayed time.Time
				asked := make(chan struct{})
				asking := time.AfterFunc(tooLong, func() {
					defer close(asked)
					for deadline := time.Now().Add(60 * time.Second); !o.replayed(tok.LSN) && time.Now().Before(deadline); {
						continue
					}
					replayed = time.Now()
				})
				started := time.Now()
				wait(t, tr, tok)
				took := time.Since(started)
				slowest, all = max(slowest, took), all+took
				if asking.Stop() {
					continue
				}
				<-asked
				slow++
				after := started.Add(took).Sub(replayed)
				latest = max(latest, after)
				if after > tooLong {
					late++
				}
			}
			t.Logf("PostgreSQL %s, %s: %d waits, mean %s, slowest %s; %d over 5 ms, %d of them more than 5 ms after the server's replay, the latest %s after it",
				c.Release, kind, *idleWaits, all/time.Duration(*idleWaits), slowest, slow, late, latest)
			if s := tr.State(); s.Source != string(kind) {
				t.Errorf("at the end %s was in use", s.Source)
			}
			if latest > soon {
				t.Errorf("a wake-up was lost for %s", latest)
			}
		})
	}
}
