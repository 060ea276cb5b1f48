//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

func TestReplayIsHeldBack(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	must(t, c.Primary.Exec(t.Context(), `create table t (n int)`))
	must(t, c.WaitForReplay(t.Context()))

	t.Run("by Pause until Resume", func(t *testing.T) {
		must(t, standby.Pause(t.Context()))
		must(t, c.Primary.Exec(t.Context(), `insert into t values (1)`))
		lsn, err := c.Primary.Position(t.Context())
		must(t, err)
		received(t, standby, lsn)
		if n := value[int](t, standby, `select count(*)::int from t`); n != 0 {
			t.Error("a row that came after Pause is visible")
		}
		must(t, standby.Resume(t.Context()))
		must(t, standby.WaitForReplay(t.Context(), lsn))
		if n := value[int](t, standby, `select count(*)::int from t`); n != 1 {
			t.Error("the row is not visible after Resume")
		}
	})
	t.Run("by Lag until it is 0", func(t *testing.T) {
		must(t, standby.Lag(t.Context(), time.Hour))
		must(t, c.Primary.Exec(t.Context(), `insert into t values (2)`))
		lsn, err := c.Primary.Position(t.Context())
		must(t, err)
		received(t, standby, lsn)
		if n := value[int](t, standby, `select count(*)::int from t`); n != 1 {
			t.Errorf("%d rows are visible in spite of the lag, want 1", n)
		}
		must(t, standby.Lag(t.Context(), 0))
		must(t, standby.WaitForReplay(t.Context(), lsn))
		if n := value[int](t, standby, `select count(*)::int from t`); n != 2 {
			t.Errorf("%d rows are visible without lag, want 2", n)
		}
	})
	t.Run("for as long as Lag says", func(t *testing.T) {
		const lag = 300 * time.Millisecond
		must(t, standby.Lag(t.Context(), lag))
		began := time.Now()
		must(t, c.Primary.Exec(t.Context(), `insert into t values (3)`))
		must(t, c.WaitForReplay(t.Context()))
		if took := time.Since(began); took < lag {
			t.Errorf("replayed after %s, want at least %s", took, lag)
		}
	})
	t.Run("not on a primary and not by less than nothing", func(t *testing.T) {
		if err := c.Primary.Lag(t.Context(), time.Second); err == nil || !strings.Contains(err.Error(), "primary") {
			t.Errorf("a lag on the primary: %v", err)
		}
		for _, d := range []time.Duration{-time.Second, time.Microsecond} {
			if err := standby.Lag(t.Context(), d); err == nil {
				t.Errorf("a lag of %s is no error", d)
			}
		}
		if err := c.Primary.Pause(t.Context()); err == nil {
			t.Error("Pause on the primary is no error")
		}
		if err := c.Primary.WaitStreaming(t.Context()); err == nil {
			t.Error("WaitStreaming on the primary is no error")
		}
	})
	t.Run("and waiting for it ends with the context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := standby.WaitForReplay(ctx, "FFFF/0")
		if err == nil || !strings.Contains(err.Error(), "wait until it has replayed FFFF/0") {
			t.Errorf("got %v", err)
		}
	})
}

// received waits until the WAL up to lsn has reached the standby, replayed or not.
func received(t *testing.T, n *replicationtest.Node, lsn string) {
	t.Helper()
	for !value[bool](t, n, `select pg_last_wal_receive_lsn() >= $1::text::pg_lsn`, lsn) {
	}
}

