package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/walwake/walwake/tracker"
)

// askFor is how long one request of a wait takes at most; a longer wait is several. It is
// within what a sidecar allows by default.
const askFor = 30 * time.Second

// Wait blocks until the sidecar's replica has replayed tok, and returns nil then: one request,
// and no Tracker. It is as (*tracker.Tracker).Wait in what it returns: a *tracker.TimeoutError when
// the time was up, tracker.DefaultTimeout where ctx has no deadline, and errors that wrap
// tracker.ErrDiverged, ErrWrongSystem, ErrTooManyWaiters and, for a sidecar that shuts down,
// ErrClosed. Any other error says that the sidecar could not be asked.
func (c *Client) Wait(ctx context.Context, tok tracker.Token) error {
	if tok.IsZero() {
		return nil
	}
	if _, has := ctx.Deadline(); !has {
		limited, cancel := context.WithTimeout(ctx, tracker.DefaultTimeout)
		defer cancel()
		err := c.waitUntil(limited, tok)
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	err := c.waitUntil(ctx, tok)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	return err
}

// askAgain is the pause where a sidecar answered at once that it cannot tell yet. answerFor
// is how long before the caller's time is up the sidecar's answer, which says more, is to come.
const (
	askAgain  = 100 * time.Millisecond
	answerFor = 10 * time.Millisecond
)

func (c *Client) waitUntil(ctx context.Context, tok tracker.Token) error {
	start := time.Now()
	deadline, _ := ctx.Deadline()
	for {
		asked := time.Now()
		left := deadline.Sub(asked)
		left -= min(left/10, answerFor)
		timeout := max(0, min(left, askFor))
		late, err := c.ask(ctx, tok, timeout)
		if late == nil {
			return err
		}
		late.Waited = time.Since(start)
		early := timeout - time.Since(asked)
		if ctx.Err() != nil || left <= askFor && early <= answerFor {
			return late
		}
		select {
		case <-time.After(min(early, askAgain)):
		case <-ctx.Done():
			return late
		}
	}
}

// longestHeader of a WAL page, in bytes: a bare LSN behind one is waited for in front of it.
const longestHeader = 40

// replayed reads a success: anybody's may be behind the URL, and only a sidecar's says what was replayed.
func (c *Client) replayed(body io.Reader, tok tracker.Token) error {
	var a struct {
		Result string       `json:"result"`
		Target *tracker.LSN `json:"target"`
	}
	text, err := io.ReadAll(io.LimitReader(body, maxProblem)) // to its end: the connection is used again
	if err != nil {
		return fmt.Errorf("sidecar: ask to wait: %w", err)
	}
	least := tok.LSN
	if tok.System == 0 {
		least -= min(least, longestHeader)
	}
	if json.Unmarshal(text, &a) != nil || a.Result != "replayed" || a.Target == nil || *a.Target < least {
		return fmt.Errorf("sidecar: ask to wait: the answer is not a sidecar's for %s: does something else listen at %s, or is it another version of walwake?", tok, c.cfg.URL)
	}
	return nil
}

// ask returns a *TimeoutError when the time was up.
func (c *Client) ask(ctx context.Context, tok tracker.Token, timeout time.Duration) (*tracker.TimeoutError, error) {
	query := url.Values{"token": {tok.String()}, "timeout": {timeout.Round(time.Microsecond).String()}}
	req, err := c.request(ctx, http.MethodGet, "/v1/wait?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return &tracker.TimeoutError{Replica: c.cfg.URL, Target: tok, Reason: "no answer from the sidecar"}, nil
		}
		return nil, fmt.Errorf("sidecar: ask to wait: %w", reached(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil, c.replayed(resp.Body, tok)
	}
	p := readProblem(resp)
	switch p.Reason {
	case "timeout", "unknown_position":
		late := &tracker.TimeoutError{
			Replica: c.cfg.URL, Target: tok, Behind: p.Behind, ETA: time.Duration(p.ETA) * time.Microsecond,
			Source: p.Source, Reason: p.Detail,
		}
		if p.Replayed != nil {
			late.Known, late.Last = true, tracker.Observation{LSN: *p.Replayed, System: tok.System, Timeline: p.Timeline}
		}
		return late, nil
	case "diverged":
		return nil, fmt.Errorf("%w: %w", tracker.ErrDiverged, p)
	case "wrong_system":
		return nil, fmt.Errorf("%w: %w", tracker.ErrWrongSystem, p)
	case "too_many":
		return nil, fmt.Errorf("%w: %w", tracker.ErrTooManyWaiters, p)
	case "shutting_down":
		return nil, fmt.Errorf("%w: %w", tracker.ErrClosed, p)
	}
	return nil, p
}
