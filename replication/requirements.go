package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// What a Requirement may be of, besides a Kind.
const (
	// OfTimeline is the timeline of a position, without which no token that
	// names one is satisfied.
	OfTimeline = "timeline"
	// OfHistory is how the timeline came about, without which a token of an older
	// one is not satisfied, nor seen to be lost.
	OfHistory = "history"
)

// Diagnosis is what a replica has of what each kind needs.
type Diagnosis struct {
	Role         string // that connected
	Database     string // it connected to
	Release      string // of the server, such as 18.4
	Major        int    // of Release
	Standby      bool   // whether the server is one
	Requirements []Requirement

	publication string
	published   bool // whether there is such a one
}

// Requirement is something that a kind, the timeline or its history needs.
type Requirement struct {
	Of       string // a Kind, OfTimeline or OfHistory
	Needs    string // what it needs
	Has      string // what was found
	OK       bool
	Optional bool     // it works without, but not as well
	Remedies []Remedy // in their order; empty where OK, and where no SQL helps
}

// Remedy is one statement that mends something.
type Remedy struct {
	On       string // "primary" or "replica"
	Database string // that it has to be run in; empty: any
	SQL      string // one statement, to be run by a superuser
	Then     string // what has to be done for it to count; may be empty
}

// Works reports whether of has all that it cannot do without.
func (d *Diagnosis) Works(of string) bool {
	there := false
	for _, r := range d.Requirements {
		if r.Of == of {
			there = true
			if !r.OK && !r.Optional {
				return false
			}
		}
	}
	return there
}

// LeastRole returns what makes a role that may observe the replica by kinds, and
// no more: to be run on the primary. Its password is not among it.
func (d *Diagnosis) LeastRole(role string, kinds []Kind) []Remedy {
	name := quoted(role)
	logical := d.Major >= firstVersion[Logical] && slices.Contains(kinds, Logical)
	create := "CREATE ROLE " + name + " LOGIN"
	if logical || slices.Contains(kinds, Physical) {
		create += " REPLICATION"
	}
	sql := []Remedy{
		{On: onPrimary, SQL: create, Then: `give it a password (\password in psql), or let pg_hba.conf know it by other means`},
		{On: onPrimary, SQL: "GRANT pg_read_all_stats TO " + name},
	}
	if logical && !d.published {
		sql = append(sql, publish(d.publication, d.Database))
	}
	if logical {
		sql = append(sql, snapshotGrant(role, d.Database))
	}
	return sql
}

// Diagnose looks at what the replica has of what each kind needs, whatever
// Config.Use says, and at the primary where one is named. It asks with plain
// queries and one or two replication connections, and changes nothing. An error
// says that a server could not be asked.
func Diagnose(ctx context.Context, cfg Config) (*Diagnosis, error) {
	l, err := New(cfg)
	if err != nil {
		return nil, err
	}
	e := &examination{cfg: l.cfg}
	if err := e.ask(ctx); err != nil {
		return nil, err
	}
	e.d = &Diagnosis{
		Role: e.replica.role, Database: e.replica.database, Release: e.replica.release, Major: e.replica.major,
		Standby: e.replica.standby, publication: e.cfg.Publication, published: e.replica.published,
	}
	for _, k := range Kinds() {
		e.kind(k)
	}
	e.timeline()
	e.history()
	return e.d, nil
}

const (
	onPrimary = "primary"
	onReplica = "replica"
)

// examination is one Diagnose.
type examination struct {
	cfg     Config
	d       *Diagnosis
	replica facts
	primary *facts // nil: none was named
	stream  error  // why a replication connection could not be had
	told    uint32 // the timeline that it told
	unread  error  // why the history could not be read; nil where it could, or there is none
}

// facts are what a server says of itself and of the role.
type facts struct {
	role, database, release string
	major                   int
	standby                 bool
	system                  int64
	replication, stats      bool // rights of the role
	level                   string
	published               bool
	slots, slotsUsed        int
	senders, sendersUsed    int
	feedback, mayHelp       bool
	position, timeline      *string
}

