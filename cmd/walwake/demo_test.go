package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestTheDemoReadsStaleWithoutWaitingAndNotWithIt(t *testing.T) {
	t.Parallel()
	o := walwake(t, nil, "demo", "--json").is(exitOK)
	a := decode[demoAnswer](o)
	if len(a.Steps) != 4 || a.Postgres == "" || a.Source != "physical" || a.StaleWith != 0 || a.TookMS <= 0 || a.Kept != nil {
		t.Fatalf("got %s", o)
	}
	without := 0
	for i, step := range a.Steps {
		if step.Waiting != (i%2 == 1) || (step.DelayMS > 0) != (i >= 2) || (step.P50US != nil) != step.Waiting || step.Reads == 0 {
			t.Errorf("step %d is %+v", i, step)
		}
		switch {
		case step.Waiting != (step.Source != ""):
			t.Errorf("no source in %+v", step)
		case step.Waiting && step.Stale > 0:
			t.Errorf("stale reads in %+v", step)
		case step.Waiting && step.DelayMS > 0 && *step.P50US < step.DelayMS*500:
			t.Errorf("replay was not held back in %+v", step)
		case !step.Waiting:
			without += step.Stale
		}
	}
	if n := a.Notified; n.Notifications == 0 || n.StaleBare < n.Notifications/2 || n.StaleHeld != 0 || n.DelayMS != 50 {
		t.Errorf("notified: %+v", n)
	}
	without += a.Notified.StaleBare
	if held := a.Steps[2]; held.Stale < held.Reads/2 || without != a.StaleWithout {
		t.Errorf("%d stale reads without waiting, %+v", a.StaleWithout, held)
	}
	if p := a.Paused; !strings.Contains(p.Error, "timeout after") || !strings.Contains(p.Error, "paused") || p.ResumedUS <= 0 || p.Stale {
		t.Errorf("paused: %+v", p)
	}
	if p := a.PageEnd; p.Raw != p.Token.LSN && p.RawError != "" && !strings.Contains(p.RawError, " 40 bytes behind") || p.WaitedUS > 5_000_000 {
		t.Errorf("page end: %+v", p)
	}
	k := a.Killed
	if k.From != "physical" || k.Stale != 0 || k.Sessions < 1 || k.BackUS <= 0 || !strings.Contains(k.Reason, "57P01") ||
		len(k.Changes) < 2 || k.Changes[0].From != "physical" || k.Changes[len(k.Changes)-1].To != "physical" {
		t.Errorf("killed: %+v", k)
	}
	meanwhile := 0
	for _, p := range k.Phases {
		if p.Source != "physical" {
			meanwhile += p.Reads
		}
		if p.Reads == 0 || p.Stale > 0 || p.P50US <= 0 || p.P99US < p.P50US {
			t.Errorf("%+v", p)
		}
	}
	if meanwhile == 0 {
		t.Errorf("no read while the stream was gone: %+v", k)
	}
	table := a.table()
	for _, text := range []string{"REPLAY", "held back by 50 ms, on purpose", "without waiting", "Replay paused", "by a bare LISTEN", "the stream is gone", "it was back after", "SOURCE", "Stale reads: "} {
		if !strings.Contains(table, text) {
			t.Errorf("no %q in %s", text, table)
		}
	}
}

func TestTheDemoKeepsItsServersWhenAsked(t *testing.T) {
	t.Parallel()
	o := walwake(t, nil, "demo", "--json", "--keep").is(exitOK)
	a := decode[demoAnswer](o)
	if a.Kept == nil {
		t.Fatalf("got %s", o)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			if out, err := exec.Command("/bin/sh", "-c", a.Kept.Stop).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", a.Kept.Stop, err, out)
			}
		}
	}
	defer stop()
	password := a.Kept.Primary[strings.Index(a.Kept.Primary, "postgres:")+len("postgres:") : strings.Index(a.Kept.Primary, "@")]
	if strings.Contains(o.stderr, password) || !strings.Contains(a.table(), "export WALWAKE_REPLICA='"+a.Kept.Replica) {
		t.Errorf("got %s", o)
	}
	e := env{"WALWAKE_PRIMARY": a.Kept.Primary, "WALWAKE_REPLICA": a.Kept.Replica}
	token := strings.TrimSpace(walwake(t, e, "token").is(exitOK).stdout)
	walwake(t, e, "wait", token).is(exitOK)
	stop()
	walwake(t, e, "status").is(exitFailure).says("connection refused")
	dir := strings.Trim(a.Kept.Stop[strings.Index(a.Kept.Stop, "rm -rf ")+len("rm -rf "):], "'")
	if _, err := os.Stat(dir); !filepath.IsAbs(dir) || !os.IsNotExist(err) {
		t.Errorf("%s: %v", dir, err)
	}
}

