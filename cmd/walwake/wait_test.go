package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// write commits something on the primary and returns a token for it, taken with the command.
func write(t *testing.T, primary *replicationtest.Node) string {
	t.Helper()
	if err := primary.Exec(t.Context(), `select pg_logical_emit_message(true, 'test', 'x')`); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(walwake(t, on(primary, nil), "token").is(exitOK).stdout, "\n")
}

func TestATokenIsWaitedFor(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	token := write(t, primary)
	parsed, err := tracker.ParseToken(token)
	if err != nil || parsed.System == 0 || parsed.Timeline != 1 {
		t.Fatalf("%s: %+v, %v", token, parsed, err)
	}
	for _, args := range [][]string{{token}, {token, "--source", "poll"}, {parsed.LSN.String()}, {"--timeout", "20s", token}} {
		args = append([]string{"wait", "--json"}, args...)
		for _, e := range []env{on(nil, standby), on(primary, standby)} {
			a := decode[waitAnswer](walwake(t, e, args...).is(exitOK))
			if a.Result != "replayed" || *a.Target != parsed.LSN || *a.Replayed < parsed.LSN || *a.Timeline != 1 ||
				!slices.Contains(sourceFlag().of, a.Source) || a.Primary || a.WaitedUS <= 0 || a.Error != "" {
				t.Errorf("%q: got %+v", args, a)
			}
		}
	}
	// Nothing comes: the source is the one that then listens.
	for _, source := range []string{"physical", "poll"} {
		o := walwake(t, on(nil, standby), "wait", "--json", "--source", source, "--timeout", "4s", "FFFFFFFF/1").is(exitTimeout)
		if a := decode[waitAnswer](o); a.Source != source {
			t.Errorf("source %s: got %s", source, o)
		}
	}
	o := walwake(t, on(nil, standby), "wait", token).is(exitOK)
	if !strings.HasPrefix(o.stdout, parsed.LSN.String()+" is replayed") || strings.Count(o.stdout, "\n") != 1 || o.stderr != "" {
		t.Errorf("got %s", o)
	}
}

func TestTheTokenCommandSaysWhatIsInTheToken(t *testing.T) {
	t.Parallel()
	primary, _ := cluster(t)
	a := decode[tokenAnswer](walwake(t, on(primary, nil), "token", "--json").is(exitOK))
	if a.Token != (tracker.Token{System: a.System, Timeline: a.Timeline, LSN: a.LSN}) {
		t.Errorf("got %+v", a)
	}
	system, err := replicationtest.Value[int64](t.Context(), primary, `select system_identifier from pg_control_system()`)
	if err != nil || uint64(system) != a.System {
		t.Errorf("system %d, want %d (%v)", a.System, system, err)
	}
}

func TestAPositionAheadOfEverything(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	const far = "FFFFFFFF/1"

	o := walwake(t, on(nil, standby), "wait", "--json", "--timeout", "4s", far).is(exitTimeout).says("timeout after", "bytes behind", "--primary")
	if a := decode[waitAnswer](o); a.Result != "timeout" || a.Replayed == nil || a.Target.String() != far {
		t.Errorf("got %+v", a)
	}
	walwake(t, on(primary, standby), "wait", "--primary=", "--timeout", "4s", far).is(exitTimeout)
	o = walwake(t, on(primary, standby), "wait", "--json", "--timeout", "1h", far).is(exitFailure).says("bytes ahead of all that primary").atOnce()
	if a := decode[waitAnswer](o); a.Result != "error" {
		t.Errorf("got %+v", a)
	}
	token, err := tracker.ParseToken(write(t, primary))
	if err != nil {
		t.Fatal(err)
	}
	token.Timeline = 7
	walwake(t, on(primary, standby), "wait", "--timeout", "1h", token.String()).is(exitFailure).says("the token is of timeline 7").atOnce()
	walwake(t, on(nil, standby), "wait", "--timeout", "4s", token.String()).is(exitTimeout).says("timeline 7", "it is on timeline 1")
}

