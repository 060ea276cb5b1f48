//go:build unix

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

func TestWatchThroughASidecarPrintsWhereTheReplicaIs(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	s := serve(t, on(primary, standby), "--name", "db2")
	w := watch(t, env{"WALWAKE_SIDECAR": s.url}) // which knows no server
	w.event("epoch", "the position is known")
	for range 3 {
		lsn := at(t, write(t, primary))
		row := w.state("the write", func(row []string) bool { return reached(row, lsn) && row[colBytes] == "0" })
		if row[colRole] != "standby" || row[colTimeline] != "1" || row[colSource] == "-" || strings.Contains(row[colSource], "sidecar") || row[colUS] != "0" {
			t.Errorf("got %q", row)
		}
	}
	w.interrupted()

	// Without a primary nothing is said of the lag.
	s = serve(t, on(nil, standby))
	w = watch(t, nil, "--sidecar", s.url)
	w.state("a position", func(row []string) bool { return row[colPosition] != "-" && row[colBytes] == "-" && row[colUS] == "-" })
	w.interrupted()
}

func TestWatchThroughASidecarInJSONHasTheFieldsOfStatus(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	s := serve(t, on(primary, standby), "--name", "db2")
	fields, got := map[string]any{}, map[string]any{}
	if err := json.Unmarshal([]byte(walwake(t, on(primary, standby), "status", "--json").is(exitOK).stdout), &fields); err != nil {
		t.Fatal(err)
	}
	w := watch(t, nil, "--sidecar", s.url, "--json")
	line := w.until("a state", func(line string) bool {
		return strings.Contains(line, `"event":"state"`) && strings.Contains(line, `"lag_bytes":0`)
	})
	w.interrupted()
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	for name := range fields {
		if v, there := got[name]; !there || v == nil {
			t.Errorf("%s is %v in %s", name, v, line)
		}
	}
	ladder, _ := got["ladder"].([]any)
	if got["server"] != "db2" || got["sidecar"] != s.url || got["primary"] != "" || len(ladder) != 4 || strings.Contains(line, "sidecar/") {
		t.Errorf("got %s", line)
	}
}

// What the sidecar has seen before somebody watches it is known from the first line on.
func TestWatchThroughASidecarKnowsSinceWhenTheReplicaIsBehind(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	s := serve(t, on(c.Primary, standby), "--primary-interval", "50ms")
	first := watch(t, nil, "--sidecar", s.url)
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, c.Primary)
	const long = 2_000_000 // microseconds
	lags := func(row []string) bool {
		us, err := strconv.Atoi(row[colUS])
		return err == nil && us > long
	}
	first.event("note", "pg_wal_replay_resume")
	first.state("lag", lags)
	first.interrupted()

	second := watch(t, nil, "--sidecar", s.url)
	row := second.state("any lag", func(row []string) bool { return row[colUS] != "-" && row[colUS] != "0" })
	if !lags(row) || row[colBytes] == "0" {
		t.Errorf("the lag begins anew: %q", row)
	}
	second.interrupted()
}

// A sidecar that is killed is an event, and so is the next.
func TestWatchThroughASidecarThatGoesAwayAndReturns(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0", "--primary", primary.DSN())
	w := watch(t, nil, "--sidecar", "http://"+p.address)
	w.state("no lag", func(row []string) bool { return row[colBytes] == "0" })
	p.kill(t)
	w.event("failed", "sidecar: the stream ended")
	row := w.state("the refusal", func(row []string) bool {
		return strings.Contains(strings.Join(row, " "), "sidecar: connection refused")
	})
	if row[colPosition] != "-" || row[colBytes] != "-" || row[colSource] != "-" {
		t.Errorf("while there is no sidecar: got %q", row)
	}
	again := serveProcess(t, standby, "--listen", p.address, "--primary", primary.DSN())
	w.event("epoch", "the position is known")
	lsn := at(t, write(t, primary))
	w.state("the write", func(row []string) bool { return reached(row, lsn) && row[colBytes] == "0" })

	if code, _ := end(t, again.cmd, again.rest, syscall.SIGTERM); code != 143 { // that one says so
		t.Errorf("exit status %d", code)
	}
	w.event("failed", "sidecar: it has ended the stream")
	w.interrupted()
}

