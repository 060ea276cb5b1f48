package replication

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/walwake/walwake/tracker"
)

// held is what may keep replay from moving, as the full question's answer tells.
type held struct {
	paused bool // somebody has paused it

	// conflict is what the startup process waits for while a query on the
	// standby holds it up, and what to look at; empty: none does.
	conflict string

	delay string // recovery_min_apply_delay while something waits for it; empty: nothing does
	alone bool   // no walreceiver is running
}

// heldQuery stands behind standbyQuery where there is time for it. $1 is the
// startup process, which its last column tells; NULL: it has to be looked for. To
// look at one process is cheap, to go through all of a busy server's is not: each
// is looked up among all (src/backend/utils/adt/pgstatfuncs.c,
// pg_stat_get_activity).
//
// A walreceiver's row is there for every role, without what it has. The startup
// process is seen with pg_read_all_stats. It waits for queries under these events
// in PostgreSQL 14 to 19 (src/backend/storage/ipc/standby.c, where 19 says
// BufferCleanup instead of BufferPin). Of a snapshot's conflict the holder is
// the one with the oldest snapshot, as a rule that of the longest transaction.
const heldQuery = `,
       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,
       EXISTS (SELECT FROM pg_stat_wal_receiver),
       CASE WHEN current_setting('recovery_min_apply_delay') <> '0' AND
                 (coalesce(pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn(), false) OR
                  EXISTS (SELECT FROM pg_stat_get_activity($1::int) WHERE backend_type = 'startup' AND wait_event = 'RecoveryApplyDelay'))
            THEN current_setting('recovery_min_apply_delay') END,
       (SELECT concat_ws(' ', pid,
               CASE WHEN wait_event_type = 'Lock' OR wait_event IN ('RecoveryConflictSnapshot', 'RecoveryConflictTablespace', 'BufferPin', 'BufferCleanup')
               THEN concat_ws(' ', wait_event_type, wait_event, current_setting('max_standby_streaming_delay'), current_setting('hot_standby_feedback'),
                    (SELECT pid FROM pg_stat_get_activity(NULL)
                     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1)) END)
        FROM pg_stat_get_activity($1::int) WHERE backend_type = 'startup')`

// heldColumns is how many heldQuery has.
const heldColumns = 4

// parseHeld reads heldQuery's columns, and returns the startup process too; 0: it
// is not seen.
func parseHeld(columns []*string) (h held, startup uint32) {
	is := func(i int, what string) bool { return columns[i] != nil && *columns[i] == what }
	h = held{paused: columns[0] != nil && !is(0, "not paused"), alone: is(1, "f")}
	if columns[2] != nil {
		h.delay = *columns[2]
	}
	if columns[3] == nil {
		return h, 0
	}
	f := strings.Fields(*columns[3])
	if len(f) == 0 {
		return h, 0
	}
	n, err := strconv.ParseUint(f[0], 10, 31)
	if err != nil {
		return h, 0 // it is looked for again
	}
	h.conflict = conflict(f[1:])
	return h, uint32(n)
}

// conflict says what heldQuery's last column does of a conflict: the wait event's
// type and name, two settings, and where there is one the process to look at.
func conflict(f []string) string {
	if len(f) < 4 {
		return ""
	}
	event := f[1]
	if f[0] == "Lock" {
		event = f[0] + " " + f[1]
	}
	text := fmt.Sprintf("a query on the standby holds replay back (%s): see max_standby_streaming_delay (%s) and hot_standby_feedback (%s)", event, f[2], f[3])
	if len(f) > 4 {
		text += "; the longest transaction there is process " + f[4] + "'s"
	}
	return text
}

// since is what is left of h when replay has moved, to lsn. What moves is not
// held back, except by a delay: that lets replay go on and on, and still nobody
// come before his time.
func (h held) since(lsn tracker.LSN, d tracker.Demand) held {
	if d.Lowest <= lsn {
		return held{}
	}
	return held{delay: h.delay}
}

// reasons are what a person should know of it.
func (h held) reasons() (all []string) {
	if h.paused {
		all = append(all, "replay is paused on the standby: SELECT pg_wal_replay_resume()")
	}
	if h.conflict != "" {
		all = append(all, h.conflict)
	}
	if h.delay != "" && !h.paused && h.conflict == "" {
		all = append(all, "recovery_min_apply_delay = "+h.delay+" on the standby holds replay back")
	}
	if h.alone {
		all = append(all, "the standby receives no WAL, no walreceiver is running: is its primary down, or primary_conninfo wrong?")
	}
	return all
}
