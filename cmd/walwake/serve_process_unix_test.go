//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/sidecar"
)

// process is a sidecar that is a process of its own.
type process struct {
	cmd     *exec.Cmd
	rest    *bufio.Reader
	address string
}

func serveProcess(t *testing.T, replica *replicationtest.Node, args ...string) process {
	t.Helper()
	const listening = `"message":"listening"`
	cmd, rest, seen := start(t, t.TempDir(), listening, append([]string{"serve", "--replica", replica.DSN()}, args...)...)
	return process{cmd, rest, logged(t, seen, "listening", "address")}
}

// kill is kill -9.
func (p process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, p.rest)
	_ = p.cmd.Wait()
}

// isKnown waits until the position is known, or is not.
func isKnown(t *testing.T, tr *tracker.Tracker, want bool) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, known := tr.LastReplay(); known == want {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("after 30 s: want known %t, got %+v", want, tr.State())
		}
	}
}

// row writes a row, and returns its token.
func row(t *testing.T, primary *replicationtest.Node, n int) tracker.Token {
	t.Helper()
	if err := primary.Exec(t.Context(), `insert into rows values ($1)`, n); err != nil {
		t.Fatal(err)
	}
	tok, err := tracker.ParseToken(write(t, primary))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// shows fails unless the standby shows a row.
func shows(t *testing.T, standby *replicationtest.Node, n int) {
	t.Helper()
	conn, err := standby.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var there bool
	if err := conn.QueryRow(t.Context(), `select exists (select from rows where n = $1)`, n).Scan(&there); err != nil || !there {
		t.Errorf("row %d is not there: woken early (%v)", n, err)
	}
}

func rows(t *testing.T) (c *replicationtest.Cluster, primary, standby *replicationtest.Node) {
	t.Helper()
	c = replicationtest.Start(t, replicationtest.Options{})
	if err := c.Primary.Exec(t.Context(), `create table rows (n int)`); err != nil {
		t.Fatal(err)
	}
	return c, c.Primary, c.Standbys[0]
}

// A sidecar that is killed loses no wait in silence: whoever asked over HTTP sees its connection break, a tracker
// knows no position at once, and its waits go on and end when another sidecar says so, not before.
func TestAKilledSidecarLosesNoWait(t *testing.T) {
	t.Parallel()
	_, primary, standby := rows(t)
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0")
	tr := through(t, sidecar.Config{URL: "http://" + p.address})
	for n := range 3 { // as long as it lives
		if err := tr.Wait(t.Context(), row(t, primary, n)); err != nil {
			t.Fatal(err)
		}
		shows(t, standby, n)
	}
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	tok := row(t, primary, 10)
	waits := make(chan error, 1)
	go func() { waits <- tr.Wait(t.Context(), tok) }()
	asked := make(chan error, 1)
	client, err := sidecar.New(sidecar.Config{URL: "http://" + p.address})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
		defer cancel()
		asked <- client.Wait(ctx, tok)
	}()
	under := &serving{t: t, url: "http://" + p.address}
	for began := time.Now(); ; time.Sleep(time.Millisecond) { // both have come
		if _, body := under.get("/v1/position"); strings.Contains(string(body), `"waiting":2`) {
			break
		} else if time.Since(began) > 20*time.Second {
			t.Fatalf("they do not wait: %s", body)
		}
	}
	p.kill(t)
	if err := <-asked; err == nil || errors.Is(err, tracker.ErrTimeout) {
		t.Errorf("a wait over HTTP that broke: got %v", err)
	}
	isKnown(t, tr, false)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	late, is := errors.AsType[*tracker.TimeoutError](tr.Wait(short, tok))
	if !is || late.Known || !strings.Contains(late.Error(), "connection refused") {
		t.Errorf("while there is no sidecar: got %v", late)
	}
	if tr.Replayed(tracker.Token{LSN: 1}) {
		t.Error("a position outlived its sidecar")
	}
	again := serveProcess(t, standby, "--listen", p.address)
	isKnown(t, tr, true)
	select {
	case err := <-waits:
		t.Fatalf("woken while replay is paused: %v", err)
	default:
	}
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	shows(t, standby, 10)
	again.kill(t)
}

// stopped is a sidecar that was followed, and was sent SIGSTOP then.
func stopped(t *testing.T) (primary, standby *replicationtest.Node, p process, tr *tracker.Tracker) {
	t.Helper()
	_, primary, standby = rows(t)
	p = serveProcess(t, standby, "--listen", "127.0.0.1:0")
	tr = through(t, sidecar.Config{URL: "http://" + p.address, Stall: time.Second})
	if err := tr.Wait(t.Context(), row(t, primary, 1)); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return primary, standby, p, tr
}

