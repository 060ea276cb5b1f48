package replication_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// usable is all that a full run leaves out, and why: each version's kinds, and
// what the others say.
var usable = map[int]struct {
	kinds []replication.Kind
	not   map[replication.Kind]string
}{
	14: {[]replication.Kind{"physical", "poll"}, map[replication.Kind]string{"logical": "needs PostgreSQL 16, the server is 14", "waitfor": "needs PostgreSQL 19, the server is 14"}},
	15: {[]replication.Kind{"physical", "poll"}, map[replication.Kind]string{"logical": "needs PostgreSQL 16, the server is 15", "waitfor": "needs PostgreSQL 19, the server is 15"}},
	16: {[]replication.Kind{"physical", "logical", "poll"}, map[replication.Kind]string{"waitfor": "needs PostgreSQL 19, the server is 16"}},
	17: {[]replication.Kind{"physical", "logical", "poll"}, map[replication.Kind]string{"waitfor": "needs PostgreSQL 19, the server is 17"}},
	18: {[]replication.Kind{"physical", "logical", "poll"}, map[replication.Kind]string{"waitfor": "needs PostgreSQL 19, the server is 18"}},
	19: {[]replication.Kind{"physical", "logical", "waitfor", "poll"}, nil},
}

func TestEachVersionHasExactlyItsKinds(t *testing.T) {
	c := cluster(t)
	publish(t, c)
	want, known := usable[c.Version]
	if !known {
		t.Fatalf("PostgreSQL %d is not in the list: say here what it can do", c.Version)
	}
	if got := kinds(c.Version); !slices.Equal(got, want.kinds) {
		t.Errorf("the tests run %q, want %q", got, want.kinds)
	}
	for _, kind := range want.kinds {
		follow(t, c, c.Standbys[0], kind, tracker.Config{})
	}
	for kind, reason := range want.not {
		tr := demand(t, replication.Config{Replica: replication.Server{DSN: c.Standbys[0].DSN()}, Use: []replication.Kind{kind}})
		says(t, tr, kind, reason)
		if s := tr.State(); s.Source != "poll" {
			t.Errorf("%s: %+v", kind, s)
		}
	}
	tr := demand(t, replication.Config{Replica: replication.Server{DSN: c.Standbys[0].DSN()}})
	eventually(t, "the best is in use", func() bool { return tr.State().Source == string(want.kinds[0]) })
	for _, r := range tr.State().Ladder {
		if !r.Up && r.Reason == "" {
			t.Errorf("%s is not up and does not say why", r.Source)
		}
	}
}

// demand runs a tracker for which somebody waits until the test ends.
func demand(t *testing.T, cfg replication.Config) *tracker.Tracker {
	t.Helper()
	source, err := replication.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	tr := track(t, source, tracker.Config{})
	tr.Request(tracker.Token{LSN: 1 << 60})
	return tr
}

// says waits until kind is not up for a reason.
func says(t *testing.T, tr *tracker.Tracker, kind replication.Kind, reason string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("%s: %+v", kind, tr.State().Ladder)
		}
	}()
	eventually(t, string(kind)+" says: "+reason, func() bool {
		for _, r := range tr.State().Ladder {
			if r.Source == string(kind) {
				return !r.Up && strings.Contains(r.Reason, reason)
			}
		}
		return false
	})
}

func TestStateSaysWhatAKindIsMissing(t *testing.T) {
	c := cluster(t)
	publish(t, c)
	standby := c.Standbys[0]
	name, password := role(t, c, "", "pg_read_all_stats")
	plain := standby.DSNFor(name, password, "postgres")
	refused := "must be superuser or replication role to start walsender"
	if c.Version >= 16 {
		refused = "permission denied to start WAL sender"
	}
	says(t, demand(t, replication.Config{Replica: replication.Server{DSN: plain}, Use: []replication.Kind{"physical"}}), "physical", refused)
	if !slices.Contains(kinds(c.Version), replication.Logical) {
		return // see usable
	}
	logical := func(cfg replication.Config) *tracker.Tracker {
		cfg.Use = []replication.Kind{replication.Logical}
		return demand(t, cfg)
	}
	says(t, logical(replication.Config{Replica: replication.Server{DSN: plain}}), "logical", refused)
	says(t, logical(replication.Config{Replica: replication.Server{DSN: standby.DSN()}, Publication: `no "such`}), "logical", `publication "no ""such" does not exist: CREATE PUBLICATION`)

	// Without the right to have the primary log its running transactions.
	tr := logical(replication.Config{
		Replica: replication.Server{DSN: standby.DSN()},
		Primary: replication.Server{DSN: c.Primary.DSNFor(name, password, "postgres")},
	})
	says(t, tr, "logical", "without the primary's help: ERROR: permission denied for function pg_log_standby_snapshot")
	eventually(t, "the slot is made when somebody else does", func() bool {
		_ = c.Primary.Exec(t.Context(), `SELECT pg_log_standby_snapshot()`)
		return tr.State().Source == string(replication.Logical)
	})
}

// The server takes a slot away whose rows vacuum has removed on the primary.
func TestAnInvalidatedSlotIsMadeAnew(t *testing.T) {
	if !slices.Contains(kinds(cluster(t).Version), replication.Logical) {
		return // see usable
	}
	c := replicationtest.Start(t, replicationtest.Options{StandbySettings: map[string]string{"hot_standby_feedback": "off", "max_standby_streaming_delay": "0"}})
	publish(t, c)
	w := watch(t, c, c.Standbys[0], replication.Logical)
	toks := w.Request(tracker.Token{LSN: 1 << 60})
	defer toks.Cancel()
	eventually(t, "logical is in use", w.up)
	writer := connect(t, c.Primary)
	for i := 0; ; i++ {
		if changes, _, _ := w.said(); slices.Contains(changes, "logical>poll") {
			break
		}
		if i == 100 {
			t.Fatal("the slot was not invalidated")
		}
		exec(t, writer, `CREATE TABLE removed AS SELECT 1`)
		exec(t, writer, `DROP TABLE removed`)
		exec(t, writer, `VACUUM pg_class, pg_attribute, pg_type, pg_depend`)
		wait(t, w.Tracker, capture(t, writer))
	}
	_, _, log := w.said()
	if last := log[strings.LastIndex(log, "to=poll"):]; !strings.Contains(last, "conflict with recovery") && !strings.Contains(last, "invalidated") {
		t.Errorf("the log says: %s", last)
	}
	eventually(t, "a new slot is there", w.up)
	wait(t, w.Tracker, capture(t, writer))
}

func TestLogicalSaysThatTheWALIsNotForIt(t *testing.T) {
	if !slices.Contains(kinds(cluster(t).Version), replication.Logical) {
		return // see usable
	}
	c := replicationtest.Start(t, replicationtest.Options{Settings: map[string]string{"wal_level": "replica"}})
	publish(t, c)
	tr := demand(t, replication.Config{Replica: replication.Server{DSN: c.Standbys[0].DSN()}, Use: []replication.Kind{"logical"}})
	says(t, tr, "logical", "wal_level is replica: ALTER SYSTEM SET wal_level = logical")
	wait(t, tr, capture(t, connect(t, c.Primary)))
}
