package tracker_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// Two standbys are promoted one after the other. The second was behind the first, knew of the first's timeline by its
// history file, and got none of its WAL: it names that timeline as its parent and lacks a write of the first.
func TestHistoryOfAStandbyThatWasBehindAtItsPromotionDoesNotVouchForWhatItLacks(t *testing.T) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	ahead, late := c.Standbys[0], c.Standbys[1]
	must(late.Stop(ctx))
	must(c.Primary.Exec(ctx, "create table written ()"))
	write, err := replicationtest.Value[tracker.LSN](ctx, c.Primary, "select pg_current_wal_flush_lsn()")
	must(err)
	must(ahead.WaitForReplay(ctx, write.String()))
	must(c.Primary.Kill(ctx))

	must(ahead.Promote(ctx))
	content, history := historyOf(t, ahead, "2")
	if end, ok := history.End(1); len(history) != 1 || !ok || end < write {
		t.Fatalf("timeline 2 has the write at %v, its history says %v", write, history)
	}

	must(os.WriteFile(filepath.Join(late.Dir(), "pg_wal", "00000002.history"), content, 0o644))
	must(late.Start(ctx))
	must(late.Promote(ctx))
	if _, history = historyOf(t, late, "3"); len(history) != 2 || history[0].End < write || history[1].End >= write {
		t.Fatalf("the history that this test is about did not come about: %v, write at %v", history, write)
	}
	for _, timeline := range []uint32{1, 2} {
		if end, ok := history.End(timeline); !ok || end != history[1].End {
			t.Errorf("End(%d) = %v, %v: %v", timeline, end, ok, history)
		}
	}
	there, err := replicationtest.Value[bool](ctx, late, "select to_regclass('written') is not null")
	must(err)
	if there {
		t.Error("the write is there, so the history must vouch for it")
	}
}

// historyOf returns the content of a timeline's history file and what ParseHistory makes of it.
func historyOf(t *testing.T, n *replicationtest.Node, timeline string) ([]byte, tracker.History) {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), n.DSN("replication=true"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	results, err := conn.Exec(t.Context(), "TIMELINE_HISTORY "+timeline).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	content := results[0].Rows[0][1]
	history, err := tracker.ParseHistory(content)
	if err != nil {
		t.Fatalf("%q: %v", content, err)
	}
	return content, history
}
