package pgnotify_test

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/walwake/walwake/pgnotify"
)

var messageWrites = flag.Int("messagewrites", 200, "BenchmarkMessageLatency: transactions of each way")

// From COMMIT acknowledged to the handler called, beside a loop of queries that
// looks for the row on the replica, in turns.
func BenchmarkMessageLatency(b *testing.B) {
	c, err := shared()
	if err != nil {
		b.Fatal(err)
	}
	decodable(b, c)
	handled := make(chan time.Time, 1)
	receiving(b, c.Standbys[0].DSN(), c.Primary, pgnotify.MessagesConfig{Channels: []pgnotify.Channel{{
		Name: "rows", Handler: pgnotify.HandlerFunc(func(context.Context, pgnotify.Event) error {
			handled <- time.Now()
			return nil
		}),
	}}}).wait(b)
	writer, err := c.Primary.Connect(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = writer.Close(context.Background()) }()
	reader, err := c.Standbys[0].Connect(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = reader.Close(context.Background()) }()
	const quiet = 3 * time.Millisecond // between two writes
	var told, seen []time.Duration
	for b.Loop() {
		for range *messageWrites {
			emit(b, writer, "rows", time.Now().UnixNano())
			committed := time.Now()
			told = append(told, (<-handled).Sub(committed))
			time.Sleep(quiet)

			id := time.Now().UnixNano()
			if _, err := writer.Exec(b.Context(), `INSERT INTO rows VALUES ($1)`, id); err != nil {
				b.Fatal(err)
			}
			committed = time.Now()
			for there := false; !there; {
				if err := reader.QueryRow(b.Context(), `SELECT EXISTS (SELECT FROM rows WHERE id = $1)`, id).Scan(&there); err != nil {
					b.Fatal(err)
				}
			}
			seen = append(seen, time.Since(committed))
			time.Sleep(quiet)
		}
	}
	slices.Sort(told)
	slices.Sort(seen)
	for _, p := range []int{50, 99} {
		at := len(told) * p / 100
		b.ReportMetric(float64(told[at].Microseconds()), fmt.Sprintf("handler-p%d-us", p))
		b.ReportMetric(float64(seen[at].Microseconds()), fmt.Sprintf("row-p%d-us", p))
	}
	b.ReportMetric(float64(told[len(told)/2])/float64(seen[len(seen)/2]), "ratio-p50")
	b.ReportMetric(0, "ns/op")
}
