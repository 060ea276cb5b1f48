package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

// The roles of the shared cluster. Their password must never be seen in what the command prints.
const (
	plainRole  = "app"      // LOGIN
	streamRole = "streamer" // LOGIN and REPLICATION
	secret     = "s3cr3tpw"
)

// shared is a primary with a standby, for the tests that leave both as they are.
var shared = sync.OnceValues(func() (*replicationtest.Cluster, error) {
	ctx := context.Background()
	c, err := replicationtest.New(ctx, replicationtest.Options{})
	if err != nil {
		return nil, err
	}
	toClose = c
	err = c.Primary.Exec(ctx, fmt.Sprintf(`create role %s login password '%s'; create role %s login replication password '%[2]s'`,
		plainRole, secret, streamRole))
	if err != nil {
		return nil, err
	}
	return c, c.WaitForReplay(ctx)
})

var toClose *replicationtest.Cluster // the shared one, once it was started

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "bench-load" {
		main() // the background of bench is a process of os.Executable(), which is this
	}
	code := m.Run()
	if toClose != nil {
		if err := toClose.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if builtDir != "" {
		_ = os.RemoveAll(builtDir)
	}
	os.Exit(code)
}

func cluster(t *testing.T) (primary, standby *replicationtest.Node) {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return c.Primary, c.Standbys[0]
}

// role is a connection string of the shared cluster for another role.
func role(n *replicationtest.Node, name string) string { return n.DSNFor(name, secret, "postgres") }

// env is the environment of a run.
type env map[string]string

func on(primary, replica *replicationtest.Node) env {
	e := env{}
	if primary != nil {
		e["WALWAKE_PRIMARY"] = primary.DSN()
	}
	if replica != nil {
		e["WALWAKE_REPLICA"] = replica.DSN()
	}
	return e
}

// outcome is what a run left.
type outcome struct {
	t      *testing.T
	code   int
	stdout string
	stderr string
	took   time.Duration
}

// walwake runs the command in this process.
func walwake(t *testing.T, e env, args ...string) *outcome {
	t.Helper()
	return walwakeUntil(t.Context(), t, e, new(output), args...)
}

func walwakeUntil(ctx context.Context, t *testing.T, e env, stderr *output, args ...string) *outcome {
	t.Helper()
	var stdout bytes.Buffer
	start := time.Now()
	code := run(ctx, args, &stdout, stderr, func(name string) string { return e[name] })
	return &outcome{t, code, stdout.String(), stderr.String(), time.Since(start)}
}

func (o *outcome) String() string {
	return fmt.Sprintf("exit status %d after %s\nstdout: %s\nstderr: %s", o.code, o.took, o.stdout, o.stderr)
}

// is checks the exit status.
func (o *outcome) is(code int) *outcome {
	o.t.Helper()
	if o.code != code {
		o.t.Fatalf("want exit status %d, got %s", code, o)
	}
	return o
}

// says checks that stderr ends in one line that is the error and holds all texts.
func (o *outcome) says(texts ...string) *outcome {
	o.t.Helper()
	lines := strings.Split(strings.TrimSuffix(o.stderr, "\n"), "\n")
	last, ok := strings.CutPrefix(lines[len(lines)-1], "walwake: ")
	for _, text := range texts {
		ok = ok && strings.Contains(last, text)
	}
	if !ok || strings.HasPrefix(last, "note:") {
		o.t.Fatalf("want an error with %q in one line, got %s", texts, o)
	}
	return o
}

// alone checks that nothing but the error was written.
func (o *outcome) alone() *outcome {
	o.t.Helper()
	if o.stdout != "" || strings.Count(o.stderr, "\n") != 1 {
		o.t.Fatalf("want one line on stderr, got %s", o)
	}
	return o
}

// notes checks that stderr has a note with a text.
func (o *outcome) notes(text string) *outcome {
	o.t.Helper()
	for line := range strings.Lines(o.stderr) {
		if strings.HasPrefix(line, "walwake: note: ") && strings.Contains(line, text) {
			return o
		}
	}
	o.t.Fatalf("want a note with %q, got %s", text, o)
	return o
}

// atOnce checks that it did not wait for a timeout that is many minutes.
func (o *outcome) atOnce() *outcome {
	o.t.Helper()
	if o.took > 30*time.Second {
		o.t.Fatalf("want it at once, got %s", o)
	}
	return o
}

// decode reads the one JSON object on stdout.
func decode[T any](o *outcome) T {
	o.t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(o.stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil || strings.Count(o.stdout, "\n") != 1 {
		o.t.Fatalf("want one JSON object on stdout (%v), got %s", err, o)
	}
	return v
}

// output collects what is written, and tells when it holds a text.
type output struct {
	mu    sync.Mutex
	b     bytes.Buffer // guarded by mu
	want  string       // guarded by mu
	found chan struct{}
}

// watchFor returns an output whose found is closed when it holds text.
func watchFor(text string) *output { return &output{want: text, found: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Write(p)
	if o.want != "" && strings.Contains(o.b.String(), o.want) {
		o.want = ""
		close(o.found)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
