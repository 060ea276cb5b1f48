package replicationtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// watchdogScript reads from a pipe whose other end this process alone holds. Lines tell which processes
// run; the end of the pipe means that the cluster was closed or that this process is dead, and then
// everything is stopped and the folder removed. So one way of cleaning up serves both, and is tested by both.
//
// A line is "+pid" (runs, and leads a process group), "-pid" (was waited for) or "keep" (leave all as it
// is). A segment of System V shared memory outlives a postmaster that was killed; its id is on line 7 of
// the pid file that stayed.
const watchdogScript = `
trap '' HUP INT QUIT TERM
root=$1 pids=
while read -r line; do
  case $line in
    +*) pids="$pids ${line#+}" ;;
    -*) rest=
        for p in $pids; do [ "$p" = "${line#-}" ] || rest="$rest $p"; done
        pids=$rest ;;
    keep) exit 0 ;;
  esac
done
running() {
  kill -0 "$1" 2>/dev/null || return 1
  [ -r "/proc/$1/stat" ] || return 0
  read -r _ _ state _ <"/proc/$1/stat" || return 1
  [ "$state" != Z ]
}
some_run() {
  for p in $pids; do if running "$p"; then return 0; fi; done
  return 1
}
for p in $pids; do kill -QUIT "$p" 2>/dev/null; done
n=0
while some_run && [ $n -lt 400 ]; do sleep 0.02; n=$((n+1)); done
for p in $pids; do kill -s KILL -- "-$p" 2>/dev/null; done
for f in "$root"/*/data/postmaster.pid; do
  [ -f "$f" ] || continue
  { read -r _; read -r _; read -r _; read -r _; read -r _; read -r _; read -r _ shm; } <"$f"
  case $shm in ''|*[!0-9]*) ;; *) ipcrm -m "$shm" 2>/dev/null ;; esac
done
n=0
while [ -e "$root" ] && [ $n -lt 100 ]; do rm -rf -- "$root" 2>/dev/null || sleep 0.05; n=$((n+1)); done
[ ! -e "$root" ]
`

// shimScript announces its own process id to the watchdog before it becomes the program. It holds the
// pipe until it has done so: there is no moment in which a process runs that the watchdog does not know.
const shimScript = `echo "+$$" >&3; exec 3>&-; exec "$@"`

var errClosed = errors.New("replicationtest: the cluster is closed")

// watchdog is the process that cleans up after this one. Its methods may be called from any goroutine.
type watchdog struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the watchdog was waited for
	err  error         // how it ended; read after done

	mu   sync.Mutex
	pipe *os.File // guarded by mu; nil once it was closed
}

// startWatchdog starts one for the folder root.
func startWatchdog(root string) (*watchdog, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open a pipe for the watchdog: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "walwake-watchdog", root)
	cmd.Dir, cmd.Stdin = "/", r
	(*account)(nil).apply(cmd)
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	d := &watchdog{cmd: cmd, done: make(chan struct{}), pipe: w}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// start runs program under the watchdog's eyes, as the given account, in a session of its own. prepare
// sets what else the command needs. The caller waits for the command and calls forget after that.
func (d *watchdog) start(as *account, dir string, prepare func(*exec.Cmd), program string, args ...string) (*exec.Cmd, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pipe == nil {
		return nil, errClosed
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", shimScript, "sh", program}, args...)...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = dir, serverEnviron(), []*os.File{d.pipe}
	as.apply(cmd)
	prepare(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s as %s: %w", program, as, err)
	}
	return cmd, nil
}

// forget tells that a process was waited for, so that its number is never signalled again.
func (d *watchdog) forget(pid int) { d.tell("-" + strconv.Itoa(pid)) }

func (d *watchdog) tell(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pipe != nil {
		// A line is far shorter than what a pipe takes at once. An error means that the watchdog is
		// dead, which finish reports.
		_, _ = d.pipe.WriteString(line + "\n")
	}
}

// finish closes the pipe and waits until the watchdog has done its work; keep makes it leave everything.
func (d *watchdog) finish(keep bool) error {
	if keep {
		d.tell("keep")
	}
	d.mu.Lock()
	if d.pipe != nil {
		d.pipe.Close()
		d.pipe = nil
	}
	d.mu.Unlock()
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
		return errors.New("the watchdog did not come to an end within 30 s")
	}
	if d.err != nil {
		return fmt.Errorf("the watchdog ended with %w", d.err)
	}
	return nil
}
