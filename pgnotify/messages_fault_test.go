package pgnotify_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// lossy are Messages that go through faults.
type lossy struct {
	*testing.T
	cluster *replicationtest.Cluster
	node    *replicationtest.Node // that messages come from
	writer  *pgx.Conn
	got     chan heard
	missed  atomic.Int64 // a row that every Resync has to show
	*receiver
}

func newLossy(t *testing.T, o replicationtest.Options) *lossy {
	t.Helper()
	c := replicationtest.Start(t, o)
	if err := c.Primary.Exec(t.Context(), `CREATE TABLE rows (id bigint PRIMARY KEY, v text)`); err != nil {
		t.Fatal(err)
	}
	decodable(t, c)
	l := &lossy{T: t, cluster: c, node: c.Primary, writer: connect(t, c.Primary), got: make(chan heard, 1000)}
	if len(c.Standbys) > 0 {
		l.node = c.Standbys[0]
	}
	l.receiver = receiving(t, l.node.DSN(), c.Primary, pgnotify.MessagesConfig{
		Channels: []pgnotify.Channel{{Name: "rows", Handler: pgnotify.HandlerFunc(l.handle)}},
	}).wait(t)
	return l
}

// handle looks for the row over a new connection: servers come and go.
func (l *lossy) handle(ctx context.Context, e pgnotify.Event) error {
	h, id := heard{Event: e}, fmt.Sprint(l.missed.Load())
	if n, is := e.(pgnotify.Notification); is {
		id = n.Payload
	}
	var err error
	h.there, err = replicationtest.Value[bool](ctx, l.node, `SELECT `+id+` = 0 OR EXISTS (SELECT FROM rows WHERE id = `+id+`)`)
	if err != nil {
		l.Errorf("look for row %s: %v", id, err)
	}
	l.got <- h
	return nil
}

func (l *lossy) next() heard {
	l.Helper()
	select {
	case h := <-l.got:
		if !h.there {
			l.Errorf("%+v came early", h.Event)
		}
		return h
	case <-time.After(60 * time.Second):
		l.Fatalf("nothing came: %+v, %+v", l.Stats(), l.replica.State())
		return heard{}
	}
}

// emits commits a row with its message.
func (l *lossy) emits() int64 {
	l.Helper()
	id := time.Now().UnixNano()
	emit(l, l.writer, "rows", id)
	return id
}

// flows sends a message, which comes next.
func (l *lossy) flows() {
	l.Helper()
	id := l.emits()
	if n, is := l.next().Event.(pgnotify.Notification); !is || n.Payload != fmt.Sprint(id) {
		l.Errorf("%+v came for %d", n, id)
	}
}

// gap expects a Resync and then messages. That of missed may come, before it or
// after it, as fast as the writer and the new stream were.
func (l *lossy) gap(why string) {
	l.Helper()
	var last string
	for gaps := 0; ; {
		switch e := l.next().Event.(type) {
		case pgnotify.Notification:
			if e.Payload == last && gaps == 1 {
				return
			}
			if e.Payload != fmt.Sprint(l.missed.Load()) {
				l.Errorf("%+v came after %d gaps, want %s after one", e, gaps, last)
			}
		case pgnotify.Resync:
			if gaps++; gaps > 1 || !strings.Contains(e.Reason, why) || e.Token == (tracker.Token{}) || e.Dropped != 0 || e.Lost != 0 {
				l.Errorf("%+v, want one because of %q", e, why)
			}
			last = fmt.Sprint(l.emits())
		}
	}
}

func (l *lossy) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// step runs do unless something failed before.
func (l *lossy) step(name string, do func()) {
	if !l.Failed() {
		started := time.Now()
		do()
		l.Logf("%s took %s", name, time.Since(started).Round(time.Millisecond))
	}
}

