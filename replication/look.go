package replication

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// reading is one answer to lookQuery.
type reading struct {
	backend  int32
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
// server's version offers.
const lookQuery = `
WITH pos AS MATERIALIZED (
    SELECT pg_is_in_recovery() AS standby,
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                ELSE pg_current_wal_insert_lsn() END::text AS lsn)
SELECT pg_backend_pid(), standby, lsn,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
       CASE WHEN pg_is_in_recovery() THEN ($TIMELINE) END,
       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END
  FROM pos`

const (
	// receivedTimeline is the walreceiver's: replay only ever follows it to a
	// timeline that all it has replayed belongs to
	// (src/backend/access/transam/xlogrecovery.c, rescanLatestTimeLine). NULL
	// without pg_read_all_stats, no row while no walreceiver streams.
	receivedTimeline = `SELECT ARRAY[pid, received_tli] FROM pg_stat_wal_receiver`
	// replayedTimeline is replay's own. NULL without pg_read_all_stats.
	replayedTimeline = `SELECT ARRAY[1, last_replayed_tli] FROM pg_stat_recovery`
)

// serverQuery asks for what is fixed as long as a server runs.
const serverQuery = `
SELECT pg_backend_pid(),
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('wal_block_size')::bigint,
       pg_size_bytes(current_setting('wal_segment_size'))`

// session is a connection that looks at one server's position.
type session struct {
	server    Server
	conn      *pgx.Conn
	walsender bool // a replication connection: it can also IDENTIFY_SYSTEM
	query     string

	backend int32 // that answered serverQuery
	system  uint64
	sizes   walSizes

	history    tracker.History
	historyOf  uint32 // the timeline that history is of; 0: none was read
	historyErr error  // why it could not be read
}

func openSession(ctx context.Context, server Server, walsender bool) (*session, error) {
	conn, err := server.connect(ctx, walsender)
	if err != nil {
		return nil, err
	}
	s := &session{server: server, conn: conn, walsender: walsender}
	timeline := receivedTimeline
	if majorVersion(conn) >= 19 {
		timeline = replayedTimeline
	}
	s.query = strings.Replace(lookQuery, "$TIMELINE", timeline, 1)
	return s, nil
}

func (s *session) close() { disconnect(s.conn) }

// majorVersion is the server's, from what it says of itself when a connection
// begins; 0 when it says nothing that can be read.
func majorVersion(conn *pgx.Conn) int {
	v := conn.PgConn().ParameterStatus("server_version")
	if i := strings.IndexFunc(v, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		v = v[:i]
	}
	n, _ := strconv.Atoi(v)
	return n
}

// look takes one round trip, and a second one on a replication connection, or
// when a pooler has handed us to another server process.
func (s *session) look(ctx context.Context) (r reading, newBackend bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.server.QueryTimeout)
	defer cancel()
	var lsn, walfile, pause *string
	var timeline []*int32
	err = s.conn.QueryRow(ctx, s.query).Scan(&r.backend, &r.standby, &lsn, &walfile, &timeline, &pause)
	if err != nil {
		return r, false, fmt.Errorf("replication: ask for the replayed position: %w", err)
	}
	if newBackend = r.backend != s.backend; newBackend {
		if err := s.identify(ctx, r.backend); err != nil {
			return r, true, err
		}
	}
	if lsn == nil {
		r.reason = "the standby has not begun to replay"
		return r, newBackend, nil
	}
	if r.lsn, err = tracker.ParseLSN(*lsn); err != nil {
		return r, newBackend, fmt.Errorf("replication: ask for the replayed position: %w", err)
	}
	r.known = true
	switch {
	case walfile != nil: // a primary, or a standby promoted between two columns
		if !r.standby {
			r.lsn = s.sizes.recordEnd(r.lsn)
		}
		r.timeline, err = walfileTimeline(*walfile)
	case s.walsender:
		r.timeline, err = s.identifySystem(ctx)
	case len(timeline) == 2 && timeline[1] != nil:
		r.timeline = uint32(*timeline[1])
	case len(timeline) == 2:
		r.reason = fmt.Sprintf("the timeline is not visible to role %s: GRANT pg_read_all_stats TO %[1]s, or ALTER ROLE %[1]s REPLICATION", pgx.Identifier{s.conn.Config().User}.Sanitize())
	default:
		r.reason = "the standby's walreceiver is not streaming, so its timeline is not visible"
	}
	if pause != nil && *pause != "not paused" {
		r.reason = "replay is paused on the standby: SELECT pg_wal_replay_resume()"
	}
	return r, newBackend, err
}

// identify reads what is fixed for backend. A pooler that hands each query to
// another server process cannot be observed through.
func (s *session) identify(ctx context.Context, backend int32) error {
	var system, block, segment int64
	var pid int32
	if err := s.conn.QueryRow(ctx, serverQuery).Scan(&pid, &system, &block, &segment); err != nil {
		return fmt.Errorf("replication: ask for the system identifier: %w", err)
	}
	if pid != backend {
		return errors.New("replication: each query reaches another server process: connect to the replica directly, or through a pooler in session mode")
	}
	s.backend, s.system, s.sizes = pid, uint64(system), walSizes{uint64(block), uint64(segment)}
	return nil
}