func TestOnAPrimaryAWaitIsOverAtOnceAndSaysSo(t *testing.T) {
	t.Parallel()
	primary, _ := cluster(t)
	token := write(t, primary)
	o := walwake(t, on(primary, primary), "wait", "--json", token).is(exitOK).notes("is a primary, no replica")
	if a := decode[waitAnswer](o); a.Result != "replayed" || !a.Primary {
		t.Errorf("got %+v", a)
	}
	walwake(t, on(nil, primary), "wait", "--timeout", "4s", "FFFFFFFF/1").is(exitTimeout).notes("is a primary")
}

// After pg_switch_wal() the insert position is behind the header of a page that nobody writes: naively, a wait for it
// hangs until somebody does.
func TestTheEndOfAWALPageIsReachedOnAnIdlePrimary(t *testing.T) {
	primary, standby := cluster(t)
	for try := 1; ; try++ {
		write(t, primary)
		if err := primary.Exec(t.Context(), `select pg_switch_wal()`); err != nil {
			t.Fatal(err)
		}
		raw, err := replicationtest.Value[string](t.Context(), primary, `select pg_current_wal_insert_lsn()::text`)
		if err != nil {
			t.Fatal(err)
		}
		lsn, err := tracker.ParseLSN(raw)
		if err != nil {
			t.Fatal(err)
		}
		token := strings.TrimSpace(walwake(t, on(primary, nil), "token").is(exitOK).stdout)
		for _, e := range []env{on(nil, standby), on(primary, standby)} {
			walwake(t, e, "wait", "--timeout", "1h", token).is(exitOK).atOnce()
			o := walwake(t, e, "wait", "--timeout", "1h", "--json", raw).is(exitOK).atOnce()
			if a := decode[waitAnswer](o); a.WaitedUS > 5_000_000 {
				t.Errorf("got %+v", a)
			}
			if lsn.Normalize(8192, 16<<20) != lsn {
				o.notes("waiting for " + lsn.Normalize(8192, 16<<20).String())
			}
		}
		if lsn.Normalize(8192, 16<<20) != lsn {
			return
		}
		if try == 5 { // the server wrote something itself each time
			t.Fatalf("the insert position %s is not behind a page header", raw)
		}
	}
}

func TestAPausedReplayIsNamed(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	token := write(t, c.Primary)
	walwake(t, on(c.Primary, standby), "wait", "--timeout", "4s", token).is(exitTimeout).says("bytes behind", "replay is paused")

	o := walwake(t, on(c.Primary, standby), "status", "--json", "--timeout", "4s").is(exitOK)
	if a := decode[statusAnswer](o); a.LagBytes == 0 || a.LagUS != nil || a.LagFrom != "" || !strings.Contains(a.Note, "replay is paused") {
		t.Errorf("got %s", o)
	}

	// And who waits goes on when it is resumed.
	stderr := watchFor(`"message":"position"`)
	waited := make(chan *outcome, 1)
	go func() {
		waited <- walwakeUntil(t.Context(), t, on(c.Primary, standby), stderr, "wait", "--log-level", "debug", "--timeout", "1m", token)
	}()
	<-stderr.found
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	(<-waited).is(exitOK)

	if err := standby.Lag(t.Context(), 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	write(t, c.Primary)
	o = walwake(t, on(c.Primary, standby), "status", "--json").is(exitOK)
	if a := decode[statusAnswer](o); a.LagUS == nil {
		t.Errorf("got %s", o)
	}
}

func TestAConnectionThatEndsJustAfterTheWaitIsNoError(t *testing.T) {
	t.Parallel()
	var stdout, stderr output
	w := &waitCommand{app: newApp(&stdout, &stderr, func(string) string { return "" }), start: time.Now()}
	if err := w.tell(t.Context(), waitAnswer{Target: new(tracker.LSN(1))}, nil); err != nil || !strings.HasPrefix(stdout.String(), "0/1 is replayed") {
		t.Errorf("%v: %s", err, stdout.String())
	}
}
