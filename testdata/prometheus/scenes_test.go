package prometheus_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	client "github.com/prometheus/client_golang/prometheus"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/metrics"
)

// scene is a time in the life of a replica, of six scrapes.
type scene struct {
	name string
	end  time.Time // of the last scrape
}

const (
	healthy  = "healthy"
	paused   = "paused"
	crashed  = "crashed"
	refused  = "kept from streaming"
	promoted = "promoted"
)

// played is what all tests look at: what was recorded of a replica, and when it was how.
type played struct {
	*recorder
	collector *metrics.Collector
	scenes    []scene
}

// play makes it happen, once.
func play(t *testing.T) *played {
	t.Helper()
	once.Do(func() { theRecord = record(t) })
	if theRecord == nil {
		t.Fatal("nothing was recorded: see the test that was first")
	}
	return theRecord
}

var (
	once      sync.Once
	theRecord *played
)

func record(t *testing.T) *played {
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Primary.Exec(t.Context(), `CREATE TABLE writes (v text)`))
	must(c.Primary.Exec(t.Context(), `CREATE ROLE reader LOGIN REPLICATION PASSWORD 'wachtwoord' IN ROLE pg_read_all_stats`))
	must(c.WaitForReplay(t.Context()))

	// The bound is for a busy machine.
	p := &played{collector: metrics.New(metrics.Config{Refresh: 30 * time.Second})}
	registry := client.NewPedanticRegistry()
	must(registry.Register(p.collector))
	p.recorder = newRecorder(registry)
	source, err := replication.New(replication.Config{
		Replica: replication.Server{DSN: standby.DSNFor("reader", "wachtwoord", "postgres")},
		Use:     []replication.Kind{replication.Physical, replication.Logical},
	})
	must(err)
	began := make(chan struct{}, 100) // a wait blocks
	tr, err := p.collector.NewTracker(tracker.Config{Source: source, Name: "db2", Timeout: time.Minute, Observer: tracker.Observer{
		WaitStart: func(ctx context.Context, _ tracker.Token) context.Context {
			began <- struct{}{}
			return ctx
		},
	}})
	must(err)
	go func() { _ = tr.Run(context.Background()) }()
	defer tr.Close()
	<-tr.Ready()

	writer, err := c.Primary.Connect(t.Context())
	must(err)
	defer writer.Close(context.Background())
	write := func() tracker.Token {
		t.Helper()
		_, err := writer.Exec(t.Context(), `INSERT INTO writes VALUES (repeat('x', 10000))`)
		must(err)
		tok, err := replication.Capture(t.Context(), writer)
		must(err)
		tr.PrimaryAt(tok)
		return tok
	}
	// during scrapes six times, and does something before each but the first.
	during := func(name string, do func()) {
		t.Helper()
		p.pass(20 * time.Minute) // what was before is in no rate any more
		for i := range 6 {
			if i > 0 {
				do()
			}
			p.scrape(t)
		}
		p.scenes = append(p.scenes, scene{name, p.now})
	}
	until := func(what string, holds func(tracker.State) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !holds(tr.State()); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within a minute: %s: %+v", what, tr.State())
			}
		}
	}
	// blocked waits for what is replayed once it has begun to wait.
	blocked := func() {
		t.Helper()
		must(standby.Pause(t.Context()))
		tok := write()
		lasting := tr.Request(tok)
		until("it streams", func(s tracker.State) bool { return s.Source != string(replication.Poll) })
		ended := make(chan error, 1)
		go func() { ended <- tr.Wait(t.Context(), tok) }()
		<-began
		must(standby.Resume(t.Context()))
		must(<-ended)
		<-lasting.Done()
	}

	during(healthy, blocked)

	must(standby.Pause(t.Context()))
	ahead := write()
	waiting := tr.Request(ahead)
	during(paused, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		defer cancel()
		if err := tr.Wait(ctx, ahead); !errors.Is(err, tracker.ErrTimeout) {
			t.Fatal(err)
		}
	})
	must(standby.Resume(t.Context()))
	must(waiting.Await(t.Context()))

	must(standby.Crash(t.Context()))
	until("the crash is seen", func(s tracker.State) bool { return !s.Known })
	during(crashed, func() {})
	must(standby.Start(t.Context()))
	until("it is back", func(s tracker.State) bool { return s.Known })

	must(c.Primary.Exec(t.Context(), `ALTER ROLE reader NOREPLICATION`))
	must(c.WaitForReplay(t.Context()))
	must(standby.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'`))
	lasting := tr.Request(tracker.Token{LSN: 1 << 60})
	until("no stream comes up", func(s tracker.State) bool {
		failing := 0
		for _, r := range s.Ladder {
			if !r.Up && !r.Resting {
				failing++
			}
		}
		return failing == 2
	})
	during(refused, func() { must(tr.Wait(t.Context(), write())) })
	lasting.Cancel()

	must(c.Primary.Exec(t.Context(), `ALTER ROLE reader REPLICATION`)) // it has to read the timeline's history
	must(c.WaitForReplay(t.Context()))
	must(standby.Promote(t.Context()))
	until("the promotion is seen", func(s tracker.State) bool { return s.Known && s.Position.Primary && s.Position.Timeline == 2 })
	lost := ahead
	lost.LSN += 1 << 30
	during(promoted, func() {
		if err := tr.Wait(t.Context(), lost); !errors.Is(err, tracker.ErrDiverged) {
			t.Fatal(err)
		}
	})
	return p
}

func text(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
