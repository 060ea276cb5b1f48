package ryw_test

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// One reader at a time finds all replicas equally idle.
func TestReplicasTakeTurns(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{Budget: time.Minute})
	ctx := fresh(t)
	id := mustWrite(ctx, t, r)
	if err := c.WaitForReplay(ctx); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if is, err := there(ctx, r, id); err != nil || !is {
			t.Fatalf("%v %v", is, err)
		}
	}
	for _, rep := range r.Stats().Replicas {
		if rep.Reads < 5 {
			t.Errorf("%+v", rep)
		}
	}
}

// A process that has just begun knows no replica's position: a read waits for one
// within its budget, also one of a session that has seen nothing.
func TestAReadWaitsForTheFirstPosition(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: n.DSN()}})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	r := newRouter(t, ryw.Config{
		Options: ryw.Options{Budget: time.Minute, Fallback: ryw.Refuse}, Primary: pool(t, c.Primary.DSN()),
		Replicas: []ryw.Replica{{Name: n.Name(), Pool: pool(t, n.DSN()), Tracker: tr}},
	})
	var running sync.WaitGroup
	defer running.Wait()
	defer tr.Close()
	running.Go(func() {
		for r.Stats().Waited == 0 && !t.Failed() {
			runtime.Gosched()
		}
		_ = tr.Run(context.Background())
	})
	for name, ctx := range map[string]context.Context{"no session": t.Context(), "one that has seen nothing": fresh(t)} {
		if _, err := there(ctx, r, 1); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
