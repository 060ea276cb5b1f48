package ryw_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/walwake/walwake/tracker/ryw"
)

// BenchmarkBudget is what Options.Budget decides for a user who reads just after a
// write, while others write as well: how many reads still go to the primary, and how
// long a read takes.
func BenchmarkBudget(b *testing.B) {
	c := cluster(b)
	for _, others := range []int{0, 500, 3000} {
		for _, budget := range []time.Duration{-1, 500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} {
			b.Run(fmt.Sprintf("others=%d/budget=%s", others, max(budget, 0)), func(b *testing.B) {
				r := router(b, c, ryw.Options{Budget: budget})
				end, stop := context.WithCancel(b.Context())
				var writing sync.WaitGroup
				defer writing.Wait()
				defer stop()
				if others > 0 {
					due := rate.NewLimiter(rate.Limit(others), 10)
					for range 8 {
						writing.Go(func() {
							for due.Wait(end) == nil {
								_, _ = write(end, r)
							}
						})
					}
				}
				ctx := ryw.NewContext(b.Context(), new(ryw.Session))
				var took []time.Duration
				for b.Loop() {
					id, err := write(ctx, r)
					if err != nil {
						b.Fatal(err)
					}
					start := time.Now()
					if is, err := there(ctx, r, id); err != nil || !is {
						b.Fatal(is, err)
					}
					took = append(took, time.Since(start))
				}
				slices.Sort(took)
				us := func(share float64) float64 { return float64(took[int(share*float64(len(took)-1))].Microseconds()) }
				b.ReportMetric(100*float64(r.Stats().Primary)/float64(len(took)), "%primary")
				b.ReportMetric(us(0.5), "p50-us")
				b.ReportMetric(us(0.99), "p99-us")
			})
		}
	}
}
