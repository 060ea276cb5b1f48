package sidecar

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/walwake/walwake/tracker"
)

// Position is what is known of the replica: the answer of /v1/position, and the event
// "state" of a stream. What is not known is null.
type Position struct {
	Boot       string         `json:"boot"`  // tells this run of the sidecar from others
	Epoch      *uint64        `json:"epoch"` // of the connection that the position comes from
	Server     string         `json:"server"`
	Known      bool           `json:"known"`
	Role       *string        `json:"role"`     // standby or primary
	Position   *tracker.LSN   `json:"position"` // up to here all is replayed
	Timeline   *uint32        `json:"timeline"`
	System     *string        `json:"system"` // a decimal number of 64 bits
	Token      *tracker.Token `json:"token"`  // of the position
	History    []Fork         `json:"history"`
	Source     string         `json:"source"` // in use; empty: none
	Ladder     []Rung         `json:"ladder"` // best first
	ObservedAt *time.Time     `json:"observed_at"`
	AgeUS      *int64         `json:"age_us"`
	Rate       float64        `json:"replay_bytes_per_second"` // lately; 0: not known
	Lag        Lag            `json:"lag"`
	Note       string         `json:"note"`    // what holds replay or the source back
	Failure    string         `json:"failure"` // why the position is not known
	Waiting    int            `json:"waiting"` // who waits, for different things or one
	Streams    int            `json:"streams"`
}

// Fork is a timeline that the replica's descends from, and where it was left.
type Fork struct {
	Timeline uint32      `json:"timeline"`
	End      tracker.LSN `json:"end"`
}

// Rung is one of the ways to learn of replay.
type Rung struct {
	Source  string    `json:"source"`
	Up      bool      `json:"up"`
	Resting bool      `json:"resting"` // not up because no wait needs it
	Reason  string    `json:"reason"`  // why it is not up; may be empty
	Since   time.Time `json:"since"`
}

// describe is st as it is shown.
func (s *Server) describe(st tracker.State, now time.Time) Position {
	p := Position{
		Boot: s.boot, Server: s.cfg.Server, Known: st.Known, Source: st.Source, Rate: st.Rate,
		Lag: s.lagOf(st, now), Note: s.cfg.Text(st.Note), Ladder: []Rung{},
		Waiting: st.Demand.Waiting, Streams: int(s.streaming.Load()),
	}
	for _, r := range st.Ladder {
		p.Ladder = append(p.Ladder, Rung{r.Source, r.Up, r.Resting, s.cfg.Text(r.Reason), r.Since})
	}
	if st.Failure != nil {
		p.Failure, _ = s.cfg.Failure(st.Failure)
	}
	if !st.ObservedAt.IsZero() {
		p.ObservedAt, p.AgeUS = &st.ObservedAt, new(now.Sub(st.ObservedAt).Microseconds())
	}
	if !st.Known {
		return p
	}
	o := st.Position
	role := "standby"
	if o.Primary {
		role = "primary"
	}
	p.Epoch, p.Role, p.Position, p.Timeline = &o.Epoch, &role, &o.LSN, named(o.Timeline)
	p.Token = &tracker.Token{System: o.System, Timeline: o.Timeline, LSN: o.LSN}
	if o.System != 0 {
		p.System = new(strconv.FormatUint(o.System, 10))
	}
	if o.History != nil {
		p.History = make([]Fork, 0, len(o.History))
		for _, f := range o.History {
			p.History = append(p.History, Fork(f))
		}
	}
	return p
}

// freshWithin is how long an answer waits for the replica to be asked once more.
const (
	freshWithin = 100 * time.Millisecond
	freshLook   = 500 * time.Microsecond
)

// fresh returns the state after the replica was asked once more, or freshWithin has passed.
func (s *Server) fresh(ctx context.Context) tracker.State {
	t := s.cfg.Tracker
	asked := time.Now()
	st := t.State()
	if !st.Known {
		return st
	}
	t.Refresh()
	look := time.NewTicker(freshLook)
	defer look.Stop()
	for st = t.State(); st.Known && !st.ObservedAt.After(asked) && time.Since(asked) < freshWithin; st = t.State() {
		select {
		case <-look.C:
		case <-ctx.Done():
			return st
		}
	}
	return st
}

func (s *Server) servePosition(w http.ResponseWriter, r *http.Request) {
	if !s.noParameters(w, r) {
		return
	}
	st := s.fresh(r.Context())
	if !st.Known {
		s.fail(w, unknown.problem(s.whyUnknown(st, true)))
		return
	}
	s.ok(w, s.describe(st, time.Now()))
}

// whyUnknown says why the position of st is not known; not in full, only of which kind that is.
func (s *Server) whyUnknown(st tracker.State, inFull bool) string {
	switch {
	case st.Failure != nil:
		text, kind := s.cfg.Failure(st.Failure)
		if !inFull {
			return kind
		}
		return text
	case st.Note != "" && inFull:
		return s.cfg.Text(st.Note)
	}
	return "no answer from the replica yet"
}
