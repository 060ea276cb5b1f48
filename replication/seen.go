package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// seenQuery asks for the position first and for its timeline after it. A standby
// shows a commit a moment before its position includes it, so what was read may be
// as far as what it has received.
const seenQuery = `SELECT pg_is_in_recovery(),
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()) ELSE pg_current_wal_insert_lsn() END::text,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
       coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0)::bigint,
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('wal_block_size')::bigint,
       pg_size_bytes(current_setting('wal_segment_size'))`

// Seen returns a token for all that a read just made over conn may have seen, on
// a standby or a primary: for reads that are not to go back behind it. On a standby
// whose timeline the role may not see, or that streams from nobody, it is an error.
// It takes a round trip.
func Seen(ctx context.Context, conn Querier) (tracker.Token, error) {
	return seen(func(to ...any) error {
		return conn.QueryRow(ctx, seenQuery, pgx.QueryExecModeExec).Scan(to...)
	})
}

// SeenSQL is Seen for package database/sql: a *sql.Conn, since a *sql.DB is many.
func SeenSQL(ctx context.Context, conn SQLQuerier) (tracker.Token, error) {
	return seen(func(to ...any) error { return conn.QueryRowContext(ctx, seenQuery).Scan(to...) })
}

func seen(query func(to ...any) error) (tracker.Token, error) {
	var recovery bool
	var at, walfile *string
	var received, system, page, segment int64
	if err := query(&recovery, &at, &walfile, &received, &system, &page, &segment); err != nil {
		return tracker.Token{}, fmt.Errorf("replication: ask what was seen: %w", err)
	}
	if at == nil {
		return tracker.Token{}, errors.New("replication: ask what was seen: the server does not say how far it is")
	}
	lsn, err := tracker.ParseLSN(*at)
	if err != nil {
		return tracker.Token{}, fmt.Errorf("replication: ask what was seen: %w", err)
	}
	timeline := uint32(received)
	if !recovery && walfile != nil {
		if timeline, err = walfileTimeline(*walfile); err != nil {
			return tracker.Token{}, fmt.Errorf("replication: ask what was seen: %w", err)
		}
	}
	if timeline == 0 {
		return tracker.Token{}, errors.New("replication: ask what was seen: the server does not tell its timeline: GRANT pg_read_all_stats to the role, and see whether it streams")
	}
	return tracker.Token{System: uint64(system), Timeline: timeline, LSN: walSizes{uint64(page), uint64(segment)}.recordEnd(lsn)}, nil
}
