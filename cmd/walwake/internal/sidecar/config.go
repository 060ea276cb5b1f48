package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/tracker"
)

// Config configures a Server. It is copied by New.
type Config struct {
	// Tracker follows the replica. Whoever made it runs it, and gives it the
	// Observer of the Hub. Required.
	Tracker *tracker.Tracker

	// Hub hears what happens to the Tracker. Required.
	Hub *Hub

	// Server names the replica in answers: host and port, no secret.
	Server string

	// PrimaryNamed says that somebody tells the Tracker where the primary is, once in
	// PrimaryInterval; 0: often. Where nobody does, the lag is not known.
	PrimaryNamed    bool
	PrimaryInterval time.Duration

	// Fleet returns all replicas that are published. nil: there is no fleet, as
	// NoFleet says.
	Fleet   func() []pgnotify.Member
	NoFleet string

	// RecordEnd takes a bare LSN back to where the last record before it ends: see
	// tracker.LSN.Normalize. It may ask the replica, and must return when the context
	// ends, as the wait's time does. nil: LSNs are taken as they are.
	RecordEnd func(context.Context, tracker.LSN) (tracker.LSN, error)

	// Failure says why the replica cannot be followed: in full, with what to do, for
	// who may learn role and address, and of which kind that is, for everybody. nil:
	// the error's text, and that it cannot be followed.
	Failure func(error) (text, kind string)

	// Text makes a note, or an error of the tracker's, fit to be shown: one line, no secret. nil: as it is.
	Text func(string) string

	// Metrics and Page are served at /metrics and /. nil: there is none.
	Metrics http.Handler
	Page    http.Handler

	// Bearer returns the token that a request must show, but for /healthz, /readyz and
	// the page's own files. It is called for each request and must not block; the token
	// may change, and must not be empty. nil: none.
	Bearer func() string

	// Hosts are the names under which the sidecar may be called, beside addresses and
	// localhost. "*": all.
	Hosts []string

	// Limits. 0 means the default.
	Waiters    int           // waits at once: DefaultWaiters
	Streams    int           // streams at once: DefaultStreams
	Conns      int           // connections at once: Waiters + Streams + 100
	Timeout    time.Duration // of a wait that names none: tracker.DefaultTimeout
	MaxTimeout time.Duration // of a wait: DefaultMaxTimeout

	// Interval is the least time between two events of a stream that only move the
	// position, but for a position that is waited for. 0 means DefaultInterval.
	Interval time.Duration

	// WriteTimeout is how long a client may take to read an answer or an event. 0
	// means DefaultWriteTimeout.
	WriteTimeout time.Duration

	// Logger gets what an operator should know. nil: silence.
	Logger *slog.Logger
}

// What a zero field of Config means.
const (
	DefaultWaiters      = 20_000
	DefaultStreams      = 2_000
	DefaultMaxTimeout   = time.Minute
	DefaultInterval     = 100 * time.Millisecond
	DefaultWriteTimeout = 2 * time.Second
)

// GCPercent is for the process (see debug.SetGCPercent): its heap may grow to four times what is in use. With 10,000
// waits, of 8 kB each, the collector's work is what the slowest answers wait for.
const GCPercent = 300

// Fixed limits.
const (
	maxHeader     = 8 << 10 // bytes of a request's line and headers; package net/http reads 4 KiB more
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute // of a connection between requests
	demandFor     = 30 * time.Second
	spareConns    = 100 // connections for what neither waits nor streams
)

func (c Config) checked() (Config, error) {
	if c.Tracker == nil || c.Hub == nil {
		return c, errors.New("sidecar: Config.Tracker or Hub is nil")
	}
	for _, d := range []struct {
		name  string
		value *int
		zero  int
	}{{"Waiters", &c.Waiters, DefaultWaiters}, {"Streams", &c.Streams, DefaultStreams}} {
		if *d.value < 0 {
			return c, fmt.Errorf("sidecar: Config.%s %d: want 0 or more", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if c.Conns == 0 {
		c.Conns = c.Waiters + c.Streams + spareConns
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"MaxTimeout", &c.MaxTimeout, DefaultMaxTimeout},
		{"Timeout", &c.Timeout, tracker.DefaultTimeout},
		{"Interval", &c.Interval, DefaultInterval},
		{"WriteTimeout", &c.WriteTimeout, DefaultWriteTimeout},
		{"PrimaryInterval", &c.PrimaryInterval, 0},
	} {
		if *d.value < 0 {
			return c, fmt.Errorf("sidecar: Config.%s %s: want 0 or more", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if c.Timeout > c.MaxTimeout {
		return c, fmt.Errorf("sidecar: Config.Timeout %s: want at most MaxTimeout, %s", c.Timeout, c.MaxTimeout)
	}
	if c.NoFleet == "" {
		c.NoFleet = "the fleet is not followed"
	}
	if c.Text == nil {
		c.Text = func(s string) string { return s }
	}
	if c.Failure == nil {
		c.Failure = func(err error) (text, kind string) { return err.Error(), "the replica cannot be followed" }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