func TestFaultsLeaveNoSilentGap(t *testing.T) {
	l := newLossy(t, replicationtest.Options{})
	ctx := t.Context()
	const ours = `backend_type = 'walsender' AND application_name = 'walwake'`
	terminate := func(where string) {
		t.Helper()
		n, err := replicationtest.Value[int](ctx, l.node, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE `+where)
		if err != nil || n == 0 {
			t.Fatalf("%d ended: %v", n, err)
		}
	}
	l.flows()
	l.step("walsender killed", func() {
		terminate(ours)
		l.missed.Store(l.emits())
		l.gap("terminating connection due to administrator command")
	})
	l.step("session killed", func() {
		terminate(`backend_type = 'client backend' AND application_name = 'walwake'`)
		l.missed.Store(l.emits())
		l.gap("the session to the server has ended")
	})
	l.step("primary restarted", func() {
		l.must(l.cluster.Primary.Stop(ctx))
		l.must(l.cluster.Primary.Start(ctx))
		l.must(l.node.WaitStreaming(ctx))
		l.writer = connect(t, l.cluster.Primary)
		l.flows() // no gap: the standby was there all the time
	})
	for name, end := range map[string]func(context.Context) error{"stopped": l.node.Stop, "crashed": l.node.Crash} {
		l.step("standby "+name, func() {
			l.must(end(ctx))
			l.missed.Store(l.emits())
			l.must(l.node.Start(ctx))
			l.gap("has ended") // the stream or the session, whichever is noticed first
		})
	}
	l.step("slot invalidated", func() { l.invalidate() })
	l.step("promoted", func() {
		l.must(l.node.Promote(ctx))
		l.writer = connect(t, l.node)
		l.missed.Store(l.emits())
		l.gap("has ended") // the stream or the session, whichever is noticed first
		for range 20 {
			l.flows()
		}
		if tok, err := replication.Capture(ctx, l.writer); err != nil || tok.Timeline != 2 {
			t.Errorf("%v, %v", tok, err)
		}
	})
	if s := l.Stats(); !s.Connected || s.Failure != nil || s.Reconnects != 6 || s.Channels[0].Resyncs != 6 || s.Channels[0].Lost+s.Channels[0].Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

// invalidate has the primary remove catalog rows that the slot needs
// (src/backend/replication/slot.c, InvalidateObsoleteReplicationSlots).
func (l *lossy) invalidate() {
	ctx := l.Context()
	l.must(l.node.Exec(ctx, `ALTER SYSTEM SET hot_standby_feedback = off`))
	l.must(l.node.Exec(ctx, `SELECT pg_reload_conf()`))
	waitUntil(l, l.cluster.Primary, `SELECT bool_and(backend_xmin IS NULL) FROM pg_stat_replication`)
	before := l.Stats().Reconnects
	for deadline := time.Now().Add(30 * time.Second); l.Stats().Connected && l.Stats().Reconnects == before; {
		exec(l.T, l.writer, `CREATE TABLE dropped ()`)
		exec(l.T, l.writer, `DROP TABLE dropped`)
		exec(l.T, l.writer, `VACUUM FULL pg_class`)
		if l.must(l.cluster.WaitForReplay(ctx)); time.Now().After(deadline) {
			l.Fatal("the slot was not invalidated")
		}
	}
	l.missed.Store(l.emits())
	l.gap("conflict with recovery")
	l.must(l.node.Exec(ctx, `ALTER SYSTEM RESET hot_standby_feedback`))
	l.must(l.node.Exec(ctx, `SELECT pg_reload_conf()`))
}

// A standby that goes over to another primary goes on with its stream: messages of
// the new timeline are no lost writes.
func TestMessagesOfANewTimelineAreNotLost(t *testing.T) {
	l := newLossy(t, replicationtest.Options{Standbys: 2})
	ctx := t.Context()
	l.flows()
	next := l.cluster.Standbys[1]
	l.must(l.cluster.WaitForReplay(ctx))
	l.must(next.Promote(ctx))
	l.must(l.node.Follow(ctx, next))
	l.writer = connect(t, next)
	for range 20 {
		id := l.emits()
		if n, is := l.next().Event.(pgnotify.Notification); !is || n.Payload != fmt.Sprint(id) || n.Token.Timeline != 2 {
			t.Errorf("%+v came for %d", n, id)
		}
	}
	if s := l.Stats(); s.Reconnects != 0 || s.Channels[0].Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// On a primary a commit record comes before what it commits can be seen, with
// a synchronous standby that is away as long before as it is.
func TestMessageOfAPrimaryWaitsUntilItCanBeSeen(t *testing.T) {
	l := newLossy(t, replicationtest.Options{Standbys: -1})
	ctx := t.Context()
	for range 50 {
		l.flows()
	}
	l.must(l.node.Exec(ctx, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`))
	l.must(l.node.Exec(ctx, `SELECT pg_reload_conf()`))
	waitUntil(t, l.node, `SELECT current_setting('synchronous_standby_names') = 'nobody'`)
	writer := connect(t, l.node)
	id := time.Now().UnixNano()
	committed := make(chan error, 1)
	go func() {
		_, err := writer.Exec(ctx, fmt.Sprintf(`BEGIN; INSERT INTO rows VALUES (%d); SELECT pg_logical_emit_message(true, 'rows', '%[1]d'); COMMIT`, id))
		committed <- err
	}()
	waitUntil(t, l.node, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')`)
	// The stream has it when the slot has been told to have come so far.
	waitUntil(t, l.node, `SELECT coalesce(min(confirmed_flush_lsn) >= (SELECT pg_current_wal_flush_lsn()), false) FROM pg_replication_slots`)
	if len(l.got) > 0 {
		t.Errorf("%+v came before it can be seen", <-l.got)
	}
	l.must(l.node.Exec(ctx, `ALTER SYSTEM RESET synchronous_standby_names`))
	l.must(l.node.Exec(ctx, `SELECT pg_reload_conf()`))
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if n, is := l.next().Event.(pgnotify.Notification); !is || n.Payload != fmt.Sprint(id) {
		t.Errorf("%+v", n)
	}
}
