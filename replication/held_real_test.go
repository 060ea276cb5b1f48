package replication_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// heldUp is a standby whose queries hold replay back for as long as they like,
// and a tracker of it with each kind.
type heldUp struct {
	*testing.T
	cluster  *replicationtest.Cluster
	standby  *replicationtest.Node
	writer   *pgx.Conn
	trackers map[replication.Kind]*tracker.Tracker
}

func newHeldUp(t *testing.T) *heldUp {
	t.Helper()
	c := replicationtest.Start(t, replicationtest.Options{StandbySettings: map[string]string{
		"hot_standby_feedback": "off", "max_standby_streaming_delay": "-1", "max_standby_archive_delay": "-1",
	}})
	publish(t, c)
	h := &heldUp{T: t, cluster: c, standby: c.Standbys[0], writer: connect(t, c.Primary), trackers: map[replication.Kind]*tracker.Tracker{}}
	exec(t, h.writer, `CREATE TABLE held AS SELECT generate_series(1, 100) AS id`)
	for _, k := range kinds(c.Version) {
		h.trackers[k] = follow(t, c, h.standby, k, tracker.Config{})
	}
	return h
}

func (h *heldUp) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// replayed waits until the standby has what was written.
func (h *heldUp) replayed() {
	h.Helper()
	h.must(h.standby.WaitForReplay(h.Context(), capture(h.T, h.writer).LSN.String()))
}

// write returns the token of a row that was just written.
func (h *heldUp) write() tracker.Token {
	h.Helper()
	exec(h.T, h.writer, `INSERT INTO held VALUES (0)`)
	return capture(h.T, h.writer)
}

// says has somebody wait with each kind for tok, sees that their timeouts say
// want and how far behind the standby is, and, once release has been called,
// that they are woken and nothing is said any more.
func (h *heldUp) says(tok tracker.Token, want string, release func()) {
	h.Helper()
	var all []*tracker.Waiter
	for kind, tr := range h.trackers {
		all = append(all, tr.Request(tok))
		eventually(h.T, fmt.Sprintf("%s says: %s", kind, want), func() bool { return strings.Contains(tr.State().Note, want) })
		e := outOfTime(h.T, tr, tok)
		if e.Reason != tr.State().Note || e.Behind == 0 || strings.Count(e.Error(), want) != 1 {
			h.Errorf("%s: %v; %+v", kind, e, e)
		}
	}
	release()
	for _, w := range all {
		if err := w.Await(h.Context()); err != nil {
			h.Error(err)
		}
	}
	h.silent("what held replay back is gone")
}

// silent waits until nothing is said.
func (h *heldUp) silent(when string) {
	h.Helper()
	for kind, tr := range h.trackers {
		eventually(h.T, fmt.Sprintf("%s: nothing is said any more: %s", kind, when), func() bool { return tr.State().Note == "" })
	}
}

// outOfTime waits for what does not come.
func outOfTime(t *testing.T, tr *tracker.Tracker, tok tracker.Token) *tracker.TimeoutError {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := tr.Wait(ctx, tok)
	e, is := errors.AsType[*tracker.TimeoutError](err)
	if !is {
		t.Fatalf("%s: got %v, want a timeout", tok, err)
	}
	return e
}

// reader is a transaction on the standby that holds replay back once sql was run
// in it, and what is said of its process.
func (h *heldUp) reader(sql ...string) (says string, end func()) {
	h.Helper()
	conn := connect(h.T, h.standby)
	exec(h.T, conn, `BEGIN ISOLATION LEVEL REPEATABLE READ`)
	for _, q := range sql {
		exec(h.T, conn, q)
	}
	return fmt.Sprintf("process %d's", value[int](h.T, conn, `SELECT pg_backend_pid()`)), func() { exec(h.T, conn, `COMMIT`) }
}

func TestTimeoutsSayWhatHoldsReplay(t *testing.T) {
	h := newHeldUp(t)
	step := func(name string, do func(h *heldUp)) {
		if !t.Failed() {
			started := time.Now()
			do(h)
			t.Logf("%s took %s", name, time.Since(started).Round(time.Millisecond))
		}
	}
	step("nothing", healthy)
	step("paused", func(h *heldUp) {
		h.must(h.standby.Pause(h.Context()))
		h.says(h.write(), "replay is paused on the standby: SELECT pg_wal_replay_resume()", func() { h.must(h.standby.Resume(h.Context())) })
	})
	step("delayed for long", func(h *heldUp) {
		h.must(h.standby.Lag(h.Context(), 24*time.Hour))
		h.says(h.write(), "recovery_min_apply_delay = 1d on the standby holds replay back", func() { h.must(h.standby.Lag(h.Context(), 0)) })
	})
	step("delayed, and moving", delayed)
	step("a snapshot", func(h *heldUp) {
		process, end := h.reader(`SELECT count(*) FROM held`)
		exec(h.T, h.writer, `DELETE FROM held`)
		exec(h.T, h.writer, `VACUUM (TRUNCATE false) held`)
		h.says(h.write(), "a query on the standby holds replay back (RecoveryConflictSnapshot): "+
			"see max_standby_streaming_delay (-1) and hot_standby_feedback (off); the longest transaction there is "+process, end)
	})
	step("a lock", func(h *heldUp) {
		process, end := h.reader(`SELECT count(*) FROM held`)
		exec(h.T, h.writer, `TRUNCATE held`)
		h.says(h.write(), "holds replay back (Lock relation): see max_standby_streaming_delay (-1) and hot_standby_feedback (off); the longest transaction there is "+process, end)
	})
	step("a buffer's pin", func(h *heldUp) {
		exec(h.T, h.writer, `INSERT INTO held SELECT generate_series(1, 100)`)
		exec(h.T, h.writer, `DELETE FROM held WHERE id > 50`)
		h.replayed() // so that no snapshot needs the deleted
		process, end := h.reader(`DECLARE pins CURSOR FOR SELECT * FROM held`, `FETCH pins`)
		exec(h.T, h.writer, `VACUUM (TRUNCATE false) held`)
		event := "BufferPin"
		if h.cluster.Version >= 19 {
			event = "BufferCleanup"
		}
		h.says(h.write(), "holds replay back ("+event+"): see max_standby_streaming_delay (-1) and hot_standby_feedback (off); the longest transaction there is "+process, end)
	})
	step("no walreceiver", receiverGone)
}