// One that is stopped says nothing, and is found out by that.
func TestWatchThroughASidecarThatHangs(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0", "--primary", primary.DSN())
	w := watch(t, nil, "--sidecar", "http://"+p.address)
	w.state("no lag", func(row []string) bool { return row[colBytes] == "0" })
	p.stop(t)
	w.event("failed", "sidecar: the stream has been silent for too long")
	w.state("nothing", func(row []string) bool { return row[colPosition] == "-" })
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.event("epoch", "the position is known")
	w.state("no lag", func(row []string) bool { return row[colBytes] == "0" })
	w.interrupted()
	p.kill(t)
}

// The stream of who came with the token of before goes on, and does not say why the lag is not known any more.
func TestWatchThroughASidecarThatWantsAnotherTokenNow(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	file := filepath.Join(t.TempDir(), "bearer")
	is := func(token string) {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	is("0123456789abcdef")
	s := serve(t, on(primary, standby), "--bearer-file", file)
	w := watch(t, env{"WALWAKE_BEARER": "0123456789abcdef"}, "--sidecar", s.url)
	w.state("no lag", func(row []string) bool { return row[colBytes] == "0" })
	is("0123456789abcdef and more")
	w.event("primary", "sidecar: it wants to see another bearer token: start again with that")
	w.state("no lag that is known", func(row []string) bool { return row[colPosition] != "-" && row[colBytes] == "-" })
	w.interrupted()
}

func TestWatchThroughASidecarShowsAFailover(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	s := serve(t, on(c.Primary, c.Standbys[0]), "--primary-interval", "50ms")
	w := watch(t, nil, "--sidecar", s.url)
	w.state("no lag", func(row []string) bool { return row[colBytes] == "0" })
	if err := c.Primary.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.event("primary", "sidecar: the primary has not answered for longer than 10s")
	w.state("no lag that is known", func(row []string) bool { return row[colPosition] != "-" && row[colBytes] == "-" && row[colUS] == "-" })
	if err := c.Standbys[0].Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.event("timeline", "timeline 2 is replayed, it was 1")
	w.event("role", "it is a primary now, it was a standby")
	w.state("the primary", func(row []string) bool {
		return row[colRole] == "primary" && row[colTimeline] == "2" && row[colBytes] == "0"
	})
	w.interrupted()
}

func TestWatchThroughASidecarOnATerminal(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0", "--primary", c.Primary.DSN(), "--name", "db2")
	s := onTerminal(t, 100, 30, []string{"WALWAKE_PRIMARY=", "WALWAKE_REPLICA=", "WALWAKE_SIDECAR=http://" + p.address}, "watch", "--interval", "100ms")
	s.until("walwake watch  db2 through http://"+p.address, "q leaves", "standby   0/", "lag       none", "primary   at 0/", "poll      in use",
		"physical  ", "epoch: the position is known", "     0 B")

	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, c.Primary)
	s.until("note      replay is paused on the standby", "lag       ", "█")
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.until("lag       none", "note: nothing holds it back any more")

	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.until("replica   its position is not known", "note      the sidecar does not know the position", "poll      was in use")
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.until("standby   0/", "lag       none", "poll      in use")

	p.kill(t)
	s.until("replica   its position is not known", "note      sidecar: connection refused", "failed: sidecar: ", "poll      was in use")
	p = serveProcess(t, standby, "--listen", p.address, "--primary", c.Primary.DSN(), "--name", "db2")
	s.until("standby   0/", "lag       none", "poll      in use")
	s.press("q")
	if code := s.ended(); code != exitOK {
		t.Errorf("got exit status %d: %q", code, s.written())
	}
	p.kill(t)
}

