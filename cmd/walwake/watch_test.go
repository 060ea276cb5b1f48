package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// watching is a run of watch whose stdout is a pipe.
type watching struct {
	t      *testing.T
	lines  chan string
	stderr *output
	cancel context.CancelCauseFunc
	done   chan int
	seen   []string
}

func watch(t *testing.T, e env, args ...string) *watching {
	t.Helper()
	r, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	w := &watching{t: t, lines: make(chan string), stderr: new(output), cancel: cancel, done: make(chan int, 1)}
	go func() {
		args = append([]string{"watch", "--interval", "50ms"}, args...)
		w.done <- run(ctx, args, stdout, w.stderr, func(name string) string { return e[name] })
		_ = stdout.Close()
	}()
	go func() {
		defer close(w.lines)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			w.lines <- lines.Text()
		}
		_ = r.Close()
	}()
	t.Cleanup(func() {
		cancel(nil)
		for range w.lines {
		}
	})
	return w
}

// until returns the next line that is what is looked for.
func (w *watching) until(what string, is func(line string) bool) string {
	w.t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case line, ok := <-w.lines:
			if !ok {
				w.t.Fatalf("it ended without %s, after\n%s\nstderr: %s", what, strings.Join(w.seen, "\n"), w.stderr)
			}
			w.seen = append(w.seen[max(0, len(w.seen)-50):], line)
			if is(line) {
				return line
			}
		case <-late:
			w.t.Fatalf("no %s after\n%s\nstderr: %s", what, strings.Join(w.seen, "\n"), w.stderr)
		}
	}
}

// interrupted ends it as SIGINT does.
func (w *watching) interrupted() {
	w.t.Helper()
	w.cancel(&interruptedError{os.Interrupt})
	for range w.lines {
	}
	code := <-w.done
	(&outcome{t: w.t, code: code, stderr: w.stderr.String()}).is(130).says("interrupted")
}

// The columns of a line.
const (
	colTime = iota
	colKind
	colRole
	colPosition
	colTimeline
	colSource
	colBytes
	colUS
	colText
)

// row splits a line, and checks that each column is one.
func (w *watching) row(line string) []string {
	w.t.Helper()
	row := strings.Fields(line)
	if len(row) <= colText {
		w.t.Fatalf("want %d columns or more in %q", colText+1, line)
	}
	if _, err := time.Parse(timeColumn, row[colTime]); err != nil {
		w.t.Fatalf("line %q: %v", line, err)
	}
	if row[colPosition] != "-" {
		if _, err := tracker.ParseLSN(row[colPosition]); err != nil {
			w.t.Fatalf("line %q: %v", line, err)
		}
	}
	for _, c := range []int{colTimeline, colBytes, colUS} {
		if _, err := strconv.ParseUint(row[c], 10, 64); err != nil && row[c] != "-" {
			w.t.Fatalf("line %q: column %d: %v", line, c, err)
		}
	}
	return row
}

// state returns the next line of a look that is what is looked for.
func (w *watching) state(what string, is func(row []string) bool) []string {
	w.t.Helper()
	return w.row(w.until(what, func(line string) bool {
		row := w.row(line)
		return row[colKind] == "state" && is(row)
	}))
}

// event returns the next line of an event with a text.
func (w *watching) event(kind, text string) []string {
	w.t.Helper()
	return w.row(w.until(kind+" "+text, func(line string) bool {
		return w.row(line)[colKind] == kind && strings.Contains(line, text)
	}))
}

func at(t *testing.T, token string) tracker.LSN {
	t.Helper()
	tok, err := tracker.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	return tok.LSN
}

func reached(row []string, lsn tracker.LSN) bool {
	at, err := tracker.ParseLSN(row[colPosition])
	return err == nil && at >= lsn
}

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
	for _, text := range []string{"Examples:", "  walwake watch", "--json", "--interval", "--stream", "Usage:"} {
		if !strings.Contains(help.stdout, text) {
			t.Errorf("no %q in %s", text, help)
		}
	}
	for args, want := range map[string]string{"--source": "auto\nphysical\n", "--interval": ":4", "--replica": ":4"} {
		if o := walwake(t, nil, "__complete", "watch", args, "").is(exitOK); !strings.HasPrefix(o.stdout, want) {
			t.Errorf("%s: want %q, got %s", args, want, o)
		}
	}
}
