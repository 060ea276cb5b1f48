package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/walwake/walwake/tracker"
)

// errStalled ends a stream that has been silent for too long.
var errStalled = errors.New("sidecar: the stream has been silent for too long: is the sidecar stopped, or the network cut?")

// maxLine bounds a line of the stream, in bytes: a state with a history of 65,536 timelines fits.
const maxLine = 4 << 20

// keepalives is how many of the sidecar's may be lost or late before a stream counts as silent.
const keepalives = 4

// longestKeepalive is what a sidecar takes at most.
const longestKeepalive = 30 * time.Second

// Observe follows the sidecar over one stream until ctx ends or the stream does, and says
// why. See tracker.Source.
func (c *Client) Observe(ctx context.Context, feed *tracker.Feed) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alive := time.AfterFunc(c.cfg.Stall, func() { cancel(errStalled) })
	defer alive.Stop()
	d := newDemands(feed)
	defer d.close()
	// Where the connection ends before there is an answer, package net/http waits for the body to end.
	stop := context.AfterFunc(ctx, d.hangUp)
	defer stop()
	resp, err := c.open(ctx, d.body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f := &follower{feed: feed, demands: d}
	defer f.end()
	feed.OnDemand(d.changed)
	defer feed.OnDemand(func() {})
	d.changed() // for who came before
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	var name, data []byte
	for lines.Scan() {
		alive.Reset(c.cfg.Stall)
		line := lines.Bytes()
		switch field, value, _ := bytes.Cut(line, []byte(": ")); {
		case len(line) > 0 && string(field) == "event":
			name = append(name[:0], value...)
		case len(line) > 0 && string(field) == "data":
			data = append(data[:0], value...)
		case len(line) == 0 && len(data) > 0:
			if err := f.take(string(name), data); err != nil {
				return err
			}
			d.seen(f.lsn)
			name, data = name[:0], data[:0]
		}
	}
	f.end()
	switch err := lines.Err(); {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("sidecar: the stream ended: %w", err)
	}
	return errors.New("sidecar: the stream ended without a word: the sidecar was killed, or something between closed it")
}

// open asks for the stream.
func (c *Client) open(ctx context.Context, body io.ReadCloser) (*http.Response, error) {
	req, err := c.request(ctx, http.MethodPost, "/v1/stream?keepalive="+min(c.cfg.Stall/keepalives, longestKeepalive).String(), body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = -1 // it goes on
	req.Header.Set("Content-Type", "text/plain")
	resp, err := c.http.Do(req)
	switch {
	case context.Cause(ctx) != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("sidecar: ask for the stream: %w", reached(err))
	case resp.StatusCode != http.StatusOK:
		defer resp.Body.Close()
		return nil, readProblem(resp)
	}
	return resp, nil
}

// follower takes events to a feed. One goroutine owns it.
type follower struct {
	feed    *tracker.Feed
	demands *demands
	epoch   *tracker.Epoch // nil: the position is not known
	of      uint64         // the sidecar's number of epoch
	at      tracker.Observation
	lsn     tracker.LSN // the highest that it was told of in the epoch
}

// end says that the position is not known any more.
func (f *follower) end() {
	if f.epoch != nil {
		f.epoch.End()
		f.epoch = nil
	}
}

// state is the event of that name, as far as it matters here.
type state struct {
	Epoch    uint64         `json:"epoch"`
	Known    bool           `json:"known"`
	Role     string         `json:"role"`
	Position *tracker.LSN   `json:"position"`
	Timeline uint32         `json:"timeline"`
	System   string         `json:"system"`
	History  []tracker.Fork `json:"history"`
	Note     string         `json:"note"`
	Failure  string         `json:"failure"`
	Source   string         `json:"source"`
	Ladder   []tracker.Rung `json:"ladder"`
}

// take acts on an event. What cannot be read ends the stream: a position that was meant to
// replace it must not live on.
func (f *follower) take(name string, data []byte) error {
	switch name {
	case "state":
		return f.state(data)
	case "position":
		var p struct {
			Epoch uint64       `json:"epoch"`
			LSN   *tracker.LSN `json:"lsn"`
		}
		if err := json.Unmarshal(data, &p); err != nil {
			return fmt.Errorf("sidecar: event position: it cannot be read (%w): is it another version of walwake?", err)
		}
		if p.LSN == nil {
			return errors.New("sidecar: event position: it has no LSN: is it another version of walwake?")
		}
		if f.epoch != nil && p.Epoch == f.of {
			f.observe(*p.LSN)
		}
	case "end":
		var e struct{ Detail string }
		_ = json.Unmarshal(data, &e)
		return errors.New("sidecar: it has ended the stream: " + e.Detail)
	}
	return nil
}

func (f *follower) observe(lsn tracker.LSN) {
	f.at.LSN = lsn
	f.lsn = max(f.lsn, lsn)
	f.epoch.Observe(f.at)
}

func (f *follower) state(data []byte) error {
	s := state{}
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("sidecar: event state: it cannot be read (%w): is it another version of walwake?", err)
	}
	for i := range s.Ladder {
		s.Ladder[i].Source = f.name(s.Ladder[i].Source)
	}
	f.feed.Ladder(s.Ladder)
	f.feed.Note(note(s))
	if !s.Known {
		f.end()
		return nil
	}
	var system uint64
	var err error
	if s.System != "" {
		system, err = strconv.ParseUint(s.System, 10, 64)
	}
	if err != nil || s.Epoch == 0 || s.Position == nil {
		return errors.New("sidecar: event state: it has no position, or system: is it another version of walwake?")
	}
	if f.epoch != nil && f.of != s.Epoch {
		f.end()
	}
	if f.epoch == nil {
		f.epoch, f.of, f.lsn = f.feed.Begin(), s.Epoch, 0
		f.demands.forget()
	}
	f.at = tracker.Observation{System: system, Timeline: s.Timeline, History: s.History, Primary: s.Role == "primary"}
	f.observe(*s.Position)
	return nil
}

// name is what one of the sidecar's sources is called here.
func (f *follower) name(source string) string { return "sidecar/" + source }

// note is what holds the position back, there.
func note(s state) string {
	switch {
	case s.Note != "":
		return s.Note
	case s.Known:
		return ""
	case s.Failure != "":
		return "the sidecar does not know the position: " + s.Failure
	}
	return "the sidecar does not know the position"
}
