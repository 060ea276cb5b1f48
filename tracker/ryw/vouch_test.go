package ryw_test

import (
	"testing"
	"time"

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
