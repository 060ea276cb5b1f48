package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

type listenCommand struct {
	*app
	primary, replica serverFlag
	source           choice
	atOnce, messages bool
	count            int

	mu    sync.Mutex
	heard int // guarded by mu; notifications
}

// listenLine is what --json prints for each event.
type listenLine struct {
	Event   string         `json:"event"` // notification or resync
	Channel string         `json:"channel"`
	Payload *string        `json:"payload,omitempty"`
	PID     uint32         `json:"pid,omitempty"` // of the server process that sent it; 0: a message
	Token   *tracker.Token `json:"token,omitempty"`
	Reason  string         `json:"reason,omitempty"` // of a resync
	Dropped int            `json:"dropped,omitempty"`
	Lost    int            `json:"lost,omitempty"`
}

// errEnough ends listening when --count have been heard.
var errEnough = errors.New("enough")

func (a *app) listenCommand() *cobra.Command {
	l := &listenCommand{app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag()}
	c := &cobra.Command{
		Use:   "listen --primary DSN --replica DSN CHANNEL...",
		Short: "LISTEN on the primary, and print each notification once the replica shows it",
		Long: `LISTENs on the primary, holds each notification until the replica has replayed the transaction that sent it,
and prints it: its channel, a tab, and its payload. A query that starts on the replica afterwards sees what
was committed with it. Notifications of one channel are printed in the order of their commits.

PostgreSQL keeps no notification for who is away. When some may have been missed, because the connection was
lost or a failover has lost what they were about, a note on stderr says so (with --json, a line on stdout).

With --messages, CHANNEL is the prefix of messages in the WAL, which an application sends by
pg_logical_emit_message(true, prefix, payload): they come with replay itself, and no primary is needed. That
takes PostgreSQL 16 and what "walwake doctor" says for logical.

With --json, one JSON object a line: event (notification, resync), channel, payload, pid, token; with resync
also reason, dropped and lost. An error is a last line, with result and error.

Exit status: 0 --count were printed, 2 usage, 4 the replica is of another cluster, 130 interrupted,
143 terminated, 1 anything else.`,
		Example: `  walwake listen --primary 'host=db1 user=app dbname=app' --replica 'host=db2 user=app dbname=app' orders
  walwake listen --count 1 --json orders refunds
  walwake listen --replica 'host=db2 user=app dbname=app' --messages orders`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no CHANNEL given: name what to LISTEN on, see %s --help", c.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, args []string) error { return l.run(c.Context(), args) },
	}
	l.primary.add(c, "the primary")
	l.replica.add(c, "the replica")
	c.Flags().Var(&l.source, "source", sourceUsage)
	complete(c, "source", l.source.of...)
	c.Flags().BoolVar(&l.atOnce, "at-once", false, "print notifications when they come, whatever the replica shows")
	c.Flags().BoolVar(&l.messages, "messages", false, "hear messages in the WAL instead of NOTIFY")
	c.Flags().IntVar(&l.count, "count", 0, "`number` of notifications to end after; 0: never")
	complete(c, "count")
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object a line on stdout")
	return c
}

// heardBy is what runs until ctx ends: a Listener, or Messages.
type heardBy func(ctx context.Context) error

func (l *listenCommand) run(ctx context.Context, names []string) error {
	switch {
	case l.count < 0:
		return usagef("--count %d: want 0 or more", l.count)
	case l.atOnce && l.messages:
		return usagef("--at-once and --messages: a message comes with its replay")
	}
	var channels []pgnotify.Channel
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return usagef("channel %q is given twice", name)
		}
		channels = append(channels, pgnotify.Channel{Name: name, AtOnce: l.atOnce, Handler: pgnotify.HandlerFunc(l.handle)})
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	listen, stop, err := l.prepare(ctx, channels, giveUp)
	if err != nil {
		return err
	}
	defer stop()
	switch err := listen(ctx); {
	case errors.Is(err, errEnough):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return err
	}
}

