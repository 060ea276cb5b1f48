package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

func TestWatchPrintsWhereTheReplicaIs(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	w := watch(t, named(primary, standby, "watch_lines"))
	w.event("epoch", "the position is known")
	for range 3 {
		lsn := at(t, write(t, primary))
		row := w.state("the write", func(row []string) bool { return reached(row, lsn) && row[colBytes] == "0" })
		if row[colRole] != "standby" || row[colTimeline] != "1" || row[colSource] == "-" || row[colUS] != "0" {
			t.Errorf("got %q", row)
		}
	}
	w.interrupted()
	noSessions(t, "watch_lines", primary, standby)

	// Without a primary nothing is said of the lag.
	w = watch(t, on(nil, standby))
	w.state("a position", func(row []string) bool { return row[colPosition] != "-" && row[colBytes] == "-" && row[colUS] == "-" })
	w.interrupted()

	w = watch(t, on(primary, primary))
	w.state("a primary", func(row []string) bool { return row[colRole] == "primary" && row[colBytes] == "0" })
	w.interrupted()
}

func TestWatchShowsWhatHappensToAReplica(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby, ctx := c.Standbys[0], t.Context()
	w := watch(t, on(c.Primary, standby))
	w.state("no lag", func(row []string) bool { return row[colBytes] == "0" })

	if err := standby.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	lsn := at(t, write(t, c.Primary))
	w.event("note", "pg_wal_replay_resume")
	var late int
	for range 2 { // the longer, the more
		row := w.state("lag", func(row []string) bool {
			us, err := strconv.Atoi(row[colUS])
			return err == nil && us > late
		})
		late, _ = strconv.Atoi(row[colUS])
		if row[colBytes] == "0" || reached(row, lsn) || !strings.Contains(strings.Join(row[colText:], " "), "replay is paused") {
			t.Errorf("got %q", row)
		}
	}
	if err := standby.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	w.event("note", "nothing holds it back any more")
	w.state("the write", func(row []string) bool { return reached(row, lsn) && row[colBytes] == "0" && row[colText] == "-" })

	if err := standby.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	w.event("failed", "")
	row := w.state("the refusal", func(row []string) bool { return strings.Contains(strings.Join(row, " "), "connection refused") })
	if row[colPosition] != "-" || row[colRole] != "-" || row[colBytes] != "-" {
		t.Errorf("while the standby is down: got %q", row)
	}
	if err := standby.Start(ctx); err != nil {
		t.Fatal(err)
	}
	w.event("epoch", "the position is known")
	w.state("the write", func(row []string) bool { return reached(row, lsn) && row[colBytes] == "0" })

	if err := c.Primary.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	w.event("primary", "the primary cannot be asked")
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	w.event("timeline", "timeline 2 is replayed, it was 1")
	w.event("role", "it is a primary now, it was a standby")
	w.state("the primary", func(row []string) bool { return row[colRole] == "primary" && row[colTimeline] == "2" })
	w.interrupted()
}

