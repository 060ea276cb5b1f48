package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"
)

var failedOften = regexp.MustCompile(`\nwalwake_source_failures_total\{[^}]*\} ([5-9]|[1-9][0-9]+)\n`)

// A replica and a primary that are not there: what is wrong and what to do stand in one line each, and again only after a
// while, though it is tried several times a second.
func TestTheLogSaysOnceWhatIsWrongAndWhatToDo(t *testing.T) {
	t.Parallel()
	const todo = "connection refused: is PostgreSQL running there? Check host and port in "
	e := env{"WALWAKE_REPLICA": "host=127.0.0.1 port=1", "WALWAKE_PRIMARY": "host=127.0.0.1 port=1"}
	debug := serve(t, e, "--log-level", "debug")
	info := serve(t, e)
	for _, s := range []*serving{info, debug} {
		for began := time.Now(); ; time.Sleep(time.Millisecond) {
			_, metrics := s.get("/metrics")
			if failedOften.Match(metrics) && strings.Contains(s.stderr.String(), "primary cannot be asked") {
				break
			}
			if time.Since(began) > 30*time.Second {
				t.Fatalf("it does not fail: %s", metrics)
			}
		}
	}
	replica, primary := 0, 0
	for line := range strings.Lines(info.end().stderr) {
		var l struct{ Level, Message, Err string }
		if json.Unmarshal([]byte(line), &l) != nil {
			continue
		}
		switch {
		case l.Message == "replica cannot be followed: trying again" && l.Level == "warn" && l.Err == todo+"WALWAKE_REPLICA":
			replica++
		case strings.HasPrefix(l.Message, "primary cannot be asked") && l.Err == todo+"WALWAKE_PRIMARY":
			primary++
		case l.Message != "listening" && !strings.HasPrefix(l.Message, "shut down"):
			t.Errorf("it says %s", line)
		}
	}
	if replica < 1 || replica > 2 || primary < 1 || primary > 2 { // two on a machine that takes 10 s for this
		t.Errorf("it says it %d and %d times", replica, primary)
	}
	if log := debug.end().stderr; strings.Contains(log, `\n`) || !strings.Contains(log, "source failed") {
		t.Errorf("got %s", log)
	}
}

func TestWhatRepeatsIsSaidOnceInAWhileWithItsCount(t *testing.T) {
	t.Parallel()
	r, now := repeats{}, time.Now()
	for _, c := range []struct {
		after time.Duration
		text  string
		want  int
	}{
		{0, "a", 1},
		{time.Second, "b", 1},
		{time.Second, "a", 0},
		{time.Second, "b", 0},
		{sayEvery - 4*time.Second, "a", 0},
		{time.Second, "a", 3},
		{time.Second, "a", 0},
		{0, "b", 2},
		{time.Hour, "a", 2},
	} {
		now = now.Add(c.after)
		if n := r.again(c.text, now); n != c.want {
			t.Errorf("%+v: %d", c, n)
		}
	}
	for i := range 10 * maxRepeats {
		r.again(strings.Repeat("x", i), now)
	}
	if len(r) > maxRepeats {
		t.Errorf("it remembers %d", len(r))
	}
}
