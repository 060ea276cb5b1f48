package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	client "github.com/walwake/walwake/tracker/sidecar"
)

// BenchmarkAWaitThroughASidecar compares, in turns on one replica, a wait of a tracker of its own, of one that follows a
// sidecar, and of /v1/wait: from where the commit was acknowledged to where the wait is over.
func BenchmarkAWaitThroughASidecar(b *testing.B) {
	c := replicationtest.Start(b, replicationtest.Options{})
	standby := c.Standbys[0]
	url := serveForBench(b, standby)
	conn, err := c.Primary.Connect(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(context.Background())
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: standby.DSN()}})
	if err != nil {
		b.Fatal(err)
	}
	direct, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- direct.Run(context.Background()) }()
	defer func() {
		direct.Close()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}()
	asks, err := client.New(client.Config{URL: url})
	if err != nil {
		b.Fatal(err)
	}
	through := through(b, client.Config{URL: url})
	ways := []func(tracker.Token) error{
		func(tok tracker.Token) error { return direct.Wait(b.Context(), tok) },
		func(tok tracker.Token) error { return through.Wait(b.Context(), tok) },
		func(tok tracker.Token) error { return asks.Wait(b.Context(), tok) },
	}
	took := make([][]time.Duration, len(ways))
	for b.Loop() {
		for range 100 {
			for i, way := range ways {
				took[i] = append(took[i], commitAndWait(b, conn, way))
			}
		}
	}
	for i, name := range []string{"direct", "stream", "http"} {
		slices.Sort(took[i])
		b.ReportMetric(float64(took[i][len(took[i])/2].Microseconds()), fmt.Sprintf("%s-p50-µs", name))
		b.ReportMetric(float64(took[i][len(took[i])*99/100].Microseconds()), fmt.Sprintf("%s-p99-µs", name))
	}
}

// serveForBench runs a sidecar in this process until the benchmark ends, and returns where.
func serveForBench(b *testing.B, standby *replicationtest.Node) (url string) {
	b.Helper()
	ctx, stop := context.WithCancel(context.Background())
	stderr := watchFor(`"message":"listening"`)
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"serve", "--replica", standby.DSN(), "--listen", "127.0.0.1:0"}, io.Discard, stderr, func(string) string { return "" })
	}()
	b.Cleanup(func() { stop(); <-ended })
	select {
	case <-stderr.found:
	case code := <-ended:
		b.Fatalf("it ended with status %d: %s", code, stderr)
	}
	return "http://" + logged(b, stderr.String(), "listening", "address")
}

// commitAndWait commits, and returns how long the wait for it took.
func commitAndWait(b *testing.B, conn *pgx.Conn, wait func(tracker.Token) error) time.Duration {
	b.Helper()
	if _, err := conn.Exec(b.Context(), `select pg_logical_emit_message(true, 'bench', 'x')`); err != nil {
		b.Fatal(err)
	}
	tok, err := replication.Capture(b.Context(), conn)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := wait(tok); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}
