//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication/replicationtest"
)

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// folder makes a folder that the servers' account can enter, unlike that of t.TempDir.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "walwake-test-") //nolint:usetesting // t.TempDir lies in a folder that is root's alone
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// value is the one value that a query returns.
func value[T any](t *testing.T, n *replicationtest.Node, sql string, args ...any) T {
	t.Helper()
	v, err := replicationtest.Value[T](t.Context(), n, sql, args...)
	must(t, err)
	return v
}

func TestStartedClusterReplicates(t *testing.T) {
	t.Parallel()
	began := time.Now()
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	t.Logf("PostgreSQL %s with %d standbys took %s", c.Release, len(c.Standbys), time.Since(began))

	must(t, c.Primary.Exec(t.Context(), `create table t (n int); insert into t values (42)`))
	must(t, c.WaitForReplay(t.Context()))
	for _, n := range c.Standbys {
		if got := value[int](t, n, `select n from t`); got != 42 {
			t.Errorf("%s has %d, want 42", n.Name(), got)
		}
		if !value[bool](t, n, `select pg_is_in_recovery()`) {
			t.Errorf("%s is no standby", n.Name())
		}
	}
	if got := value[int](t, c.Primary, `select current_setting('server_version_num')::int / 10000`); got != c.Version {
		t.Errorf("Version is %d, the server's %d", c.Version, got)
	}
	if got := value[int](t, c.Primary, `select count(*)::int from pg_stat_replication where application_name in ('standby1', 'standby2')`); got != 2 {
		t.Errorf("%d standbys stream under their names, want 2", got)
	}
	t.Run("only with the password and on 127.0.0.1", func(t *testing.T) { refusesOthers(t, c) })
	t.Run("other roles and parameters", func(t *testing.T) { otherRoles(t, c.Primary) })
}

func refusesOthers(t *testing.T, c *replicationtest.Cluster) {
	for _, n := range []*replicationtest.Node{c.Primary, c.Standbys[0]} {
		for _, parameters := range [][]string{nil, {"replication=true"}, {"replication=database"}} {
			conn, err := pgconn.Connect(t.Context(), n.DSNFor("postgres", "guess", "postgres", parameters...))
			var refusal *pgconn.PgError
			if !errors.As(err, &refusal) || refusal.Code != "28P01" {
				t.Errorf("%s with %q and a wrong password: %v", n.Name(), parameters, err)
			}
			if conn != nil {
				must(t, conn.Close(t.Context()))
			}
		}
		config, err := pgx.ParseConfig(n.DSN())
		must(t, err)
		if text := n.LogTail(1 << 20); strings.Contains(text, config.Password) || text == "" {
			t.Errorf("the log of %s is empty or has the password", n.Name())
		}
		if got := value[string](t, n, `select current_setting('listen_addresses') || current_setting('unix_socket_directories')`); got != "127.0.0.1" {
			t.Errorf("%s listens on %q", n.Name(), got)
		}
		if got := value[string](t, n, `select current_setting('primary_conninfo')`); strings.Contains(got, config.Password) {
			t.Errorf("primary_conninfo of %s has the password", n.Name())
		}
	}
}

func otherRoles(t *testing.T, n *replicationtest.Node) {
	must(t, n.Exec(t.Context(), `create role "a/b" login password 'p@ss w:rd%&+'`))
	conn, err := pgx.Connect(t.Context(), n.DSNFor("a/b", "p@ss w:rd%&+", "postgres", "application_name=one & two"))
	must(t, err)
	defer conn.Close(t.Context())
	var got string
	must(t, conn.QueryRow(t.Context(), `select current_user || ' ' || current_setting('application_name')`).Scan(&got))
	if got != "a/b one & two" {
		t.Errorf("got %q", got)
	}
	stream, err := pgconn.Connect(t.Context(), n.DSN("replication=database"))
	must(t, err)
	defer stream.Close(t.Context())
	if _, err := stream.Exec(t.Context(), `IDENTIFY_SYSTEM`).ReadAll(); err != nil {
		t.Error(err)
	}
	if err := n.Exec(t.Context(), `select $1::int / 0`, 1); err == nil || !strings.Contains(err.Error(), "on primary") {
		t.Errorf("a failing statement: %v", err)
	}
}

