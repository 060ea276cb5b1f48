package ryw_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker/ryw"
)

// BenchmarkThroughput is a load of one write to nine reads that saturates the
// primary, with everything read from it and with two replicas: how many times as
// many reads. "capacity" has servers that do four reads at a time, each of 2 ms, and
// so is about routing; "cpu" has what the machine gives, which all servers share
// when there is one.
func BenchmarkThroughput(b *testing.B) {
	for name, query := range map[string]string{
		"capacity": `SELECT pg_sleep(0.002)`,
		"cpu":      `SELECT sum(i) FROM generate_series(1, 5000) AS i`,
	} {
		b.Run(name, func(b *testing.B) {
			c := cluster(b)
			cfg := ryw.Config{Primary: bounded(b, c.Primary)}
			alone := newRouter(b, cfg)
			for _, n := range c.Standbys {
				rep := follow(b, n.Name(), n.DSN(), n.DSN())
				rep.Pool = bounded(b, n)
				cfg.Replicas = append(cfg.Replicas, rep)
			}
			routed := newRouter(b, cfg)
			var reads [2]float64
			const part = time.Second
			for b.Loop() { // in turns
				for i, r := range []*ryw.Router{alone, routed} {
					reads[i] += load(b, r, query, part)
				}
			}
			s := routed.Stats()
			all := float64(s.Primary + s.Replicas[0].Reads + s.Replicas[1].Reads)
			b.ReportMetric(reads[1]/reads[0], "x-primary")
			b.ReportMetric(100*float64(s.Primary)/all, "%primary")
			b.ReportMetric(100*float64(s.Replicas[0].Reads)/all, "%one")
			b.ReportMetric(100*float64(s.Replicas[1].Reads)/all, "%two")
		})
	}
}

// bounded is a pool of four connections: what a server does at a time.
func bounded(b *testing.B, n *replicationtest.Node) *pgxpool.Pool {
	b.Helper()
	cfg, err := pgxpool.ParseConfig(n.DSN())
	if err != nil {
		b.Fatal(err)
	}
	cfg.MaxConns = 4
	p, err := pgxpool.NewWithConfig(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.Close)
	return p
}

// load has 32 users write once and read nine times, and returns the reads a second.
func load(b *testing.B, r *ryw.Router, query string, d time.Duration) float64 {
	b.Helper()
	end, stop := context.WithTimeout(b.Context(), d)
	defer stop()
	var reads atomic.Int64
	var users sync.WaitGroup
	for range 32 {
		users.Go(func() {
			ctx := ryw.NewContext(b.Context(), new(ryw.Session))
			for end.Err() == nil {
				if _, err := write(ctx, r); err != nil {
					b.Error(err)
					return
				}
				for range 9 {
					err := r.Read(ctx, func(q ryw.Queries) error {
						_, err := q.Exec(ctx, query)
						return err
					})
					if err != nil {
						b.Error(err)
						return
					}
					if end.Err() == nil {
						reads.Add(1)
					}
				}
			}
		})
	}
	users.Wait()
	return float64(reads.Load()) / d.Seconds()
}
