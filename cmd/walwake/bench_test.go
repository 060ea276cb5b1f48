package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walwake/walwake/cmd/walwake/internal/bench"
	"github.com/walwake/walwake/replication/replicationtest"
)

// named gives the sessions of a run a name, to tell them from those of other tests.
func named(primary, standby *replicationtest.Node, name string) env {
	return env{"WALWAKE_PRIMARY": primary.DSN("application_name=" + name), "WALWAKE_REPLICA": standby.DSN("application_name=" + name)}
}

// noSessions waits until none with a name is left on the servers.
func noSessions(t *testing.T, name string, nodes ...*replicationtest.Node) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for _, n := range nodes {
		for {
			left := value[string](t, n, `select coalesce(string_agg(query, '; '), '') from pg_stat_activity where application_name = '`+name+`'`)
			if left == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("sessions left on %s: %s", n.Name(), left)
				break
			}
		}
	}
}

// benching waits until a session with a name runs a query.
func benching(t *testing.T, n *replicationtest.Node, name, query string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !value[bool](t, n, `select exists (select from pg_stat_activity where application_name = '`+name+`' and strpos(query, $$`+query+`$$) > 0)`) {
		if time.Now().After(deadline) {
			t.Fatalf("no session %q runs %s", name, query)
		}
	}
}

// cells checks the figures of a run, and returns its cells by way, rate and waiters.
func cells(t *testing.T, r bench.Result) map[string]bench.Cell {
	t.Helper()
	by := map[string]bench.Cell{}
	for _, c := range r.Cells {
		key := fmt.Sprintf("%s %d %d", c.Way, c.Rate, c.Waiters)
		if _, twice := by[key]; twice {
			t.Errorf("%s is there twice", key)
		}
		points := len(c.Distribution)
		c.Distribution = nil // what is printed is read
		by[key] = c
		switch {
		case c.Missing != "":
			if c.Waits != 0 {
				t.Errorf("%s is missing and has waits: %+v", key, c)
			}
			continue
		case c.Waiters == 0:
			if c.Waits != 0 || c.Mix != nil || c.Reference != "" || c.ClientCPU <= 0 {
				t.Errorf("%s has %+v", key, c)
			}
			continue
		case c.Waits < int64(c.Waiters) || c.Waits%int64(c.Waiters) != 0, c.P50 <= 0, c.P90 < c.P50, c.P99 < c.P90, c.Max < c.P99,
			c.PerSecond <= 0, c.Mix == nil, *c.Mix <= 0, (c.Rate > 0) != (c.Made > 0), points == 0, c.ClientCPU <= 0:
			t.Errorf("%s has %+v", key, c)
		}
		if c.Reference != "" && c.Way != "floor" && (c.P50Ratio <= 0 || c.P99Ratio <= 0 || c.MixRatio <= 0) {
			t.Errorf("%s has no ratios: %+v", key, c)
		}
	}
	return by
}

func TestBenchMeasuresEachWay(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	o := walwake(t, named(primary, standby, "each"), "bench", "--rates", "0,50", "--waiters", "0,1,3", "--rounds", "1", "--slice", "20ms",
		"--ways", "tight-loop,walwake,walwake-poll,floor", "--json").is(exitOK)
	r := decode[bench.Result](o)
	if o.stderr != "" || r.Postgres == "" || r.Machine.Cores < 1 || r.Machine.Go == "" || r.Rounds != 1 || r.SliceMS != 20 || r.Sessions != 100 {
		t.Errorf("got %s", o)
	}
	by := cells(t, r)
	var want []string
	for _, way := range []string{"tight-loop", "walwake", "walwake-poll", "floor"} {
		for _, at := range []string{"0 1", "0 3", "50 1", "50 3"} {
			want = append(want, way+" "+at)
		}
		if way != "tight-loop" { // which is nothing while nobody waits
			want = append(want, way+" 0 0", way+" 50 0")
		}
	}
	if got := slices.Sorted(maps.Keys(by)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("got %q", got)
	}
	for key, c := range by {
		held, most := int64(1), int64(1)
		switch c.Way {
		case "tight-loop":
			held, most = int64(c.Waiters), int64(c.Waiters)
		case "walwake": // a stream comes when it comes
			most = 2
		case "floor":
			held, most = 0, 0
		}
		if c.Waiters == 0 && c.Held >= held && c.Held <= most {
			continue
		}
		if c.Held < held || c.Held > most || (c.Requests > 0) != (c.Way != "floor") || (c.Bytes > 0) != (c.Way != "floor") {
			t.Errorf("%s has %+v", key, c)
		}
		if c.Reference != "tight-loop" || c.Way == "tight-loop" && (c.P50Ratio != 1 || c.P99Ratio != 1 || c.MixRatio != 1) {
			t.Errorf("%s is in relation to %+v", key, c)
		}
		if c.Rate == 50 && (c.Made < 5 || c.Made > 75) {
			t.Errorf("%.1f transactions a second", c.Made)
		}
	}
	noSessions(t, "each", primary, standby)
	noTable(t, primary)
}

