package replication

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

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
	full     bool        // whether held was asked for
	held     held

	unstreamed bool // reason says that no walreceiver streams
}

// note is what a person should know of the reading; may be empty.
func (rd reading) note() string {
	h := rd.held
	h.alone = h.alone && !rd.unstreamed // once is enough
	all := h.reasons()
	if rd.reason != "" {
		all = append(all, rd.reason)
	}
	return strings.Join(all, "; ")
}

// unseen reports whether the server has told a position, and that its timeline is not
// for the role to see. A fastpath does not say why there is none: the question after
// it does. A walreceiver that does not stream is often back at once.
func (rd *reading) unseen() bool {
	return rd.known && rd.timeline == 0 && rd.reason != "" && !rd.unstreamed
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

	// serverQuery asks for what is fixed as long as a server process runs.
	serverQuery = `SELECT pg_backend_pid(),
       (SELECT extract(epoch FROM backend_start)::text FROM pg_stat_get_activity(pg_backend_pid())),
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('wal_block_size')::bigint,
       pg_size_bytes(current_setting('wal_segment_size')),
       pg_is_in_recovery()`
)

// question is one of the above, prepared under its name.
type question string

const (
	short   question = "walwake_short"   // standbyQuery, or the fastpath where there is one
	plain   question = "walwake_plain"   // standbyQuery: it says why the timeline is not told
	full    question = "walwake_full"    // with heldQuery: it says why replay stands still
	primary question = "walwake_primary" // primaryQuery
)

// prepared is the name under which q is.
func (q question) prepared() string {
	if q == plain {
		q = short
	}
	return string(q)
}

func (q question) sql(major int) string {
	standby := standbyQuery
	if major >= 19 {
		standby = standbyQuery19
	}
	switch q {
	case short, plain:
		return standby
	case full:
		return standby + heldQuery
	default:
		return primaryQuery
	}
}

// errPromoted says that a question for a standby reached a primary.
var errPromoted = errors.New("replication: the server was promoted")

// parse reads the answer to a question: 4 columns, and heldQuery's behind them.
// identified is the timeline that IDENTIFY_SYSTEM gave after the answer, 0 where
// it was not asked.
func (s *session) parse(row []*string, identified uint32) (rd reading, err error) {
	defer func() {
		if err != nil && !errors.Is(err, errPromoted) {
			err = fmt.Errorf("replication: the server's position: %w", err)
		}
	}()
	if len(row) != 4 && len(row) != 4+heldColumns || row[0] == nil || row[1] == nil {
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
	if rd.full = len(row) > 4; rd.full {
		rd.held, s.startup = parseHeld(row[4:])
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
		rd.unstreamed = true
	case *timeline == "":
		rd.reason = fmt.Sprintf("the timeline is not visible to role %s: GRANT pg_read_all_stats TO %[1]s, or ALTER ROLE %[1]s REPLICATION",
			pgx.Identifier{s.conn.Config().User}.Sanitize())
	default:
		var n uint64
		n, err = strconv.ParseUint(*timeline, 10, 32)
		rd.timeline = uint32(n)
	}
	return rd, err
}
