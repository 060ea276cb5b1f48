package replication

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// reading is what a server said of its position in one answer.
type reading struct {
	standby  bool
	lsn      tracker.LSN // replayed; on a primary, written
	known    bool        // whether lsn is: a standby that has just started may not say
	timeline uint32      // of lsn; 0: not told
	reason   string      // why position or timeline is not told; may be empty
	fast     bool        // it came by fastpath
	full     bool        // whether paused was asked for
	paused   bool        // somebody has paused replay
}

// note is what a person should know of the reading; may be empty.
func (rd reading) note() string {
	const paused = "replay is paused on the standby: SELECT pg_wal_replay_resume()"
	switch {
	case rd.paused && rd.reason != "":
		return paused + "; " + rd.reason
	case rd.paused:
		return paused
	}
	return rd.reason
}

// The questions for the position. Each asks for the position first and for its
// timeline after it: a timeline that was read first may have been left when the
// position was reached. Columns are evaluated in their order, a subselect among
// them when it is come to (src/backend/executor/execExprInterp.c,
// ExecEvalParamExec). All columns are read as text.
//
// The timeline of a standby is, from PostgreSQL 19, that of replay itself. Before,
// it is the walreceiver's, which replay only ever follows to a timeline that all
// it has replayed belongs to (src/backend/access/transam/xlogrecovery.c,
// rescanLatestTimeLine): NULL while no walreceiver streams. Both are empty
// without pg_read_all_stats.
const (
	// standbyQuery is the short one: it leaves out what says why.
	standbyQuery = `SELECT pg_backend_pid(), pg_is_in_recovery(), pg_last_wal_replay_lsn(),
       (SELECT coalesce(received_tli::text, '') FROM pg_stat_wal_receiver)`
	standbyQuery19 = `SELECT pg_backend_pid(), pg_is_in_recovery(), pg_last_wal_replay_lsn(),
       coalesce((SELECT last_replayed_tli::text FROM pg_stat_recovery), '')`

	primaryQuery = `SELECT pg_backend_pid(), pg_is_in_recovery(),
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END`

	// pauseQuery stands behind standbyQuery where there is time for it.
	pauseQuery = `, CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END`

	// serverQuery asks for what is fixed as long as a server process runs.
	serverQuery = `SELECT pg_backend_pid(),
       (SELECT backend_start::text FROM pg_stat_get_activity(pg_backend_pid())),
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('wal_block_size')::bigint,
       pg_size_bytes(current_setting('wal_segment_size')),
       pg_is_in_recovery()`
)

// question is one of the above, prepared under its name.
type question string

const (
	short   question = "walwake_short"   // standbyQuery
	full    question = "walwake_full"    // with pauseQuery
	primary question = "walwake_primary" // primaryQuery
)

func (q question) sql(major int) string {
	standby := standbyQuery
	if major >= 19 {
		standby = standbyQuery19
	}
	switch q {
	case short:
		return standby
	case full:
		return standby + pauseQuery
	default:
		return primaryQuery
	}
}

// errPromoted says that a question for a standby reached a primary.
var errPromoted = errors.New("replication: the server was promoted")

// parse reads the answer to a question: 4 columns, or 5 with pauseQuery's.
// identified is the timeline that IDENTIFY_SYSTEM gave after the answer, 0 where
// it was not asked.
func (s *session) parse(row []*string, identified uint32) (rd reading, err error) {
	defer func() {
		if err != nil && !errors.Is(err, errPromoted) {
			err = fmt.Errorf("replication: the server's position: %w", err)
		}
	}()
	if len(row) < 4 || len(row) > 5 || row[0] == nil || row[1] == nil {
		return rd, fmt.Errorf("%d columns or a missing one", len(row))
	}
	if *row[0] != s.backend {
		return rd, errors.New("a query reached another server process than the one before: connect to the replica directly, or through a pooler in session mode")
	}
	rd.standby = *row[1] == "t"
	if rd.standby != s.standby {
		return rd, errPromoted
	}
	if row[2] == nil {
		rd.reason = "the standby has not begun to replay"
		return rd, nil
	}
	if rd.lsn, err = tracker.ParseLSN(*row[2]); err != nil {
		return rd, err
	}
	rd.known = true
	timeline := row[3]
	switch {
	case !rd.standby && timeline == nil:
		err = errors.New("a primary without a WAL file")
	case !rd.standby:
		rd.lsn = s.sizes.recordEnd(rd.lsn)
		rd.timeline, err = walfileTimeline(*timeline)
	case identified != 0:
		rd.timeline = identified
	case timeline == nil:
		rd.reason = "the standby's walreceiver is not streaming, so its timeline is not visible"
	case *timeline == "":
		rd.reason = fmt.Sprintf("the timeline is not visible to role %s: GRANT pg_read_all_stats TO %[1]s, or ALTER ROLE %[1]s REPLICATION",
			pgx.Identifier{s.conn.Config().User}.Sanitize())
	default:
		var n uint64
		n, err = strconv.ParseUint(*timeline, 10, 32)
		rd.timeline = uint32(n)
	}
	rd.full = len(row) == 5
	rd.paused = rd.full && row[4] != nil && *row[4] != "not paused"
	return rd, err
}
