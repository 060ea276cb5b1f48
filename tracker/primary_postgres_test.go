package tracker_test

import (
	"context"
	"testing"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// The standby that is promoted lacks a write that the other one has: that one can never follow.
func TestAStandbyAheadOfTheOneThatIsPromotedHasNoLag(t *testing.T) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	next, ahead := c.Standbys[0], c.Standbys[1]
	follow := func() *tracker.Tracker {
		t.Helper()
		source, err := replication.New(replication.Config{Replica: replication.Server{DSN: ahead.DSN()}})
		must(err)
		tr, err := tracker.New(tracker.Config{Source: source, Timeout: time.Minute})
		must(err)
		go func() { _ = tr.Run(context.Background()) }()
		t.Cleanup(tr.Close)
		return tr
	}
	capture := func(primary *replicationtest.Node) tracker.Token {
		t.Helper()
		conn, err := primary.Connect(ctx)
		must(err)
		defer func() { _ = conn.Close(ctx) }()
		tok, err := replication.Capture(ctx, conn)
		must(err)
		return tok
	}
	level := func(tr *tracker.Tracker, tok tracker.Token) {
		t.Helper()
		tr.PrimaryAt(tok)
		must(tr.Wait(ctx, tok))
		if s := tr.State(); !s.BehindKnown || s.Behind != 0 || s.Primary != tok {
			t.Errorf("it has replayed all, and the lag is not 0: %+v", s)
		}
	}

	must(next.Stop(ctx))
	must(c.Primary.Exec(ctx, `CREATE TABLE lost AS SELECT generate_series(1, 10000)`))
	before := follow()
	level(before, capture(c.Primary))
	must(c.Primary.Kill(ctx))
	must(next.Start(ctx))
	must(next.Promote(ctx))

	tok := capture(next)
	after := follow()
	<-after.Ready()
	for what, tr := range map[string]*tracker.Tracker{"followed before": before, "followed since": after} {
		tr.PrimaryAt(tok)
		s := tr.State()
		if !s.Known || tok.Timeline != 2 || s.Position.LSN < tok.LSN {
			t.Fatalf("%s: what this test is about did not come about: %s, %+v", what, tok, s)
		}
		if s.BehindKnown || s.Primary != tok {
			t.Errorf("%s: the lag is said to be %d bytes: %+v", what, s.Behind, s)
		}
	}

	must(ahead.Rebuild(ctx, next))
	level(after, tok)
}
