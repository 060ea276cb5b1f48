package sidecar

import (
	"net/http"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/tracker"
)

// FleetAnswer is the answer of /v1/fleet.
type FleetAnswer struct {
	Configured bool     `json:"configured"`
	Reason     string   `json:"reason"` // why it is not; empty when it is
	Members    []Member `json:"members"`
}

// Member is a replica as one process sees it: see pgnotify.Member.
type Member struct {
	Name     string         `json:"name"`
	Instance string         `json:"instance"`
	Position *tracker.Token `json:"position"` // null: not known
	Source   string         `json:"source"`
	Waiting  int            `json:"waiting"`
	HeardAt  time.Time      `json:"heard_at"`
	AgeUS    int64          `json:"age_us"`
	Silent   bool           `json:"silent"`
	Unsure   bool           `json:"unsure"`
}

func (s *Server) serveFleet(w http.ResponseWriter, r *http.Request) {
	if !s.noParameters(w, r) {
		return
	}
	a := FleetAnswer{Reason: s.cfg.NoFleet, Members: []Member{}}
	if s.cfg.Fleet != nil {
		a.Configured, a.Reason = true, ""
		for _, m := range s.cfg.Fleet() {
			a.Members = append(a.Members, member(m))
		}
	}
	s.ok(w, a)
}

func member(m pgnotify.Member) Member {
	shown := Member{
		Name: m.Name, Instance: m.Instance, Source: m.Source, Waiting: m.Waiting,
		HeardAt: m.Heard, AgeUS: m.Age.Microseconds(), Silent: m.Silent, Unsure: m.Unsure,
	}
	if m.Known {
		shown.Position = &m.Position
	}
	return shown
}
