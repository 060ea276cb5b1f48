package pgnotify_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// announce runs an Announcer until the test ends.
func announce(t *testing.T, cfg pgnotify.AnnouncerConfig) *pgnotify.Announcer {
	t.Helper()
	a, err := pgnotify.NewAnnouncer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(context.Background()); err != nil {
			t.Errorf("Run: %v, want nil after Close", err)
		}
	})
	t.Cleanup(func() { a.Close(); running.Wait() })
	return a
}

// hear LISTENs without any of this package's help, until the test ends.
func hear(t *testing.T, n *replicationtest.Node, channel string) <-chan string {
	t.Helper()
	conn := connect(t, n)
	exec(t, conn, `LISTEN "`+channel+`"`)
	ctx, cancel := context.WithCancel(context.Background())
	heard := make(chan string, 100_000)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			n, err := conn.WaitForNotification(ctx)
			if err != nil {
				return
			}
			heard <- n.Payload
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return heard
}

func next[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
	}
	return v
}

func capture(t *testing.T, n *replicationtest.Node) tracker.Token {
	t.Helper()
	tok, err := replication.Capture(t.Context(), connect(t, n))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestFiftyThousandAnnouncementsASecondAreFiftyNotifies(t *testing.T) {
	c := cluster(t)
	const (
		channel = "fifty thousand"
		writers = 8
		each    = 12_500 // announcements
		total   = writers * each
	)
	heard := hear(t, c.Primary, channel)
	a := announce(t, pgnotify.AnnouncerConfig{Primary: replication.Server{DSN: c.Primary.DSN()}, Channel: channel})
	first := capture(t, c.Primary)
	start := time.Now()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			tok := first
			for i := range each {
				if i%25 == 0 { // 25 in 4 ms, and 8 of us: 50,000 a second
					time.Sleep(time.Until(start.Add(time.Duration(i/25) * 4 * time.Millisecond)))
				}
				tok.LSN = first.LSN + tracker.LSN(i*writers+w)
				a.Announce(tok)
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	highest := first
	highest.LSN += total - 1
	want, count, last := "p1 "+highest.String(), 0, tracker.Token{}
	for payload := ""; payload != want; count++ {
		payload = next(t, heard)
		tok, err := tracker.ParseToken(strings.TrimPrefix(payload, "p1 "))
		if err != nil || tok.Compare(last) <= 0 || len(payload) > 48 {
			t.Errorf("%q after %v: %v", payload, last, err)
		}
		last = tok
	}
	took = max(took, time.Since(start))
	if most := int(took.Seconds()*50) + 1; count > most {
		t.Errorf("%d NOTIFYs in %s, want at most %d", count, took, most)
	}
	if s := a.Stats(); s.Announced != total || s.Latest != highest || s.Failures != 0 || s.Failure != nil {
		t.Errorf("%+v", s)
	}
	t.Logf("%d announcements in %s (%.0f a second) were %d NOTIFYs (%.1f a second)",
		total, took, total/took.Seconds(), count, float64(count)/took.Seconds())
}

func BenchmarkAnnounce(b *testing.B) {
	a, err := pgnotify.NewAnnouncer(pgnotify.AnnouncerConfig{Primary: replication.Server{DSN: "host=127.0.0.1"}})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("one=rising", func(b *testing.B) {
		b.ReportAllocs()
		tok := tracker.Token{System: 1, Timeline: 1, LSN: 1}
		for b.Loop() {
			tok.LSN++
			a.Announce(tok)
		}
	})
	b.Run("one=again", func(b *testing.B) {
		b.ReportAllocs()
		tok := tracker.Token{System: 1, Timeline: 1, LSN: 1}
		for b.Loop() {
			a.Announce(tok)
		}
	})
	for _, goroutines := range []int{8, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(goroutines / min(goroutines, runtime.GOMAXPROCS(0)))
			var begun atomic.Uint64
			b.RunParallel(func(pb *testing.PB) {
				tok := tracker.Token{System: 2, Timeline: 1, LSN: tracker.LSN(begun.Add(1))}
				for pb.Next() {
					tok.LSN += 64
					a.Announce(tok)
				}
			})
		})
	}
}
