package main

import (
	"bufio"
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
)

// watching is a run of watch whose stdout is a pipe.
type watching struct {
	t      *testing.T
	lines  chan string
	stderr *output
	cancel context.CancelCauseFunc
	done   chan int
	seen   []string
}

func watch(t *testing.T, e env, args ...string) *watching {
	t.Helper()
	r, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	w := &watching{t: t, lines: make(chan string), stderr: new(output), cancel: cancel, done: make(chan int, 1)}
	go func() {
		args = append([]string{"watch", "--interval", "50ms"}, args...)
		w.done <- run(ctx, args, stdout, w.stderr, func(name string) string { return e[name] })
		_ = stdout.Close()
	}()
	go func() {
		defer close(w.lines)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			w.lines <- lines.Text()
		}
		_ = r.Close()
	}()
	t.Cleanup(func() {
		cancel(nil)
		for range w.lines {
		}
	})
	return w
}

// until returns the next line that is what is looked for.
func (w *watching) until(what string, is func(line string) bool) string {
	w.t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case line, ok := <-w.lines:
			if !ok {
				w.t.Fatalf("it ended without %s, after\n%s\nstderr: %s", what, strings.Join(w.seen, "\n"), w.stderr)
			}
			w.seen = append(w.seen[max(0, len(w.seen)-50):], line)
			if is(line) {
				return line
			}
		case <-late:
			w.t.Fatalf("no %s after\n%s\nstderr: %s", what, strings.Join(w.seen, "\n"), w.stderr)
		}
	}
}

// interrupted ends it as SIGINT does.
func (w *watching) interrupted() {
	w.t.Helper()
	w.cancel(&interruptedError{os.Interrupt})
	for range w.lines {
	}
	code := <-w.done
	(&outcome{t: w.t, code: code, stderr: w.stderr.String()}).is(130).says("interrupted")
}

// The columns of a line.
const (
	colTime = iota
	colKind
	colRole
	colPosition
	colTimeline
	colSource
	colBytes
	colUS
	colText
)

// row splits a line, and checks that each column is one.
func (w *watching) row(line string) []string {
	w.t.Helper()
	row := strings.Fields(line)
	if len(row) <= colText {
		w.t.Fatalf("want %d columns or more in %q", colText+1, line)
	}
	if _, err := time.Parse(timeColumn, row[colTime]); err != nil {
		w.t.Fatalf("line %q: %v", line, err)
	}
	if row[colPosition] != "-" {
		if _, err := tracker.ParseLSN(row[colPosition]); err != nil {
			w.t.Fatalf("line %q: %v", line, err)
		}
	}
	for _, c := range []int{colTimeline, colBytes, colUS} {
		if _, err := strconv.ParseUint(row[c], 10, 64); err != nil && row[c] != "-" {
			w.t.Fatalf("line %q: column %d: %v", line, c, err)
		}
	}
	return row
}

// state returns the next line of a look that is what is looked for.
func (w *watching) state(what string, is func(row []string) bool) []string {
	w.t.Helper()
	return w.row(w.until(what, func(line string) bool {
		row := w.row(line)
		return row[colKind] == "state" && is(row)
	}))
}

// event returns the next line of an event with a text.
func (w *watching) event(kind, text string) []string {
	w.t.Helper()
	return w.row(w.until(kind+" "+text, func(line string) bool {
		return w.row(line)[colKind] == kind && strings.Contains(line, text)
	}))
}

func at(t *testing.T, token string) tracker.LSN {
	t.Helper()
	tok, err := tracker.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	return tok.LSN
}

func reached(row []string, lsn tracker.LSN) bool {
	at, err := tracker.ParseLSN(row[colPosition])
	return err == nil && at >= lsn
}