// A standby that waits for more WAL holds nothing back.
func healthy(h *heldUp) {
	for kind, tr := range h.trackers {
		w := tr.Request(tracker.Token{LSN: 1 << 60})
		before := tr.Stats().Observations
		started := time.Now()
		eventually(h.T, string(kind)+" is asked", func() bool {
			if note := tr.State().Note; note != "" {
				h.Fatalf("%s says: %s", kind, note)
			}
			return tr.Stats().Observations > before+3 && time.Since(started) > time.Second // some full questions
		})
		if e := outOfTime(h.T, tr, w.Token()); e.Reason != "" || e.Behind == 0 {
			h.Errorf("%s: %v", kind, e)
		}
		w.Cancel()
	}
}

// Replay that is delayed goes on and on, so that the time it needs can be told.
func delayed(h *heldUp) {
	h.must(h.standby.Lag(h.Context(), 2*time.Second))
	ctx, stop := context.WithCancel(h.Context())
	busy := connect(h.T, h.cluster.Primary)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer stop()
	writing.Go(func() {
		for ctx.Err() == nil {
			_, _ = busy.Exec(ctx, `INSERT INTO held SELECT generate_series(1, 10)`)
		}
	})
	for kind, tr := range h.trackers {
		tok := h.write()
		start, _ := tr.LastReplay()
		w := tr.Request(tracker.Token{LSN: 1 << 60}) // for ever
		var e *tracker.TimeoutError
		eventually(h.T, string(kind)+" says why replay is late, though it goes on", func() bool {
			e = outOfTime(h.T, tr, tok)
			tok = h.write()
			return e.Last.LSN > start.LSN && e.Reason != ""
		})
		if e.Reason != "recovery_min_apply_delay = 2s on the standby holds replay back" || e.Behind == 0 || e.ETA != 0 {
			h.Errorf("%s: %v", kind, e)
		}
		h.Logf("%s: %v", kind, e)
		w.Cancel()
	}
	stop()
	writing.Wait()
	h.must(h.standby.Lag(h.Context(), 0))
	h.replayed()
	h.silent("there is no delay")
}

// With the primary gone nothing comes any more. A role that does not see the
// timeline before PostgreSQL 19 then is told so, once.
func receiverGone(h *heldUp) {
	const alone = "the standby receives no WAL, no walreceiver is running: is its primary down, or primary_conninfo wrong?"
	const invisible = "the standby's walreceiver is not streaming, so its timeline is not visible"
	stats, password := role(h.T, h.cluster, "", "pg_read_all_stats")
	plain := poll(h.T, h.standby.DSNFor(stats, password, "postgres"), tracker.Config{})
	nobody, password := role(h.T, h.cluster, "")
	blind := poll(h.T, h.standby.DSNFor(nobody, password, "postgres"), tracker.Config{})
	<-plain.Ready()
	<-blind.Ready()
	tok := h.write()
	h.replayed()
	h.must(h.cluster.Primary.Stop(h.Context()))
	tok.LSN += 8192
	var all []*tracker.Waiter
	for kind, tr := range h.trackers {
		all = append(all, tr.Request(tok))
		eventually(h.T, string(kind)+" says that nothing comes", func() bool { return tr.State().Note == alone })
		if e := outOfTime(h.T, tr, tok); e.Reason != alone || e.Behind == 0 || e.Behind > 8192 {
			h.Errorf("%s: %v; %+v", kind, e, e)
		}
	}
	// Who sees the timeline of pg_stat_recovery, and who sees none.
	want := map[*tracker.Tracker][]string{plain: {alone}, blind: {alone, "the timeline is not visible to role"}}
	if h.cluster.Version < 19 {
		want = map[*tracker.Tracker][]string{plain: {invisible}, blind: {invisible}}
	}
	for tr, texts := range want {
		all = append(all, tr.Request(tok))
		eventually(h.T, strings.Join(texts, "; "), func() bool {
			note := tr.State().Note
			for _, text := range texts {
				if strings.Count(note, text) != 1 {
					return false
				}
			}
			return strings.Count(note, "walreceiver") == 1
		})
	}
	h.must(h.cluster.Primary.Start(h.Context()))
	h.must(h.standby.WaitStreaming(h.Context()))
	h.writer = connect(h.T, h.cluster.Primary)
	h.silent("the primary is back")
	for _, tr := range []*tracker.Tracker{plain, blind} {
		eventually(h.T, "the walreceiver is back", func() bool { return !strings.Contains(tr.State().Note, "walreceiver") })
	}
	for _, w := range all {
		w.Cancel()
	}
}