func TestClustersRunSideBySide(t *testing.T) {
	t.Parallel()
	var clusters [2]*replicationtest.Cluster
	var wg sync.WaitGroup
	for i := range clusters {
		wg.Go(func() {
			c, err := replicationtest.New(t.Context(), replicationtest.Options{Standbys: -1})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { must(t, c.Close()) })
			clusters[i] = c
		})
	}
	wg.Wait()
	a, b := clusters[0], clusters[1]
	if t.Failed() {
		return
	}
	if len(a.Standbys)+len(b.Standbys) != 0 {
		t.Error("there are standbys, none was wanted")
	}
	if a.Dir == b.Dir || a.Primary.Port() == b.Primary.Port() {
		t.Errorf("they share a folder or a port: %s:%d, %s:%d", a.Dir, a.Primary.Port(), b.Dir, b.Primary.Port())
	}
	const system = `select system_identifier from pg_control_system()`
	if value[int64](t, a.Primary, system) == value[int64](t, b.Primary, system) {
		t.Error("they have the same system identifier")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	parent := folder(t)
	c, err := replicationtest.New(t.Context(), replicationtest.Options{Dir: parent})
	must(t, err)
	pids := []int{c.Primary.PID(), c.Standbys[0].PID()}
	segment := segmentOf(t, c.Standbys[0])
	must(t, c.Standbys[0].Kill(t.Context())) // which leaves a segment of shared memory

	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(parent)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("the folder %s is left", left[0].Name())
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is left (%v)", pid, err)
		}
	}
	if text, err := os.ReadFile("/proc/sysvipc/shm"); err == nil && hasSegment(string(text), segment) {
		t.Errorf("the segment %s of shared memory is left", segment)
	}
	if c.Primary.PID() != 0 {
		t.Error("a closed node has a process id")
	}
	ctx := context.WithoutCancel(t.Context())
	if _, err := c.AddStandby(ctx, nil); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("AddStandby after Close: %v", err)
	}
	if err := c.Primary.Start(ctx); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Start after Close: %v", err)
	}
}

// segmentOf is the id of a server's segment of shared memory, from line 7 of its pid file.
func segmentOf(t *testing.T, n *replicationtest.Node) string {
	t.Helper()
	text, err := os.ReadFile(n.Dir() + "/postmaster.pid")
	must(t, err)
	return strings.Fields(strings.Split(string(text), "\n")[6])[1]
}

func hasSegment(list, id string) bool {
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == id {
			return true
		}
	}
	return false
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	t.Parallel()
	// Each of these ends the start at another of its steps.
	for _, after := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 700 * time.Millisecond} {
		parent := folder(t)
		reason := errors.New("the caller has changed his mind")
		ctx, cancel := context.WithTimeoutCause(t.Context(), after, reason)
		c, err := replicationtest.New(ctx, replicationtest.Options{Dir: parent})
		cancel()
		if err == nil {
			must(t, c.Close())
		} else if !errors.Is(err, reason) {
			t.Errorf("after %s: %v", after, err)
		}
		left, err := os.ReadDir(parent)
		must(t, err)
		if len(left) > 0 {
			t.Errorf("after %s: %s is left", after, left[0].Name())
		}
	}
}

// tbThatEnds stands for a test: it notes what Start does with it.
type tbThatEnds struct {
	cleanups []func()
	failed   bool
	said     strings.Builder
}

func (tb *tbThatEnds) Helper()                      {}
func (tb *tbThatEnds) Cleanup(f func())             { tb.cleanups = append(tb.cleanups, f) }
func (tb *tbThatEnds) Failed() bool                 { return tb.failed }
func (tb *tbThatEnds) Logf(f string, args ...any)   { fmt.Fprintf(&tb.said, f, args...) }
func (tb *tbThatEnds) Fatalf(f string, args ...any) { tb.failed = true; tb.Logf(f, args...) }

func TestFailedTestShowsTheLogs(t *testing.T) {
	t.Parallel()
	var tb tbThatEnds
	c := replicationtest.Start(&tb, replicationtest.Options{Standbys: -1})
	if c == nil {
		t.Fatal(tb.said.String())
	}
	tb.failed = true
	tb.cleanups[0]()
	if !strings.Contains(tb.said.String(), "database system is ready to accept connections") {
		t.Errorf("the test's log has no server's log: %q", tb.said.String())
	}
	var refused tbThatEnds
	if c := replicationtest.Start(&refused, replicationtest.Options{Standbys: 99}); c != nil || !refused.failed {
		t.Error("Start did not end the test that cannot have its cluster")
	}
}

func TestPortOfAStoppedNodeThatIsTaken(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{Standbys: -1})
	must(t, c.Primary.Stop(t.Context()))
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Primary.Port())))
	must(t, err)
	if err := c.Primary.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "another program has taken the port") {
		t.Errorf("got %v", err)
	}
	must(t, l.Close())
	must(t, c.Primary.Start(t.Context()))
}
