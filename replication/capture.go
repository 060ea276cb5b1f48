package replication

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// Capture was called where no token can be had.
var (
	// ErrInTransaction says that the connection is inside a transaction that has
	// written and is not committed: the position now is before its COMMIT, and a
	// replica that has reached it does not show the write.
	ErrInTransaction = errors.New("replication: Capture inside an open transaction that has written: its commit has no position yet; COMMIT first, then capture")

	// ErrStandby says that the server is a standby, which nobody writes to.
	ErrStandby = errors.New("replication: Capture on a standby: connect to the primary, where the write was committed")
)

// Querier is what Capture needs of a pgx connection. *pgx.Conn, *pgxpool.Pool,
// *pgxpool.Conn and pgx.Tx have it.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// SQLQuerier is what CaptureSQL needs. *sql.DB, *sql.Conn and *sql.Tx have it.
type SQLQuerier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Capture returns a token for all that was committed on conn's server, the
// primary, when it was called: call it after COMMIT has returned. The commit
// need not have been made on conn, but after a failover only the same connection
// is sure to be the same server. It ends with ctx.
//
// It takes one round trip where the WAL up to the token is flushed, as a commit
// leaves it. Where somebody has written more since, or the commit was made with
// synchronous_commit = off, it waits for the flush, without which no replica gets
// the WAL, for up to 16 ms; a server that has flushed nothing for 4 ms it has
// flush. On an idle primary nobody else might for many seconds: hint bits, open
// transactions and the like write WAL that is not flushed with them. Within
// a transaction block the flush is left to others; a commit that is not flushed
// is lost when the primary crashes, and its token then says nothing.
//
// Inside a transaction that has written it is ErrInTransaction, on a standby
// ErrStandby. The role needs nothing but LOGIN.
func Capture(ctx context.Context, conn Querier) (tracker.Token, error) {
	return capture(ctx, func(query string, to ...any) error { return conn.QueryRow(ctx, query).Scan(to...) })
}

// CaptureSQL is Capture for database/sql, with any driver for PostgreSQL.
func CaptureSQL(ctx context.Context, db SQLQuerier) (tracker.Token, error) {
	return capture(ctx, func(query string, to ...any) error { return db.QueryRowContext(ctx, query).Scan(to...) })
}

// captureQuery asks for the insert position: the write position is below a
// commit made with synchronous_commit = off. current_setting answers in
// microseconds what the pg_settings view takes a millisecond for. The text
// columns spare the driver from knowing the types. The setting is gone with the
// statement, unless that is in a transaction block: see flushedQuery.
const captureQuery = `
SELECT pg_is_in_recovery(),
       pg_current_xact_id_if_assigned() IS NOT NULL,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END,
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('wal_block_size')::bigint,
       pg_size_bytes(current_setting('wal_segment_size')),
       current_setting('server_version_num')::bigint,
       set_config('walwake.capture', 'block', true)`

const flushedQuery = `SELECT pg_current_wal_flush_lsn()::text, coalesce(current_setting('walwake.capture', true) = 'block', false)`

func capture(ctx context.Context, query func(sql string, to ...any) error) (tracker.Token, error) {
	var (
		recovery, written      bool
		lsn, walfile, flushed  *string
		system                 int64 // pg_control_system casts the unsigned number
		page, segment, version int64
		set                    string
	)
	err := query(captureQuery, &recovery, &written, &lsn, &walfile, &flushed, &system, &page, &segment, &version, &set)
	switch {
	case err != nil:
		return tracker.Token{}, fmt.Errorf("replication: capture a token: %w", err)
	case recovery || lsn == nil || walfile == nil || flushed == nil:
		return tracker.Token{}, ErrStandby
	case written:
		return tracker.Token{}, ErrInTransaction
	}
	at, err := tracker.ParseLSN(*lsn)
	if err != nil {
		return tracker.Token{}, fmt.Errorf("replication: capture a token: %w", err)
	}
	timeline, err := walfileTimeline(*walfile)
	if err != nil {
		return tracker.Token{}, fmt.Errorf("replication: capture a token: %w", err)
	}
	sizes := walSizes{uint64(page), uint64(segment)}
	tok := tracker.Token{System: uint64(system), Timeline: timeline, LSN: sizes.recordEnd(at)}
	if up, err := tracker.ParseLSN(*flushed); err != nil || up < tok.LSN {
		flush(ctx, query, tok.LSN, up, version)
	}
	if ctx.Err() != nil {
		return tracker.Token{}, fmt.Errorf("replication: capture a token: %w", context.Cause(ctx))
	}
	return tok, nil
}

// flushPauses are between looks whether others' commits have flushed the WAL. A
// server that has flushed nothing for flushIdle is idle.
var flushPauses = []time.Duration{500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond}

const flushIdle = 3500 * time.Microsecond

// flush waits until the WAL up to lsn is flushed, of which there was flushed
// before, and has an idle server flush it: with a small message in the WAL, which
// means nothing to anybody. On a busy one, and within somebody's transaction
// block, it is left to others. The token is right whatever comes of it, so it has
// no error.
func flush(ctx context.Context, query func(sql string, to ...any) error, lsn, before tracker.LSN, version int64) {
	var idle time.Duration
	for _, pause := range flushPauses {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		var flushed string
		var block bool
		if query(flushedQuery, &flushed, &block) != nil {
			return
		}
		up, err := tracker.ParseLSN(flushed)
		if idle += pause; up != before {
			before, idle = up, 0 // which may have been under way already, and be the last one
		}
		switch {
		case err != nil || up >= lsn:
			return
		case idle < flushIdle:
			continue
		case block:
			return
		}
		message := `SELECT set_config('synchronous_commit', 'local', true) || pg_logical_emit_message(true, 'walwake', '')` // its commit flushes
		if version >= 170000 {
			message = `SELECT pg_logical_emit_message(false, 'walwake', '', true)::text`
		}
		var end string
		_ = query(message, &end) // a role may not be let
		return
	}
}

// walSizes are the server's WAL block and segment sizes, in bytes.
type walSizes struct{ block, segment uint64 }

// recordEnd is where the last record before an insert position ends. When that
// is at a page's end, the insert position is behind the next page's header,
// which replay reaches only with the next record.
func (w walSizes) recordEnd(insert tracker.LSN) tracker.LSN {
	return insert.Normalize(w.block, w.segment)
}

// walfileTimeline reads the timeline that a WAL file's name begins with: the
// one that the primary writes to. pg_control_checkpoint lags behind it.
func walfileTimeline(name string) (uint32, error) {
	if len(name) != 24 {
		return 0, fmt.Errorf("WAL file name %q: want 24 hex digits", name)
	}
	n, err := strconv.ParseUint(name[:8], 16, 32)
	if err != nil {
		return 0, fmt.Errorf("WAL file name %q: %w", name, err)
	}
	return uint32(n), nil
}
