package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

func TestStatusOfAStandby(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	a := decode[statusAnswer](walwake(t, on(nil, standby), "status", "--json").is(exitOK))
	if a.Role != "standby" || a.Position == 0 || *a.Timeline != 1 || a.System == 0 || a.Source != "physical" || !slices.ContainsFunc(a.Ladder, func(r rung) bool { return r.Source == "physical" && r.Up }) || a.Note != "" ||
		a.AgeUS < 0 || time.Since(a.ObservedAt) > time.Minute || a.Lag != nil || !strings.HasPrefix(a.Server, "127.0.0.1:") {
		t.Errorf("got %+v", a)
	}
	a = decode[statusAnswer](walwake(t, on(primary, standby), "status", "--json").is(exitOK))
	if a.Lag == nil || a.Written.System != a.System || a.LagUS == nil || a.LagFrom != "measured" {
		t.Errorf("got %+v", a)
	}
	text := walwake(t, on(primary, standby), "status").is(exitOK)
	for _, word := range []string{"a standby", "position", "timeline", "system", "observed", "sources", "physical: in use", "primary", "lag"} {
		if !strings.Contains(text.stdout, word) {
			t.Errorf("no %q in %s", word, text)
		}
	}
	if strings.Contains(text.stdout, "not known") || text.stderr != "" {
		t.Errorf("got %s", text)
	}
}

func TestStatusOfAPrimary(t *testing.T) {
	t.Parallel()
	primary, _ := cluster(t)
	if a := decode[statusAnswer](walwake(t, on(primary, primary), "status", "--json").is(exitOK)); a.Role != "primary" || *a.Timeline != 1 {
		t.Errorf("got %+v", a)
	}
}

// unpublished is why logical is not up on the shared cluster.
func unpublished(version int) string {
	if version < 16 {
		return "needs PostgreSQL 16"
	}
	return "CREATE PUBLICATION"
}

func TestStatusShowsEachSourceAndWhyItIsNotUp(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		source, role, using, reason string // reason: of the first that is not up; empty: all are, but poll
	}{
		{"physical", streamRole, "physical", ""},
		{"physical", plainRole, "poll", "(SQLSTATE 42501)"},
		{"logical", streamRole, "poll", unpublished(c.Version)},
		{"poll", streamRole, "poll", ""},
	} {
		o := walwake(t, nil, "status", "--json", "--replica", role(standby, want.role), "--source", want.source).is(exitOK).atOnce()
		a := decode[statusAnswer](o)
		last := len(a.Ladder) - 1
		if a.Source != want.using || last < 0 || a.Ladder[last].Source != "poll" || a.Ladder[0].Source != want.source ||
			!strings.Contains(a.Ladder[0].Reason, want.reason) || want.reason != "" && a.Ladder[0].Up || strings.Contains(o.String(), secret) {
			t.Errorf("%+v: got %s", want, o)
		}
	}
	o := walwake(t, nil, "status", "--replica", role(standby, streamRole), "--source", "logical").is(exitOK)
	if !strings.Contains(o.stdout, "logical: not up: ") || !strings.Contains(o.stdout, "poll: in use") {
		t.Errorf("got %s", o)
	}
}

func TestAnotherClusterIsStatus4(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	other := replicationtest.Start(t, replicationtest.Options{Standbys: -1}).Primary

	o := walwake(t, on(nil, standby), "wait", "--json", write(t, other)).is(exitLost).says("token of another cluster", "WALWAKE_REPLICA").atOnce()
	if a := decode[waitAnswer](o); a.Result != "wrong_system" || a.Error == "" {
		t.Errorf("got %+v", a)
	}
	token := write(t, primary)
	parsed, err := tracker.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	walwake(t, on(other, standby), "wait", token).is(exitLost).says("token of another cluster", "WALWAKE_PRIMARY").atOnce()
	walwake(t, on(primary, other), "wait", token).is(exitLost).says("token of another cluster", "WALWAKE_REPLICA").atOnce()
	// A bare LSN does not say of which cluster it is: the primary does.
	walwake(t, on(primary, other), "wait", parsed.LSN.String()).is(exitLost).says("token of another cluster").atOnce()
	walwake(t, on(other, standby), "status").is(exitLost).says("another cluster").atOnce()
}

func TestALostWriteIsStatus4(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	ctx := t.Context()
	if err := standby.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	near := write(t, c.Primary) // its number will be passed by what the new primary writes
	if err := c.Primary.Exec(ctx, `create table big as select generate_series(1, 100000)`); err != nil {
		t.Fatal(err)
	}
	far := write(t, c.Primary) // its number will not
	if err := c.Primary.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	if err := standby.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		write(t, standby)
	}
	for _, e := range []env{on(nil, standby), on(standby, standby)} {
		for _, token := range []string{near, far} {
			o := walwake(t, e, "wait", "--json", "--timeout", "1h", token).is(exitLost).says("write lost in a failover", "write again").atOnce()
			if a := decode[waitAnswer](o); a.Result != "diverged" {
				t.Errorf("got %+v", a)
			}
		}
	}
	walwake(t, on(standby, standby), "wait", write(t, standby)).is(exitOK)
}

// A role that may only replicate sees the timeline over a replication connection, which comes up a moment later.
func TestStatusOfARoleThatOnlyReplicates(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	a := decode[statusAnswer](walwake(t, env{"WALWAKE_REPLICA": role(standby, streamRole)}, "status", "--json").is(exitOK))
	if a.Timeline == nil || *a.Timeline != 1 || a.Note != "" {
		t.Errorf("got %+v", a)
	}
}
