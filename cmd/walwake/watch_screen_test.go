//go:build unix

package main

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
	"golang.org/x/term"
)

var colours = regexp.MustCompile(`\x1b\[([0-9;]*;)?(3[0-7]|38;[0-9;]*|9[0-7])m`)

func servers(primary, standby *replicationtest.Node) []string {
	return []string{"WALWAKE_PRIMARY=" + primary.DSN(), "WALWAKE_REPLICA=" + standby.DSN()}
}

func TestWatchOnATerminal(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	s := onTerminal(t, 80, 24, servers(c.Primary, standby), "watch", "--interval", "100ms")
	s.until("walwake watch  127.0.0.1:", "q leaves", "standby   0/", "lag       none", "poll      in use", "epoch: the position is known")
	if now, err := term.GetState(int(s.slave.Fd())); err != nil || reflect.DeepEqual(now, s.before) {
		t.Errorf("keys are not read one by one: %v", err)
	}

	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, c.Primary)
	s.until("note      replay is paused on the standby", "lag       ", "█")
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.until("lag       none", "note: nothing holds it back any more")

	for _, width := range []int{40, 200, 20, 80} {
		s.resize(width, 30)
		s.shows(fmt.Sprintf("view of %d columns", width), func(screen string) bool {
			title, rest, _ := strings.Cut(screen, "\n")
			return columnsOf(title) == width && strings.Contains(rest, "standby   0/") && strings.Contains(rest, " ago")
		})
	}
	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.until("replica   its position is not known", "note      connection refused", "failed: ", "poll      was in use")
	if !colours.MatchString(s.written()) {
		t.Error("no colour")
	}
	s.press("q")
	if code := s.ended(); code != exitOK {
		t.Errorf("got exit status %d: %q", code, s.written())
	}
}

func TestWatchLeavesTheTerminalAsItWas(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, c := range []struct {
		name, environ string
		leave         func(s *terminal)
		code          int
		check         func(t *testing.T, raw string)
	}{
		{"ctrl-C", "NO_COLOR=1", func(s *terminal) { s.press("\x03") }, exitOK, func(t *testing.T, raw string) {
			if colour := colours.FindString(raw); colour != "" {
				t.Errorf("NO_COLOR is set: got %q in %q", colour, raw)
			}
			if strings.Contains(raw, "\x1b[7m") {
				t.Errorf("a colour that may not be shown is shown in reverse: %q", raw)
			}
		}},
		{"SIGTERM", "COLORTERM=truecolor", func(s *terminal) { _ = s.cmd.Process.Signal(syscall.SIGTERM) }, 143, func(t *testing.T, raw string) {
			if said, back := strings.Index(raw, "walwake: terminated"), strings.LastIndex(raw, "\x1b[?1049l"); said < back {
				t.Errorf("said at %d, back on the screen at %d: %q", said, back, raw)
			}
		}},
		{"in ASCII", "LC_ALL=C", func(s *terminal) { s.press("q") }, exitOK, func(t *testing.T, raw string) {
			if i := strings.IndexFunc(raw, func(r rune) bool { return r > 126 }); i >= 0 {
				t.Errorf("got %q", raw[i:])
			}
			if strings.Contains(raw, "?\x1b[") || !strings.Contains(raw, "_") {
				t.Errorf("want a chart of _, got %q", raw)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := onTerminal(t, 80, 24, append(servers(primary, standby), c.environ), "watch", "--interval", "100ms", "--log-level", "debug")
			s.until("lag       none", "poll      in use", "     0 B", "     0 s")
			c.leave(s)
			if code := s.ended(); code != c.code {
				t.Errorf("got exit status %d: %q", code, s.written())
			}
			if raw := s.written(); strings.Contains(raw, `"level"`) || strings.Contains(raw, "DBG") {
				t.Errorf("the log is on the screen: %q", raw)
			} else {
				c.check(t, raw)
			}
		})
	}
}

// What cannot be started does not touch the screen, and a terminal that can do nothing has lines.
func TestWatchOnATerminalThatIsNotDrawnOn(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for environ, says := range map[string]string{
		"WALWAKE_REPLICA=host=127.0.0.1 port=1": "walwake: replica 127.0.0.1:1: connection refused",
		"TERM=dumb":                             " state    standby ",
	} {
		s := onTerminal(t, 120, 24, append(servers(primary, standby), environ), "watch")
		s.until(says)
		_ = s.cmd.Process.Signal(os.Interrupt) // which one of them has not waited for
		_ = s.cmd.Wait()
		if raw := s.written(); strings.Contains(raw, "\x1b") {
			t.Errorf("%s: got %q", environ, raw)
		}
	}
}
