package sidecar

import (
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
)

// heardWithin is how old the primary's position may be for the lag to be known, and more where it is asked seldom.
const heardWithin = 10 * time.Second

// Lag is how far the replica is behind its primary. Where it is not known, Reason says why
// and the rest is null.
type Lag struct {
	Known        bool           `json:"known"`
	Bytes        *uint64        `json:"bytes"`
	US           *int64         `json:"us"`     // at least so long ago the primary was where the replica has yet to come to
	ETA          *int64         `json:"eta_us"` // estimate of the time that bytes take
	Primary      *tracker.Token `json:"primary"`
	PrimaryAgeUS *int64         `json:"primary_age_us"` // since the primary was known to be there
	Reason       string         `json:"reason"`
}

// lagOf says how far behind a state is.
func (s *Server) lagOf(st tracker.State, now time.Time) Lag {
	l, within := Lag{}, max(heardWithin, 3*s.cfg.PrimaryInterval)
	if st.Known && st.Position.Primary {
		return Lag{Known: true, Bytes: new(uint64(0)), US: new(int64(0))}
	}
	if !st.Primary.IsZero() {
		l.Primary, l.PrimaryAgeUS = &st.Primary, new(now.Sub(st.PrimaryHeard).Microseconds())
	}
	switch {
	case !st.Known:
		l.Reason = "the replica's position is not known"
	case st.Primary.IsZero() && !s.cfg.PrimaryNamed:
		l.Reason = "nobody says where the primary is: name it in --primary"
	case st.Primary.IsZero():
		l.Reason = "the primary's position on the timeline that is replayed is not known: see the log"
	case st.Position.System == 0:
		l.Reason = "the replica's cluster is not known"
	case now.Sub(st.PrimaryHeard) > within:
		l.Reason = "the primary has not answered for longer than " + within.String()
	case !st.BehindKnown:
		l.Reason = fmt.Sprintf("the primary is on timeline %d, and the replica is not known to follow it there", st.Primary.Timeline)
	default:
		l.Known, l.Bytes, l.US = true, &st.Behind, new(st.BehindFor.Microseconds())
		if st.ETA > 0 {
			l.ETA = new(st.ETA.Microseconds())
		}
	}
	return l
}
