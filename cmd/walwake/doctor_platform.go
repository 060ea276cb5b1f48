package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// platform is a service that runs PostgreSQL for others. What is said of it is what its documentation says, see the
// README's table.
type platform struct {
	name     string
	roles    []string // one of them tells the service
	settings []string // so does a setting whose name begins with one of these
	calls    []string // so does a function

	admin   string            // who may do there what takes a superuser
	where   string            // settings are changed
	logical string            // what makes wal_level logical
	stream  func(string) step // gives a role what REPLICATION gives elsewhere; nil: ALTER ROLE does
	note    string            // what else there is to know
}

// step is a statement or, where none will do, what a person has to do.
type step struct{ sql, do string }

// platforms, those first that others would be taken for.
var platforms = []*platform{
	{
		name: "Amazon Aurora", settings: []string{"apg_", "aurora_"}, calls: []string{"aurora_version"},
		admin: "a member of rds_superuser", where: "the DB cluster parameter group", logical: "rds.logical_replication = 1",
		stream: rdsReplication,
		note: "its readers share the writer's storage instead of replaying WAL, and refuse the functions that tell the replayed position: " +
			"walwake cannot follow them. Ask aurora_replica_status() on the writer, or read from the writer",
	},
	{
		name: "Amazon RDS", roles: []string{"rds_superuser", "rdsadmin"}, settings: []string{"rds."},
		admin: "a member of rds_superuser", where: "the DB parameter group", logical: "rds.logical_replication = 1",
		stream: rdsReplication,
		note:   "logical decoding on a read replica is there from PostgreSQL 16; nothing is documented of physical streams to other clients",
	},
	{
		name: "Google Cloud SQL", roles: []string{"cloudsqlsuperuser", "cloudsqladmin"}, settings: []string{"cloudsql."},
		admin: "a member of cloudsqlsuperuser", where: "the instance's database flags", logical: "cloudsql.logical_decoding = on",
		note: "nothing is documented of logical decoding on a read replica",
	},
	{
		name: "Azure Database for PostgreSQL", roles: []string{"azure_pg_admin", "azuresu"}, settings: []string{"azure."},
		admin: "a member of azure_pg_admin", where: "the server parameters, of the replica too: they are not taken over", logical: "wal_level = logical",
		note: "nothing is documented of logical decoding on a read replica",
	},
	{
		name: "Neon", roles: []string{"neon_superuser"}, settings: []string{"neon."},
		admin: "a member of neon_superuser", where: "the project's settings, or by its support", logical: "Logical Replication: on",
		stream: func(string) step {
			return step{do: "log in as a role made in the console, by CLI or API: SQL cannot give REPLICATION there"}
		},
		note: "a compute that nobody uses is suspended: a position ends with its connection, and the next one starts the compute",
	},
	{
		name: "Supabase", roles: []string{"supabase_admin"}, settings: []string{"supautils."},
		admin: "postgres", where: "the project, by the Supabase CLI", logical: "wal_level = logical",
		note: "name the direct connection, not the pooler's; a logical stream from a read replica is documented from PostgreSQL 17",
	},
}

func rdsReplication(role string) step { return step{sql: "GRANT rds_replication TO " + role} }

// surroundings are what a server runs on, and what stands before it.
type surroundings struct {
	platform *platform // nil: none that is known
	pooler   string    // empty: none was noticed
	late     bool      // a commit that the primary's walsender misses may come seconds late
}

// notes are for who reads what the doctor says.
func (s surroundings) notes() (notes []string) {
	if s.pooler != "" {
		notes = append(notes, s.pooler+" stands between: in transaction mode, or before several servers, a position says nothing of "+
			"the server that is read from. Name the server itself, or one pooler in session mode for one server")
	}
	if s.platform != nil {
		notes = append(notes, "this is "+s.platform.name+": "+s.platform.note)
	}
	if s.late {
		notes = append(notes, "from PostgreSQL 16 on the primary may miss that there is something to send, and sends it when the standby next reports: "+
			"set wal_receiver_status_interval = '1s' on the standby, and reload")
	}
	return notes
}