func TestBenchTellsPeopleOfEachWay(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	o := walwake(t, on(primary, standby), "bench", "--rates", "0", "--waiters", "1", "--rounds", "1", "--slice", "10ms").is(exitOK)
	version := value[int](t, standby, `select current_setting('server_version_num')::int / 10000`)
	for _, way := range bench.Ways() {
		since := map[string]int{"walwake-logical": 16, "walwake-waitfor": 19, "wait-for-lsn": 19}[way]
		want := 1
		if since > version {
			want = 0
		}
		if n := strings.Count(o.stdout, "\n"+way+" "); n != want {
			t.Errorf("%s is there %d times, not %d: %s", way, n, want, o)
		}
	}
	for _, text := range []string{"PostgreSQL ", "WAY ", "p50", "1 waiting for each write"} {
		if !strings.Contains(o.stdout, text) || o.stderr != "" {
			t.Errorf("no %q in %s", text, o)
		}
	}
}

func TestBenchShowsItsProgressOnATerminalAlone(t *testing.T) {
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
		root.SetArgs([]string{"bench", "--rates", "0", "--waiters", "1", "--rounds", "2", "--slice", "1ms", "--ways", "floor,tight-loop", c.more})
		if code := a.finish(t.Context(), root.ExecuteContext(t.Context())); code != exitOK {
			t.Fatalf("exit status %d: %s", code, stderr.String())
		}
		seen := stderr.String()
		if c.shown != strings.Contains(seen, "0 tx/s, 1 waiting, floor") || c.shown != strings.Contains(seen, "75%") {
			t.Errorf("%+v: got %q", c, seen)
		}
		if lines := strings.Split(seen, "\r"); strings.TrimSpace(lines[len(lines)-1]) != "" {
			t.Errorf("%+v: the bar is not wiped away: %q", c, seen)
		}
	}
}

func TestBenchHasABackgroundOfFewTransactions(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	o := walwake(t, named(primary, standby, "few"), "bench", "--rates", "1", "--waiters", "1", "--rounds", "1", "--slice", "10ms", "--ways", "floor", "--json").is(exitOK)
	cells(t, decode[bench.Result](o))
	noSessions(t, "few", primary, standby)
}

func TestBenchShowsWhatIsNotPossibleAsMissing(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	// It sees the timeline, as a stream does too, which it may not open.
	if err := primary.Exec(t.Context(), `create role watcher login password '`+secret+`'; grant pg_read_all_stats to watcher`); err != nil {
		t.Fatal(err)
	}
	defer dropRole(t, primary, "watcher")
	lsn, err := primary.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := standby.WaitForReplay(t.Context(), lsn); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"bench", "--rates", "0", "--waiters", "1", "--rounds", "2", "--slice", "10ms", "--ways", "walwake,walwake-physical,tight-loop", "--json",
		"--primary", role(primary, plainRole), "--replica",
	}
	o := walwake(t, nil, append(args, role(standby, "watcher"))...).is(exitOK)
	c := cells(t, decode[bench.Result](o))["walwake-physical 0 1"]
	if !strings.HasPrefix(c.Missing, "physical is not possible here: ") || strings.Contains(o.String(), secret) {
		t.Errorf("got %s", o)
	}
	o = walwake(t, nil, append(args, role(standby, streamRole))...).is(exitOK)
	if c := cells(t, decode[bench.Result](o))["walwake-physical 0 1"]; c.Missing != "" || c.Held < 1 || c.Held > 2 {
		t.Errorf("got %s", o)
	}
}

