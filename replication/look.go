package replication

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// reading is what a server said of its position in one answer.
type reading struct {
	backend  int64
	standby  bool
	lsn      tracker.LSN // replayed; on a primary, written
	known    bool        // whether lsn is: a standby that has just started may not say
	timeline uint32      // of lsn; 0: not told
	reason   string      // why timeline is not told, or replay does not move; may be empty
}

// lookQuery asks for the position, and then for the timeline: a timeline that
// was read first may have been left when the position was reached. A subselect
// that stands in the target list is evaluated when the target list is, after
// the row of pos has been fetched (src/backend/executor/nodeSubplan.c,
// ExecSetParamPlan), so the order is that of the text. $TIMELINE is what the
// server's version offers. All columns are read as text.
const lookQuery = `
WITH pos AS MATERIALIZED (
    SELECT pg_is_in_recovery() AS standby,
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                ELSE pg_current_wal_insert_lsn() END AS lsn)
SELECT pg_backend_pid(), standby, lsn,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
       CASE WHEN pg_is_in_recovery() THEN ($TIMELINE) END,
       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END
  FROM pos`

const (
	// receivedTimeline is the walreceiver's: replay only ever follows it to a
	// timeline that all it has replayed belongs to
	// (src/backend/access/transam/xlogrecovery.c, rescanLatestTimeLine). Empty
	// without pg_read_all_stats, NULL while no walreceiver streams.
	receivedTimeline = `SELECT coalesce(received_tli::text, '') FROM pg_stat_wal_receiver`
	// replayedTimeline is replay's own. Empty without pg_read_all_stats.
	replayedTimeline = `SELECT coalesce(last_replayed_tli::text, '') FROM pg_stat_recovery`
)

// lookQueryFor is lookQuery for a major version.
func lookQueryFor(major int) string {
	timeline := receivedTimeline
	if major >= 19 {
		timeline = replayedTimeline
	}
	return strings.Replace(lookQuery, "$TIMELINE", timeline, 1)
}

// parseLook reads lookQuery's row. role is named in the reason that says what
// to grant. Where rd.timeline is left 0, identified is the timeline that
// IDENTIFY_SYSTEM gave after the row, 0 where it was not asked.
func parseLook(row []*string, sizes walSizes, role string, identified uint32) (rd reading, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("replication: the server's position: %w", err)
		}
	}()
	if len(row) != 6 || row[0] == nil || row[1] == nil {
		return rd, fmt.Errorf("%d columns, want 6", len(row))
	}
	if rd.backend, err = strconv.ParseInt(*row[0], 10, 64); err != nil {
		return rd, err
	}
	rd.standby = *row[1] == "t"
	lsn, walfile, timeline, pause := row[2], row[3], row[4], row[5]
	if lsn == nil {
		rd.reason = "the standby has not begun to replay"
		return rd, nil
	}
	if rd.lsn, err = tracker.ParseLSN(*lsn); err != nil {
		return rd, err
	}
	rd.known = true
	switch {
	case walfile != nil: // a primary, or a standby promoted between two columns
		if !rd.standby {
			rd.lsn = sizes.recordEnd(rd.lsn)
		}
		rd.timeline, err = walfileTimeline(*walfile)
	case identified != 0:
		rd.timeline = identified
	case timeline != nil && *timeline != "":
		var n uint64
		n, err = strconv.ParseUint(*timeline, 10, 32)
		rd.timeline = uint32(n)
	case timeline != nil:
		rd.reason = fmt.Sprintf("the timeline is not visible to role %s: GRANT pg_read_all_stats TO %[1]s, or ALTER ROLE %[1]s REPLICATION",
			pgx.Identifier{role}.Sanitize())
	default:
		rd.reason = "the standby's walreceiver is not streaming, so its timeline is not visible"
	}
	if pause != nil && *pause != "not paused" {
		rd.reason = "replay is paused on the standby: SELECT pg_wal_replay_resume()"
	}
	return rd, err
}

// serverQuery asks for what is fixed as long as a server process runs.
const serverQuery = `
SELECT pg_backend_pid(),
       (SELECT backend_start::text FROM pg_stat_get_activity(pg_backend_pid())),
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('wal_block_size')::bigint,
       pg_size_bytes(current_setting('wal_segment_size'))`
