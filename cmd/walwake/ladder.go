package main

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/walwake/walwake/tracker"
)

const (
	settleWithin = 3 * time.Second        // is how long a ladder is given to settle at most
	settledFor   = 200 * time.Millisecond // after its last change, it has settled
	settleLook   = 5 * time.Millisecond   // is how often it is looked at
)

// rung is one way to learn of replay, as --json shows it.
type rung struct {
	Source string `json:"source"`
	Up     bool   `json:"up"`
	Reason string `json:"reason"` // why it is not up; may be empty
}

// settle has somebody wait, since streams start for nobody else, until the best source is in use or nothing more
// changes, and returns the state then.
func (r *replica) settle(ctx context.Context, within time.Duration) tracker.State {
	w := r.Request(tracker.Token{LSN: math.MaxUint64}) // which is never replayed
	defer w.Cancel()
	timer := time.NewTimer(within)
	defer timer.Stop()
	look := time.NewTicker(settleLook)
	defer look.Stop()
	state := r.State()
	var changed time.Time
	for {
		// Who may replicate sees the timeline, if not at once.
		best := len(state.Ladder) == 0 || state.Ladder[0].Up && state.Position.Timeline != 0
		if best || state.Position.Primary || !changed.IsZero() && time.Since(changed) > settledFor {
			return state
		}
		select {
		case <-ctx.Done():
			return state
		case <-timer.C:
			return state
		case <-look.C:
		}
		next := r.State()
		if !slices.Equal(next.Ladder, state.Ladder) {
			changed = time.Now()
		}
		state = next
	}
}

// rungs are a ladder's, for a person.
func rungs(s tracker.State) []rung {
	shown := make([]rung, 0, len(s.Ladder))
	for _, l := range s.Ladder {
		shown = append(shown, rung{Source: l.Source, Up: l.Up, Reason: oneLine(plain(l.Reason))})
	}
	return shown
}

// state is the rung's place in the ladder, in words.
func (r rung) state(using string) string {
	switch {
	case r.Source == using:
		return "in use"
	case r.Up:
		return "up"
	case r.Reason == "":
		return "not up"
	}
	return "not up: " + r.Reason
}