// prepare follows the replica, unless that is not needed, and makes what hears.
func (l *listenCommand) prepare(ctx context.Context, channels []pgnotify.Channel, giveUp context.CancelCauseFunc) (listen heardBy, stop func(), err error) {
	if l.messages {
		return l.prepareMessages(channels, giveUp)
	}
	primary, err := l.required(l.primary)
	if err != nil {
		return nil, nil, err
	}
	if err := usable(ctx, primary); err != nil { // or it would be tried for ever
		return nil, nil, err
	}
	cfg := pgnotify.Config{Primary: replication.Server{Config: primary.config}, Channels: channels, Logger: l.library()}
	stop = func() {}
	if !l.atOnce {
		follower, err := l.followFor(primary, nil, giveUp)
		if err != nil {
			return nil, nil, err
		}
		cfg.Replica, stop = follower.Tracker, follower.stop
	}
	listener, err := pgnotify.New(cfg)
	if err != nil {
		stop()
		return nil, nil, usagef("%w", err)
	}
	return func(ctx context.Context) error {
		quiet := l.told(ctx, listener.Ready(), listener.Stats)
		defer quiet()
		return listener.Run(ctx)
	}, stop, nil
}

func (l *listenCommand) prepareMessages(channels []pgnotify.Channel, giveUp context.CancelCauseFunc) (heardBy, func(), error) {
	messages, err := pgnotify.NewMessages(pgnotify.MessagesConfig{Channels: channels, Logger: l.library()})
	if err != nil {
		return nil, nil, usagef("%w", err)
	}
	primary, err := l.optional(l.primary) // it has the slot made at once
	if err != nil {
		return nil, nil, err
	}
	follower, err := l.followFor(primary, messages, giveUp)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		quiet := l.told(ctx, messages.Ready(), messages.Stats)
		defer quiet()
		return messages.Run(ctx, follower.Tracker)
	}, follower.stop, nil
}

func (l *listenCommand) followFor(primary *server, messages replication.MessageHandler, giveUp context.CancelCauseFunc) (*replica, error) {
	server, err := l.required(l.replica)
	if err != nil {
		return nil, err
	}
	return l.follow(following{
		server: server, primary: primary, source: l.source.value, timeout: tracker.DefaultTimeout, messages: messages,
		failed: func(err error, first bool) {
			if first {
				giveUp(explain(server, err))
			}
		},
	})
}

// told says on stderr when it listens, or why it does not yet, until the function that it returns is called.
func (l *listenCommand) told(ctx context.Context, ready <-chan struct{}, stats func() pgnotify.Stats) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	telling.Go(func() {
		late := time.NewTimer(connectTimeout)
		defer late.Stop()
		for {
			select {
			case <-ready:
				l.note("listening")
				return
			case <-late.C:
				if err := stats().Failure; err != nil {
					what, _ := diagnose(err)
					l.note("not listening yet: %s", what)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return func() { cancel(); telling.Wait() }
}

// handle prints an event. Several channels call it at once.
func (l *listenCommand) handle(_ context.Context, e pgnotify.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := listenLine{}
	switch e := e.(type) {
	case pgnotify.Notification:
		line = listenLine{Event: "notification", Channel: e.Channel, Payload: &e.Payload, PID: e.PID, Token: known(e.Token)}
		l.heard++
	case pgnotify.Resync:
		line = listenLine{Event: "resync", Channel: e.Channel, Reason: oneLine(plain(e.Reason)), Dropped: e.Dropped, Lost: e.Lost, Token: known(e.Token)}
	}
	if err := l.print(line); err != nil {
		return err
	}
	if l.count > 0 && l.heard >= l.count {
		return errEnough
	}
	return nil
}

func known(tok tracker.Token) *tracker.Token {
	if tok == (tracker.Token{}) {
		return nil
	}
	return &tok
}

func (l *listenCommand) print(line listenLine) error {
	var text string
	switch {
	case l.json:
		b, err := json.Marshal(line)
		if err != nil {
			return err
		}
		text = string(b) + "\n"
	case line.Payload == nil:
		l.note("%s: notifications may have been missed: %s", line.Channel, line.Reason)
		return nil
	default:
		text = line.Channel + "\t" + *line.Payload + "\n"
	}
	if _, err := io.WriteString(l.stdout, text); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
