package replication_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// At the end of a WAL page the insert position is behind the next page's
// header, where replay arrives only with the next record.
func TestCaptureIsReachableWhereARecordEndsAPage(t *testing.T) {
	c := cluster(t)
	conn := connect(t, c.Primary)
	tr := poll(t, c.Standbys[0].DSN(), tracker.Config{})
	raised := 0
	for range 20 { // checkpoints and the like write too, now and then
		exec(t, conn, `SELECT pg_switch_wal()`)
		raw := value[tracker.LSN](t, conn, `SELECT pg_current_wal_insert_lsn()`)
		tok := capture(t, conn)
		wait(t, tr, tok)
		if last, _ := tr.LastReplay(); tok.LSN < raw && last.LSN < raw {
			raised++
			if raw-tok.LSN != 40 && raw-tok.LSN != 24 {
				t.Errorf("captured %s where the insert position is %s", tok.LSN, raw)
			}
		}
		exec(t, conn, `INSERT INTO writes SELECT coalesce(max(id), 0) + 1 FROM writes`) // so that there is something to switch
	}
	if raised == 0 {
		t.Error("not once was the raw insert position out of replay's reach: the test shows nothing")
	}
}

func TestCaptureCoversACommitThatIsNotFlushed(t *testing.T) {
	c := cluster(t)
	conn, reader := connect(t, c.Primary), connect(t, c.Standbys[0])
	exec(t, conn, `SET synchronous_commit = off`)
	tr := poll(t, c.Standbys[0].DSN(), tracker.Config{})
	low := 0
	for range 25 { // each takes as long as the WAL writer sleeps, up to 200 ms
		id := newID()
		exec(t, conn, `INSERT INTO writes VALUES ($1)`, id)
		written := value[tracker.LSN](t, conn, `SELECT pg_current_wal_lsn()`)
		tok := capture(t, conn)
		if written < tok.LSN {
			low++
		}
		wait(t, tr, tok)
		if !value[bool](t, reader, `SELECT EXISTS (SELECT FROM writes WHERE id = $1)`, id) {
			t.Fatalf("write %d is not there after Wait(%s)", id, tok)
		}
	}
	if low == 0 {
		t.Error("the write position was never below the commit: the test shows nothing")
	}
}

// WAL that nobody flushes does not go to the replicas: on an idle primary a wait
// for it would last until the next commit, or for some 15 s.
func TestCaptureIsReachableWhereOthersHaveNotFlushed(t *testing.T) {
	c := cluster(t)
	ctx := t.Context()
	other, conn := connect(t, c.Primary), connect(t, c.Primary)
	tr := poll(t, c.Standbys[0].DSN(), tracker.Config{})
	unflushed := 0
	for range 5 {
		exec(t, conn, `INSERT INTO writes SELECT coalesce(max(id), 0) + 1 FROM writes`)
		tx, err := other.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, `INSERT INTO writes SELECT coalesce(max(id), 0) + 1000 FROM writes`); err != nil {
			t.Fatal(err)
		}
		if value[bool](t, conn, `SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()`) {
			unflushed++
		}
		tok := capture(t, conn)
		flushed := value[tracker.LSN](t, conn, `SELECT pg_current_wal_flush_lsn()`)
		if flushed < tok.LSN {
			t.Errorf("captured %s, flushed up to %s", tok.LSN, flushed)
		}
		started := time.Now()
		wait(t, tr, tok)
		t.Logf("waited for %s", time.Since(started))
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if unflushed == 0 {
		t.Error("all was flushed: the test shows nothing")
	}
}

func TestCaptureInsideATransactionThatHasWrittenIsAnError(t *testing.T) {
	c := cluster(t)
	ctx := t.Context()
	conn := connect(t, c.Primary)
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replication.Capture(ctx, tx); err != nil {
		t.Errorf("a transaction that has not written: %v", err)
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SAVEPOINT s; INSERT INTO writes VALUES (%d)`, newID())); err != nil {
		t.Fatal(err)
	}
	if _, err := replication.Capture(ctx, tx); !errors.Is(err, replication.ErrInTransaction) {
		t.Errorf("after a write in a subtransaction: %v", err)
	}
	if _, err := replication.Capture(ctx, conn); !errors.Is(err, replication.ErrInTransaction) {
		t.Errorf("on the transaction's connection: %v", err)
	}
	other := connect(t, c.Primary)
	capture(t, other) // another connection's transaction does not matter
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	capture(t, conn)

	db := openDB(t, c.Primary.DSN())
	stx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stx.ExecContext(ctx, `INSERT INTO writes VALUES ($1)`, newID()); err != nil {
		t.Fatal(err)
	}
	if _, err := replication.CaptureSQL(ctx, stx); !errors.Is(err, replication.ErrInTransaction) {
		t.Errorf("database/sql: %v", err)
	}
	if err := stx.Commit(); err != nil {
		t.Fatal(err)
	}
	tok, err := replication.CaptureSQL(ctx, db)
	if err != nil || tok.System == 0 || tok.Timeline == 0 {
		t.Errorf("database/sql: %v %v", tok, err)
	}
	if cmp := capture(t, conn).Compare(tok); cmp < 0 {
		t.Error("a later token is the lower one")
	}
	tx, err = conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = tx.Exec(ctx, `SELECT 1/0`)
	if _, err := replication.Capture(ctx, tx); err == nil {
		t.Error("a failed transaction gave a token")
	}
}

func openDB(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestCaptureOnAStandbySaysSo(t *testing.T) {
	c := cluster(t)
	if _, err := replication.Capture(t.Context(), connect(t, c.Standbys[0])); !errors.Is(err, replication.ErrStandby) {
		t.Errorf("got %v", err)
	}
	if _, err := replication.CaptureSQL(t.Context(), openDB(t, c.Standbys[0].DSN())); !errors.Is(err, replication.ErrStandby) {
		t.Errorf("database/sql: %v", err)
	}
}

func TestCaptureNeedsOnlyLoginInEveryExecMode(t *testing.T) {
	c := cluster(t)
	name, password := role(t, c, "")
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		cfg, err := pgx.ParseConfig(c.Primary.DSNFor(name, password, "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.DefaultQueryExecMode = mode
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if tok := capture(t, conn); tok.System == 0 || tok.Timeline != 1 || tok.LSN == 0 {
			t.Errorf("%s: %v", mode, tok)
		}
		_ = conn.Close(t.Context())
	}
}

func TestCaptureEndsWithItsContext(t *testing.T) {
	conn := connect(t, cluster(t).Primary)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := replication.Capture(ctx, conn); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
