package metrics

import (
	"context"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
)

// BenchmarkWaitEnd is what the collector adds to a wait that blocked.
func BenchmarkWaitEnd(b *testing.B) {
	e := &entry{name: "db2", waits: newWaits()}
	end := e.timed(nil)
	b.ReportAllocs()
	for b.Loop() {
		end(context.Background(), tracker.WaitResult{Waited: 130 * time.Microsecond})
	}
}
