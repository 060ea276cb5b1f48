package sidecar

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/walwake/walwake/tracker"
)

// WaitAnswer is the success of a wait. What is not known is null.
type WaitAnswer struct {
	Result   string       `json:"result"` // replayed
	Target   tracker.LSN  `json:"target"`
	Replayed *tracker.LSN `json:"replayed"`
	Timeline *uint32      `json:"timeline"`
	Source   string       `json:"source"`
	Primary  bool         `json:"primary"` // whether the server is no replica
	WaitedUS int64        `json:"waited_us"`
}

func (s *Server) serveWait(w http.ResponseWriter, r *http.Request) {
	target, timeout, p := s.parseWait(r.URL.RawQuery)
	if p != nil {
		s.fail(w, p)
		return
	}
	if s.waiting.Add(1) > int64(s.cfg.Waiters) {
		s.waiting.Add(-1)
		s.fail(w, tooMany.problem("as many waits as the sidecar takes are under way: wait less long, or raise --max-waiters"))
		return
	}
	start := time.Now()
	answer := func(w http.ResponseWriter, err error) {
		s.waiting.Add(-1)
		s.answerWait(w, target, time.Since(start), err)
	}
	if s.cfg.Tracker.Replayed(target) {
		answer(w, nil)
		return
	}
	s.await(w, r, timeout, func(ctx context.Context) error { return s.wait(ctx, &target) }, answer)
}

// recordEndError says why it is not known where the record before a bare LSN ends.
type recordEndError struct{ error }

// wait is Tracker.Wait, for a bare LSN with where the record before it ends in its place.
func (s *Server) wait(ctx context.Context, target *tracker.Token) error {
	if target.System != 0 || s.cfg.RecordEnd == nil {
		return s.cfg.Tracker.Wait(ctx, *target)
	}
	start := time.Now()
	end, err := s.cfg.RecordEnd(ctx, target.LSN)
	silent := err != nil && ctx.Err() != nil
	switch {
	case err == nil:
		target.LSN = end
	case !silent:
		return &recordEndError{err}
	}
	err = s.cfg.Tracker.Wait(ctx, *target) // which says so where the time is up already, unless it is replayed
	if late, is := errors.AsType[*tracker.TimeoutError](err); is {
		late.Waited = time.Since(start) // for the record's end as well
		if silent {
			late.Reason = cmp.Or(late.Reason, "it has not said where the record before that ends")
		}
	}
	return err
}

func (s *Server) answerWait(w http.ResponseWriter, target tracker.Token, waited time.Duration, err error) {
	if err != nil {
		s.fail(w, s.waitProblem(target, waited, err))
		return
	}
	a := WaitAnswer{Result: "replayed", Target: target.LSN, Source: s.cfg.Tracker.State().Source, WaitedUS: waited.Microseconds()}
	if o, known := s.cfg.Tracker.LastReplay(); known { // the connection may have ended just after
		a.Replayed, a.Timeline, a.Primary = &o.LSN, named(o.Timeline), o.Primary
	}
	s.ok(w, a)
}

func (s *Server) parseWait(query string) (target tracker.Token, timeout time.Duration, p *Problem) {
	got, err := parameters(query, "token", "timeout")
	if err != nil {
		return target, 0, badRequest.problem(err.Error())
	}
	text, is := got["token"]
	if !is {
		return target, 0, badToken.problem("there is no token: ask /v1/wait?token=…&timeout=3s")
	}
	if target, err = ParseTarget(text); err != nil {
		return target, 0, badToken.problem(s.cfg.Text(err.Error()))
	}
	timeout = s.cfg.Timeout
	if text, is := got["timeout"]; is {
		if timeout, err = parseTimeout(text, s.cfg.MaxTimeout); err != nil {
			return target, 0, badTimeout.problem(err.Error())
		}
	}
	return target, timeout, nil
}

// waitProblem says how a wait ended.
func (s *Server) waitProblem(target tracker.Token, waited time.Duration, err error) *Problem {
	d := &WaitDetail{Target: &target.LSN, WaitedUS: waited.Microseconds(), Source: s.cfg.Tracker.State().Source}
	o, known := s.cfg.Tracker.LastReplay()
	late, isLate := errors.AsType[*tracker.TimeoutError](err)
	if isLate {
		o, known = late.Last, late.Known
		if late.ETA > 0 {
			d.ETA = new(late.ETA.Microseconds())
		}
	}
	if known {
		d.Replayed, d.Timeline, d.Behind = &o.LSN, named(o.Timeline), new(o.LSN.Behind(target.LSN))
	}
	if isLate && !late.Known {
		if failure := s.cfg.Tracker.State().Failure; failure != nil {
			late.Reason, _ = s.cfg.Failure(failure)
		}
	}
	text := s.cfg.Text(err.Error())
	_, noEnd := errors.AsType[*recordEndError](err)
	var p *Problem
	switch {
	case noEnd:
		p = unknown.problem(text)
	case errors.Is(err, tracker.ErrDiverged):
		p = diverged.problem(text + ": write again")
	case errors.Is(err, tracker.ErrWrongSystem):
		p = wrongSystem.problem(text + ": ask the sidecar of the token's cluster")
	case errors.Is(err, tracker.ErrTooManyWaiters):
		p = tooMany.problem(text)
	case isLate && !late.Known:
		p = unknown.problem(text + ": read from the primary, or ask again")
	case isLate:
		p = timedOut.problem(text)
	default: // or the client is gone, and reads nothing
		p = shuttingDown.problem("the wait is not over: ask again, or read from the primary")
	}
	p.WaitDetail = d
	return p
}

// named is nil for a timeline that is not known.
func named(timeline uint32) *uint32 {
	if timeline == 0 {
		return nil
	}
	return &timeline
}
