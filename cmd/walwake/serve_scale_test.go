//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	client "github.com/walwake/walwake/tracker/sidecar"
)

// BenchmarkManyBesideASidecar has 1,000 programs follow one sidecar over its stream, while others write 3,000
// transactions a second on the primary. Eight writers commit, and each commit is waited for by one of the programs and
// by a tracker of its own beside the replica: from where it was acknowledged. All share this machine's cores; the
// tracker of its own says how busy they are.
func BenchmarkManyBesideASidecar(b *testing.B) {
	for _, rate := range []int{0, 500, 3000} {
		b.Run(fmt.Sprintf("%d tx per s", rate), func(b *testing.B) { manyBesideASidecar(b, rate) })
	}
}

func manyBesideASidecar(b *testing.B, rate int) {
	const programs, writers = 1000, 8
	c := replicationtest.Start(b, replicationtest.Options{})
	standby := c.Standbys[0]
	cmd, rest, seen := start(b, b.TempDir(), `"message":"listening"`, "serve", "--replica", standby.DSN(), "--listen", "127.0.0.1:0")
	defer func() {
		_ = cmd.Process.Kill()
		_, _ = rest.WriteTo(io.Discard)
		_ = cmd.Wait()
	}()
	url := "http://" + logged(b, seen, "listening", "address")
	before := processUse(b, cmd.Process.Pid)
	followers := make([]*tracker.Tracker, programs)
	for i := range followers {
		followers[i] = through(b, client.Config{URL: url})
	}
	for _, f := range followers {
		<-f.Ready()
	}
	each := (processUse(b, cmd.Process.Pid).resident - before.resident) / programs
	direct := directly(b, standby)
	<-direct.Ready()

	made := func() (float64, error) { return 0, nil }
	if rate > 0 {
		config, err := pgx.ParseConfig(c.Primary.DSN())
		if err != nil {
			b.Fatal(err)
		}
		if made, err = startLoad(b.Context(), &server{config: config}, rate); err != nil {
			b.Fatal(err)
		}
	}
	var asked, alone samples
	var next atomic.Int64
	var all sync.WaitGroup
	began, from := time.Now(), processUse(b, cmd.Process.Pid)
	b.ResetTimer()
	for range writers {
		conn, err := c.Primary.Connect(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		all.Go(func() {
			defer conn.Close(context.Background())
			for n := next.Add(1); n <= int64(max(b.N, 1000)); n = next.Add(1) {
				if err := waitedFor(b.Context(), conn, followers[n%programs], direct, &asked, &alone); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	took, to := time.Since(began), processUse(b, cmd.Process.Pid)
	b.StopTimer()
	perSecond, err := made()
	if err != nil {
		b.Fatal(err)
	}
	asked.report(b, "asked")
	alone.report(b, "alone")
	b.ReportMetric(perSecond, "tx/s")
	b.ReportMetric(100*(to.cpu-from.cpu).Seconds()/took.Seconds(), "cpu-%")
	b.ReportMetric(float64(to.written-from.written)/took.Seconds()/programs, "sent-B/s/client")
	b.ReportMetric(float64(each), "resident-B/client")
}

// waitedFor commits, and has both wait for it.
func waitedFor(ctx context.Context, conn *pgx.Conn, program, direct *tracker.Tracker, asked, alone *samples) error {
	if _, err := conn.Exec(ctx, `select pg_logical_emit_message(true, 'bench', 'x')`); err != nil {
		return err
	}
	tok, err := replication.Capture(ctx, conn)
	if err != nil {
		return err
	}
	committed := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- alone.took(committed, direct.Wait(ctx, tok)) }()
	return errors.Join(asked.took(committed, program.Wait(ctx, tok)), <-ended)
}

// samples are times that several measure.
type samples struct {
	mu  sync.Mutex
	all []time.Duration
}

// took adds the time since a moment, unless it ended with an error.
func (s *samples) took(since time.Time, err error) error {
	took := time.Since(since)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.all = append(s.all, took)
	}
	return err
}

func (s *samples) report(b *testing.B, name string) {
	b.Helper()
	slices.Sort(s.all)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(s.all[(len(s.all)-1)*p/100].Microseconds())/1e3, fmt.Sprintf("%s-p%d-ms", name, p))
	}
}

// directly follows a replica with a tracker of its own.
func directly(b *testing.B, standby *replicationtest.Node) *tracker.Tracker {
	b.Helper()
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: standby.DSN()}})
	if err != nil {
		b.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source, Timeout: time.Minute})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(context.Background()) }()
	b.Cleanup(func() {
		tr.Close()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	return tr
}

// use is what a process has used.
type use struct {
	cpu               time.Duration
	resident, written int64 // bytes; written counts write calls, to sockets too
}

func processUse(b *testing.B, pid int) (u use) {
	b.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			b.Fatal(err)
		}
		return string(text)
	}
	number := func(text string) int64 {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	_, after, _ := strings.Cut(read("stat"), ") ")
	f := strings.Fields(after)
	u.cpu = time.Duration(number(f[11])+number(f[12])) * 10 * time.Millisecond // in ticks of 1/100 s
	u.resident = number(strings.Fields(read("statm"))[1]) * int64(os.Getpagesize())
	for line := range strings.Lines(read("io")) {
		if text, is := strings.CutPrefix(line, "wchar: "); is {
			u.written = number(strings.TrimSpace(text))
		}
	}
	return u
}
