package replication

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

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
// primary, when it was called: call it after COMMIT has returned. It takes one
// round trip, and ends with ctx. The commit need not have been made on conn,
// but after a failover only the same connection is sure to be the same server.
//
// Inside a transaction that has written it is ErrInTransaction, on a standby
// ErrStandby. The role needs nothing but LOGIN.
func Capture(ctx context.Context, conn Querier) (tracker.Token, error) {
	return capture(conn.QueryRow(ctx, captureQuery))
}

// CaptureSQL is Capture for database/sql, with any driver for PostgreSQL.
func CaptureSQL(ctx context.Context, db SQLQuerier) (tracker.Token, error) {
	return capture(db.QueryRowContext(ctx, captureQuery))
}

// captureQuery asks for the insert position: the write position is below a
// commit made with synchronous_commit = off. current_setting answers in
// microseconds what the pg_settings view takes a millisecond for. The text
// columns spare the driver from knowing the types.
const captureQuery = `
SELECT pg_is_in_recovery(),
       pg_current_xact_id_if_assigned() IS NOT NULL,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('wal_block_size')::bigint,
       pg_size_bytes(current_setting('wal_segment_size'))`

func capture(row pgx.Row) (tracker.Token, error) {
	var (
		recovery, written bool
		lsn, walfile      *string
		system            int64 // pg_control_system casts the unsigned number
		block, segment    int64
	)
	if err := row.Scan(&recovery, &written, &lsn, &walfile, &system, &block, &segment); err != nil {
		return tracker.Token{}, fmt.Errorf("replication: capture a token: %w", err)
	}
	switch {
	case recovery || lsn == nil || walfile == nil:
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
	sizes := walSizes{uint64(block), uint64(segment)}
	return tracker.Token{System: uint64(system), Timeline: timeline, LSN: sizes.recordEnd(at)}, nil
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
