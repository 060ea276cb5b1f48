package pgnotify_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
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

// tell tells trackers of the announcements of a channel until the test ends; told
// gets each event that they were told of.
func tell(t *testing.T, primary, channel string, trackers ...*tracker.Tracker) (told <-chan pgnotify.Event) {
	t.Helper()
	c, events := followedBy(pgnotify.Announcements(trackers...))
	c.Name = channel
	listen(t, pgnotify.Config{Primary: replication.Server{DSN: primary}, Channels: []pgnotify.Channel{c}})
	return events
}

// followedBy is the channel, whose events are in events too once they are handled.
func followedBy(c pgnotify.Channel) (pgnotify.Channel, <-chan pgnotify.Event) {
	events, handler := make(chan pgnotify.Event, 100_000), c.Handler
	c.Handler = pgnotify.HandlerFunc(func(ctx context.Context, e pgnotify.Event) error {
		defer func() { events <- e }()
		return handler.Handle(ctx, e)
	})
	return c, events
}

// refreshed returns tr's State once its source has looked.
func refreshed(t *testing.T, tr *tracker.Tracker) tracker.State {
	t.Helper()
	before := time.Now()
	tr.Refresh()
	for time.Since(before) < 30*time.Second {
		if s := tr.State(); s.Known && s.ObservedAt.After(before) {
			return s
		}
		time.Sleep(time.Millisecond) // there is nothing that tells
	}
	t.Fatalf("the source does not look: %+v", tr.State())
	return tracker.State{}
}

func TestATrackerKnowsFromWritersHowFarBehindItsReplicaIs(t *testing.T) {
	c := cluster(t)
	standby := c.Standbys[0]
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	const channel = "how far behind"
	tr := follow(t, standby.DSN())
	told := tell(t, c.Primary.DSN(), channel, tr)
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := refreshed(t, tr).Position.LSN
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		latest tracker.Token
	)
	for w := range 3 {
		conn := connect(t, c.Primary)
		a := announce(t, pgnotify.AnnouncerConfig{Primary: replication.Server{DSN: c.Primary.DSN()}, Channel: channel})
		all.Go(func() {
			for i := range 20 {
				if _, err := conn.Exec(t.Context(), `INSERT INTO rows VALUES ($1)`, time.Now().UnixNano()*8+int64(w)); err != nil {
					t.Error(err)
				}
				tok, err := replication.Capture(t.Context(), conn)
				if err != nil {
					t.Errorf("%d: %v", i, err)
				}
				a.Announce(tok)
				mu.Lock()
				if tok.Compare(latest) > 0 {
					latest = tok
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for tr.State().Primary != latest {
		next(t, told)
	}
	s := refreshed(t, tr)
	if s.Position.LSN != at || s.Behind != uint64(latest.LSN-at) || s.Behind == 0 || time.Since(s.PrimaryHeard) > 30*time.Second {
		t.Errorf("%d bytes behind %v, replay was paused at %s: %+v", s.Behind, latest, at, s)
	}
	short, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	err := tr.Wait(short, latest)
	if e, is := errors.AsType[*tracker.TimeoutError](err); !is || errors.Is(err, tracker.ErrFutureToken) || e.Primary != latest {
		t.Errorf("what is announced is not of the future: %v", err)
	}
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tr.Wait(t.Context(), latest); err != nil {
		t.Fatal(err)
	}
	if s := tr.State(); s.Primary != latest || s.Behind != 0 || s.ETA != 0 {
		t.Errorf("level, and %+v", s)
	}
}

func TestATokenThatThePrimaryHasNotWrittenYet(t *testing.T) {
	c := cluster(t)
	const channel = "not written yet"
	tr := follow(t, c.Standbys[0].DSN())
	told := tell(t, c.Primary.DSN(), channel, tr)
	a := announce(t, pgnotify.AnnouncerConfig{Primary: replication.Server{DSN: c.Primary.DSN()}, Channel: channel})
	tok := capture(t, c.Primary)
	a.Announce(tok)
	for tr.State().Primary != tok {
		next(t, told)
	}
	made := tok
	made.LSN += 1 << 30
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	err := tr.Wait(ctx, made)
	e, is := errors.AsType[*tracker.TimeoutError](err)
	if !is || !errors.Is(err, tracker.ErrFutureToken) || !errors.Is(err, tracker.ErrTimeout) || e.Ahead != 1<<30 || e.ETA != 0 {
		t.Errorf("a token that was made up: %v", err)
	}
	soon := tok
	soon.LSN += 100_000
	w := tr.Request(soon)
	writer := connect(t, c.Primary)
	for range 20 { // more than soon, and the announcements are told while it is waited for
		exec(t, writer, `SELECT pg_logical_emit_message(false, 'test', repeat('x', 10000))`)
		tok = capture(t, c.Primary)
		a.Announce(tok)
	}
	if err := w.Await(t.Context()); err != nil {
		t.Errorf("a token that was not written when it was asked for: %v", err)
	}
}

func TestAnAnnouncerOfAStandbySaysSo(t *testing.T) {
	c := cluster(t)
	a := announce(t, pgnotify.AnnouncerConfig{
		Primary:  replication.Server{DSN: c.Standbys[0].DSN()},
		RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond,
	})
	a.Announce(capture(t, c.Primary))
	for began := time.Now(); a.Stats().Failures < 2; time.Sleep(time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%+v", a.Stats())
		}
	}
	if s := a.Stats(); s.Notifies != 0 || s.Failure == nil || !strings.Contains(s.Failure.Error(), "target_session_attrs=read-write") {
		t.Errorf("%+v", s)
	}
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

// BenchmarkAnnounceToTracker is the time from Announce until a Tracker elsewhere
// knows, on an idle primary: what a hint of it would come after.
func BenchmarkAnnounceToTracker(b *testing.B) {
	c, err := shared()
	if err != nil {
		b.Fatal(err)
	}
	a, err := pgnotify.NewAnnouncer(pgnotify.AnnouncerConfig{Primary: replication.Server{DSN: c.Primary.DSN()}, Channel: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	heard := make(chan pgnotify.Event, 10)
	channel := pgnotify.Channel{Name: "bench", AtOnce: true, Handler: pgnotify.HandlerFunc(func(_ context.Context, e pgnotify.Event) error {
		heard <- e
		return nil
	})}
	l, err := pgnotify.New(pgnotify.Config{Primary: replication.Server{DSN: c.Primary.DSN()}, Channels: []pgnotify.Channel{channel}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = a.Run(ctx) })
	running.Go(func() { _ = l.Run(ctx) })
	<-l.Ready()
	tok := tracker.Token{System: 1, Timeline: 1}
	var took []time.Duration
	for b.Loop() {
		time.Sleep(2 * pgnotify.DefaultInterval)
		tok.LSN++
		began := time.Now()
		a.Announce(tok)
		<-heard
		took = append(took, time.Since(began))
	}
	cancel()
	running.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}