// look recognises what it can: by names in the catalogue, and by how a pooler differs from a server.
func (s *server) look(ctx context.Context, timeout time.Duration) (found surroundings, err error) {
	mismatch := false
	err = s.query(ctx, timeout, func(ctx context.Context, conn *pgx.Conn) error {
		var roles, settings, calls []string
		var pid uint32
		err := conn.QueryRow(ctx, `SELECT pg_backend_pid(), ARRAY(SELECT rolname::text FROM pg_roles),
			ARRAY(SELECT name FROM pg_settings), ARRAY(SELECT proname::text FROM pg_proc WHERE proname = 'aurora_version'),
			pg_is_in_recovery() AND current_setting('server_version_num')::int >= 160000 AND
			EXISTS (SELECT FROM pg_settings WHERE name = 'wal_receiver_status_interval' AND setting <> '1')`,
			pgx.QueryExecModeExec).Scan(&pid, &roles, &settings, &calls, &found.late)
		if err != nil {
			return err
		}
		found.platform = recognise(roles, settings, calls)
		mismatch = pid != conn.PgConn().PID()
		var version string
		if conn.QueryRow(ctx, "SHOW pool_version", pgx.QueryExecModeSimpleProtocol).Scan(&version) == nil {
			found.pooler = "Pgpool-II " + version
		}
		return nil
	})
	if err == nil && mismatch && found.pooler == "" { // nobody else gives a process another number than its own
		found.pooler = "a pooler"
		if s.refusesParameters(ctx, timeout) {
			found.pooler = "PgBouncer"
		}
	}
	return found, err
}

func recognise(roles, settings, calls []string) *platform {
	for _, p := range platforms {
		byName := slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(p.roles, r) }) ||
			slices.ContainsFunc(calls, func(c string) bool { return slices.Contains(p.calls, c) })
		bySetting := slices.ContainsFunc(settings, func(s string) bool {
			return slices.ContainsFunc(p.settings, func(prefix string) bool { return strings.HasPrefix(s, prefix) })
		})
		if byName || bySetting {
			return p
		}
	}
	return nil
}

// refusesParameters reports whether a startup parameter that PostgreSQL takes for somebody's own is refused with the code
// that PgBouncer has for those it does not track.
func (s *server) refusesParameters(ctx context.Context, timeout time.Duration) bool {
	other := *s
	other.config = s.config.Copy()
	other.config.RuntimeParams["walwake.doctor"] = "on"
	const protocolViolation = "08P01"
	err := other.query(ctx, timeout, func(context.Context, *pgx.Conn) error { return nil })
	said, is := errors.AsType[*pgconn.PgError](err)
	return is && said.Code == protocolViolation
}

// adapt changes statements for where they are run.
func (p *platform) adapt(fixes []doctorFix) []doctorFix {
	if p == nil {
		return fixes
	}
	adapted := []doctorFix{}
	for _, f := range fixes {
		setting, isSetting := strings.CutPrefix(f.SQL, "ALTER SYSTEM SET ")
		create, creates := strings.CutSuffix(f.SQL, " LOGIN REPLICATION")
		alter, alters := strings.CutSuffix(f.SQL, " REPLICATION")
		switch {
		case f.SQL == "SELECT pg_reload_conf()": // the service does it
		case isSetting:
			adapted = append(adapted, p.set(setting, f))
		case creates && p.stream != nil:
			role := strings.TrimPrefix(create, "CREATE ROLE ")
			s := p.stream(role)
			if s.sql != "" {
				adapted = append(adapted, doctorFix{On: f.On, SQL: create + " LOGIN", Then: f.Then})
			}
			adapted = append(adapted, doctorFix{On: f.On, SQL: s.sql, Do: s.do})
		case alters && p.stream != nil:
			s := p.stream(strings.TrimPrefix(alter, "ALTER ROLE "))
			adapted = append(adapted, doctorFix{On: f.On, SQL: s.sql, Do: s.do})
		default:
			adapted = append(adapted, f)
		}
	}
	return adapted
}

// set is a setting that is not changed by SQL.
func (p *platform) set(setting string, f doctorFix) doctorFix {
	if strings.HasPrefix(setting, "wal_level ") {
		setting = p.logical
	}
	return doctorFix{On: f.On, Do: "set " + setting + " in " + p.where, Then: f.Then}
}