func TestNodesComeBack(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	must(t, c.Primary.Exec(t.Context(), `create table t (n int)`))
	standby := c.Standbys[0]
	rows := 0
	for _, step := range []struct {
		name string
		end  func(context.Context) error
		node *replicationtest.Node
		says string // in the log of the next start
	}{
		{"Crash of the standby", standby.Crash, standby, "was interrupted while in recovery"},
		{"Kill of the standby", standby.Kill, standby, "was interrupted while in recovery"},
		{"Stop of the standby", standby.Stop, standby, "was shut down in recovery"},
		{"Crash of the primary", c.Primary.Crash, c.Primary, "was interrupted"},
		{"Kill of the primary", c.Primary.Kill, c.Primary, "was interrupted"},
		{"Stop of the primary", c.Primary.Stop, c.Primary, "was shut down"},
	} {
		t.Run(step.name, func(t *testing.T) {
			pid, port := step.node.PID(), step.node.Port()
			must(t, step.end(t.Context()))
			if step.node.PID() != 0 {
				t.Error("it still runs")
			}
			must(t, step.end(t.Context())) // once more is no error
			if err := step.node.Exec(t.Context(), `select`); err == nil {
				t.Error("it still answers")
			}
			before := len(step.node.LogTail(1 << 20))
			must(t, step.node.Start(t.Context()))
			must(t, step.node.Start(t.Context())) // once more is no error
			if log := step.node.LogTail(1 << 20)[before:]; !strings.Contains(log, step.says) {
				t.Errorf("the log has no %q:\n%s", step.says, log)
			}
			if step.node.PID() == pid || step.node.Port() != port {
				t.Errorf("process %d on port %d came back as %d on %d", pid, port, step.node.PID(), step.node.Port())
			}
			must(t, standby.WaitStreaming(t.Context()))
			must(t, c.Primary.Exec(t.Context(), `insert into t values (1)`))
			rows++
			must(t, c.WaitForReplay(t.Context()))
			if got := value[int](t, standby, `select count(*)::int from t`); got != rows {
				t.Errorf("the standby has %d rows, want %d", got, rows)
			}
		})
	}
	must(t, standby.Restart(t.Context()))
	must(t, standby.WaitStreaming(t.Context()))
}

func TestPromotedStandbyLeads(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	leader, other := c.Standbys[0], c.Standbys[1]
	must(t, c.Primary.Stop(t.Context()))
	must(t, leader.Pause(t.Context())) // a promotion ends that

	must(t, leader.Promote(t.Context()))
	must(t, leader.Exec(t.Context(), `create table t as select 42 as n`))
	if got := value[string](t, leader, `select pg_walfile_name(pg_current_wal_lsn())`); !strings.HasPrefix(got, "00000002") {
		t.Errorf("the WAL file %s is not of timeline 2", got)
	}
	must(t, other.Follow(t.Context(), leader))
	lsn, err := leader.Position(t.Context())
	must(t, err)
	must(t, other.WaitForReplay(t.Context(), lsn))
	if got := value[int](t, other, `select n from t`); got != 42 {
		t.Errorf("got %d, want 42", got)
	}
	if err := leader.Promote(t.Context()); err == nil {
		t.Error("a second promotion is no error")
	}
	if err := leader.Follow(t.Context(), other); err == nil {
		t.Error("a primary followed its standby")
	}
	must(t, leader.Restart(t.Context()))
	must(t, leader.Exec(t.Context(), `insert into t values (43)`))
}

func TestStandbysJoinAtAnyTime(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{Standbys: -1})
	must(t, c.Primary.Exec(t.Context(), `create table t (n int)`))
	must(t, c.Primary.Exec(t.Context(), `alter system set work_mem = '7MB'`))

	// Somebody writes all the while.
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := c.Primary.Exec(t.Context(), `insert into t select from generate_series(1, 1000)`); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	defer stop()
	first, err := c.AddStandby(t.Context(), nil)
	must(t, err)
	must(t, first.Lag(t.Context(), time.Millisecond))
	second, err := c.AddStandby(t.Context(), first)
	must(t, err)
	stop()
	must(t, <-written)

	must(t, c.WaitForReplay(t.Context()))
	want := value[int](t, c.Primary, `select count(*)::int from t`)
	if len(c.Standbys) != 2 || c.Standbys[0] != first || c.Standbys[1] != second {
		t.Errorf("Standbys is %v", c.Standbys)
	}
	for _, n := range c.Standbys {
		if got := value[int](t, n, `select count(*)::int from t`); got != want || want == 0 {
			t.Errorf("%s has %d rows, want %d", n.Name(), got, want)
		}
	}
	const query = `select current_setting('work_mem') || ' ' || current_setting('recovery_min_apply_delay')`
	if got := value[string](t, second, query); got != "7MB 0" {
		t.Errorf("the second standby has %s, want what ALTER SYSTEM set without the lag of the first", got)
	}
	if got := value[string](t, first, `select application_name from pg_stat_replication`); got != "standby2" {
		t.Errorf("%s streams from the first standby, want standby2", got)
	}
	must(t, first.Promote(t.Context())) // what streams from it follows
	must(t, first.Exec(t.Context(), `insert into t values (1)`))
	lsn, err := first.Position(t.Context())
	must(t, err)
	must(t, second.WaitForReplay(t.Context(), lsn))
}
