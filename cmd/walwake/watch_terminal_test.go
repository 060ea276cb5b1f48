//go:build unix

package main

import (
	"bytes"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/gdamore/tcell/v3/vt"
	"golang.org/x/term"
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
			raw := c.written()
			c.t.Fatalf("no %s on\n%s\nraw, its end: %q", what, screen, raw[max(0, len(raw)-2000):])
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