// dropRole drops a role once none of its sessions is left.
func dropRole(t *testing.T, primary *replicationtest.Node, name string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := primary.Exec(t.Context(), `drop role `+name)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
	}
}

func TestBenchSaysWhichServerItCannotUse(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	dead := "host=" + strings.ReplaceAll(closed, ":", " port=") + " user=u password=" + secret
	svg := filepath.Join(t.TempDir(), "x.svg")
	for _, c := range []struct {
		name, primary, replica string
		says                   []string
	}{
		{"no primary", dead, standby.DSN(), []string{"primary " + closed + ": connection refused", "is PostgreSQL running there?"}},
		{"no replica", primary.DSN(), dead, []string{"replica " + closed + ": connection refused", "is PostgreSQL running there?"}},
		{"a password of the primary", primary.DSNFor("postgres", secret, "postgres"), standby.DSN(), []string{"primary ", "28P01", "check user and password in --primary"}},
		{"a password of the replica", primary.DSN(), standby.DSNFor("postgres", secret, "postgres"), []string{"replica ", "28P01", "check user and password in --replica"}},
		{"the replica is the primary", primary.DSN(), primary.DSN(), []string{"replica ", "is a primary"}},
		{"the primary is the replica", standby.DSN(), standby.DSN(), []string{"primary ", "is a standby"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, more := range []string{"--json=false", "--json"} {
				o := walwake(t, nil, "bench", "--rates", "50", "--waiters", "1", "--rounds", "1", "--slice", "10ms", "--ways", "tight-loop", more,
					"--primary", c.primary, "--replica", c.replica, "--svg", svg).is(exitFailure).says(c.says...).atOnce()
				if more != "--json" {
					o.alone()
				}
				if strings.Contains(o.String(), secret) {
					t.Errorf("the password is shown: %s", o)
				}
			}
		})
	}
}

func TestBenchSaysInOneLineThatItsBackgroundIsRefused(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	// Too few for the background's, beside bench's own.
	if err := primary.Exec(t.Context(), `create role lonely login password '`+secret+`' connection limit 4`); err != nil {
		t.Fatal(err)
	}
	defer dropRole(t, primary, "lonely")
	o := walwake(t, nil, "bench", "--rates", "50", "--waiters", "1", "--rounds", "1", "--slice", "1h", "--ways", "floor",
		"--primary", role(primary, "lonely"), "--replica", standby.DSN()).
		is(exitFailure).says("background of 50", `too many connections for role "lonely"`).alone().atOnce()
	if strings.Contains(o.String(), secret) {
		t.Errorf("the password is shown: %s", o)
	}
}

func TestASignalEndsBenchAndLeavesNothing(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, c := range []struct {
		way, query string
		signal     syscall.Signal
		code       int
		says       string
	}{
		{"tight-loop", "SELECT pg_last_wal_replay_lsn() >= ", syscall.SIGINT, 130, "interrupted"},
		{"server-loop-50ms", "LOOP PERFORM pg_sleep", syscall.SIGTERM, 143, "terminated"},
	} {
		t.Run(c.way, func(t *testing.T) {
			t.Parallel()
			ctx, stop := context.WithCancelCause(t.Context())
			ended := make(chan *outcome, 1)
			go func() {
				ended <- walwakeUntil(ctx, t, named(primary, standby, c.way), new(output), "bench", "--rates", "20", "--waiters", "3", "--slice", "1h", "--ways", c.way)
			}()
			benching(t, standby, c.way, c.query)
			stopped := time.Now()
			stop(&interruptedError{c.signal})
			o := (<-ended).is(c.code).says(c.says).alone()
			if took := time.Since(stopped); took > 10*time.Second {
				t.Errorf("it took %s: %s", took, o)
			}
			noSessions(t, c.way, primary, standby)
			noTable(t, primary)
		})
	}
}

