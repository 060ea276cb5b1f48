package pgnotify_test

import (
	"slices"
	"testing"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication/replicationtest"
)

// lose has standbys receive nothing more of what their primary writes.
func lose(t *testing.T, standbys ...*replicationtest.Node) {
	t.Helper()
	for _, n := range standbys {
		conn := connect(t, n)
		exec(t, conn, `ALTER SYSTEM SET primary_conninfo = ''`)
		exec(t, conn, `SELECT pg_reload_conf()`)
		eventually(t, n.Name()+" receives nothing", func() bool {
			none, err := replicationtest.Value[bool](t.Context(), n, `SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)`)
			return err == nil && none
		})
	}
}

// takeOver makes a standby the primary, which the others follow.
func takeOver(t *testing.T, leader *replicationtest.Node, others ...*replicationtest.Node) {
	t.Helper()
	for _, n := range append([]*replicationtest.Node{leader}, others...) {
		exec(t, connect(t, n), `ALTER SYSTEM RESET primary_conninfo`)
	}
	must(t, leader.Promote(t.Context()))
	for _, n := range others {
		must(t, n.Follow(t.Context(), leader))
	}
}

// The writes that were not replicated are lost, and so is what told of them.
func TestAFailoverIsAGapThatCountsWhatIsLost(t *testing.T) {
	for name, which := range map[string]int{"the replica is promoted": 0, "the replica follows": 1} {
		t.Run(name, func(t *testing.T) {
			c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
			replica := c.Standbys[which]
			book := newLedger(t, c.Primary, replica)
			l := listen(t, quickly(either(t, c.Primary, c.Standbys[0]), follow(t, replica.DSN()), book.channel()))
			book.write(c.Primary, 1, 2)
			book.heard(2)
			must(t, c.WaitForReplay(t.Context()))
			lose(t, c.Standbys...)
			book.write(c.Primary, 3, 4, 5)
			eventually(t, "three are held", func() bool { return l.Stats().Channels[0].Held == 3 })
			must(t, c.Primary.Crash(t.Context()))
			takeOver(t, c.Standbys[0], c.Standbys[1])
			eventually(t, "it listens to the new primary", func() bool { s := l.Stats(); return s.Reconnects == 1 && s.Connected })
			book.write(c.Standbys[0], 6, 7)
			events := book.heard(7)
			for _, e := range events {
				if n, is := e.(pgnotify.Notification); is && slices.Contains([]int{3, 4, 5}, number(n)) {
					t.Errorf("what is lost was delivered: %s", told(events))
				}
			}
			lost := 0
			for _, r := range resyncs(events) {
				lost += r.Lost
				if r.Token.Timeline != 2 {
					t.Errorf("a gap that ends on timeline %d: %s", r.Token.Timeline, told(events))
				}
			}
			if s := l.Stats().Channels[0]; lost != 3 || s.Lost != 3 || s.Held != 0 {
				t.Errorf("%+v: %s", s, told(events))
			}
			if len(resyncs(events)) > 2 || number(events[1].(pgnotify.Notification)) != 2 {
				t.Errorf("got %s", told(events))
			}
			if n := events[len(events)-1].(pgnotify.Notification); n.Token.Timeline != 2 {
				t.Errorf("got %+v", n)
			}
		})
	}
}

// The old primary is still there, is named first and takes writes: nobody has
// told it.
func TestAPrimaryThatIsSupersededIsLeft(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	leader, replica := c.Standbys[0], c.Standbys[1]
	book := newLedger(t, c.Primary, replica)
	l := listen(t, quickly(either(t, c.Primary, leader), follow(t, replica.DSN()), book.channel()))
	book.write(c.Primary, 1)
	book.heard(1)
	must(t, c.WaitForReplay(t.Context()))
	must(t, leader.Promote(t.Context()))
	must(t, replica.Follow(t.Context(), leader))
	book.resynced(1)
	book.write(leader, 2, 3)
	book.gap(1, 3)
	if s := l.Stats(); !s.Connected || s.Reconnects != 1 {
		t.Errorf("got %+v", s)
	}
}
