package replication_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

var (
	benchRounds = flag.Int("rounds", 1, "BenchmarkCommitToKnown: rounds, in each of which every way is measured")
	benchWaits  = flag.Int("waits", 20, "BenchmarkCommitToKnown: waits a way and round")
	benchFor    = flag.Duration("seconds", 100*time.Millisecond, "BenchmarkCost: how long each is measured")
	benchWays   = flag.String("ways", "", "BenchmarkCommitToKnown: the ways beside the tight loop, a regular expression")
	benchRates  = flag.String("rates", "0", "BenchmarkCommitToKnown: background transactions a second, with commas")
)

// BenchmarkCommitToKnown measures from COMMIT acknowledged to known to be
// replayed: every way in turn on one cluster, in rounds, so that
// a noisy machine hits all alike. The figures are those of the README:
//
//	go test -run '^$' -bench CommitToKnown -benchtime 1x ./replication -args -rounds 10 -waits 300 -rates 0,500,3000
func BenchmarkCommitToKnown(b *testing.B) {
	c, err := replicationtest.New(b.Context(), replicationtest.Options{PrimarySettings: map[string]string{"max_connections": "200"}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.Primary.Exec(b.Context(), `CREATE TABLE writes (id bigint, v text); CREATE TABLE load (id bigint, v text); CREATE PUBLICATION walwake; `+watchFunction); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for r := range strings.SplitSeq(*benchRates, ",") {
			var rate int
			if _, err := fmt.Sscan(r, &rate); err != nil {
				b.Fatal(err)
			}
			compareWays(b, c, rate)
		}
	}
}

// way waits for a token in one way.
type way struct {
	name string
	open func(context.Context, *replicationtest.Cluster) (func(context.Context, tracker.Token) error, func(), error)
}

func ways(major int) []way {
	all := []way{{"tight loop", tightLoop}, {"tight, with timeline", timelineLoop}, {"50 ms loop", serverLoop}}
	if major >= 19 {
		all = append(all, way{"WAIT FOR LSN", native})
	}
	all = append(all, way{"walwake", walwake()})
	for _, k := range kinds(major) {
		all = append(all, way{"walwake " + string(k), walwake(k)})
	}
	chosen := regexp.MustCompile(*benchWays)
	for i := len(all) - 1; i > 0; i-- {
		if !chosen.MatchString(all[i].name) {
			all = slices.Delete(all, i, i+1)
		}
	}
	return all
}

// times are of one way: from COMMIT acknowledged, and of the wait alone, whose
// token was at hand.
type times struct{ all, waits []time.Duration }

func compareWays(b *testing.B, c *replicationtest.Cluster, rate int) {
	b.Helper()
	stop := load(b, c, rate)
	all := ways(c.Version)
	took := make([]times, len(all))
	for round := range *benchRounds {
		for i := range all {
			i = (i + round) % len(all)
			n := *benchWaits
			if all[i].name == "50 ms loop" {
				n = n/10 + 1
			}
			measure(b, c, all[i], n, &took[i])
		}
	}
	done := stop()
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\nPostgreSQL %s, %d tx/s asked, %.0f done\twaits\tp50\tp90\tp99\tp50/tight\tp99/tight\tWait p50\tWait/tight\t\n", c.Release, rate, done)
	base, baseWaits := quantiles(took[0].all), quantiles(took[0].waits)
	for i, name := range all {
		q, waits := quantiles(took[i].all), quantiles(took[i].waits)
		ratio := func(a, b time.Duration) float64 { return float64(a) / float64(b) }
		_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%.2f\t%.2f\t%s\t%.2f\t\n", name.name, len(took[i].all), q[0], q[1], q[2],
			ratio(q[0], base[0]), ratio(q[2], base[2]), waits[0], ratio(waits[0], baseWaits[0]))
		b.ReportMetric(ratio(q[0], base[0]), fmt.Sprintf("%s@%d-p50/tight", strings.ReplaceAll(name.name, " ", "-"), rate))
	}
	_ = w.Flush()
	fmt.Println(out.String())
}

func quantiles(d []time.Duration) [3]time.Duration {
	slices.Sort(d)
	at := func(q float64) time.Duration { return d[min(int(q*float64(len(d))), len(d)-1)].Round(time.Microsecond) }
	return [3]time.Duration{at(0.5), at(0.9), at(0.99)}
}

