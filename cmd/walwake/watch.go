package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/tracker"
)

const shortestInterval = 50 * time.Millisecond

type watchCommand struct {
	*app
	primary, replica serverFlag
	source           choice
	interval         period
	stream           bool
}

func (a *app) watchCommand() *cobra.Command {
	w := &watchCommand{app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag(), interval: period(time.Second)}
	c := &cobra.Command{
		Use:   "watch --replica DSN",
		Short: "Show how far a replica is, live",
		Long: `Shows on the terminal what "walwake status" shows, and goes on: role, replayed position, timeline, lag over
the last minutes, the sources and why each is up or not, and what has happened: another source, a new
connection, a failure, a paused replay, a promotion. q or ctrl-C leaves. NO_COLOR is heeded.

With --primary it shows the lag in bytes, and in time: how long ago the primary was, at least, where the
replica has yet to come to. Without it, the speed of replay is shown instead. An x in the
chart is a time in which it was not known.

It asks the replica and the primary once each --interval. Sources that stream rest, as they do while nobody
waits; with --stream they are up all the time, as for a program that always waits: then what is shown is
also whether they work. The physical source has all WAL sent to it.

Where stdout is no terminal, it prints a line each --interval, and one for each event, with these columns,
where - says that something is not known: the time, the kind (state, or that of an event: source, failed,
epoch, timeline, role, note or primary), role, position, timeline, source, lag in bytes, lag in
microseconds, and a text: of the event, or what holds replay or the source back.

With --json, on a terminal too, each line is an object that has what "walwake status --json" has, and at,
event, text, observations, epochs, failures and source_changes. What is not known is null.

The log is not shown on the screen: send stderr to a file for it.

Exit status: 0 left by q or ctrl-C on the screen, 2 usage, 130 interrupted, 143 terminated, 1 anything else.`,
		Example: `  walwake watch --replica 'postgres://app@db2/app'
  walwake watch --primary 'host=db1 user=app' --replica 'host=db2 user=app' --stream
  walwake watch --primary 'host=db1 user=app' --replica 'host=db2 user=app' --interval 10s >> lag.txt
  walwake watch --json | grep --line-buffered '"event":"failed"'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return w.run(c.Context()) },
	}
	w.replica.add(c, "the replica")
	w.primary.add(c, "the primary, to show the lag")
	c.Flags().Var(&w.source, "source", sourceUsage)
	complete(c, "source", w.source.of...)
	c.Flags().Var(&w.interval, "interval", "pause between two looks, with its unit")
	complete(c, "interval")
	c.Flags().BoolVar(&w.stream, "stream", false, "keep the best source up, as for a program that always waits")
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object a line on stdout")
	return c
}

func (w *watchCommand) run(ctx context.Context) error {
	if time.Duration(w.interval) < shortestInterval {
		return usagef("--interval %s: want %s or more", &w.interval, shortestInterval)
	}
	replica, err := w.required(w.replica)
	if err != nil {
		return err
	}
	primary, err := w.optional(w.primary)
	if err != nil {
		return err
	}
	if primary != nil {
		if err := usable(ctx, primary); err != nil {
			return err
		}
	}
	onScreen := !w.json && isTerminal(w.stdout) && w.getenv("TERM") != "dumb"
	if l, ok := w.stderr.(*lockedWriter); onScreen && ok && l.terminal {
		w.log = slog.New(slog.DiscardHandler) // it would be written across the screen
	}
	watched, err := w.begin(ctx, replica, primary)
	if err != nil {
		return err
	}
	var beside sync.WaitGroup
	defer func() {
		watched.stop()
		beside.Wait()
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if primary != nil {
		asks := &primaryWatch{app: w.app, server: primary, tracker: watched.Tracker, tell: watched.tell, every: time.Duration(w.interval)}
		beside.Go(func() { asks.run(ctx) })
	}
	beside.Go(func() { watched.look(ctx) })
	if onScreen {
		return w.onScreen(ctx, watched)
	}
	return w.inLines(ctx, watched)
}

// begin follows the replica, and returns when its position is known, when the first attempt has failed in a way that
// trying again does not mend, or when it has not answered for some seconds.
func (w *watchCommand) begin(ctx context.Context, replica, primary *server) (*watched, error) {
	seen := &watched{
		primary: primary, interval: time.Duration(w.interval), changed: make(chan struct{}, 1),
	}
	first := make(chan error, 1)
	var err error
	seen.replica, err = w.follow(following{
		server: replica, primary: primary, source: w.source.value, timeout: tracker.DefaultTimeout,
		observer: tracker.Observer{Position: seen.moved},
		changed:  seen.sourceChanged,
		failed: func(err error, give bool) {
			seen.failed(err)
			if give {
				select {
				case first <- explain(replica, err):
				default:
				}
			}
		},
	})
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(connectTimeout)
	defer timer.Stop()
	select {
	case <-seen.Ready():
	case <-timer.C:
	case err = <-first:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		seen.stop()
		return nil, err
	}
	if w.stream {
		seen.hold()
	}
	return seen, nil
}

// sourceText says which source is in use now, and why not the one before.
func sourceText(from, to string, state tracker.State) string {
	text := fmt.Sprintf("%s is in use, it was %s", to, from)
	for _, r := range rungs(state) {
		if r.Source == from && r.Reason != "" {
			return text + ": " + r.Reason
		}
	}
	return text
}
