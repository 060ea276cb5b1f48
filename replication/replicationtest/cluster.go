package replicationtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	startDeadline = 2 * time.Minute // for all that New does once a PostgreSQL was found
	portAttempts  = 5
)

var errUnsupported = errors.New("replicationtest: the kit needs a Unix system: it runs PostgreSQL as child processes")

// Cluster is a primary with its standbys. Its fields are set by New and AddStandby; nobody else changes them.
type Cluster struct {
	Primary  *Node   // the node that started as primary; a promotion does not change it
	Standbys []*Node // in order of their making
	Version  int     // major version of PostgreSQL, such as 18
	Release  string  // its whole version, such as "18.4"
	Bin      string  // the folder of its programs
	Dir      string  // the folder that holds all of the cluster's data

	options  Options
	account  *account
	watchdog *watchdog
	log      *slog.Logger
	password string
	takePort func() (int, error) // a test may give out a port that is taken

	adding sync.Mutex // serialises AddStandby

	mu       sync.Mutex
	nodes    []*Node // guarded by mu
	closed   bool    // guarded by mu
	closeErr error   // guarded by mu
}

// Start starts a cluster for a test and closes it when the test ends, whether it passes, fails or panics.
// When it cannot start, it ends the test with a message that holds the end of the server's log. When the
// test fails, the ends of the logs of all nodes go into the test's log.
func Start(t TB, o Options) *Cluster {
	t.Helper()
	c, err := New(context.Background(), o)
	if err != nil {
		t.Fatalf("%v", err)
		return nil
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.list() {
				t.Logf("the log of %s ends with:\n%s", n.Name(), n.LogTail(20))
			}
		}
		if err := c.Close(); err != nil {
			t.Logf("%v", err)
		}
	})
	return c
}

// New starts a cluster, and gives it out when every standby accepts connections, streams, and has replayed
// what the primary had written by then. It blocks, as a rule for one or two seconds, or for longer when it
// has to fetch PostgreSQL; ctx ends that, and does not matter any more once New has returned. When it
// fails it leaves nothing behind. The caller closes the cluster.
func New(ctx context.Context, o Options) (*Cluster, error) {
	return newCluster(ctx, o, nil)
}

func newCluster(ctx context.Context, o Options, adjust func(*Cluster, *host)) (*Cluster, error) {
	if !supported {
		return nil, errUnsupported
	}
	standbys, err := o.standbyCount()
	if err := errors.Join(err, o.checkSettings()); err != nil {
		return nil, err
	}
	as, err := serverAccount()
	if err != nil {
		return nil, fmt.Errorf("replicationtest: %w", err)
	}
	c := &Cluster{options: o, account: as, log: o.Log, takePort: takePort}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	h := thisHost(as)
	if adjust != nil {
		adjust(c, h)
	}
	found, err := h.find(ctx, o.Version, c.log.Info)
	if err != nil {
		return nil, err
	}
	c.Version, c.Release, c.Bin = found.major, found.text, found.bin

	ctx, cancel := context.WithTimeoutCause(ctx, startDeadline, fmt.Errorf("the cluster did not start within %s", startDeadline))
	defer cancel()
	if err := c.build(ctx, found, standbys); err != nil {
		return nil, errors.Join(fmt.Errorf("replicationtest: %w", err), c.abandon())
	}
	return c, nil
}

// abandon closes what was begun, whatever Options.Keep says.
func (c *Cluster) abandon() error {
	c.options.Keep = false
	return c.Close()
}