func TestWatchThroughASidecarByTLSAndASocketWithABearerToken(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	cert, key := certificate(t)
	const bearer = "0123456789abcdef0123"
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "bearer"), "unix:"+filepath.Join(dir, "http.sock")
	if err := os.WriteFile(file, []byte(bearer+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sc := serve(t, on(primary, standby), "--listen", socket, "--tls-cert", cert, "--tls-key", key, "--bearer-file", file)
	for _, c := range []struct {
		e    env
		args []string
	}{
		{nil, []string{"--sidecar", socket, "--bearer-file", file}},
		{env{"WALWAKE_BEARER": bearer, "WALWAKE_SIDECAR": socket}, nil},
		{env{"WALWAKE_BEARER": bearer, "WALWAKE_REPLICA": standby.DSN()}, []string{"--sidecar", socket}},
	} {
		w := watch(t, c.e, c.args...)
		w.state("no lag", func(row []string) bool { return row[colBytes] == "0" })
		w.interrupted()
		if strings.Contains(strings.Join(w.seen, "\n"), bearer) {
			t.Error("the token is shown")
		}
	}
	wrong := env{"WALWAKE_BEARER": "wrong" + bearer, "WALWAKE_SIDECAR": socket}
	walwake(t, wrong, "watch").is(exitFailure).says("sidecar "+socket+": it wants to see another bearer token", "--bearer-file").alone().atOnce()

	secure := "https://" + strings.TrimPrefix(sc.url, "http://")
	walwake(t, env{"WALWAKE_BEARER": bearer}, "watch", "--sidecar", secure).is(exitFailure).says("failed to verify certificate").alone().atOnce()
	walwake(t, env{"WALWAKE_BEARER": bearer}, "watch", "--sidecar", sc.url).is(exitFailure).says("with status 400, is no walwake serve: check --sidecar").alone().atOnce()
	s := onTerminal(t, 100, 30, []string{"SSL_CERT_FILE=" + cert, "WALWAKE_BEARER=" + bearer}, "watch", "--sidecar", secure)
	s.until("through "+secure, "lag       none")
	s.press("q")
	if code := s.ended(); code != exitOK {
		t.Errorf("got exit status %d: %q", code, s.written())
	}
}

func TestWatchThroughASidecarSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	for _, c := range []struct {
		env  env
		args string
		code int
		says string
	}{
		{nil, "--sidecar http://127.0.0.1:1 --replica host=h", exitUsage, "--sidecar and --replica: a sidecar has a replica, a primary and sources of its own"},
		{nil, "--sidecar http://127.0.0.1:1 --primary host=h", exitUsage, "--sidecar and --primary"},
		{nil, "--sidecar http://127.0.0.1:1 --source poll", exitUsage, "--sidecar and --source"},
		{nil, "--sidecar http://127.0.0.1:1 --stream", exitUsage, "--sidecar and --stream"},
		{env{"WALWAKE_SIDECAR": "http://127.0.0.1:1", "WALWAKE_REPLICA": "host=h"}, "", exitUsage, "WALWAKE_SIDECAR and WALWAKE_REPLICA are both set"},
		{env{"WALWAKE_SIDECAR": "http://127.0.0.1:1"}, "--replica gibberish", exitUsage, "--replica"},
		{env{"WALWAKE_SIDECAR": "http://127.0.0.1:1"}, "--sidecar=", exitUsage, "no replica given"},
		{nil, "--bearer-file /nowhere/x", exitUsage, "name one in --sidecar"},
		{nil, "--sidecar http://127.0.0.1:1 --bearer-file /nowhere/x", exitUsage, "no such file or directory"},
		{nil, "--sidecar 127.0.0.1:7432", exitUsage, "--sidecar: want http://127.0.0.1:7432"},
		{nil, "--sidecar http://user:" + secret + "@127.0.0.1:7432", exitUsage, "goes into --bearer-file"},
		{nil, "--sidecar http://127.0.0.1:x", exitUsage, "--sidecar: want http://127.0.0.1:7432"},
		{nil, "--sidecar unix:", exitUsage, "--sidecar: want http://127.0.0.1:7432"},
		{env{"WALWAKE_SIDECAR": "ftp://h"}, "", exitUsage, "WALWAKE_SIDECAR: want http://127.0.0.1:7432"},
		{nil, "--sidecar http://127.0.0.1:1", exitFailure, "sidecar http://127.0.0.1:1: connection refused: is walwake serve running there? Check --sidecar"},
		{env{"WALWAKE_SIDECAR": "unix:/nowhere/x"}, "", exitFailure, "no such file or directory: is walwake serve running there? Check WALWAKE_SIDECAR"},
		{nil, "--sidecar " + other.URL, exitFailure, "what answers there, with status 404, is no walwake serve: check --sidecar"},
	} {
		o := walwake(t, c.env, append([]string{"watch"}, strings.Fields(c.args)...)...).is(c.code).says(c.says).alone().atOnce()
		if strings.Contains(o.stderr, secret) || strings.Contains(o.stderr, "token") && !strings.Contains(c.says, "--bearer-file") {
			t.Errorf("the password is shown, or a token spoken of: %s", o)
		}
	}
}