// built is the binary, for what a process alone can show.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "walwake-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "walwake")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", &exec.Error{Name: string(out), Err: err}
	}
	builtDir = dir
	return path, nil
})

var builtDir string // of the binary, for TestMain to remove

// start runs the binary until stderr holds a text.
func start(t testing.TB, tmp, until string, args ...string) (cmd *exec.Cmd, rest *bufio.Reader, seen string) {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // unless it has ended
	rest = bufio.NewReader(stderr)
	for !strings.Contains(seen, until) {
		line, err := rest.ReadString('\n')
		seen += line
		if err != nil {
			t.Fatalf("it ended (%v) after %s", err, seen)
		}
	}
	return cmd, rest, seen
}

// end signals the process, and returns its exit status and what else it wrote to stderr.
func end(t *testing.T, cmd *exec.Cmd, rest *bufio.Reader, s os.Signal) (code int, tail string) {
	t.Helper()
	if err := cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	_, _ = rest.WriteTo(&b) // to the end of the pipe
	_ = cmd.Wait()          // its status is what counts
	return cmd.ProcessState.ExitCode(), b.String()
}

func TestASignalEndsTheDemoAndLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, until string
		signal      syscall.Signal
		code        int
		says        string
		args        []string
	}{
		{"while the servers start", "starting PostgreSQL", syscall.SIGINT, 130, "walwake: interrupted\n", nil},
		{"while it measures", "without waiting", syscall.SIGINT, 130, "walwake: interrupted\n", nil},
		{"while replay is held back", "held back", syscall.SIGTERM, 143, "walwake: terminated\n", nil},
		{"although it was to keep them", "held back", syscall.SIGINT, 130, "walwake: interrupted\n", []string{"--keep"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tmp, err := os.MkdirTemp("", "walwake-signal-") //nolint:usetesting // t.TempDir is closed to the user that servers run as
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(tmp) })
			if err := os.Chmod(tmp, 0o755); err != nil { // servers run as another user than root
				t.Fatal(err)
			}
			cmd, rest, _ := start(t, tmp, c.until, append([]string{"demo"}, c.args...)...)
			code, tail := end(t, cmd, rest, c.signal)
			if code != c.code || !strings.HasSuffix(tail, c.says) {
				t.Errorf("exit status %d, and %s", code, tail)
			}
			if left, err := os.ReadDir(tmp); len(left) > 0 || err != nil {
				t.Errorf("it left %v (%v)", left, err)
			}
			if left := processesIn(t, tmp); len(left) > 0 {
				t.Errorf("it left processes in %v", left)
			}
		})
	}
}

// processesIn lists the folders within dir in which processes run: a server runs in its data's.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Log("processes are not looked for: there is no /proc")
		return nil
	}
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			found = append(found, link+" → "+cwd)
		}
	}
	return found
}

func TestASignalEndsAWait(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	for _, c := range []struct {
		signal syscall.Signal
		code   int
		says   string
	}{{syscall.SIGINT, 130, "walwake: interrupted\n"}, {syscall.SIGTERM, 143, "walwake: terminated\n"}} {
		cmd, rest, _ := start(t, t.TempDir(), `"message":"position"`,
			"wait", "--log-level", "debug", "--timeout", "1h", "--replica", standby.DSN(), "FFFFFFFF/1")
		if code, tail := end(t, cmd, rest, c.signal); code != c.code || tail != c.says {
			t.Errorf("exit status %d, want %d, and %q", code, c.code, tail)
		}
	}
}
