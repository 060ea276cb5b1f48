package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/cmd/walwake/internal/bench"
)

// loadSessions keep a primary on loopback busy with thousands of transactions a second.
const loadSessions = 8

// benchLoadCommand is the background of bench: a process of its own, so that its CPU is not counted as the client's.
func (a *app) benchLoadCommand() *cobra.Command {
	rate, primary := 0, primaryFlag()
	c := &cobra.Command{
		Use:     "bench-load",
		Short:   "Write transactions until standard input ends, for walwake bench",
		Example: "  walwake bench-load --rate 500 </dev/tty",
		Hidden:  true,
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if rate < 1 {
				return usagef("--rate %d: want 1 or more", rate)
			}
			server, err := a.required(primary)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, c.InOrStdin()) // until whoever started it has gone
				cancel()
			}()
			begun := func() error { return a.answer(nil, "true\n") }
			made, err := bench.Load(ctx, benchSessions(server.config), rate, loadSessions, begun)
			if err != nil {
				return explain(server, err)
			}
			return a.answer(nil, fmt.Sprintf("%f\n", made))
		},
	}
	c.Flags().IntVar(&rate, "rate", 0, "transactions a `second`")
	primary.add(c, "the primary")
	return c
}

// loadWithin is what a background has to begin.
const loadWithin = 30 * time.Second

// load is a bench-load that runs.
type load struct {
	cmd     *exec.Cmd
	in      io.Closer     // its end is the process's
	answers *json.Decoder // true when it writes, and in the end how many a second there were
	said    bytes.Buffer
}

// startLoad runs bench-load, and returns when it writes. stop ends it, and returns how many transactions a second there were.
func startLoad(ctx context.Context, primary *server, rate int) (stop func() (float64, error), err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l := &load{cmd: exec.Command(program, "bench-load", "--rate", strconv.Itoa(rate))}
	l.cmd.Env = append(os.Environ(), "WALWAKE_PRIMARY="+primary.config.ConnString()) // not an argument: it may have a password
	l.cmd.Stderr = &l.said
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	l.answers = json.NewDecoder(out)

	ctx, cancel := context.WithTimeout(ctx, loadWithin)
	defer cancel()
	giveUp := context.AfterFunc(ctx, func() { l.in.Close() })
	defer giveUp()
	var begun bool
	if err := l.answers.Decode(&begun); err != nil {
		_, endErr := l.end()
		return nil, errors.Join(ctx.Err(), endErr)
	}
	return l.end, nil
}

func (l *load) end() (perSecond float64, err error) {
	l.in.Close()
	late := time.AfterFunc(connectTimeout, func() { _ = l.cmd.Process.Kill() })
	defer late.Stop()
	decodeErr := l.answers.Decode(&perSecond)
	if err := errors.Join(l.cmd.Wait(), decodeErr); err != nil {
		if text, ok := strings.CutPrefix(strings.TrimSpace(l.said.String()), "walwake: "); ok {
			err = errors.New(text)
		}
		return 0, err
	}
	return perSecond, nil
}
