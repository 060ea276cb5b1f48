package sidecar

import (
	"fmt"
	"net/http"
	"time"

	"github.com/walwake/walwake/tracker"
)

// ReadyAnswer is the success of /readyz.
type ReadyAnswer struct {
	Status string `json:"status"` // ready
	Lag    Lag    `json:"lag"`
}

// serveReady is for load balancers: 200 while the position is known, and the lag within
// max_lag where one is given. A lag that is not known is no small one. Probes need show no
// bearer: they learn of which kind a failure is, and no more.
func (s *Server) serveReady(w http.ResponseWriter, r *http.Request) {
	most, limited, err := parseReady(r.URL.RawQuery)
	if err != nil {
		s.fail(w, badRequest.problem(err.Error()))
		return
	}
	st := s.cfg.Tracker.State()
	if st.Behind > 0 || !st.BehindKnown && !st.Primary.IsZero() { // it may have gone on since: only then must it be asked
		st = s.fresh(r.Context())
	}
	lag := s.lagOf(st, time.Now())
	if p := s.notReady(st, lag, most, limited, s.mayLearn(r)); p != nil {
		s.fail(w, p)
		return
	}
	s.ok(w, ReadyAnswer{"ready", lag})
}

// worthReading is d without what nobody reads of it.
func worthReading(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d
	}
	return d.Round(time.Millisecond)
}

func parseReady(query string) (most MaxLag, limited bool, err error) {
	got, err := parameters(query, "max_lag")
	if err != nil {
		return most, false, err
	}
	text, limited := got["max_lag"]
	if limited {
		most, err = ParseMaxLag(text)
	}
	return most, limited, err
}

func (s *Server) notReady(st tracker.State, lag Lag, most MaxLag, limited, inFull bool) *Problem {
	switch {
	case !st.Known:
		return unknown.problem(s.whyUnknown(st, inFull))
	case !limited:
		return nil
	case !lag.Known:
		return lagUnknown.problem(lag.Reason)
	case most.InTime && *lag.US > most.Time.Microseconds():
		return lagging.problem(fmt.Sprintf("at least %s behind, more than %s", worthReading(time.Duration(*lag.US)*time.Microsecond), most))
	case !most.InTime && *lag.Bytes > most.Bytes:
		return lagging.problem(fmt.Sprintf("%d bytes behind, more than %s", *lag.Bytes, most))
	}
	return nil
}
