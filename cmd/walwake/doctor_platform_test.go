package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

// done lists what has to be done where no SQL will do.
func done(fixes []doctorFix) (all []string) {
	for _, f := range fixes {
		if f.Do != "" {
			all = append(all, f.On+": "+f.Do)
		}
	}
	return all
}

// The services' own roles and functions make a server of ours look like theirs.
func TestTheDoctorSaysWhatToDoWhereItIs(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{
		Settings: map[string]string{"wal_level": "replica", "hot_standby_feedback": "off"},
	})
	exec := func(sql string) {
		t.Helper()
		if err := c.Primary.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitForReplay(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	exec(`create role app login password '` + secret + `'; create role rds_replication`)
	for _, p := range []struct {
		name, sign, gone string
		admin            string
		grant            string // how app gets to replicate
		level            string // how wal_level becomes logical
	}{
		{"", "", "", "a superuser", `ALTER ROLE "app" REPLICATION`, ""},
		{"Amazon RDS", "create role rds_superuser", "drop role rds_superuser", "a member of rds_superuser", `GRANT rds_replication TO "app"`, "rds.logical_replication = 1"},
		{
			"Amazon Aurora", "create role rds_superuser; create function aurora_version() returns text return '17.4'",
			"drop role rds_superuser; drop function aurora_version()", "a member of rds_superuser", `GRANT rds_replication TO "app"`, "rds.logical_replication = 1",
		},
		{"Google Cloud SQL", "create role cloudsqlsuperuser", "drop role cloudsqlsuperuser", "a member of cloudsqlsuperuser", `ALTER ROLE "app" REPLICATION`, "cloudsql.logical_decoding = on"},
		{"Azure Database for PostgreSQL", "create role azure_pg_admin", "drop role azure_pg_admin", "a member of azure_pg_admin", `ALTER ROLE "app" REPLICATION`, "wal_level = logical"},
		{"Neon", "create role neon_superuser", "drop role neon_superuser", "a member of neon_superuser", "", "Logical Replication: on"},
		{"Supabase", "create role supabase_admin", "drop role supabase_admin", "postgres", `ALTER ROLE "app" REPLICATION`, "wal_level = logical"},
	} {
		if p.sign != "" {
			exec(p.sign)
		}
		o := doctor(t, c, plainRole, "--json").is(exitFailure)
		a := decode[doctorAnswer](o)
		if a.Platform != p.name || (p.name != "") != (len(a.Notes) == 1) {
			t.Errorf("%s: got %q, notes %q", p.name, a.Platform, a.Notes)
		}
		text := doctor(t, c, plainRole).is(exitFailure).stdout
		if !strings.Contains(text, "missing, as "+p.admin+":") || !strings.Contains(text, "needed (walwake), as "+p.admin+":") {
			t.Errorf("%s: want it done by %s, got %s", p.name, p.admin, text)
		}
		if p.name != "" && !strings.Contains(text, "note: this is "+p.name+": ") {
			t.Errorf("%s: no note in %s", p.name, text)
		}
		sql, do := statements(a.mend()), done(a.mend())
		if p.grant != "" && !slices.Contains(sql, p.grant) || p.grant == "" && (len(do) == 0 || !strings.Contains(do[0], "console")) {
			t.Errorf("%s: want %q, got %q and %q", p.name, p.grant, sql, do)
		}
		if c.Version >= 16 && p.level != "" {
			level := func(s string) bool { return strings.HasPrefix(s, "primary: set "+p.level+" in ") }
			if !slices.ContainsFunc(do, level) || !strings.Contains(text, "-- on the primary; then restart it: set "+p.level) {
				t.Errorf("%s: want %s, got %q in %s", p.name, p.level, do, text)
			}
		}
		if p.name != "" && slices.ContainsFunc(sql, func(s string) bool {
			return strings.HasPrefix(s, "ALTER SYSTEM") || strings.HasPrefix(s, "SELECT pg_reload_conf")
		}) {
			t.Errorf("%s: got %q", p.name, sql)
		}
		script := "begin;"
		if p.grant == "" {
			script += "create role walwake;" // in the console
		}
		for _, s := range slices.Concat(sql, statements(a.NewRole)) { // each is a statement, and runs there
			if s != "" && !strings.HasPrefix(s, "ALTER SYSTEM") && !strings.HasPrefix(s, "CREATE PUBLICATION") {
				script += s + ";"
			}
		}
		exec(script + "rollback")
		if p.gone != "" {
			exec(p.gone)
		}
	}
}

func TestAServiceIsRecognisedBySettingsToo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ setting, name string }{
		{"rds.extensions", "Amazon RDS"},
		{"apg_ccm_enabled", "Amazon Aurora"},
		{"cloudsql.iam_authentication", "Google Cloud SQL"},
		{"azure.extensions", "Azure Database for PostgreSQL"},
		{"neon.timeline_id", "Neon"},
		{"supautils.privileged_role", "Supabase"},
	} {
		if p := recognise([]string{"postgres"}, []string{"work_mem", c.setting}, nil); p == nil || p.name != c.name {
			t.Errorf("%s: got %+v", c.setting, p)
		}
	}
	if p := recognise(nil, []string{"rds.extensions", "apg_ccm_enabled"}, nil); p == nil || p.name != "Amazon Aurora" {
		t.Errorf("Aurora has the settings of RDS too: got %+v", p)
	}
	if p := recognise([]string{"postgres", "rds"}, []string{"work_mem", "auto_explain.log_analyze"}, []string{"now"}); p != nil {
		t.Errorf("got %s", p.name)
	}
}

func TestTheDoctorSaysWhenACommitMayComeLate(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{StandbySettings: map[string]string{"wal_receiver_status_interval": "10s"}})
	const note = "wal_receiver_status_interval = '1s'"
	for _, server := range []struct {
		*replicationtest.Node
		late bool
	}{{c.Standbys[0], c.Version >= 16}, {c.Primary, false}} {
		if o := walwake(t, env{"WALWAKE_REPLICA": server.DSN()}, "doctor"); strings.Contains(o.stdout+o.stderr, note) != server.late {
			t.Errorf("%s: got %s", server.Name(), o)
		}
	}
}
