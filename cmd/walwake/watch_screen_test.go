package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/gdamore/tcell/v3/vt"
	"golang.org/x/term"

	"github.com/walwake/walwake/replication/replicationtest"
)

// terminal is a pseudo terminal, and an emulator that shows what is written to it.
type terminal struct {
	t       *testing.T
	master  *os.File
	slave   *os.File
	before  *term.State
	cmd     *exec.Cmd
	changed chan struct{} // room for one
	read    sync.WaitGroup

	mu     sync.Mutex
	screen vt.MockTerm  // guarded by mu, but for Read
	raw    bytes.Buffer // guarded by mu
}

// onTerminal runs the binary on a terminal of its own.
func onTerminal(t *testing.T, width, height int, environ []string, args ...string) *terminal {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	c := &terminal{
		t: t, master: master, slave: slave, changed: make(chan struct{}, 1),
		screen: vt.NewMockTerm(vt.MockOptSize{X: vt.Col(width), Y: vt.Row(height)}),
	}
	c.resize(width, height)
	if c.before, err = term.GetState(int(slave.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := c.screen.Start(); err != nil {
		t.Fatal(err)
	}
	c.cmd = exec.Command(path, args...)
	c.cmd.Env = append(os.Environ(), append([]string{"TERM=xterm-256color", "LC_ALL=C.UTF-8", "NO_COLOR=", "COLORTERM="}, environ...)...)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.read.Go(func() { c.show() })
	go c.reply()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // unless it has ended
		_ = c.screen.Stop()
		_ = slave.Close()
		_ = master.Close()
		c.read.Wait()
	})
	return c
}

// show takes what is written to the screen.
func (c *terminal) show() {
	b := make([]byte, 4096)
	for {
		n, err := c.master.Read(b)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.raw.Write(b[:n])
		_, _ = c.screen.Write(b[:n])
		c.mu.Unlock()
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
}

// reply answers what a terminal is asked.
func (c *terminal) reply() {
	b := make([]byte, 4096)
	for {
		n, err := c.screen.Read(b)
		if err != nil {
			return
		}
		if _, err := c.master.Write(b[:n]); err != nil {
			return
		}
	}
}

func (c *terminal) resize(width, height int) {
	c.t.Helper()
	c.mu.Lock()
	c.screen.SetSize(vt.Coord{X: vt.Col(width), Y: vt.Row(height)})
	c.mu.Unlock()
	if err := pty.Setsize(c.master, &pty.Winsize{Cols: uint16(width), Rows: uint16(height)}); err != nil {
		c.t.Fatal(err)
	}
}

// text is what the screen shows.
func (c *terminal) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	size, err := c.screen.WindowSize()
	if err != nil {
		c.t.Fatal(err)
	}
	var b strings.Builder
	for y := range size.Height {
		var l strings.Builder
		for x := range size.Width {
			cell := c.screen.GetCell(vt.Coord{X: vt.Col(x), Y: vt.Row(y)})
			if cell.C == "" {
				cell.C = " "
			}
			l.WriteString(cell.C)
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	return b.String()
}

// until returns the screen when it shows all texts.
func (c *terminal) until(texts ...string) string {
	c.t.Helper()
	return c.shows(strings.Join(texts, ", "), func(screen string) bool {
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return false
			}
		}
		return true
	})
}

// shows returns the screen when it is as it should be.
func (c *terminal) shows(what string, is func(screen string) bool) string {
	c.t.Helper()
	late := time.After(time.Minute)
	for {
		screen := c.text()
		if is(screen) {
			return screen
		}
		select {
		case <-c.changed:
		case <-late:
			c.t.Fatalf("no %s on\n%s\nraw: %q", what, screen, c.written())
		}
	}
}

func (c *terminal) written() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw.String()
}

func (c *terminal) press(keys string) {
	c.t.Helper()
	if _, err := c.master.WriteString(keys); err != nil {
		c.t.Fatal(err)
	}
}

// ended returns the exit status, and checks that the terminal is as it was.
func (c *terminal) ended() int {
	c.t.Helper()
	_ = c.cmd.Wait() // its status is what counts
	after, err := term.GetState(int(c.slave.Fd()))
	if err != nil {
		c.t.Fatal(err)
	}
	if !reflect.DeepEqual(after, c.before) {
		c.t.Errorf("the terminal's mode: got %+v, before it was %+v", after, c.before)
	}
	// Marked, so that all before it has been read.
	if _, err := c.slave.WriteString("\r\nshell$ "); err != nil {
		c.t.Fatal(err)
	}
	c.until("shell$")
	raw := c.written()
	for name, mode := range map[string]string{"alternate screen": "1049", "hidden cursor": "25"} {
		on, off := strings.LastIndex(raw, "\x1b[?"+mode+"h"), strings.LastIndex(raw, "\x1b[?"+mode+"l")
		if name == "hidden cursor" {
			on, off = off, on
		}
		if on < 0 || off < on {
			c.t.Errorf("%s: on at %d, off at %d of %q", name, on, off, raw)
		}
	}
	return c.cmd.ProcessState.ExitCode()
}

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
	s.until("replica   its position is not known", "note      connection refused", "failed: ")
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