// measure opens a way, warms it up, and times n waits.
func measure(b *testing.B, c *replicationtest.Cluster, w way, n int, took *times) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	wait, done, err := w.open(ctx, c)
	if err != nil {
		b.Fatalf("%s: %v", w.name, err)
	}
	defer done()
	writer, err := c.Primary.Connect(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer writer.Close(ctx)
	known, err := replication.Capture(ctx, writer)
	if err == nil {
		_, err = writer.Prepare(ctx, "write", `INSERT INTO writes VALUES ($1, 'a row of some length')`)
	}
	if err == nil {
		_, err = writer.Prepare(ctx, "insert_lsn", `SELECT pg_current_wal_insert_lsn()`)
	}
	if err != nil {
		b.Fatal(err)
	}
	for i := range n + 10 {
		tok, committed, err := writeAndCapture(ctx, writer, known.System, i)
		if err != nil {
			b.Fatal(err)
		}
		captured := time.Now()
		if err := wait(ctx, tok); err != nil {
			b.Fatalf("%s: %v", w.name, err)
		}
		if i >= 10 {
			took.waits = append(took.waits, time.Since(captured))
			took.all = append(took.all, time.Since(committed))
		}
		time.Sleep(2 * time.Millisecond) // let what the write has set going come to rest
	}
}

// writeAndCapture commits a row and captures its token in one round trip, as a
// service that cares for latency does: replay has hardly begun when it is back.
func writeAndCapture(ctx context.Context, conn *pgx.Conn, system uint64, id int) (tok tracker.Token, committed time.Time, err error) {
	p := conn.PgConn().StartPipeline(ctx)
	p.SendQueryPrepared("write", [][]byte{fmt.Append(nil, id)}, nil, nil)
	p.SendPipelineSync()
	p.SendQueryPrepared("insert_lsn", nil, nil, nil)
	if err := p.Sync(); err != nil {
		return tok, committed, err
	}
	for {
		result, err := p.GetResults()
		if result == nil || err != nil {
			return tok, committed, errors.Join(err, p.Close())
		}
		switch r := result.(type) {
		case *pgconn.PipelineSync:
			if committed.IsZero() {
				committed = time.Now()
			}
		case *pgconn.ResultReader:
			rows := r.Read()
			if rows.Err != nil {
				return tok, committed, errors.Join(rows.Err, p.Close())
			}
			for _, row := range rows.Rows {
				lsn, err := tracker.ParseLSN(string(row[0]))
				if err != nil {
					return tok, committed, err
				}
				// What Capture also asks for is known here, and the same for all ways.
				tok = tracker.Token{System: system, Timeline: 1, LSN: lsn.Normalize(8192, 16<<20)}
			}
		}
	}
}

func onStandby(ctx context.Context, c *replicationtest.Cluster) (*pgx.Conn, func(), error) {
	conn, err := c.Standbys[0].Connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	return conn, func() { _ = conn.Close(context.Background()) }, nil
}

func tightLoop(ctx context.Context, c *replicationtest.Cluster) (func(context.Context, tracker.Token) error, func(), error) {
	conn, done, err := onStandby(ctx, c)
	return func(ctx context.Context, tok tracker.Token) error {
		for {
			var there bool
			if err := conn.QueryRow(ctx, `SELECT pg_last_wal_replay_lsn() >= $1`, tok.LSN).Scan(&there); err != nil || there {
				return err
			}
		}
	}, done, err
}

// timelineLoop also asks for the timeline, after the position, without which
// a failover makes the answer wrong.
func timelineLoop(ctx context.Context, c *replicationtest.Cluster) (func(context.Context, tracker.Token) error, func(), error) {
	conn, done, err := onStandby(ctx, c)
	return func(ctx context.Context, tok tracker.Token) error {
		for {
			var there bool
			var timeline *uint32
			err := conn.QueryRow(ctx, `SELECT pg_last_wal_replay_lsn() >= $1, (SELECT received_tli FROM pg_stat_wal_receiver)`, tok.LSN).Scan(&there, &timeline)
			if err != nil || there && timeline != nil && *timeline == tok.Timeline {
				return err
			}
		}
	}, done, err
}

