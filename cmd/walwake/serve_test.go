package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/tracker"
	client "github.com/walwake/walwake/tracker/sidecar"
)

// serving is a sidecar that runs in this process.
type serving struct {
	t      *testing.T
	url    string
	stop   context.CancelCauseFunc
	ended  <-chan *outcome
	stderr *output
}

// serve runs "walwake serve" on a port of its own until the test ends.
func serve(t *testing.T, e env, args ...string) *serving {
	t.Helper()
	ctx, stop := context.WithCancelCause(context.Background())
	stderr := watchFor(`"message":"listening"`)
	ended := make(chan *outcome, 1)
	go func() {
		ended <- walwakeUntil(ctx, t, e, stderr, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	}()
	select {
	case <-stderr.found:
	case o := <-ended:
		stop(nil)
		t.Fatalf("it ended: %s", o)
	}
	s := &serving{t: t, stop: stop, ended: ended, stderr: stderr, url: "http://" + logged(t, stderr.String(), "listening", "address")}
	t.Cleanup(func() { s.end() })
	return s
}

// logged is a field of the line of the log with a message.
func logged(t testing.TB, log, message, field string) string {
	t.Helper()
	for line := range strings.Lines(log) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["message"] == message {
			if text, is := fields[field].(string); is {
				return text
			}
		}
	}
	t.Fatalf("no %s with %s in %s", message, field, log)
	return ""
}

// end interrupts it.
func (s *serving) end() *outcome {
	s.stop(&interruptedError{syscall.SIGTERM})
	o := <-s.ended
	s.ended = closedOutcome(o)
	return o
}

func closedOutcome(o *outcome) <-chan *outcome {
	c := make(chan *outcome, 1)
	c <- o
	return c
}

// get returns status and body of an answer.
func (s *serving) get(path string) (status int, body []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, body
}

// got decodes an answer of a status.
func got[T any](s *serving, path string, status int) T {
	s.t.Helper()
	var v T
	is, body := s.get(path)
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil || is != status {
		s.t.Fatalf("%s: want status %d, got %d (%v): %s", path, status, is, err, body)
	}
	return v
}

func TestServeAnswersBesideAReplica(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	s := serve(t, on(primary, standby))
	token := write(t, primary)
	parsed, err := tracker.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{token, parsed.LSN.String()} {
		a := got[sidecar.WaitAnswer](s, "/v1/wait?timeout=30s&token="+target, http.StatusOK)
		if a.Result != "replayed" || a.Target != parsed.LSN || a.Replayed == nil || *a.Replayed < parsed.LSN || *a.Timeline != 1 || a.Primary {
			t.Errorf("got %+v", a)
		}
	}
	p := got[sidecar.Position](s, "/v1/position", http.StatusOK)
	if !p.Known || *p.Role != "standby" || *p.Position < parsed.LSN || *p.Timeline != 1 || *p.System == "" || p.Token.LSN != *p.Position ||
		p.Server != net.JoinHostPort("127.0.0.1", strconv.Itoa(standby.Port())) || p.Source == "" || len(p.Ladder) != 4 || *p.AgeUS < 0 || time.Since(*p.ObservedAt) > time.Minute {
		t.Errorf("got %+v", p)
	}
	if o := s.end(); o.code != 143 || strings.Contains(o.stderr, secret) {
		t.Errorf("got %s", o)
	}
}

// through follows a sidecar until the test ends.
func through(t testing.TB, cfg client.Config) *tracker.Tracker {
	t.Helper()
	source, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source, Name: "worker", Timeout: time.Minute, RetryMax: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(context.Background()) }()
	t.Cleanup(func() {
		tr.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return tr
}

// isReady waits until the position is known.
func isReady(t *testing.T, s *serving) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		status, body := s.get("/readyz")
		if status == http.StatusOK {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("not ready after 30 s: %s", body)
		}
	}
}

// A balancer that asks for a lag is not told that it is unknown while the primary is asked as seldom as was said.
func TestTheLagIsKnownHoweverSeldomThePrimaryIsAsked(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	s := serve(t, on(primary, standby), "--primary-interval", "30s")
	isReady(t, s)
	var asked sidecar.Lag
	for asked.PrimaryAgeUS == nil {
		asked = got[sidecar.Position](s, "/v1/position", http.StatusOK).Lag
	}
	for age := time.Duration(0); age < 10500*time.Millisecond; time.Sleep(50 * time.Millisecond) {
		a := got[sidecar.ReadyAnswer](s, "/readyz?max_lag=1GB", http.StatusOK)
		age = time.Duration(*a.Lag.PrimaryAgeUS) * time.Microsecond
	}
}
