package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	readyEvery     = 10 * time.Millisecond
	connectTimeout = 5 * time.Second
)

var errPortTaken = errors.New("another program has taken the port")

// server is one run of a node's postmaster, our child process.
type server struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process was waited for
}

// running gives the server's process, nil when there is none.
func (n *Node) running() *server {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server == nil {
		return nil
	}
	select {
	case <-n.server.exited:
		return nil
	default:
		return n.server
	}
}

// Start starts a node that was stopped, crashed or killed, on its old port, and waits until it accepts
// connections; see [Node.WaitStreaming] for more. It is no error when the node runs.
func (n *Node) Start(ctx context.Context) error {
	n.op.Lock()
	defer n.op.Unlock()
	ctx, cancel := bounded(ctx)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := n.launch(ctx)
		if err == nil || attempt == portAttempts || !errors.Is(err, errPortTaken) {
			return err
		}
	}
}

// Stop shuts the server down in order (fast shutdown: sessions are ended, a checkpoint is written) and
// waits for its end. It is no error when the node does not run. A primary first sends all of its WAL to
// those who stream, so one that does not read holds it up until ctx is done.
func (n *Node) Stop(ctx context.Context) error {
	n.op.Lock()
	defer n.op.Unlock()
	return n.end(ctx, fastShutdown)
}

// Crash ends the server at once, without a checkpoint, by an immediate shutdown (SIGQUIT): at the next
// start it recovers from its WAL, and a standby comes back at an older position than it had replayed.
// Sessions see the connection break. It is no error when the node does not run.
func (n *Node) Crash(ctx context.Context) error {
	n.op.Lock()
	defer n.op.Unlock()
	return n.end(ctx, immediateShutdown)
}

// Kill ends the postmaster and all of its children with SIGKILL, as the system does when memory runs out.
// It is no error when the node does not run.
func (n *Node) Kill(ctx context.Context) error {
	n.op.Lock()
	defer n.op.Unlock()
	ctx, cancel := bounded(ctx)
	defer cancel()
	s := n.running()
	if s == nil {
		return nil
	}
	n.cluster.log.Info("killing", "node", n.name)
	if err := killServer(ctx, s.cmd.Process.Pid); err != nil {
		return fmt.Errorf("kill %s: %w", n.name, err)
	}
	return n.await(ctx, s)
}

// Restart is Stop and then Start.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Stop(ctx); err != nil {
		return err
	}
	return n.Start(ctx)
}

// end signals the postmaster and waits for its end.
func (n *Node) end(ctx context.Context, how syscall.Signal) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	s := n.running()
	if s == nil {
		return nil
	}
	n.cluster.log.Info("stopping", "node", n.name, "with", how.String())
	if err := signal(s.cmd.Process.Pid, how); err != nil {
		return fmt.Errorf("stop %s: %w", n.name, err)
	}
	return n.await(ctx, s)
}

func (n *Node) await(ctx context.Context, s *server) error {
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w. Its log ends with:\n%s", n.name, context.Cause(ctx), n.LogTail(10))
	}
}

// launch starts the server unless it runs, and waits until it accepts connections. One that does not
// become ready is stopped again.
func (n *Node) launch(ctx context.Context) error {
	s := n.running()
	if s == nil {
		if n.cluster.isClosed() {
			return errClosed
		}
		var err error
		if s, err = n.spawn(); err != nil {
			return fmt.Errorf("start %s: %w", n.name, err)
		}
	}
	err := n.ready(ctx, s)
	if err == nil {
		n.cluster.log.Info("accepts connections", "node", n.name, "port", n.Port())
		return nil
	}
	tail := n.LogTail(20)
	// When the process has ended and the port is not free, that was the reason.
	if n.running() == nil && !portFree(n.Port()) {
		err = fmt.Errorf("%w: %w", errPortTaken, err)
	}
	err = fmt.Errorf("start %s (PostgreSQL %s, port %d): %w. Its log ends with:\n%s", n.name, n.cluster.Release, n.Port(), err, tail)
	return errors.Join(err, n.end(context.WithoutCancel(ctx), immediateShutdown))
}

// spawn starts the postmaster as a child process.
func (n *Node) spawn() (*server, error) {
	log, err := os.OpenFile(n.logFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := n.cluster
	postgres := filepath.Join(c.Bin, "postgres")
	cmd, err := c.watchdog.start(c.account, n.dir, func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = log, log }, postgres, "-D", n.data)
	if err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		c.watchdog.forget(cmd.Process.Pid)
		close(s.exited)
	}()
	n.mu.Lock()
	n.server = s
	n.mu.Unlock()
	return s, nil
}

// ready waits until the server accepts connections, or fails as soon as it has ended.
func (n *Node) ready(ctx context.Context, s *server) error {
	var last error
	// A port that is somebody else's may accept connections and never answer: the server's end ends that too.
	running, ended := context.WithCancel(ctx)
	defer ended()
	go func() {
		select {
		case <-s.exited:
			ended()
		case <-running.Done():
		}
	}()
	err := poll(ctx, readyEvery, n.name+" accepts connections", func(ctx context.Context) (bool, error) {
		select {
		case <-s.exited:
			return false, fmt.Errorf("the server ended (%s)", s.cmd.ProcessState)
		default:
		}
		attempt, cancel := context.WithTimeout(running, connectTimeout)
		defer cancel()
		var conn *pgx.Conn
		conn, last = n.Connect(attempt)
		if last != nil {
			return false, nil // not yet; the server's end or ctx's ends this
		}
		return true, conn.Close(ctx)
	})
	if err != nil && ctx.Err() != nil && last != nil {
		return fmt.Errorf("%w; the last attempt: %w", err, last)
	}
	return err
}