// serverLoop is the ancestor's way: one session calls a function that sleeps for
// 50 ms between looks until replay has moved, and all wait for what it returns.
func serverLoop(ctx context.Context, c *replicationtest.Cluster) (func(context.Context, tracker.Token) error, func(), error) {
	conn, done, err := onStandby(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	at, moved := tracker.LSN(0), make(chan struct{})
	watching, stop := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() {
		for watching.Err() == nil {
			var next tracker.LSN
			if err := conn.QueryRow(watching, `SELECT watch($1)`, at).Scan(&next); err != nil {
				return
			}
			mu.Lock()
			at = next
			close(moved)
			moved = make(chan struct{})
			mu.Unlock()
		}
	})
	wait := func(ctx context.Context, tok tracker.Token) error {
		for {
			mu.Lock()
			there, change := at >= tok.LSN, moved
			mu.Unlock()
			if there {
				return nil
			}
			select {
			case <-change:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return wait, func() { stop(); watch.Wait(); done() }, nil
}

// watchFunction is the ancestor's.
const watchFunction = `CREATE FUNCTION watch(pg_lsn) RETURNS pg_lsn LANGUAGE plpgsql AS $$
BEGIN
	WHILE pg_last_wal_replay_lsn() <= $1 LOOP PERFORM pg_sleep(0.05); END LOOP;
	RETURN pg_last_wal_replay_lsn();
END $$`

// native is a session for each wait, connected beforehand.
func native(ctx context.Context, c *replicationtest.Cluster) (func(context.Context, tracker.Token) error, func(), error) {
	conn, done, err := onStandby(ctx, c)
	return func(ctx context.Context, tok tracker.Token) error {
		_, err := conn.Exec(ctx, fmt.Sprintf(`WAIT FOR LSN '%s'`, tok.LSN), pgx.QueryExecModeSimpleProtocol)
		return err
	}, done, err
}

// walwake is a tracker as users make it; with kind, with that stream up.
func walwake(kind ...replication.Kind) func(context.Context, *replicationtest.Cluster) (func(context.Context, tracker.Token) error, func(), error) {
	return func(ctx context.Context, c *replicationtest.Cluster) (func(context.Context, tracker.Token) error, func(), error) {
		source, err := replication.New(replication.Config{
			Replica: replication.Server{DSN: c.Standbys[0].DSN()},
			Primary: replication.Server{DSN: c.Primary.DSN()},
			Use:     kind,
		})
		if err != nil {
			return nil, nil, err
		}
		tr, err := tracker.New(tracker.Config{Source: source})
		if err != nil {
			return nil, nil, err
		}
		go func() { _ = tr.Run(context.Background()) }()
		<-tr.Ready()
		if len(kind) == 0 {
			return tr.Wait, tr.Close, nil
		}
		w := tr.Request(tracker.Token{LSN: 1 << 60})
		defer w.Cancel()
		for tr.State().Source != string(kind[0]) {
			if ctx.Err() != nil {
				return nil, nil, fmt.Errorf("%s does not come up: %+v", kind, tr.State())
			}
			time.Sleep(time.Millisecond)
		}
		return tr.Wait, tr.Close, nil
	}
}

// load writes rate transactions a second on the primary until it is stopped,
// which returns how many a second there were.
func load(b *testing.B, c *replicationtest.Cluster, rate int) (stop func() float64) {
	b.Helper()
	if rate == 0 {
		return func() float64 { return 0 }
	}
	const writers = 8
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var written atomic.Int64
	start := time.Now()
	for range writers {
		conn, err := c.Primary.Connect(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		all.Go(func() {
			defer conn.Close(context.Background())
			for n := int64(0); ctx.Err() == nil; n++ {
				if due := time.Duration(n) * time.Second * writers / time.Duration(rate); time.Since(start) < due {
					time.Sleep(due - time.Since(start))
				}
				if _, err := conn.Exec(context.Background(), `INSERT INTO load VALUES (1, 'a row of some length')`); err != nil {
					return
				}
				written.Add(1)
			}
		})
	}
	return func() float64 {
		cancel()
		all.Wait()
		return float64(written.Load()) / time.Since(start).Seconds()
	}
}
