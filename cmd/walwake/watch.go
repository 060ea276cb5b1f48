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
	sidecar          string
	bearerFile       string
	source           choice
	interval         period
	stream           bool
}

func (a *app) watchCommand() *cobra.Command {
	w := &watchCommand{app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag(), interval: period(time.Second)}
	c := &cobra.Command{
		Use:   "watch --replica DSN|--sidecar URL",
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

With --sidecar, or $WALWAKE_SIDECAR, it asks no PostgreSQL, and shows what the "walwake serve" at that URL
knows: http://127.0.0.1:7432, https://host:port with a certificate that this system trusts, or unix:/path.
The sidecar has a replica, a primary and sources of its own: --replica, --primary, --source and --stream do
not go with it. The token that it wants to see comes from --bearer-file or $WALWAKE_BEARER, never from an
argument. A sidecar that goes away, and comes back, is among what has happened.

Where stdout is no terminal, it prints a line each --interval, and one for each event, with these columns,
where - says that something is not known: the time, the kind (state, or that of an event: source, failed,
epoch, timeline, role, note or primary), role, position, timeline, source, lag in bytes, lag in
microseconds, and a text: of the event, or what holds replay or the source back.

With --json, on a terminal too, each line is an object that has what "walwake status --json" has, and at,
event, text, observations, epochs, failures and source_changes; with --sidecar also sidecar, its URL, while
server is what it calls its replica, and primary is empty. What is not known is null.

The log is not shown on the screen: send stderr to a file for it.

Exit status: 0 left by q or ctrl-C on the screen, 2 usage, 130 interrupted, 143 terminated, 1 anything else.`,
		Example: `  walwake watch --replica 'postgres://app@db2/app'
  walwake watch --primary 'host=db1 user=app' --replica 'host=db2 user=app' --stream
  walwake watch --primary 'host=db1 user=app' --replica 'host=db2 user=app' --interval 10s >> lag.txt
  walwake watch --sidecar unix:/run/walwake/http.sock --bearer-file /etc/walwake/bearer
  walwake watch --json | grep --line-buffered '"event":"failed"'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return w.run(c) },
	}
	w.replica.add(c, "the replica")
	w.primary.add(c, "the primary, to show the lag")
	c.Flags().StringVar(&w.sidecar, "sidecar", "", "`URL` of a walwake serve, instead of both (default: $"+sidecarVariable+")")
	complete(c, "sidecar")
	c.Flags().StringVar(&w.bearerFile, "bearer-file", "", "`file` with the token that the sidecar wants to see (default: $WALWAKE_BEARER, or none)")
	c.Flags().Var(&w.source, "source", sourceUsage)
	complete(c, "source", w.source.of...)
	c.Flags().Var(&w.interval, "interval", "pause between two looks, with its unit")
	complete(c, "interval")
	c.Flags().BoolVar(&w.stream, "stream", false, "keep the best source up, as for a program that always waits")
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object a line on stdout")
	return c
}

func (w *watchCommand) run(c *cobra.Command) error {
	if time.Duration(w.interval) < shortestInterval {
		return usagef("--interval %s: want %s or more", &w.interval, shortestInterval)
	}
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	seen := &watched{interval: time.Duration(w.interval), changed: make(chan struct{}, 1)}
	at, from, err := w.sidecarNamed(c)
	if err != nil {
		return err
	}
	var f following
	if at != "" {
		f, err = w.through(ctx, seen, at, from)
	} else {
		f, err = w.direct(ctx, seen)
	}
	if err != nil {
		return err
	}
	onScreen := !w.json && isTerminal(w.stdout) && w.getenv("TERM") != "dumb"
	if l, ok := w.stderr.(*lockedWriter); onScreen && ok && l.terminal {
		w.log = slog.New(slog.DiscardHandler) // it would be written across the screen
	}
	if err := w.begin(ctx, seen, f); err != nil {
		return err
	}
	var beside sync.WaitGroup
	defer func() {
		cancel()
		seen.end()
		beside.Wait()
	}()
	if seen.primary != nil {
		asks := &primaryWatch{app: w.app, server: seen.primary, tracker: seen.Tracker, tell: seen.tellPrimary, every: time.Duration(w.interval)}
		beside.Go(func() { asks.run(ctx) })
	}
	beside.Go(func() { seen.look(ctx) })
	if onScreen {
		return w.onScreen(ctx, seen)
	}
	return w.inLines(ctx, seen)
}

// direct prepares seen for a replica that is watched itself.
func (w *watchCommand) direct(ctx context.Context, seen *watched) (f following, err error) {
	if f.server, err = w.required(w.replica); err != nil {
		return f, err
	}
	if f.primary, err = w.optional(w.primary); err != nil {
		return f, err
	}
	if f.primary != nil {
		if err := usable(ctx, f.primary); err != nil {
			return f, err
		}
	}
	f.source, seen.primary = w.source.value, f.primary
	return f, nil
}

// begin follows the replica, and returns when its position is known, when the first attempt has failed in a way that
// trying again does not mend, or when it has not answered for some seconds.
func (w *watchCommand) begin(ctx context.Context, seen *watched, f following) error {
	first := make(chan error, 1)
	f.timeout, f.observer, f.changed = tracker.DefaultTimeout, tracker.Observer{Position: seen.moved}, seen.sourceChanged
	f.failed = func(err error, give bool) {
		seen.failed(err)
		if give {
			select {
			case first <- seen.explain(f.server, err):
			default:
			}
		}
	}
	var err error
	if seen.replica, err = w.follow(f); err != nil {
		return err
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
		seen.end()
		return err
	}
	if w.stream {
		seen.hold()
	}
	return nil
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