func TestWatchKeepsTheStreamUp(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	w := watch(t, named(primary, standby, "watch_stream"), "--stream", "--source", "physical")
	w.event("source", "physical is in use, it was poll")
	err := standby.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'watch_stream'`)
	if err != nil {
		t.Fatal(err)
	}
	w.event("source", "poll is in use, it was physical: ")
	w.event("source", "physical is in use, it was poll")
	w.interrupted()
	noSessions(t, "watch_stream", primary, standby)
}

func TestWatchInJSONHasTheFieldsOfStatus(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, e := range []env{on(primary, standby), on(nil, standby)} {
		fields := map[string]any{}
		if err := json.Unmarshal([]byte(walwake(t, e, "status", "--json").is(exitOK).stdout), &fields); err != nil {
			t.Fatal(err)
		}
		w := watch(t, e, "--json")
		line := w.until("a state", func(line string) bool {
			return strings.Contains(line, `"event":"state"`) && (e["WALWAKE_PRIMARY"] == "" || strings.Contains(line, `"lag_bytes":0`))
		})
		w.interrupted()
		got := map[string]any{}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		for name, of := range fields {
			v, there := got[name]
			if !there || fmt.Sprintf("%T", v) != fmt.Sprintf("%T", of) {
				t.Errorf("%s is %v, in status %v", name, v, of)
			}
			delete(got, name)
		}
		var more []string
		for name := range got {
			more = append(more, name)
		}
		slices.Sort(more)
		if want := "[at epochs event failures observations source_changes text]"; fmt.Sprint(more) != want {
			t.Errorf("beside what status has: got %s, want %s", more, want)
		}
		if got["epochs"] != 1.0 || got["failures"] != 0.0 || got["observations"].(float64) < 1 || got["event"] != "state" {
			t.Errorf("got %s", line)
		}
	}
}

func TestWatchSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	nowhere := "host=127.0.0.1 port=1"
	for _, c := range []struct {
		env  env
		args string
		code int
		says string
	}{
		{nil, "", exitUsage, "no replica given"},
		{env{"WALWAKE_REPLICA": nowhere}, "now", exitUsage, "unexpected argument"},
		{env{"WALWAKE_REPLICA": nowhere}, "--interval 1", exitUsage, "above 0 with its unit"},
		{env{"WALWAKE_REPLICA": nowhere}, "--interval 49ms", exitUsage, "--interval 49ms: want 50ms or more"},
		{env{"WALWAKE_REPLICA": nowhere}, "--source tea-leaves", exitUsage, "want auto, physical, logical, waitfor, poll"},
		{env{"WALWAKE_REPLICA": nowhere}, "--primary gibberish", exitUsage, "--primary"},
		{env{"WALWAKE_REPLICA": nowhere}, "", exitFailure, "replica 127.0.0.1:1: connection refused: is PostgreSQL running there? Check host and port in WALWAKE_REPLICA"},
		{env{"WALWAKE_REPLICA": standby.DSN(), "WALWAKE_PRIMARY": nowhere}, "", exitFailure, "primary 127.0.0.1:1"},
		{on(standby, standby), "", exitFailure, "is a standby: name its primary in WALWAKE_PRIMARY"},
		{env{"WALWAKE_REPLICA": strings.Replace(role(standby, plainRole), secret, "wr0ng"+secret, 1)}, "", exitFailure, "check user and password in WALWAKE_REPLICA"},
	} {
		o := walwake(t, c.env, append([]string{"watch"}, strings.Fields(c.args)...)...).is(c.code).says(c.says).alone().atOnce()
		if strings.Contains(o.stderr, secret) {
			t.Errorf("the password is shown: %s", o)
		}
	}
	o := walwake(t, nil, "watch", "--json").is(exitUsage).says("no replica given")
	if a := decode[struct{ Result, Error string }](o); a.Result != "error" || a.Error == "" {
		t.Errorf("got %s", o)
	}
	var stderr output
	code := run(t.Context(), []string{"watch"}, brokenPipe{}, &stderr, func(name string) string { return on(primary, standby)[name] })
	(&outcome{t: t, code: code, stderr: stderr.String()}).is(exitFailure).says("write: no space left on device")
}

// While nobody waits the replica would be asked once in ten seconds.
func TestWatchAsksTheReplicaAtEachLook(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	w := watch(t, on(nil, standby), "--json")
	var first, last float64
	for i := range 21 {
		line := w.until("a state", func(line string) bool { return strings.Contains(line, `"event":"state"`) })
		got := map[string]any{}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		if last = got["observations"].(float64); i == 0 {
			first = last
		}
	}
	if last-first < 10 {
		t.Errorf("%v observations in 20 looks", last-first)
	}
	w.interrupted()
}

func TestWatchOfAnotherClusterSaysSo(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	other := replicationtest.Start(t, replicationtest.Options{Standbys: -1}).Primary
	w := watch(t, on(other, standby))
	w.event("primary", "the primary cannot be asked: it is of another cluster than the replica")
	w.state("a position without lag", func(row []string) bool { return row[colPosition] != "-" && row[colBytes] == "-" })
	w.interrupted()
}

func TestWatchHelpHasExamples(t *testing.T) {
	t.Parallel()
	help := walwake(t, nil, "watch", "--help").is(exitOK)
	for _, text := range []string{"Examples:", "  walwake watch", "--json", "--interval", "--stream", "--sidecar", "--bearer-file", "Usage:"} {
		if !strings.Contains(help.stdout, text) {
			t.Errorf("no %q in %s", text, help)
		}
	}
	for args, want := range map[string]string{"--source": "auto\nphysical\n", "--interval": ":4", "--replica": ":4", "--sidecar": ":4"} {
		if o := walwake(t, nil, "__complete", "watch", args, "").is(exitOK); !strings.HasPrefix(o.stdout, want) {
			t.Errorf("%s: want %q, got %s", args, want, o)
		}
	}
}