// build makes the folder, the primary's data and copies of it, and starts everything.
func (c *Cluster) build(ctx context.Context, found installation, standbys int) error {
	began := time.Now()
	if err := c.makeFolder(ctx); err != nil {
		return err
	}
	var secret [16]byte
	rand.Read(secret[:]) // never fails
	c.password = hex.EncodeToString(secret[:])
	var err error
	if c.Primary, err = c.newNode("primary", nil); err != nil {
		return err
	}
	if err := c.initialise(ctx, found); err != nil {
		return err
	}
	for i := range standbys {
		n, err := c.newNode(fmt.Sprintf("standby%d", i+1), c.Primary)
		if err != nil {
			return err
		}
		// Before its first start the copy is a standby as it stands: it has the same system
		// identifier and ends in a checkpoint of a server that was shut down.
		if err := copyTree(c.Primary.data, n.data, c.account, nil); err != nil {
			return fmt.Errorf("copy the primary's data: %w", err)
		}
		c.Standbys = append(c.Standbys, n)
	}
	if err := c.startAll(ctx); err != nil {
		return err
	}
	c.log.Info("the cluster runs", "version", c.Release, "standbys", standbys, "dir", c.Dir, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// newNode makes a node's folder and finds it a port.
func (c *Cluster) newNode(name string, upstream *Node) (*Node, error) {
	dir := filepath.Join(c.Dir, name)
	n := &Node{cluster: c, name: name, dir: dir, data: filepath.Join(dir, "data"), upstream: upstream}
	if c.isClosed() {
		return nil, errClosed
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for %s: %w", name, err)
	}
	if err := c.account.own(dir); err != nil {
		return nil, fmt.Errorf("give the folder of %s to %s: %w", name, c.account, err)
	}
	if err := n.movePort(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, n)
	return n, nil
}

// startAll starts all nodes at the same time. When a port was taken by somebody else meanwhile, all begin
// again with other ports, since the standbys have the primary's in their configuration.
func (c *Cluster) startAll(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := c.tryAll(ctx)
		if err == nil || attempt == portAttempts || !errors.Is(err, errPortTaken) {
			return err
		}
		c.log.Info("a port was taken meanwhile: trying others")
		for _, n := range c.list() {
			if err := n.end(ctx, immediateShutdown); err != nil {
				return err
			}
			if err := n.movePort(); err != nil {
				return err
			}
		}
	}
}

// movePort gives a node that does not run a new port.
func (n *Node) movePort() error {
	port, err := n.cluster.takePort()
	if err != nil {
		return err
	}
	n.mu.Lock()
	old := n.port
	n.port = port
	n.mu.Unlock()
	freePort(old)
	return nil
}

func (c *Cluster) tryAll(ctx context.Context) error {
	nodes := c.list()
	for _, n := range nodes {
		if err := n.configure(); err != nil {
			return err
		}
	}
	// The first that fails ends the waiting for the others, and its error is the one to tell.
	starting, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.launch(starting); err != nil {
				failed(err)
			}
		})
	}
	wg.Wait()
	if starting.Err() != nil {
		return context.Cause(starting)
	}
	for _, n := range c.Standbys {
		if err := n.WaitStreaming(ctx); err != nil {
			return err
		}
	}
	return c.WaitForReplay(ctx)
}

func (c *Cluster) list() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

func (c *Cluster) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Close stops all servers at once, as by a crash, and removes the cluster's folder; with Options.Keep it
// leaves both and lets go of them. It blocks until that is done. Calls after the first one give its
// result. An operation on a node that runs meanwhile fails.
func (c *Cluster) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.closeErr = c.closeLocked()
	}
	return c.closeErr
}

func (c *Cluster) closeLocked() error {
	if c.watchdog == nil {
		return nil // it came to nothing
	}
	err := c.watchdog.finish(c.options.Keep)
	for _, n := range c.nodes {
		freePort(n.Port())
		if s := n.running(); s != nil && !c.options.Keep {
			if err != nil { // the watchdog failed or was killed
				_ = s.cmd.Process.Kill()
			}
			<-s.exited
		}
	}
	if c.options.Keep {
		return err
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("replicationtest: remove the cluster's folder: %w", err)
	}
	if err != nil {
		return fmt.Errorf("replicationtest: close: %w", err)
	}
	return nil
}