func (f *facts) ask(ctx context.Context, server Server, publication string) error {
	conn, err := server.connect(ctx, false)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	ctx, cancel := context.WithTimeout(ctx, server.QueryTimeout)
	defer cancel()
	f.major = majorVersion(conn)
	timeline := `(SELECT received_tli::text FROM pg_stat_wal_receiver)`
	if f.major >= 19 {
		timeline = `(SELECT last_replayed_tli::text FROM pg_stat_recovery)`
	}
	err = conn.QueryRow(ctx, `
SELECT current_user::text, current_database()::text, current_setting('server_version'), pg_is_in_recovery(),
       (SELECT system_identifier FROM pg_control_system()),
       (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),
       pg_has_role('pg_read_all_stats', 'USAGE'),
       current_setting('wal_level'),
       EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
       current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots)::int,
       current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication)::int,
       current_setting('hot_standby_feedback')::bool,
       coalesce((SELECT has_function_privilege(oid, 'EXECUTE') FROM pg_proc
                 WHERE proname = 'pg_log_standby_snapshot' AND pronamespace = 'pg_catalog'::regnamespace), false),
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text,
       CASE WHEN pg_is_in_recovery() THEN `+timeline+` ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int::text END`,
		publication).Scan(&f.role, &f.database, &f.release, &f.standby, &f.system, &f.replication, &f.stats, &f.level, &f.published,
		&f.slots, &f.slotsUsed, &f.senders, &f.sendersUsed, &f.feedback, &f.mayHelp, &f.position, &f.timeline)
	if err != nil {
		return fmt.Errorf("replication: ask what there is: %w", err)
	}
	return nil
}

// ask asks the servers. The slots and walsenders are counted before we use one.
func (e *examination) ask(ctx context.Context) error {
	if err := e.replica.ask(ctx, e.cfg.Replica, e.cfg.Publication); err != nil {
		return err
	}
	if !e.cfg.Primary.isZero() {
		e.primary = new(facts)
		if err := e.primary.ask(ctx, e.cfg.Primary, e.cfg.Publication); err != nil {
			return fmt.Errorf("replication: the primary: %w", err)
		}
	}
	e.stream = e.tryStream(ctx)
	if e.stream == nil && e.told > 1 {
		_, e.unread = readHistory(ctx, e.cfg.Replica, uint64(e.replica.system), e.told, nil)
	}
	return ctx.Err()
}

func (e *examination) tryStream(ctx context.Context) error {
	conn, err := e.cfg.Replica.connect(ctx, true)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Replica.QueryTimeout)
	defer cancel()
	id, err := identifySystem(ctx, conn.PgConn(), uint64(e.replica.system))
	e.told = uint32(id.Timeline)
	return err
}

func (e *examination) add(r Requirement) {
	if r.OK {
		r.Remedies = nil
	}
	e.d.Requirements = append(e.d.Requirements, r)
}

func (e *examination) kind(k Kind) {
	f := e.replica
	if k == Poll {
		e.add(Requirement{
			Of: string(k), Needs: "LOGIN", OK: f.position != nil,
			Has: fmt.Sprintf("role %s, position %s", f.role, orUnknown(f.position)),
		})
		return
	}
	if !f.standby {
		e.add(Requirement{Of: string(k), Needs: "a standby", Has: "a primary: all that is committed there can be read at once"})
		return
	}
	switch k {
	case Physical:
		e.replication(string(k))
		e.sender(string(k))
	case Logical:
		if e.version(string(k), firstVersion[Logical]) {
			e.logical()
		}
	case WaitFor:
		if e.version(string(k), firstVersion[WaitFor]) {
			e.stats(string(k), false)
		}
	}
}

// version adds that of needs PostgreSQL from, and reports whether it has it.
func (e *examination) version(of string, from int) bool {
	ok := e.replica.major >= from
	e.add(Requirement{Of: of, Needs: fmt.Sprintf("PostgreSQL %d", from), Has: e.replica.release, OK: ok})
	return ok
}

// replication adds that of needs a replication connection.
func (e *examination) replication(of string) {
	r := Requirement{Of: of, Needs: "REPLICATION", OK: e.stream == nil, Has: "role " + e.replica.role + " has it"}
	pg, _ := errors.AsType[*pgconn.PgError](e.stream)
	switch {
	case r.OK:
	case !e.replica.replication:
		r.Has = "role " + e.replica.role + " has it not"
		r.Remedies = []Remedy{{On: onPrimary, SQL: "ALTER ROLE " + quoted(e.replica.role) + " REPLICATION"}}
	case pg != nil:
		r.Has += ", but a replication connection is refused: " + pg.Message
	default:
		r.Has += ", but a replication connection fails: " + e.stream.Error()
	}
	e.add(r)
}

// sender adds that of needs a walsender.
func (e *examination) sender(of string) {
	f := e.replica
	e.add(Requirement{
		Of: of, Needs: "a free walsender on the replica", Has: fmt.Sprintf("%d of max_wal_senders = %d in use", f.sendersUsed, f.senders),
		OK: f.sendersUsed < f.senders, Remedies: raise("max_wal_senders", f.senders),
	})
}