// One that is stopped says nothing, and its connections stay: that is found out by its silence.
func TestAStoppedSidecarIsFoundOut(t *testing.T) {
	t.Parallel()
	primary, standby, p, tr := stopped(t)
	began := time.Now()
	isKnown(t, tr, false)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if err := tr.State().Failure; err == nil || !strings.Contains(err.Error(), "silent for too long") {
		t.Errorf("got %v", err)
	}
	tok := row(t, primary, 2)
	waits := make(chan error, 1)
	go func() { waits <- tr.Wait(t.Context(), tok) }()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	shows(t, standby, 2)
}

// A standby that crashes comes back lower: what is known through a sidecar ends with it, as what is known directly.
func TestAStandbyThatCrashesBelowASidecar(t *testing.T) {
	t.Parallel()
	_, primary, standby := rows(t)
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0")
	tr := through(t, sidecar.Config{URL: "http://" + p.address})
	if err := tr.Wait(t.Context(), row(t, primary, 1)); err != nil {
		t.Fatal(err)
	}
	before, _ := tr.LastReplay()
	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	isKnown(t, tr, false)
	if err := tr.State().Failure; err != nil {
		t.Errorf("the stream ended: %v", err)
	}
	if note := tr.State().Note; !strings.Contains(note, "sidecar does not know the position") {
		t.Errorf("the note is %q", note)
	}
	tok := row(t, primary, 2)
	waits := make(chan error, 1)
	go func() { waits <- tr.Wait(t.Context(), tok) }()
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	shows(t, standby, 2)
	if after, known := tr.LastReplay(); !known || after.Epoch == before.Epoch {
		t.Errorf("the epoch is as it was: %+v, %+v", before, after)
	}
}

// The history of timelines comes through: after a failover a token of before is judged as by a tracker of its own.
func TestTokensOfOlderTimelinesThroughASidecar(t *testing.T) {
	t.Parallel()
	c, primary, standby := rows(t)
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0")
	tr := through(t, sidecar.Config{URL: "http://" + p.address})
	kept := row(t, primary, 1)
	if err := tr.Wait(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost := row(t, primary, 2)
	if err := primary.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() { waits <- tr.Wait(t.Context(), lost) }()
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; !errors.Is(err, tracker.ErrDiverged) {
		t.Errorf("a lost write: got %v", err)
	}
	if err := tr.Wait(t.Context(), kept); err != nil {
		t.Errorf("a write from before: %v", err)
	}
	client, err := sidecar.New(sidecar.Config{URL: "http://" + p.address})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Wait(t.Context(), kept); err != nil {
		t.Errorf("over HTTP: %v", err)
	}
	if err := client.Wait(t.Context(), lost); !errors.Is(err, tracker.ErrDiverged) {
		t.Errorf("over HTTP: got %v", err)
	}
	next := row(t, standby, 3)
	if err := tr.Wait(t.Context(), next); err != nil || next.Timeline != 2 {
		t.Errorf("a write of after, %+v: %v", next, err)
	}
	other := next
	other.System++
	if err := client.Wait(t.Context(), other); !errors.Is(err, tracker.ErrWrongSystem) {
		t.Errorf("over HTTP: got %v", err)
	}
}

func TestTheFirstSignalAnswersAndTheSecondEnds(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0")
	under := &serving{t: t, url: "http://" + p.address}
	isReady(t, under)
	// A request that does not end keeps the shutdown waiting.
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	status := make(chan int, 1)
	go func() {
		code, _ := under.get("/v1/wait?timeout=1m&token=FFFFFFFF/1")
		status <- code
	}()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, body := under.get("/metrics"); strings.Contains(string(body), "\nwalwake_sidecar_waits 1\n") {
			break
		} else if time.Since(began) > 20*time.Second {
			t.Fatalf("it does not wait: %s", body)
		}
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := <-status; code != http.StatusServiceUnavailable {
		t.Errorf("the wait was answered with %d", code)
	}
	began := time.Now()
	code, _ := end(t, p.cmd, p.rest, syscall.SIGTERM)
	if state, is := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !is || !state.Signaled() && code != 130 || time.Since(began) > 4*time.Second {
		t.Errorf("after %s: exit status %d", time.Since(began), code)
	}

	p = serveProcess(t, standby, "--listen", "127.0.0.1:0")
	if code, tail := end(t, p.cmd, p.rest, syscall.SIGTERM); code != 143 || !strings.Contains(tail, "all that waited were answered") {
		t.Errorf("exit status %d: %s", code, tail)
	}
}

// A tracker comes back to a sidecar that was stopped for so long that an attempt to connect fell into that time.
func TestASidecarThatWasStoppedForLongIsFollowedAgain(t *testing.T) {
	t.Parallel()
	primary, _, p, tr := stopped(t)
	for began := time.Now(); tr.Stats().Failures < 2; time.Sleep(time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("no attempt has failed: %+v", tr.Stats())
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := tr.Wait(t.Context(), row(t, primary, 2)); err != nil {
		t.Error(err)
	}
	p.kill(t)
}
