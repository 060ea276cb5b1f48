package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

// verifying is a verify that runs.
type verifying struct {
	t       *testing.T
	primary *replicationtest.Node
	stop    context.CancelCauseFunc
	stderr  *output
	ended   chan *outcome
}

func verify(t *testing.T, primary, replica *replicationtest.Node, args ...string) *verifying {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	v := &verifying{t, primary, stop, watchFor(`"message":"writing"`), make(chan *outcome, 1)}
	args = append([]string{"verify", "--json", "--rate", "200", "--writers", "2", "--log-level", "info"}, args...)
	go func() { v.ended <- walwakeUntil(ctx, t, on(primary, replica), v.stderr, args...) }()
	return v
}

// tableIn is the table that a run's log names, empty when there is none.
func tableIn(log string) string {
	return regexp.MustCompile(`walwake_verify_[a-z2-7]{12}`).FindString(log)
}

// wrote returns the table when the run has written some times after the call.
func (v *verifying) wrote() (table string) {
	v.t.Helper()
	for begun := int64(-1); ; {
		select {
		case o := <-v.ended:
			v.t.Fatalf("it ended: %s", o)
		case <-v.stderr.found:
			table = tableIn(v.stderr.String())
			n := value[int64](v.t, v.primary, `select coalesce(max(n), 0) from `+table)
			if begun < 0 {
				begun = n
			} else if n >= begun+20 {
				return table
			}
		}
	}
}

// stopped returns how it ended, and checks that the table is gone.
func (v *verifying) stopped() *outcome {
	v.t.Helper()
	o := <-v.ended
	dropped(v.t, v.primary, tableIn(o.stderr))
	return o
}

