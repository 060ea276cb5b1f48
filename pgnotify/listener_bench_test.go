package pgnotify_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
)

// BenchmarkNotificationBesideTightLoop commits a row, alternately with a NOTIFY
// that is waited for in the handler, and without one, when a loop of queries
// looks for the row on the replica. It reports the medians of the times from
// COMMIT's return, and the one over the other. Read it with -benchtime 2000x.
func BenchmarkNotificationBesideTightLoop(b *testing.B) {
	ctx := context.Background()
	c := replicationtest.Start(b, replicationtest.Options{})
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	must(c.Primary.Exec(ctx, `CREATE TABLE rows (id bigint PRIMARY KEY)`))
	must(c.WaitForReplay(ctx))
	heard := make(chan time.Time, 1)
	listen(b, pgnotify.Config{
		Primary: replication.Server{DSN: c.Primary.DSN()},
		Replica: follow(b, c.Standbys[0].DSN()),
		Channels: []pgnotify.Channel{{Name: "rows", Handler: pgnotify.HandlerFunc(func(context.Context, pgnotify.Event) error {
			heard <- time.Now()
			return nil
		})}},
	})
	writer, reader := connect(b, c.Primary), connect(b, c.Standbys[0])
	var notified, seen []time.Duration
	id := 0
	commit := func(notify string) time.Time {
		id++
		_, err := writer.Exec(ctx, fmt.Sprintf(`BEGIN; INSERT INTO rows VALUES (%d); %s; COMMIT`, id, notify), pgx.QueryExecModeSimpleProtocol)
		must(err)
		return time.Now()
	}
	for b.Loop() {
		<-time.After(2 * time.Millisecond)
		at := commit(`NOTIFY rows`)
		notified = append(notified, (<-heard).Sub(at))
		<-time.After(2 * time.Millisecond)
		at = commit(`SELECT`)
		for there := false; !there; {
			must(reader.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rows WHERE id = $1)`, id).Scan(&there))
		}
		seen = append(seen, time.Since(at))
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Nanoseconds()) / 1000
	}
	n, s := median(notified), median(seen)
	b.ReportMetric(n, "handler-µs")
	b.ReportMetric(s, "loop-µs")
	b.ReportMetric(n/s, "handler/loop")
}
