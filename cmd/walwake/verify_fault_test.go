package main

import (
	"context"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

func TestVerifyOutlivesACrashOfTheStandby(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	v := verify(t, c.Primary, standby, "--duration", "1h", "--timeout", "1m")
	for range 2 {
		v.wrote()
		if err := standby.Crash(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := standby.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	v.wrote()
	v.stop(&interruptedError{os.Interrupt})
	o := v.stopped().is(130).notes("errors on the way, the first: replica ")
	if a := o.counted("interrupted"); a.Errors == 0 || a.ReadsWith == 0 || a.Timeouts+a.Lost != 0 {
		t.Errorf("got %s", o)
	}
	t.Run("and names the table when the primary is gone", func(t *testing.T) { verifyGone(t, c) })
}

// verifyGone has the primary crash, so that the table cannot be dropped.
func verifyGone(t *testing.T, c *replicationtest.Cluster) {
	v := verify(t, c.Primary, c.Standbys[0], "--duration", "4s")
	v.wrote()
	if err := c.Primary.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := (<-v.ended).is(exitFailure).says("no writer works any more", "connection refused", "in database postgres, run DROP TABLE IF EXISTS ")
	if a := o.counted("errors"); a.Errors == 0 {
		t.Errorf("got %s", o)
	}
	if err := c.Primary.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, sql, _ := strings.Cut(strings.TrimSpace(o.stderr), ", run ")
	if err := c.Primary.Exec(t.Context(), strings.Replace(sql, "IF EXISTS", "", 1)); err != nil {
		t.Error(err)
	}
	noTable(t, c.Primary)
}

func TestVerifyReportsWritesThatAreLost(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	both := on(c.Primary, c.Standbys[0])
	if err := c.Primary.Exec(t.Context(), `create publication everything for all tables`); err != nil {
		t.Fatal(err)
	}
	walwake(t, both, "verify").is(exitFailure).says(`publication "everything"`, "name another database").alone()
	if err := c.Primary.Exec(t.Context(), `drop publication everything`); err != nil {
		t.Fatal(err)
	}

	v := verify(t, c.Primary, c.Standbys[0], "--duration", "4s", "--timeout", "1m")
	v.wrote()
	if err := c.Standbys[0].Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := v.stopped().is(exitLost).says("writes lost, the first: ", "write lost in a failover")
	if a := o.counted("lost"); a.Lost == 0 || a.StaleWithout == 0 || a.Timeouts != 0 {
		t.Errorf("got %s", o)
	}
	walwake(t, both, "verify").is(exitLost).says("name in WALWAKE_REPLICA a server that follows primary").alone()

	_, another := cluster(t)
	o = walwake(t, on(c.Primary, another), "verify", "--json").is(exitLost).says("check WALWAKE_PRIMARY and WALWAKE_REPLICA")
	o.counted("wrong_system")
	walwake(t, on(another, another), "verify").is(exitFailure).says("is a standby").alone()
	noTable(t, c.Primary)
}

func TestVerifyDropsItsTableAfterAnError(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, sql := range []string{`drop table `, `delete from `} {
		v := verify(t, primary, standby, "--duration", "1h", "--writers", "1")
		if err := primary.Exec(t.Context(), sql+v.wrote()); err != nil {
			t.Fatal(err)
		}
		o := v.stopped().is(exitFailure).says("row 1 of", "is gone: leave the table alone")
		if a := o.counted("errors"); a.Writes == 0 || a.Latency == nil {
			t.Errorf("got %s", o)
		}
	}
}

func TestVerifyDropsItsTableAfterASignal(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, c := range []struct {
		signal syscall.Signal
		until  string
		code   int
		says   string
	}{
		{syscall.SIGINT, "writing", 130, "walwake: interrupted\n"},
		{syscall.SIGTERM, "writing", 143, "walwake: terminated\n"},
		{syscall.SIGINT, "table created", 130, "walwake: interrupted\n"},
	} {
		cmd, rest, seen := start(t, t.TempDir(), `"message":"`+c.until+`"`, "verify", "--log-level", "info", "--duration", "1h",
			"--primary", primary.DSN(), "--replica", standby.DSN())
		code, tail := end(t, cmd, rest, c.signal)
		if code != c.code || !strings.HasSuffix(tail, c.says) || !strings.Contains(tail, "table dropped") {
			t.Errorf("exit status %d, want %d, and %q", code, c.code, tail)
		}
		dropped(t, primary, tableIn(seen))
	}
}

func TestVerifyInterruptedTellsWhatItHasCounted(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, more := range []string{"--json", "--json=false"} {
		v := verify(t, primary, standby, "--duration", "1h", more)
		v.wrote()
		v.stop(&interruptedError{os.Interrupt})
		o := v.stopped().is(130).says("interrupted")
		if more == "--json" {
			if a := o.counted("interrupted"); a.Writes < 20 || a.ReadsWith == 0 || a.Latency == nil {
				t.Errorf("got %s", o)
			}
		} else if !strings.Contains(o.stdout, "Stale reads: ") {
			t.Errorf("got %s", o)
		}
	}
}

// Not parallel to other tests: it counts goroutines.
func TestVerifyLeavesNothingRunning(t *testing.T) {
	primary, standby := cluster(t)
	before := runtime.NumGoroutine()
	walwake(t, on(primary, standby), "verify", "--duration", "300ms", "--writers", "2").is(exitOK)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for runtime.NumGoroutine() > before {
		if ctx.Err() != nil {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
		runtime.Gosched()
	}
	for _, n := range []*replicationtest.Node{primary, standby} {
		for value[int64](t, n, `select count(*) from pg_stat_activity where application_name = 'walwake'`) > 0 {
			if ctx.Err() != nil {
				t.Fatalf("sessions left on %s", n.Name())
			}
		}
	}
	noTable(t, primary)
}
