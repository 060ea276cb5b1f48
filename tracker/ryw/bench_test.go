package ryw_test

import (
	"slices"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker/ryw"
)

// BenchmarkRead is a read of one row from a replica that keeps up, beside the same
// query on its pool, in turns: p50 of the one in relation to the other.
func BenchmarkRead(b *testing.B) {
	c := cluster(b)
	cfg := ryw.Config{Options: ryw.Options{Budget: time.Minute}, Primary: pool(b, c.Primary.DSN()), Replicas: []ryw.Replica{follow(b, "one", c.Standbys[0].DSN(), c.Standbys[0].DSN())}}
	r := newRouter(b, cfg)
	s := new(ryw.Session)
	ctx := ryw.NewContext(b.Context(), s)
	id, err := write(ctx, r)
	if err != nil {
		b.Fatal(err)
	}
	const query = `SELECT id FROM rows WHERE id = $1`
	var got int64
	bare := func() error { return cfg.Replicas[0].Pool.QueryRow(ctx, query, id).Scan(&got) }
	routed := func() error {
		return r.Read(ctx, func(q ryw.Queries) error { return q.QueryRow(ctx, query, id).Scan(&got) })
	}
	if err := routed(); err != nil { // the bare one does not wait for the row
		b.Fatal(err)
	}
	var took [2][]time.Duration
	turn := func() {
		for i, f := range []func() error{bare, routed} {
			start := time.Now()
			if err := f(); err != nil || got != id {
				b.Fatal(got, err)
			}
			took[i] = append(took[i], time.Since(start))
		}
	}
	for range 100 {
		turn()
	}
	allocs := testing.AllocsPerRun(100, func() { _ = routed() }) - testing.AllocsPerRun(100, func() { _ = bare() })
	took = [2][]time.Duration{}
	for b.Loop() {
		turn()
	}
	p50 := func(ds []time.Duration) float64 { slices.Sort(ds); return float64(ds[len(ds)/2]) }
	b.ReportMetric(p50(took[1])/p50(took[0]), "p50/bare")
	b.ReportMetric(allocs, "more-allocs/op")
}
