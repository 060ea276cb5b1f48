package ryw_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker/ryw"
)

// simple is for poolers that know no prepared statements.
const simple = "&default_query_exec_mode=simple_protocol"

// Behind a pooler in transaction mode a connection that led to one server leads to another the next time: what was found
// out about it once is not relied on.
func TestAPoolerMayLeadElsewhereEachTime(t *testing.T) {
	c := ownCluster(t, replicationtest.Options{Standbys: 2})
	good, lagging := c.Standbys[0], c.Standbys[1]
	proxy, err := replicationtest.NewProxy(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	dsn := replicationtest.PgBouncer(t, proxy.DSN(), "transaction") + simple
	r := newRouter(t, ryw.Config{
		Options: ryw.Options{Budget: 30 * time.Second}, Primary: pool(t, c.Primary.DSN()),
		Replicas: []ryw.Replica{follow(t, "good", good.DSN(), dsn+"")},
	})
	ctx := fresh(t)
	reads := func() (shows bool) {
		t.Helper()
		id, err := write(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if shows, err = there(ctx, r, id); err != nil {
			t.Fatal(err)
		}
		return shows
	}
	if !reads() || r.Stats().Primary != 0 {
		t.Fatalf("through the pooler nothing is read: %+v", r.Stats())
	}

	if err := lagging.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close(t.Context()) })
	if _, err := other.Exec(t.Context(), `BEGIN`); err != nil { // has the only server process that leads to the good one
		t.Fatal(err)
	}
	proxy.LeadTo(lagging)
	if !reads() {
		t.Errorf("a stale read: %+v", r.Stats())
	}
	if s := r.Stats(); s.Primary != 1 {
		t.Errorf("want one read from the primary, got %+v", s)
	}
	// Others' transactions in the same server process may write where it leads to a primary.
	var readOnly string
	if err := other.QueryRow(t.Context(), `SHOW default_transaction_read_only`).Scan(&readOnly); err != nil || readOnly != "off" {
		t.Errorf("default_transaction_read_only = %s in a process that others use too (%v)", readOnly, err)
	}
}

func TestAPoolerInSessionModeIsReadThrough(t *testing.T) {
	c := cluster(t)
	dsn := replicationtest.PgBouncer(t, c.Standbys[0].DSN(), "session") + simple
	r := newRouter(t, ryw.Config{
		Options: ryw.Options{Budget: 30 * time.Second, Fallback: ryw.Refuse}, Primary: pool(t, c.Primary.DSN()),
		Replicas: []ryw.Replica{follow(t, "replica", c.Standbys[0].DSN(), dsn)},
	})
	ctx := fresh(t)
	for range 20 {
		id, err := write(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if is, err := there(ctx, r, id); err != nil || !is {
			t.Errorf("row %d: %v %v", id, is, err)
		}
	}
}
