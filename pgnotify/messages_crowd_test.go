package pgnotify_test

import (
	"context"
	"flag"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
)

var messages = flag.Int("messages", 10_000, "TestNoMessageIsEarlyLostOrOutOfOrder: how many")

func TestNoMessageIsEarlyLostOrOutOfOrder(t *testing.T) {
	c := cluster(t)
	decodable(t, c)
	standby := c.Standbys[0]
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	const writers = 4
	got := make(chan heard, 1000)
	r := receiving(t, standby.DSN(), c.Primary, pgnotify.MessagesConfig{
		Channels: []pgnotify.Channel{{Name: "rows", Handler: looking(t, standby, got)}},
	}).wait(t)
	base := time.Now().UnixNano() / 1e9 * 1e9 // above all rows so far, with room for all writers
	each := *messages / writers
	var all, writing sync.WaitGroup
	committed := make(chan struct{}, *messages) // room for all
	ctx, cancel := context.WithCancel(t.Context())
	defer all.Wait()
	defer cancel()
	for w := range writers {
		writing.Go(func() {
			if err := writeMessages(ctx, c.Primary, "rows", base+int64(w*each), each, committed); err != nil && ctx.Err() == nil {
				t.Error(err)
				cancel()
			}
		})
	}
	all.Go(func() { writing.Wait(); close(committed) })
	all.Go(func() { // replay lags by some hundred transactions, again and again
		some := func() (more bool) {
			for range 250 {
				if _, more = <-committed; !more {
					break
				}
			}
			return more
		}
		for more := true; more; more = more && some() {
			_ = standby.Pause(ctx)
			more = some()
			_ = standby.Resume(ctx)
		}
	})
	last := make([]int64, writers)
	for n := range writers * each {
		var h heard
		select {
		case h = <-got:
		case <-ctx.Done():
			return
		case <-time.After(60 * time.Second):
			t.Fatalf("only %d came: %+v, %+v", n, r.Stats(), r.replica.State())
		}
		m, is := h.Event.(pgnotify.Notification)
		if !is {
			t.Fatalf("%+v", h.Event)
		}
		if !h.there {
			t.Errorf("%s came early", m.Payload)
		}
		id, err := strconv.ParseInt(m.Payload, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		w := (id - base) / int64(each)
		if at := (id-base)%int64(each) + 1; at != last[w]+1 {
			t.Fatalf("writer %d: message %d after %d", w, at, last[w])
		}
		last[w]++
	}
	if s := r.Stats(); s.Reconnects > 0 || s.Channels[0].Delivered != writers*each || s.Channels[0].Held != 0 {
		t.Errorf("%+v", s)
	}
}

// writeMessages commits n rows from first on, each with its message.
func writeMessages(ctx context.Context, n *replicationtest.Node, prefix string, first int64, count int, committed chan<- struct{}) error {
	conn, err := n.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for i := range count {
		// As Emit does, in one round trip.
		_, err := conn.Exec(ctx, `WITH row AS (INSERT INTO rows VALUES ($1::bigint)) SELECT pg_logical_emit_message(true, $2, $1::text)`, first+int64(i), prefix)
		if err != nil {
			return err
		}
		committed <- struct{}{}
	}
	return nil
}

func TestOnlyWhatIsCommittedComesInTheOrderOfCommits(t *testing.T) {
	c := cluster(t)
	decodable(t, c)
	got, others := make(events, 100), make(events, 100)
	receiving(t, c.Standbys[0].DSN(), c.Primary, pgnotify.MessagesConfig{Channels: []pgnotify.Channel{
		{Name: "rows", Handler: got}, {Name: "Other ones", Handler: others},
	}}).wait(t)
	first, second := connect(t, c.Primary), connect(t, c.Primary)
	send := func(tx pgnotify.Execer, prefix, payload string) {
		t.Helper()
		if err := pgnotify.Emit(t.Context(), tx, prefix, payload); err != nil {
			t.Fatal(err)
		}
	}
	payloads := []string{"", "zero \x00 and \xff\xfe", strings.Repeat("large ", 20_000), strings.Repeat("x", pgnotify.MaxPayload)}

	exec(t, first, `BEGIN`)
	send(first, "rows", "begun first, committed second")
	exec(t, first, `SAVEPOINT s`)
	send(first, "rows", "rolled back to a savepoint")
	exec(t, first, `ROLLBACK TO s`)
	exec(t, second, `BEGIN`)
	send(second, "rows", "rolled back")
	exec(t, second, `ROLLBACK`)
	send(second, "rows", "committed first")
	exec(t, second, `SELECT pg_logical_emit_message(false, 'rows', 'in no transaction')`)
	send(second, "ROWS", "of a prefix that nobody hears")
	exec(t, first, `SAVEPOINT s2`)
	send(first, "rows", "of a savepoint")
	exec(t, first, `COMMIT`)
	exec(t, second, `BEGIN`)
	exec(t, second, `SELECT pg_logical_emit_message(true, 'rows', repeat('y', $1))`, pgnotify.MaxPayload+1)
	send(second, "rows", "after one too large")
	exec(t, second, `COMMIT`)
	for _, p := range payloads {
		send(second, "rows", p)
	}
	send(second, "Other ones", "the last")

	for _, want := range []string{"committed first", "begun first, committed second", "of a savepoint"} {
		if n := got.next(t).(pgnotify.Notification); n.Payload != want {
			t.Errorf("%.50q, want %q", n.Payload, want)
		}
	}
	if gap := got.next(t).(pgnotify.Resync); gap.Dropped != 1 || gap.Reason != "a message of 1048577 bytes was too large" {
		t.Errorf("%+v", gap)
	}
	for _, want := range append([]string{"after one too large"}, payloads...) {
		if n := got.next(t).(pgnotify.Notification); n.Payload != want {
			t.Errorf("%d bytes %.50q, want %d %.50q", len(n.Payload), n.Payload, len(want), want)
		}
	}
	if n := others.next(t).(pgnotify.Notification); n.Payload != "the last" || n.Channel != "Other ones" {
		t.Errorf("%+v", n)
	}
	if len(got) > 0 {
		t.Errorf("%+v", got.next(t))
	}
}

func TestTrackerAndMessagesHaveOneStream(t *testing.T) {
	c := cluster(t)
	decodable(t, c)
	standby := c.Standbys[0]
	const walsenders = `SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND application_name = 'walwake'`
	waitUntil(t, standby, `SELECT 0 = (`+walsenders+`)`) // of the tests before
	got := make(events, 100)
	r := receiving(t, standby.DSN(), c.Primary, pgnotify.MessagesConfig{Channels: []pgnotify.Channel{{Name: "rows", Handler: got}}}).wait(t)
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	writer := connect(t, c.Primary)
	emit(t, writer, "rows", time.Now().UnixNano())
	tok, err := replication.Capture(t.Context(), writer)
	if err != nil {
		t.Fatal(err)
	}
	w := r.replica.Request(tok)
	waitUntil(t, standby, `SELECT pg_last_wal_receive_lsn() >= '`+tok.LSN.String()+`'`)
	lasts := time.Now() // streams of others would be opened after 10 ms of a wait
	for time.Since(lasts) < time.Second {
		if n, err := replicationtest.Value[int](t.Context(), standby, walsenders); err != nil || n != 1 {
			t.Fatalf("%d walsenders: %v", n, err)
		}
	}
	if s := r.replica.State(); s.Source != "logical" || s.Demand.Waiting == 0 {
		t.Errorf("%+v", s)
	}
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Await(t.Context()); err != nil {
		t.Error(err)
	}
	got.next(t)
}
