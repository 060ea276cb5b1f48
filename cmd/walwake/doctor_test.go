package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

// healthy lists what works when nothing is missing.
func healthy(version int) []string {
	all := []string{"physical", "logical", "waitfor", "poll", "timeline", "history"}
	return slices.DeleteFunc(all, func(of string) bool {
		return of == "logical" && version < 16 || of == "waitfor" && version < 19
	})
}

func (a *doctorAnswer) working() []string {
	var of []string
	for _, w := range a.Works {
		if w.OK {
			of = append(of, w.Of)
		}
	}
	return of
}

// complaints lists what is not there, but for versions.
func (a *doctorAnswer) complaints() []string {
	var all []string
	for _, n := range a.Needs {
		if !n.OK && !strings.HasPrefix(n.Needs, "PostgreSQL ") {
			all = append(all, n.Of+": "+n.Needs+": "+n.Has)
		}
	}
	return all
}

func statements(fixes []doctorFix) []string {
	all := make([]string, 0, len(fixes))
	for _, f := range fixes {
		all = append(all, f.SQL)
	}
	return all
}

// mend runs the statements where they say, and restarts who has to be.
func mend(t *testing.T, c *replicationtest.Cluster, fixes []doctorFix) {
	t.Helper()
	nodes := map[string]*replicationtest.Node{"primary": c.Primary, "replica": c.Standbys[0]}
	var restart []*replicationtest.Node
	for _, f := range fixes {
		if f.Database != "" && f.Database != "postgres" {
			t.Errorf("in database %s: %+v", f.Database, f)
		}
		if err := nodes[f.On].Exec(t.Context(), f.SQL); err != nil {
			t.Fatalf("%s: %v", f.SQL, err)
		}
		if f.Then == "restart it" {
			restart = append(restart, nodes[f.On])
		}
	}
	for _, n := range restart {
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Standbys[0].WaitStreaming(t.Context()); err != nil { // or the timeline is not visible
		t.Fatal(err)
	}
}

// doctor runs it as a role on primary and standby.
func doctor(t *testing.T, c *replicationtest.Cluster, name string, args ...string) *outcome {
	t.Helper()
	e := on(c.Primary, c.Standbys[0])
	if name != "" {
		e = env{"WALWAKE_PRIMARY": role(c.Primary, name), "WALWAKE_REPLICA": role(c.Standbys[0], name)}
	}
	o := walwake(t, e, append([]string{"doctor"}, args...)...)
	if strings.Contains(o.String(), secret) {
		t.Errorf("the password is shown: %s", o)
	}
	return o
}

func doctored(t *testing.T) *replicationtest.Cluster {
	t.Helper()
	c := replicationtest.Start(t, replicationtest.Options{})
	if err := c.Primary.Exec(t.Context(), `create role app login password '`+secret+`'`); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheDoctorsSQLMendsWhatIsMissing(t *testing.T) {
	t.Parallel()
	c := doctored(t)

	// A superuser misses the publication alone.
	o := doctor(t, c, "", "--json").is(exitOK)
	a := decode[doctorAnswer](o)
	var want []string
	if c.Version >= 16 {
		want = []string{`CREATE PUBLICATION "walwake"`}
	}
	if got := statements(a.mend()); !slices.Equal(got, want) || !a.OK || !a.Standby || a.Role != "postgres" || a.Database != "postgres" {
		t.Errorf("want %q, got %s", want, o)
	}

	// A role with LOGIN alone is told what to grant.
	o = doctor(t, c, plainRole, "--json").is(exitFailure).says("the timeline is not visible")
	poor := decode[doctorAnswer](o)
	want = []string{`ALTER ROLE "app" REPLICATION`}
	if c.Version >= 16 {
		want = append(want, `CREATE PUBLICATION "walwake"`, `GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO "app"`)
	}
	want = append(want, `GRANT pg_read_all_stats TO "app"`)
	if got := statements(poor.mend()); poor.OK || !slices.Equal(got, want) || !slices.Equal(poor.working(), []string{"poll"}) {
		t.Errorf("want %q, got %s", want, o)
	}
	text := doctor(t, c, plainRole).is(exitFailure)
	for _, sql := range append(want, `CREATE ROLE "walwake" LOGIN REPLICATION`, "on the primary", "MISSING") {
		if !strings.Contains(text.stdout, sql) {
			t.Errorf("no %s in %s", sql, text)
		}
	}

	// The publication alone.
	mend(t, c, a.mend())
	a = decode[doctorAnswer](doctor(t, c, "", "--json").is(exitOK))
	if got := a.working(); !slices.Equal(got, healthy(c.Version)) || len(a.complaints()) > 0 || len(a.mend()) > 0 {
		t.Errorf("works: %q, complaints: %q", got, a.complaints())
	}

	// The rest of what the poor role was told.
	poor = decode[doctorAnswer](doctor(t, c, plainRole, "--json").is(exitFailure))
	mend(t, c, poor.mend())
	a = decode[doctorAnswer](doctor(t, c, plainRole, "--json").is(exitOK))
	if got := a.working(); !slices.Equal(got, healthy(c.Version)) || len(a.complaints()) > 0 {
		t.Errorf("works: %q, complaints: %q", got, a.complaints())
	}
	for _, source := range healthy(c.Version) {
		if slices.Contains(sourceFlag().of, source) {
			e := env{"WALWAKE_PRIMARY": role(c.Primary, plainRole), "WALWAKE_REPLICA": role(c.Standbys[0], plainRole)}
			// A slot may take longer to make than status looks at the sources.
			var s statusAnswer
			for began := time.Now(); s.Source != source; {
				s = decode[statusAnswer](walwake(t, e, "status", "--json", "--source", source).is(exitOK))
				if time.Since(began) > time.Minute {
					t.Fatalf("the doctor says that %s works, and status: %+v", source, s)
				}
			}
		}
	}
}

// Whatever rights a role has, the sources that the doctor says work come up, and no others.
func TestTheDoctorSaysWhichSourcesComeUp(t *testing.T) {
	t.Parallel()
	c := doctored(t)
	if c.Version >= 16 {
		// Without the function a slot waits for what an idle primary writes once in 15 s.
		if err := c.Primary.Exec(t.Context(), `create publication walwake; grant execute on function pg_log_standby_snapshot() to app`); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []struct{ rights, give, take string }{
		{"LOGIN", `select 1`, `select 1`},
		{"pg_read_all_stats", `grant pg_read_all_stats to app`, `revoke pg_read_all_stats from app`},
		{"pg_monitor", `grant pg_monitor to app`, `revoke pg_monitor from app`},
		{"REPLICATION", `alter role app replication`, `select 1`},
		{"REPLICATION and pg_read_all_stats", `grant pg_read_all_stats to app`, `select 1`},
	} {
		if err := c.Primary.Exec(t.Context(), r.give); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitForReplay(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := decode[doctorAnswer](doctor(t, c, plainRole, "--json"))
		for _, source := range sourceFlag().of {
			if source == "auto" || !slices.Contains(healthy(c.Version), source) {
				continue
			}
			works := slices.Contains(a.working(), source)
			e := env{"WALWAKE_PRIMARY": role(c.Primary, plainRole), "WALWAKE_REPLICA": role(c.Standbys[0], plainRole)}
			// A slot may take longer to make than status looks at the sources.
			for began := time.Now(); ; {
				o := walwake(t, e, "status", "--json", "--source", source).is(exitOK)
				if s := decode[statusAnswer](o); (s.Source == source) == works {
					break
				}
				if !works || time.Since(began) > time.Minute {
					t.Errorf("with %s the doctor says of %s: works %t, and status: %s", r.rights, source, works, o)
					break
				}
			}
		}
		if err := c.Primary.Exec(t.Context(), r.take); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheDoctorsNewRoleMayDoWhatItIsFor(t *testing.T) {
	t.Parallel()
	c := doctored(t)
	for _, r := range []struct {
		source, name string
		works        []string
	}{
		{"poll", "poller", []string{"poll", "timeline"}},
		{"waitfor", "waiter", []string{"waitfor", "poll", "timeline"}},
		{"physical", "ph'y\"s", []string{"physical", "poll", "timeline", "history"}},
		{"auto", "all", healthy(c.Version)},
	} {
		a := decode[doctorAnswer](doctor(t, c, "", "--json", "--source", r.source, "--role", r.name).is(exitOK))
		mend(t, c, a.NewRole)
		err := c.Primary.Exec(t.Context(), `alter role "`+strings.ReplaceAll(r.name, `"`, `""`)+`" password '`+secret+`'`)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.WaitForReplay(t.Context()); err != nil {
			t.Fatal(err)
		}
		o := doctor(t, c, r.name, "--json").is(exitOK)
		got := decode[doctorAnswer](o)
		for _, of := range r.works {
			if !slices.Contains(got.working(), of) && slices.Contains(healthy(c.Version), of) {
				t.Errorf("%s: no %s: %s", r.name, of, o)
			}
		}
		if r.source == "auto" && len(got.complaints()) > 0 {
			t.Errorf("%q", got.complaints())
		}
	}
}

func TestTheDoctorMendsSettings(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{
		Settings:        map[string]string{"wal_level": "replica", "hot_standby_feedback": "off"},
		StandbySettings: map[string]string{"max_replication_slots": "0"},
	})
	o := walwake(t, on(nil, c.Standbys[0]), "doctor", "--json").is(exitOK)
	a := decode[doctorAnswer](o)
	if c.Version < 16 {
		if len(a.mend()) > 0 {
			t.Errorf("it mends what is of no use: %s", o)
		}
		return
	}
	for _, sql := range []string{"wal_level = logical", "hot_standby_feedback = on", "max_replication_slots = 10"} {
		if !slices.ContainsFunc(a.mend(), func(f doctorFix) bool { return f.SQL == "ALTER SYSTEM SET "+sql }) {
			t.Errorf("no %s in %s", sql, o)
		}
	}
	if !strings.Contains(o.stdout, "the primary was not asked") || slices.Contains(a.working(), "logical") {
		t.Errorf("got %s", o)
	}
	mend(t, c, a.mend())
	a = decode[doctorAnswer](doctor(t, c, "", "--json").is(exitOK))
	if got := a.working(); !slices.Equal(got, healthy(c.Version)) || len(a.complaints()) > 0 {
		t.Errorf("works: %q, complaints: %q", got, a.complaints())
	}
}

func TestTheDoctorOnServersThatAreNotWhatTheyShouldBe(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	o := walwake(t, on(c.Standbys[0], c.Primary), "doctor", "--json").is(exitOK)
	a := decode[doctorAnswer](o)
	if a.Standby || !slices.Equal(a.working(), []string{"poll", "timeline", "history"}) || len(a.mend()) > 0 {
		t.Errorf("a primary as replica: %s", o)
	}
	o = walwake(t, on(c.Standbys[0], c.Standbys[0]), "doctor").is(exitOK)
	if c.Version >= 16 && !strings.Contains(o.stdout, "the primary that was named is a standby") {
		t.Errorf("a standby as primary: %s", o)
	}
	// After a promotion there is a history to read.
	if err := c.Standbys[0].Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	a = decode[doctorAnswer](walwake(t, on(nil, c.Standbys[0]), "doctor", "--json").is(exitOK))
	if len(a.complaints()) != len(a.Works)-3 || !slices.Equal(a.working(), []string{"poll", "timeline", "history"}) {
		t.Errorf("got %+v", a)
	}
}
