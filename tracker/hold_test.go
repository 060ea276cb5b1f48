package tracker

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkHold shows how long the mutex is held when one event concerns
// 100,000 waiters at one position, each with its channel. They are taken in
// batches: ns/hold is the mean time of a batch, wake-ups included, which the
// mutex is released for. Another goroutine asks for Stats all the while, and
// p99-ns and max-ns are how long that took. On a busy machine the longest are
// those in which either lost its core; the event none, which takes 20 ms and no
// mutex, tells how long that is.
func BenchmarkHold(b *testing.B) {
	const crowd = 100_000
	for _, event := range []struct {
		name string
		fire func(*Tracker, *Epoch)
		left int
	}{
		{"none", func(*Tracker, *Epoch) {
			for start := time.Now(); time.Since(start) < 20*time.Millisecond; {
			}
		}, crowd},
		{"wake", func(_ *Tracker, e *Epoch) { e.Observe(at(1000)) }, 0},
		{"sweep", func(_ *Tracker, e *Epoch) { e.f.Begin().Observe(at(11)) }, crowd},
		{"sweepAndWake", func(_ *Tracker, e *Epoch) { e.f.Begin().Observe(at(1000)) }, 0},
		{"close", func(tr *Tracker, _ *Epoch) { tr.Close() }, 0},
	} {
		b.Run("event="+event.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				tr, e := loaded(b, 10)
				for range crowd {
					tr.Request(tok(1000)).Done()
				}
				stop := probe(tr, &took)
				b.StartTimer()
				event.fire(tr, e)
				b.StopTimer()
				stop()
				if n := tr.Stats().Waiting; n != event.left {
					b.Fatal(n, "wait")
				}
				tr.Close()
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(crowd/batch), "ns/hold")
			for name, i := range map[string]int{"p99-ns": len(took) * 99 / 100, "max-ns": len(took) - 1} {
				b.ReportMetric(float64(took[i]), name)
			}
		})
	}
}

// probe asks for Stats until stop is called, and notes how long that takes each
// time.
func probe(tr *Tracker, took *[]time.Duration) (stop func()) {
	over, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-over:
				return
			default:
			}
			start := time.Now()
			tr.Stats()
			*took = append(*took, time.Since(start))
		}
	}()
	return func() {
		close(over)
		<-stopped
	}
}
