package metrics_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/metrics"
)

// BenchmarkScrape is a scrape of 10 and of 100 replicas that are not asked.
func BenchmarkScrape(b *testing.B) {
	for _, n := range []int{10, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m, reg := metrics.New(metrics.Config{Refresh: -1}), prometheus.NewRegistry()
			reg.MustRegister(m)
			for i := range n {
				tr, err := m.NewTracker(tracker.Config{Source: source{}, Name: fmt.Sprint("db", i)})
				if err != nil {
					b.Fatal(err)
				}
				go func() { _ = tr.Run(context.Background()) }()
				b.Cleanup(tr.Close)
				<-tr.Ready()
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := reg.Gather(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
