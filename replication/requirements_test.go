package replication_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
)

// The statements themselves are run by the tests of walwake doctor.
func TestDiagnoseSaysWhatWorksAndWhatMends(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{})
	if err := c.Primary.Exec(t.Context(), `CREATE ROLE plain LOGIN PASSWORD 'x'`); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg := replication.Config{
		Replica: replication.Server{DSN: c.Standbys[0].DSNFor("plain", "x", "postgres")},
		Primary: replication.Server{DSN: c.Primary.DSN()},
	}
	d, err := replication.Diagnose(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if d.Role != "plain" || !d.Standby || d.Major != c.Version || !d.Works("poll") || d.Works("nonsense") {
		t.Errorf("got %+v", d)
	}
	for _, of := range []string{"physical", "logical", "waitfor", replication.OfTimeline, replication.OfHistory} {
		if d.Works(of) {
			t.Errorf("%s works for a role that may only log in", of)
		}
	}
	for _, r := range d.Requirements {
		if r.Needs == "" || r.Has == "" || r.OK && len(r.Remedies) > 0 {
			t.Errorf("got %+v", r)
		}
		for _, m := range r.Remedies {
			if m.On != "primary" && m.On != "replica" || m.SQL == "" || strings.Contains(m.SQL, ";") {
				t.Errorf("got %+v", m)
			}
		}
	}
	least := func(kinds ...replication.Kind) (sql []string) {
		for _, r := range d.LeastRole("reader", kinds) {
			sql = append(sql, r.SQL)
		}
		return sql
	}
	if got := least(replication.Poll); !slices.Equal(got, []string{`CREATE ROLE "reader" LOGIN`, `GRANT pg_read_all_stats TO "reader"`}) {
		t.Errorf("to poll, it wants %q", got)
	}
	if got := least(replication.Kinds()...); got[0] != `CREATE ROLE "reader" LOGIN REPLICATION` || (len(got) == 4) != (c.Version >= 16) {
		t.Errorf("for all, it wants %q", got)
	}
	cfg.Replica.DSN = "host=127.0.0.1 port=1 user=u password=hidden"
	if _, err := replication.Diagnose(t.Context(), cfg); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("of a server that is not there: %v", err)
	}
}
