package main

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

// begin pauses replay, writes, and returns when a wait for that has begun.
func begin(t *testing.T, c *replicationtest.Cluster, timeout string) <-chan *outcome {
	t.Helper()
	if err := c.Standbys[0].Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	token := write(t, c.Primary)
	stderr := watchFor(`"message":"position"`)
	waited := make(chan *outcome, 1)
	go func() {
		waited <- walwakeUntil(t.Context(), t, on(nil, c.Standbys[0]), stderr, "wait", "--json", "--log-level", "debug", "--timeout", timeout, token)
	}()
	<-stderr.found
	return waited
}

func TestAStandbyThatDiesWhileSomebodyWaits(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]

	waited := begin(t, c, "2s")
	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := (<-waited).is(exitTimeout).says("timeout after", "its position is not known", "connection refused").notes("trying again")
	if a := decode[waitAnswer](o); a.Result != "timeout" || a.Replayed != nil {
		t.Errorf("got %+v", a)
	}
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	// When it comes back in time, nobody need know.
	waited = begin(t, c, "1m")
	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Start(t.Context()); err != nil { // a pause does not outlive the server
		t.Fatal(err)
	}
	if a := decode[waitAnswer]((<-waited).is(exitOK).notes("trying again")); a.Result != "replayed" || *a.Replayed < *a.Target {
		t.Errorf("got %+v", a)
	}
}

// Not parallel to other tests: it counts goroutines.
func TestNoRunLeavesAnythingBehind(t *testing.T) {
	primary, standby := cluster(t)
	dead := "host=127.0.0.1 port=1"
	before := runtime.NumGoroutine()
	for range 5 {
		walwake(t, on(primary, standby), "wait", write(t, primary)).is(exitOK)
		walwake(t, on(primary, standby), "status").is(exitOK)
		walwake(t, on(nil, standby), "wait", "--timeout", "2s", "FFFFFFFF/1").is(exitTimeout)
		walwake(t, nil, "wait", "--replica", dead, "0/1").is(exitFailure)
		walwake(t, nil, "status", "--replica", dead).is(exitFailure)
	}
	deadline := time.After(30 * time.Second)
	for runtime.NumGoroutine() > before {
		select {
		case <-deadline:
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		default:
			runtime.Gosched()
		}
	}
	for _, n := range []*replicationtest.Node{primary, standby} {
		for {
			sessions, err := replicationtest.Value[string](t.Context(), n,
				`select coalesce(string_agg(query, '; '), '') from pg_stat_activity where application_name = 'walwake'`)
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(sessions) == "" {
				break
			}
			select {
			case <-deadline:
				t.Fatalf("sessions left on %s: %s", n.Name(), sessions)
			default:
			}
		}
	}
}