func (e *examination) logical() {
	f, of := e.replica, string(Logical)
	e.replication(of)
	e.sender(of)
	e.add(Requirement{
		Of: of, Needs: "a free replication slot on the replica", Has: fmt.Sprintf("%d of max_replication_slots = %d in use", f.slotsUsed, f.slots),
		OK: f.slotsUsed < f.slots, Remedies: raise("max_replication_slots", f.slots),
	})
	e.level()
	e.add(Requirement{
		Of: of, Needs: "publication " + e.cfg.Publication + ", which may be empty", OK: f.published,
		Has:      cmp.Or(map[bool]string{true: "it is there"}[f.published], "there is none in database "+f.database),
		Remedies: []Remedy{publish(e.cfg.Publication, f.database)},
	})
	e.add(Requirement{
		Of: of, Needs: "hot_standby_feedback = on, or the slot may be lost", OK: f.feedback, Optional: true,
		Has: map[bool]string{true: "on", false: "off"}[f.feedback],
		Remedies: []Remedy{
			{On: onReplica, SQL: "ALTER SYSTEM SET hot_standby_feedback = on"},
			{On: onReplica, SQL: "SELECT pg_reload_conf()"},
		},
	})
	e.snapshot()
}

// level adds that both servers need wal_level = logical.
func (e *examination) level() {
	r := Requirement{Of: string(Logical), Needs: "wal_level = logical on primary and replica", OK: e.replica.level == "logical"}
	set := func(on string) {
		r.Remedies = append(r.Remedies, Remedy{On: on, SQL: "ALTER SYSTEM SET wal_level = logical", Then: "restart it"})
	}
	r.Has = e.replica.level + " on the replica, the primary was not asked"
	if e.primary != nil {
		r.Has = e.primary.level + " on the primary, " + e.replica.level + " on the replica"
		r.OK = r.OK && e.primary.level == "logical"
	}
	if e.primary == nil || e.primary.level != "logical" {
		set(onPrimary)
	}
	if e.replica.level != "logical" {
		set(onReplica)
	}
	e.add(r)
}

// snapshot adds what makes the slot at once.
func (e *examination) snapshot() {
	r := Requirement{
		Of: string(Logical), Needs: "pg_log_standby_snapshot() on the primary, or the slot may take a minute", Optional: true,
		Has: "not known: no primary was named",
	}
	switch p := e.primary; {
	case p == nil:
	case p.system != e.replica.system:
		r.Has = "the primary that was named is of another cluster"
	case p.standby:
		r.Has = "the primary that was named is a standby"
	default:
		r.OK = p.mayHelp
		r.Has = "role " + p.role + map[bool]string{true: " may call it", false: " may not call it"}[r.OK]
		r.Remedies = []Remedy{snapshotGrant(p.role, p.database)}
	}
	e.add(r)
}

// stats adds that of needs to see the timeline over a plain connection; or that it may be seen over a replication
// connection.
func (e *examination) stats(of string, orStream bool) {
	f := e.replica
	r := Requirement{Of: of, Needs: "pg_read_all_stats", OK: f.timeline != nil, Has: "timeline " + orUnknown(f.timeline)}
	if orStream {
		r.Needs += " or REPLICATION"
	}
	switch {
	case r.OK:
	case orStream && e.stream == nil:
		r.OK, r.Has = true, fmt.Sprintf("timeline %d, over a replication connection", e.told)
	case !f.stats:
		r.Has = "role " + f.role + " has it not"
		if orStream {
			r.Has = "role " + f.role + " has neither"
		}
		r.Remedies = []Remedy{{On: onPrimary, SQL: "GRANT pg_read_all_stats TO " + quoted(f.role)}}
	default:
		r.Has = "role " + f.role + " has it, but the walreceiver does not stream now"
		if orStream && !f.replication {
			r.Remedies = []Remedy{{On: onPrimary, SQL: "ALTER ROLE " + quoted(f.role) + " REPLICATION"}}
		}
	}
	e.add(r)
}

func (e *examination) timeline() {
	if !e.replica.standby {
		e.add(Requirement{Of: OfTimeline, Needs: "LOGIN", Has: "timeline " + orUnknown(e.replica.timeline), OK: e.replica.timeline != nil})
		return
	}
	e.stats(OfTimeline, true)
}

func (e *examination) history() {
	e.replication(OfHistory)
	if r := &e.d.Requirements[len(e.d.Requirements)-1]; e.unread != nil && r.OK {
		r.OK, r.Has = false, e.unread.Error()
	}
}

func publish(publication, database string) Remedy {
	return Remedy{On: onPrimary, Database: database, SQL: "CREATE PUBLICATION " + quoted(publication)}
}

func snapshotGrant(role, database string) Remedy {
	return Remedy{On: onPrimary, Database: database, SQL: "GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO " + quoted(role)}
}

// raise makes room in a setting that takes a restart.
func raise(setting string, from int) []Remedy {
	return []Remedy{{On: onReplica, SQL: fmt.Sprintf("ALTER SYSTEM SET %s = %d", setting, from+10), Then: "restart it"}}
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

func orUnknown(s *string) string {
	if s == nil {
		return "not known"
	}
	return *s
}
