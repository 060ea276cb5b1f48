package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// sourceFlag is --source: auto, or the one kind that may be used beside polling.
func sourceFlag() choice {
	c := choice{value: "auto", of: []string{"auto"}}
	for _, k := range replication.Kinds() {
		c.of = append(c.of, string(k))
	}
	return c
}

const sourceUsage = "how to observe the replica: auto (the best that works), physical, logical, waitfor or poll"

// newSource is the source that a --source names.
func newSource(name string, cfg replication.Config) (tracker.Source, error) {
	if name != "auto" {
		cfg.Use = []replication.Kind{replication.Kind(name)}
	}
	return replication.New(cfg)
}

// following says what to follow, and how.
type following struct {
	server  *server
	primary *server // nil: none was named
	name    string  // in logs, errors and metrics; empty: the server's address
	source  string
	from    tracker.Source // what to follow instead of the server; nil: that itself
	timeout time.Duration  // of a wait

	logger     *slog.Logger                                   // of the tracker; nil: library
	maxWaiters int                                            // 0: tracker.DefaultMaxWaiters
	observer   tracker.Observer                               // is called too
	make       func(tracker.Config) (*tracker.Tracker, error) // nil: tracker.New

	messages replication.MessageHandler // nil: they are not heard

	// changed is called when another source is in use, with the state then. It may be nil.
	changed func(from, to string, state tracker.State)

	// failed is called when the source fails. first says that the replica's position was never known, and
	// trying again is of no use.
	failed func(err error, first bool)
}

// replica is a tracker that runs. Its owner calls stop.
type replica struct {
	*tracker.Tracker
	server  *server
	known   atomic.Bool // whether the position ever was
	running sync.WaitGroup
}

// follow makes the tracker of a replica, and runs it: the one place that knows how.
func (a *app) follow(f following) (*replica, error) {
	source, err := f.from, error(nil)
	if source == nil {
		source, err = f.ladder()
	}
	if err != nil {
		return nil, explain(f.server, err)
	}
	r := &replica{server: f.server}
	if f.make == nil {
		f.make = tracker.New
	}
	r.Tracker, err = f.make(tracker.Config{
		Source:     source,
		Name:       cmp.Or(f.name, f.server.address),
		Timeout:    f.timeout,
		MaxWaiters: f.maxWaiters,
		Logger:     cmp.Or(f.logger, a.library()),
		Observer: observers(f.observer, tracker.Observer{
			Position: func(o tracker.Observation) {
				r.known.Store(true)
				a.log.Debug("position", "replica", f.server.address, "lsn", o.LSN, "timeline", o.Timeline)
			},
			SourceChanged: func(from, to string) {
				if f.changed != nil {
					f.changed(from, to, r.State())
				}
			},
			Failed: func(_ string, err error) { f.failed(err, !r.known.Load() && !passing(err)) },
		}),
	})
	if err != nil {
		return nil, explain(f.server, err)
	}
	// It ends by stop alone: if it also ended with the command's context, who waits would be told that it is closed.
	r.running.Go(func() { _ = r.Run(context.Background()) })
	return r, nil
}

// ladder is the source for the server itself.
func (f *following) ladder() (tracker.Source, error) {
	var primary replication.Server
	if f.primary != nil {
		primary.Config = f.primary.config
	}
	return newSource(f.source, replication.Config{
		Replica: replication.Server{Config: f.server.config}, Primary: primary, Messages: f.messages,
	})
}

// library is the logger for the library's packages, whose warnings are for whoever embeds them.
func (a *app) library() *slog.Logger { return slog.New(lowered{a.log.Handler(), oneLevel}) }

// passing reports whether a failure to connect will pass by itself: the server is starting.
func passing(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == cannotConnectNow
}

// stop ends the tracker, and returns when nothing of it is left.
func (r *replica) stop() {
	r.Close()
	r.running.Wait()
}

// unknown says why the replica's position is not known.
func (r *replica) unknown() string {
	state := r.State()
	switch {
	case state.Failure != nil:
		what, _ := diagnose(state.Failure)
		return what
	case state.Note != "":
		return state.Note
	}
	return "no answer from it yet"
}

// timeoutError is a *tracker.TimeoutError in the words of this command.
type timeoutError struct {
	text string
	err  *tracker.TimeoutError
}

func (e *timeoutError) Error() string { return e.text }
func (e *timeoutError) Unwrap() error { return e.err }

// explainTimeout says in one line how far the replica was, and what held it up.
func (r *replica) explainTimeout(e *tracker.TimeoutError, waited time.Duration) error {
	text := fmt.Sprintf("timeout after %s: %s", short(waited), r.server)
	reason := e.Reason
	switch {
	case !e.Known:
		text += ": its position is not known"
		reason = r.unknown()
	case e.Behind > 0:
		text += fmt.Sprintf(" is at %s, %d bytes behind %s", e.Last.LSN, e.Behind, e.Target.LSN)
		if eta := credible(e); eta > 0 {
			text += ", about " + short(eta)
		}
	default:
		text += fmt.Sprintf(" has replayed %s, but it is not known whether of timeline %d", e.Target.LSN, e.Target.Timeline)
		if e.Last.Timeline != 0 {
			text += fmt.Sprintf(" (it is on timeline %d)", e.Last.Timeline)
		}
	}
	if reason != "" {
		text += ": " + reason
	}
	return &timeoutError{text, e}
}

// credible is the estimate of the time that the replica needs; 0 when it has been proved wrong, because as much has passed
// already, or when something holds replay up.
func credible(e *tracker.TimeoutError) time.Duration {
	if e.Reason != "" || e.ETA < e.Waited {
		return 0
	}
	return e.ETA
}
