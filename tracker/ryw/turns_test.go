package ryw_test

import (
	"testing"
	"time"

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