// Where replay stands still, a session that loops on the server does so until it is told to end.
func TestASignalEndsBenchWhileNothingIsReplayed(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	for way, query := range map[string]string{"tight-loop": "SELECT pg_last_wal_replay_lsn() >= ", "server-loop-50ms": "LOOP PERFORM pg_sleep"} {
		cmd, rest, _ := start(t, t.TempDir(), "", "bench", "--rates", "20", "--waiters", "2", "--slice", "1h", "--ways", way,
			"--primary", c.Primary.DSN(), "--replica", standby.DSN())
		benching(t, standby, "walwake bench", query)
		if err := standby.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if code, tail := end(t, cmd, rest, syscall.SIGINT); code != 130 || tail != "walwake: interrupted\n" {
			t.Errorf("%s: exit status %d, and %q", way, code, tail)
		}
		noSessions(t, "walwake bench", standby, c.Primary)
		if err := standby.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBenchStartsServersOfItsOwnAndDrawsAPicture(t *testing.T) {
	t.Parallel()
	svg := filepath.Join(t.TempDir(), "x.svg")
	args := []string{"bench", "--rates", "0,100", "--waiters", "1", "--rounds", "1", "--slice", "1ms", "--json", "--svg", svg, "--ways"}
	c, err := shared() // of the same version
	if err != nil {
		t.Fatal(err)
	}
	ways := "poll-1ms,walwake-physical,walwake-logical,floor"
	if c.Version < 16 {
		walwake(t, nil, append(args, ways)...).is(exitFailure).says("walwake-logical needs PostgreSQL 16")
		ways = "poll-1ms,walwake-physical,floor"
	}
	o := walwake(t, nil, append(args, ways)...).is(exitOK)
	if o.stderr != "· starting PostgreSQL: a primary and a standby on 127.0.0.1\n" {
		t.Errorf("got %s", o)
	}
	for key, c := range cells(t, decode[bench.Result](o)) {
		if c.Missing != "" || c.ServerCPU <= 0 && c.Way != "floor" {
			t.Errorf("%s has %+v", key, c)
		}
	}
	f, err := os.Open(svg)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	elements := 0
	for d := xml.NewDecoder(f); ; elements++ {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if elements < 100 {
		t.Errorf("the picture has %d elements", elements)
	}
}

func TestBenchKeepsAPictureUntilThereIsAnother(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	dir := t.TempDir()
	svg, fresh := filepath.Join(dir, "x.svg"), filepath.Join(dir, "fresh.svg")
	const before = "the picture of the last run"
	if err := os.WriteFile(svg, []byte(strings.Repeat(before, 10_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	is := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(svg); err != nil || strings.ReplaceAll(string(got), before, "") != want {
			t.Errorf("%v, %d bytes: %.100s", err, len(got), got)
		}
	}
	ownServers := env{"WALWAKE_PRIMARY": "host=127.0.0.1 port=1", "WALWAKE_REPLICA": "host=127.0.0.1 port=1"}
	for _, file := range []string{svg, fresh} {
		walwake(t, ownServers, "bench", "--svg", file).is(exitFailure).alone()
		walwake(t, ownServers, "bench", "--svg", file, "--pg", "18").is(exitUsage).alone()
	}
	is("")
	if _, err := os.Stat(fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a run that failed left an empty picture: %v", err)
	}
	args := []string{"bench", "--rates", "0", "--waiters", "1", "--rounds", "1", "--slice", "1ms", "--svg", svg}
	walwake(t, on(primary, standby), append(args, "--ways", "floor")...).is(exitFailure).says("nothing to draw")
	is("")
	walwake(t, on(primary, standby), append(args, "--ways", "tight-loop")...).is(exitOK)
	got, err := os.ReadFile(svg)
	if err != nil || strings.Contains(string(got), before) || !strings.HasSuffix(string(got), "</svg>\n") {
		t.Errorf("%v, %d bytes", err, len(got))
	}
}