// value asks a server.
func value[T any](t *testing.T, n *replicationtest.Node, sql string) T {
	t.Helper()
	v, err := replicationtest.Value[T](t.Context(), n, sql)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func dropped(t *testing.T, primary *replicationtest.Node, table string) {
	t.Helper()
	if table == "" || value[bool](t, primary, `select exists (select from pg_class where relname = '`+table+`')`) {
		t.Errorf("it left %q", table)
	}
}

// noTable checks a cluster on which no verify runs.
func noTable(t *testing.T, primary *replicationtest.Node) {
	t.Helper()
	if n := value[int64](t, primary, `select count(*) from pg_tables where tablename like 'walwake_verify_%'`); n > 0 {
		t.Errorf("it left %d tables", n)
	}
}

// counted reads the answer, of which no waiting read may be stale.
func (o *outcome) counted(result string) verifyAnswer {
	o.t.Helper()
	a := decode[verifyAnswer](o)
	if a.Result != result || a.StaleWith != 0 || a.Reads != a.ReadsWithout+a.ReadsWith || a.Source == "" || (a.Error == "") != (result == "ok") {
		o.t.Errorf("want result %s, got %s", result, o)
	}
	return a
}

func TestVerifyCountsStaleReadsWithoutWaitingAndNoneWithIt(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	t.Run("timeouts while replay is paused", func(t *testing.T) { verifyPaused(t, c) })
	if err := c.Standbys[0].Lag(t.Context(), 30*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	both := on(c.Primary, c.Standbys[0])

	o := walwake(t, both, "verify", "--json", "--duration", "1500ms", "--rate", "100", "--writers", "2").is(exitOK)
	a := o.counted("ok")
	if a.StaleWithout == 0 || a.ReadsWith == 0 || a.Writes != a.Reads || a.Timeouts+a.Lost+a.Errors != 0 ||
		a.Rate < 10 || a.Rate > 150 || a.Seconds < 1.2 || o.stderr != "" {
		t.Errorf("got %s", o)
	}
	if l := a.Latency; l == nil || l.P50 < 15_000 || l.P90 < l.P50 || l.P99 < l.P90 || l.Max < l.P99 || l.Max > 3_000_000 {
		t.Errorf("got %s", o)
	}
	noTable(t, c.Primary)

	o = walwake(t, both, "verify", "--duration", "300ms", "--source", "poll").is(exitOK)
	for _, text := range []string{"(source poll)", "WAIT p50", "without waiting", "with waiting", ", 0 with it. Errors: 0.\n"} {
		if !strings.Contains(o.stdout, text) || o.stderr != "" {
			t.Errorf("no %q in %s", text, o)
		}
	}
	noTable(t, c.Primary)

	o = walwake(t, on(c.Primary, c.Primary), "verify", "--json", "--duration", "200ms", "--writers", "2").is(exitOK).notes("is a primary, no replica")
	if a := o.counted("ok"); a.StaleWithout != 0 || a.ReadsWithout == 0 {
		t.Errorf("got %s", o)
	}
	noTable(t, c.Primary)

	o = walwake(t, both, "verify", "--json", "--duration", "200ms", "--rate", "5", "--writers", "10").is(exitOK)
	if a := o.counted("ok"); a.Writes > 2 { // not one for each writer
		t.Errorf("got %s", o)
	}
}

func TestVerifyAnswersInJSONWithTheseFields(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	o := walwake(t, on(primary, standby), "verify", "--json", "--duration", "200ms", "--writers", "1").is(exitOK)
	var got map[string]json.RawMessage
	var latency map[string]int64
	if err := json.Unmarshal([]byte(o.stdout), &got); err != nil {
		t.Fatalf("%v: %s", err, o)
	}
	if err := json.Unmarshal(got["latency_us"], &latency); err != nil {
		t.Fatalf("%v: %s", err, o)
	}
	want := []string{
		"errors", "latency_us", "lost", "rate", "reads", "reads_with", "reads_without", "result", "seconds", "source",
		"stale_with", "stale_without", "timeouts", "writes",
	}
	if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
		t.Errorf("got %q, want %q", keys, want)
	}
	if keys := slices.Sorted(maps.Keys(latency)); !slices.Equal(keys, []string{"max", "p50", "p90", "p99"}) {
		t.Errorf("got %q", keys)
	}
}

func verifyPaused(t *testing.T, c *replicationtest.Cluster) {
	v := verify(t, c.Primary, c.Standbys[0], "--duration", "5s", "--timeout", "1s")
	v.wrote()
	if err := c.Standbys[0].Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := v.stopped().is(exitTimeout).says("were not replayed in time", "replay is paused")
	if a := o.counted("timeouts"); a.Timeouts == 0 || a.StaleWithout == 0 || a.ReadsWith == 0 || a.Writes <= a.Reads {
		t.Errorf("got %s", o)
	}

	// Paused from the start, there is no table to read.
	v = verify(t, c.Primary, c.Standbys[0], "--duration", "1h", "--timeout", "1s")
	o = (<-v.ended).is(exitTimeout).says("timeout after", "replay is paused")
	if a := o.counted("timeouts"); a.Timeouts != 1 || a.Writes != 0 || a.Latency != nil {
		t.Errorf("got %s", o)
	}
	noTable(t, c.Primary)
	if err := c.Standbys[0].Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestVerifySaysWhichRightIsMissing(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	run := func(setUp string, args ...string) *outcome {
		t.Helper()
		if err := primary.Exec(t.Context(), setUp); err != nil {
			t.Fatal(err)
		}
		lsn, err := primary.Position(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := standby.WaitForReplay(t.Context(), lsn); err != nil {
			t.Fatal(err)
		}
		return walwake(t, nil, append([]string{
			"verify", "--duration", "200ms", "--timeout", "2s", "--writers", "1",
			"--primary", role(primary, "verifier"), "--replica", role(standby, "verifying"),
		}, args...)...)
	}
	t.Cleanup(func() {
		for _, sql := range []string{`drop database if exists other`, `drop schema if exists "Own" cascade`, `drop role if exists verifier, verifying`} {
			if err := primary.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	run(`create role verifier login password '` + secret + `'; create role verifying login password '` + secret + `'`).
		is(exitTimeout).says("GRANT pg_read_all_stats").alone()
	run(`grant pg_read_all_stats to verifying; revoke create on schema public from public`).
		is(exitFailure).says("permission denied for schema public", `GRANT CREATE ON SCHEMA "public" TO "verifier"`).alone()
	run(`create schema "Own" authorization verifier; alter role verifier set search_path = nowhere`).
		is(exitFailure).says("no schema of the search path", "search_path").alone()
	run(`alter role verifier set search_path = nowhere, "Own"`).
		is(exitFailure).says("permission denied for schema Own", "grant it to the role in --replica").alone()
	run(`grant usage on schema "Own" to verifying`).is(exitOK)
	run(`create database other`, "--replica", standby.DSNFor("verifying", secret, "other")).
		is(exitFailure).says("database postgres", "other on the replica").alone()
	if n := value[int64](t, primary, `select count(*) from pg_tables where schemaname = 'Own'`); n > 0 {
		t.Errorf("%d tables left", n)
	}
}

func TestVerifyShowsItsProgressOnATerminalAlone(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, c := range []struct {
		terminal bool
		more     string
		shown    bool
	}{{true, "--json=false", true}, {true, "--json", false}, {false, "--json=false", false}} {
		var stdout bytes.Buffer
		var stderr output
		a := newApp(&stdout, &stderr, func(name string) string { return on(primary, standby)[name] })
		a.stderr.(*lockedWriter).terminal = c.terminal
		root := a.rootCommand()
		root.SetArgs([]string{"verify", "--duration", "300ms", "--writers", "1", c.more})
		if code := a.finish(t.Context(), root.ExecuteContext(t.Context())); code != exitOK {
			t.Fatalf("exit status %d: %s", code, stderr.String())
		}
		seen := stderr.String()
		if c.shown != strings.Contains(seen, "without waiting") || c.shown != strings.Contains(seen, "%") {
			t.Errorf("%+v: got %q", c, seen)
		}
		if lines := strings.Split(seen, "\r"); strings.TrimSpace(lines[len(lines)-1]) != "" {
			t.Errorf("%+v: the bar is not wiped away: %q", c, seen)
		}
	}
}

func TestVerifyRefusesBadFlags(t *testing.T) {
	t.Parallel()
	nowhere := env{"WALWAKE_PRIMARY": "host=127.0.0.1 port=1", "WALWAKE_REPLICA": "host=127.0.0.1 port=1"}
	for _, c := range []struct{ args, says string }{
		{"now", "unexpected argument"},
		{"--rate 0", "above 0"},
		{"--rate -1", "above 0"},
		{"--rate NaN", "above 0"},
		{"--rate Inf", "above 0"},
		{"--rate fast", "invalid argument"},
		{"--writers 0", "want 1 to 1000"},
		{"--writers -3", "want 1 to 1000"},
		{"--writers 1001", "want 1 to 1000"},
		{"--writers 1.5", "invalid argument"},
		{"--duration 0", "above 0 with its unit"},
		{"--duration -1s", "above 0 with its unit"},
		{"--duration 30", "above 0 with its unit"},
		{"--timeout 0s", "above 0 with its unit"},
		{"--source tea-leaves", "want auto, physical, logical, waitfor, poll"},
		{"--primary gibberish", "--primary"},
		{"--replica gibberish", "--replica"},
		{"--primary=", "no primary given"},
		{"--replica=", "no replica given"},
	} {
		walwake(t, nowhere, append([]string{"verify"}, strings.Fields(c.args)...)...).is(exitUsage).says(c.says).alone()
	}
	walwake(t, nowhere, "verify").is(exitFailure).says("connection refused").alone()
	help := walwake(t, nil, "verify", "--help").is(exitOK)
	for _, text := range []string{"Examples:", "  walwake verify", "--json", "Usage:", "Exit status: "} {
		if !strings.Contains(help.stdout, text) {
			t.Errorf("no %q in %s", text, help)
		}
	}
}
