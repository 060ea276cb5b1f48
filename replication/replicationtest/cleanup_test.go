//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestNothingOutlivesAProcess(t *testing.T) {
	t.Parallel()
	t.Run("that is killed", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "waits")
		c.line(t, "starting")
		pids := c.line(t, "started")
		must(t, c.cmd.Process.Kill())
		c.leavesNothing(t, pids...)
	})
	t.Run("that panics in another goroutine", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "panics")
		c.line(t, "starting")
		c.leavesNothing(t, c.line(t, "started")...)
	})
	t.Run("that is interrupted from the terminal", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "waits")
		c.line(t, "starting")
		pids := c.line(t, "started")
		must(t, syscall.Kill(-c.cmd.Process.Pid, syscall.SIGINT))
		c.leavesNothing(t, pids...)
	})
	t.Run("that ends in order", func(t *testing.T) {
		t.Parallel()
		c := startChild(t, "waits")
		c.line(t, "starting")
		pids := c.line(t, "started")
		must(t, c.in.Close())
		must(t, c.cmd.Wait())
		c.leavesNothing(t, pids...)
	})
}

func TestNothingOutlivesAProcessThatIsKilledWhileItStarts(t *testing.T) {
	t.Parallel()
	for _, stage := range []string{"*/", "*/primary/data/", "*/primary/data/global/pg_control", "*/standby1/", "*/primary/server.log"} {
		t.Run("when there is "+stage, func(t *testing.T) {
			t.Parallel()
			c := startChild(t, "waits")
			c.line(t, "starting")
			eventually(t, "the start has come so far", func() string {
				if found, _ := filepath.Glob(filepath.Join(c.dir, stage)); len(found) == 0 {
					return "not yet"
				}
				return ""
			})
			must(t, c.cmd.Process.Kill())
			// The folder is empty only once; nothing that still runs may fill it again.
			c.leavesNothing(t)
			c.leavesNothing(t)
		})
	}
}

func TestKeptClusterStays(t *testing.T) {
	t.Parallel()
	c := startChild(t, "keeps")
	c.line(t, "starting")
	pids := c.line(t, "started")
	must(t, c.cmd.Wait())
	watchdog, servers := pids[0], pids[1:]
	eventually(t, "the watchdog has let go", func() string {
		if !gone(watchdog) {
			return "it runs"
		}
		return ""
	})
	for _, pid := range servers {
		if gone(pid) {
			t.Errorf("server %d is gone", pid)
		}
		must(t, signal(pid, immediateShutdown))
	}
	eventually(t, "the servers are gone", func() string {
		if len(processesIn(c.dir)) > 0 {
			return "some run"
		}
		return ""
	})
	if kept, err := filepath.Glob(filepath.Join(c.dir, "*", "primary", "data", "PG_VERSION")); len(kept) != 1 {
		t.Errorf("the folder was not kept (%v)", err)
	}
}

func TestCloseWorksWhenTheWatchdogWasKilled(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	c, err := New(t.Context(), Options{Dir: dir, Standbys: -1})
	must(t, err)
	pid := c.Primary.PID()
	must(t, c.watchdog.cmd.Process.Kill())
	<-c.watchdog.done
	if err := c.Primary.Restart(t.Context()); err == nil {
		t.Error("a server that nobody watches was started")
	}
	if err := c.Close(); err == nil || !strings.Contains(err.Error(), "watchdog") {
		t.Errorf("Close says %v", err)
	}
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) > 0 || !gone(pid) {
		t.Errorf("something is left: %v, process %d", left, pid)
	}
}

func TestPortThatIsTakenMeanwhileIsReplaced(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	taken, err := strconv.Atoi(l.Addr().String()[len("127.0.0.1:"):])
	must(t, err)
	// The primary's port, on which the standby's configuration depends, and that of a standby that joins.
	for _, which := range []int{1, 3} {
		calls := 0
		c, err := newCluster(t.Context(), Options{}, func(c *Cluster, _ *host) {
			c.takePort = func() (int, error) {
				if calls++; calls == which {
					return taken, nil
				}
				return takePort()
			}
		})
		must(t, err)
		if which == 3 {
			_, err = c.AddStandby(t.Context(), nil)
		}
		if c.Primary.Port() == taken || calls <= which {
			t.Errorf("after %d ports the primary has %d", calls, c.Primary.Port())
		}
		must(t, errors.Join(err, c.WaitForReplay(t.Context()), c.Close()))
	}
}

// TestRunsAsAnOrdinaryUser runs two of this package's tests as nobody when this process is root's; else
// this process is what it is about.
func TestRunsAsAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return
	}
	dir := folder(t)
	binary := filepath.Join(dir, "tests")
	copyProgram(t, os.Args[0], binary)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const id = 65534
	must(t, os.Mkdir(filepath.Join(dir, "home"), 0o755))
	must(t, os.Chown(filepath.Join(dir, "home"), id, id))
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.run", "^(TestStartedClusterReplicates|TestCloseLeavesNothing)$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME="+filepath.Join(dir, "home"), "XDG_CACHE_HOME=", "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS: Test") < 2 {
		t.Errorf("%v\n%s", err, out)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, errors.Join(err, out.Chmod(0o755), out.Close()))
}

func TestFoldersThatServersCannotEnterAreRefused(t *testing.T) {
	as, err := serverAccount()
	must(t, err)
	dir := folder(t)
	must(t, os.Chmod(dir, 0))
	c := &Cluster{options: Options{Dir: dir}, account: as}
	err = errors.Join(c.makeFolder(t.Context()), c.Close())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s cannot enter %s", as, dir)) {
		t.Errorf("got %v", err)
	}
}

func TestPortsAreGivenOutOnce(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	defer func() {
		for port := range seen {
			freePort(port)
		}
	}()
	for range 300 {
		port, err := takePort()
		must(t, err)
		if seen[port] || port < firstPort || port >= lastPort {
			t.Fatalf("port %d was given out twice or is out of range", port)
		}
		seen[port] = true
	}
}
