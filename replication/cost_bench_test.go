//go:build linux

package replication_test

import (
	"context"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// BenchmarkCost measures what observing costs while somebody waits all the time
// for what does not come, and while nobody waits: CPU of all of the standby's
// processes, of the client, and bytes that the client reads.
//
//	go test -run '^$' -bench Cost -benchtime 1x ./replication -args -rates 0,500,3000 -seconds 10
func BenchmarkCost(b *testing.B) {
	c, err := replicationtest.New(b.Context(), replicationtest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.Primary.Exec(b.Context(), `CREATE TABLE load (id bigint, v text); CREATE PUBLICATION walwake`); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for r := range strings.SplitSeq(*benchRates, ",") {
			rate, err := strconv.Atoi(r)
			if err != nil {
				b.Fatal(err)
			}
			costs(b, c, rate)
		}
	}
}

func costs(b *testing.B, c *replicationtest.Cluster, rate int) {
	b.Helper()
	stop := startLoader(b, c, rate)
	defer stop()
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\nPostgreSQL %s, %d tx/s\tstandby CPU\tclient CPU\tread\t\n", c.Release, rate)
	row := func(name string, d cost) {
		s := benchFor.Seconds()
		_, _ = fmt.Fprintf(w, "%s\t%.2f%%\t%.2f%%\t%.1f kB/s\t\n", name, 100*d.standby.Seconds()/s, 100*d.client.Seconds()/s, float64(d.bytes)/1000/s)
	}
	row("nothing attached", spent(b, c, nil))
	for _, k := range kinds(c.Version) {
		var read atomic.Int64
		tr := measured(b, c, &read, k)
		row(string(k)+", nobody waits", spent(b, c, &read))
		w := tr.Request(tracker.Token{LSN: 1 << 60})
		for tr.State().Source != string(k) {
			time.Sleep(time.Millisecond)
		}
		row(string(k)+", somebody waits", spent(b, c, &read))
		w.Cancel()
		tr.Close()
	}
	_ = w.Flush()
	fmt.Println(out.String())
}

// measured follows the standby by kind, and counts the bytes read.
func measured(b *testing.B, c *replicationtest.Cluster, read *atomic.Int64, k replication.Kind) *tracker.Tracker {
	b.Helper()
	cfg, err := pgx.ParseConfig(c.Standbys[0].DSN())
	if err != nil {
		b.Fatal(err)
	}
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return countingConn{conn, read}, err
	}
	source, err := replication.New(replication.Config{
		Replica: replication.Server{Config: cfg}, Primary: replication.Server{DSN: c.Primary.DSN()}, Use: []replication.Kind{k},
	})
	if err != nil {
		b.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	<-tr.Ready()
	return tr
}

type countingConn struct {
	net.Conn
	read *atomic.Int64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func startLoader(b *testing.B, c *replicationtest.Cluster, rate int) (stop func()) {
	b.Helper()
	if rate == 0 {
		return func() {}
	}
	cmd := osexec.Command(os.Args[0], "-test.run", "^$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", loaderEnv, c.Primary.DSN(), rate))
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
}

type cost struct {
	standby, client time.Duration
	bytes           int64
}

// spent is what -seconds cost.
func spent(b *testing.B, c *replicationtest.Cluster, read *atomic.Int64) cost {
	b.Helper()
	now := func() cost {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		d := cost{standby: processes(b, c.Standbys[0].PID()), client: time.Duration(u.Utime.Nano() + u.Stime.Nano())}
		if read != nil {
			d.bytes = read.Load()
		}
		return d
	}
	before := now()
	time.Sleep(*benchFor)
	after := now()
	return cost{after.standby - before.standby, after.client - before.client, after.bytes - before.bytes}
}

// processes is the CPU time of a postmaster and all of its children, those that
// have ended too.
func processes(b *testing.B, postmaster int) time.Duration {
	b.Helper()
	const tick = 10 * time.Millisecond // USER_HZ is 100
	var sum time.Duration
	all, err := os.ReadDir("/proc")
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range all {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + p.Name() + "/stat")
		if err != nil {
			continue // it has just ended
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		n := func(i int) time.Duration { v, _ := strconv.Atoi(f[i]); return time.Duration(v) * tick }
		switch {
		case pid == postmaster:
			sum += n(11) + n(12) + n(13) + n(14)
		case f[1] == strconv.Itoa(postmaster):
			sum += n(11) + n(12)
		}
	}
	return sum
}
