package page_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// shared is a primary with a standby, for all tests.
var shared = sync.OnceValues(func() (*replicationtest.Cluster, error) {
	c, err := replicationtest.New(context.Background(), replicationtest.Options{})
	if err == nil {
		closeCluster = c.Close
	}
	return c, err
})

var closeCluster = func() error { return nil } // the one that was started

func TestMain(m *testing.M) {
	code := m.Run()
	closeBrowser()
	if err := closeCluster(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if builtDir != "" {
		_ = os.RemoveAll(builtDir)
	}
	os.Exit(code)
}

func cluster(t *testing.T) (primary, standby *replicationtest.Node) {
	t.Helper()
	chromium(t) // before servers are started for nothing
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return c.Primary, c.Standbys[0]
}

// built is the command: the page is looked at beside a process that can be killed and stopped.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "walwake-page-")
	if err != nil {
		return "", err
	}
	builtDir = dir
	path := filepath.Join(dir, "walwake")
	if out, err := osexec.Command("go", "build", "-o", path, "../..").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

var builtDir string // of the command, for TestMain to remove

// running is a "walwake serve".
type running struct {
	t       *testing.T
	address string
	env     []string
	args    []string

	cmd    *osexec.Cmd
	stderr *bufio.Reader
}

// serve runs "walwake serve" beside a replica, on a port that it keeps, until the test ends.
func serve(t *testing.T, primary *replicationtest.Node, replica string, env []string, args ...string) *running {
	t.Helper()
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, address: free.Addr().String(), args: args}
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	r.env = append(os.Environ(), "WALWAKE_REPLICA="+replica, "WALWAKE_LISTEN="+r.address)
	if primary != nil {
		r.env = append(r.env, "WALWAKE_PRIMARY="+primary.DSN())
	}
	r.env = append(r.env, env...)
	r.start()
	t.Cleanup(func() { r.kill() })
	return r
}

// start returns when it listens.
func (r *running) start() {
	r.t.Helper()
	path, err := built()
	if err != nil {
		r.t.Fatal(err)
	}
	r.cmd = osexec.Command(path, append([]string{"serve"}, r.args...)...)
	r.cmd.Env = r.env
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.stderr = bufio.NewReader(stderr)
	for seen := ""; !strings.Contains(seen, `"message":"listening"`); {
		line, err := r.stderr.ReadString('\n')
		if seen += line; err != nil {
			r.t.Fatalf("it ended (%v) after %s", err, seen)
		}
	}
	go func(rest *bufio.Reader) { _, _ = io.Copy(io.Discard, rest) }(r.stderr) // a full pipe would stop it
}

// kill is kill -9.
func (r *running) kill() {
	_ = r.cmd.Process.Kill() // unless it has ended
	_ = r.cmd.Wait()
}

// signal sends a signal to it.
func (r *running) signal(s os.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// waits has somebody wait for what never comes, until the test ends, so that the source that pushes runs.
func (r *running) waits() {
	ctx, stop := context.WithCancel(context.Background())
	var over sync.WaitGroup
	over.Go(func() {
		for ctx.Err() == nil {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.address+"/v1/wait?timeout=60s&token=FFFFFFFF/1", http.NoBody)
			if err != nil {
				r.t.Error(err)
				return
			}
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}
	})
	r.t.Cleanup(func() { stop(); over.Wait() })
}

// write writes on the primary, and returns where that ends.
func write(t *testing.T, primary *replicationtest.Node) tracker.LSN {
	t.Helper()
	if err := primary.Exec(t.Context(), `create table if not exists rows (text text); insert into rows select repeat('x', 100) from generate_series(1, 1000)`); err != nil {
		t.Fatal(err)
	}
	conn, err := primary.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	token, err := replication.Capture(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return token.LSN
}
