//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childEnv tells a re-executed test binary which part to play, and childDir where.
const (
	childEnv = "REPLICATIONTEST_CHILD"
	childDir = "REPLICATIONTEST_DIR"
)

func TestMain(m *testing.M) {
	if part := os.Getenv(childEnv); part != "" {
		if err := playPart(part); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// playPart starts a cluster and then ends in the way that its parent wants to see cleaned up after. It
// prints "starting" before, and "started" with the process ids after that.
func playPart(part string) error {
	fmt.Println("starting")
	c, err := New(context.Background(), Options{Dir: os.Getenv(childDir), Keep: part == "keeps"})
	if err != nil {
		return err
	}
	fmt.Println("started", c.watchdog.cmd.Process.Pid, c.Primary.PID(), c.Standbys[0].PID())
	switch part {
	case "keeps":
		return c.Close()
	case "panics":
		go panic("as its part demands")
	}
	_, err = io.Copy(io.Discard, os.Stdin) // until the parent ends this process or itself
	return errors.Join(err, c.Close())
}

// child is a test binary that runs for a test.
type child struct {
	cmd *exec.Cmd
	dir string // the parent folder of its cluster
	out *os.File
	in  io.WriteCloser
}

// startChild runs this test binary once more, in a process group of its own.
func startChild(t *testing.T, part string) *child {
	t.Helper()
	dir := folder(t)
	r, w, err := os.Pipe()
	must(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+part, childDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout = w
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, w.Close())
	c := &child{cmd: cmd, dir: dir, out: r, in: in}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = r.Close()
	})
	return c
}

// line reads the next line and wants its first word to be as given. It returns the numbers that follow.
func (c *child) line(t *testing.T, word string) []int {
	t.Helper()
	must(t, c.out.SetReadDeadline(time.Now().Add(2*time.Minute)))
	var text []byte
	for b := make([]byte, 1); ; text = append(text, b...) {
		if _, err := c.out.Read(b); err != nil {
			t.Fatalf("read from the child after %q: %v", text, err)
		}
		if b[0] == '\n' {
			break
		}
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 || fields[0] != word {
		t.Fatalf("the child says %q, want %q", text, word)
	}
	var numbers []int
	for _, f := range fields[1:] {
		n, err := strconv.Atoi(f)
		must(t, err)
		numbers = append(numbers, n)
	}
	return numbers
}

// leavesNothing waits until the folder is empty, the processes are gone and none lives in the folder.
func (c *child) leavesNothing(t *testing.T, pids ...int) {
	t.Helper()
	eventually(t, "the child's folder is empty", func() string {
		left, err := os.ReadDir(c.dir)
		must(t, err)
		if len(left) > 0 {
			return left[0].Name() + " is left"
		}
		return ""
	})
	eventually(t, "the child's processes are gone", func() string {
		for _, pid := range append(pids, processesIn(c.dir)...) {
			if !gone(pid) {
				return fmt.Sprintf("process %d is left", pid)
			}
		}
		return ""
	})
}

// processesIn lists the processes whose working directory is in a folder, also in one that was removed.
// Servers have theirs in their data. Only Linux tells.
func processesIn(dir string) []int {
	var pids []int
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// eventually asks until the answer is empty: nothing is wrong any more.
func eventually(t *testing.T, what string, wrong func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var last string
	if err := poll(ctx, 10*time.Millisecond, what, func(context.Context) (bool, error) {
		last = wrong()
		return last == "", nil
	}); err != nil {
		t.Fatalf("%v: %s", err, last)
	}
}

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
