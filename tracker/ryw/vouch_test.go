package ryw_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// A connection that was shown to lead to the server of one tracker says nothing
// of another tracker's, whose epochs have the same numbers.
func TestAConnectionIsVouchedForToOneTracker(t *testing.T) {
	c := cluster(t)
	one, two := c.Standbys[0], c.Standbys[1]
	primary := pool(t, c.Primary.DSN())
	right := follow(t, "right", one.DSN(), one.DSN())
	wrong := follow(t, "wrong", two.DSN(), two.DSN())
	wrong.Pool = right.Pool
	read := func(rep ryw.Replica) (*ryw.Router, bool) {
		t.Helper()
		r := newRouter(t, ryw.Config{Options: ryw.Options{Budget: time.Minute}, Primary: primary, Replicas: []ryw.Replica{rep}})
		ctx := fresh(t)
		id, err := write(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		is, err := there(ctx, r, id)
		if err != nil {
			t.Fatal(err)
		}
		return r, is
	}
	if _, is := read(right); !is {
		t.Error("a stale read")
	}
	if err := one.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, is := read(wrong); !is {
		t.Errorf("a stale read: %+v", r.Stats())
	}
}

// hidden is a source that does not tell which process positions come from, as that of
// a sidecar.
type hidden struct{ tracker.Source }

// Each connection is asked itself, for each read.
func TestASourceThatDoesNotTellItsProcess(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	rep := follow(t, n.Name(), n.DSN(), n.DSN())
	tr, err := tracker.New(tracker.Config{Source: hidden{rep.Tracker.Source()}})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(context.Background()) })
	defer running.Wait()
	defer tr.Close()
	rep.Tracker.Close() // a source observes for one tracker at a time
	rep.Tracker = tr
	r := newRouter(t, ryw.Config{Options: ryw.Options{Budget: time.Minute}, Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{rep}})
	ctx := fresh(t)
	for range 10 {
		id := mustWrite(ctx, t, r)
		if is, err := there(ctx, r, id); err != nil || !is {
			t.Fatalf("row %d: %v %v", id, is, err)
		}
	}
	if s := r.Stats(); s.Primary != 0 || s.Replicas[0].Reads != 10 || s.Replicas[0].Strange != 0 {
		t.Errorf("%+v", s)
	}
}
