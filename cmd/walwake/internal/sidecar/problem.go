package sidecar

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/walwake/walwake/tracker"
)

// A Problem is an answer that is no success: RFC 9457, and what a client needs to go on.
type Problem struct {
	Type   string `json:"type"` // urn:walwake: and Reason
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"` // what happened, and what to do
	Reason string `json:"reason"` // one of the words below

	// Of waits; what is not known is null.
	*WaitDetail
}

// WaitDetail is what the problem of a wait adds.
type WaitDetail struct {
	Target   *tracker.LSN `json:"target"`
	Replayed *tracker.LSN `json:"replayed"`
	Timeline *uint32      `json:"timeline"`
	Behind   *uint64      `json:"behind_bytes"`
	ETA      *int64       `json:"eta_us"` // estimate of the time that behind_bytes take
	WaitedUS int64        `json:"waited_us"`
	Source   string       `json:"source"`
}

// kind is what problems of one Reason have in common.
type kind struct {
	reason string
	status int
	title  string
}

// The reasons.
var (
	badRequest   = kind{"bad_request", http.StatusBadRequest, "The request cannot be understood"}
	badToken     = kind{"bad_token", http.StatusBadRequest, "The token cannot be read"}
	badTimeout   = kind{"bad_timeout", http.StatusBadRequest, "The timeout cannot be used"}
	unauthorized = kind{"unauthorized", http.StatusUnauthorized, "The bearer token is missing or wrong"}
	crossSite    = kind{"cross_site", http.StatusForbidden, "The request comes from another site"}
	notFound     = kind{"not_found", http.StatusNotFound, "There is nothing here"}
	badMethod    = kind{"method_not_allowed", http.StatusMethodNotAllowed, "The method is not allowed here"}
	diverged     = kind{"diverged", http.StatusConflict, "The write was lost in a failover"}
	wrongSystem  = kind{"wrong_system", http.StatusConflict, "The token is of another cluster"}
	tooLarge     = kind{"body_not_allowed", http.StatusRequestEntityTooLarge, "The request may not have a body"}
	misdirected  = kind{"wrong_host", http.StatusMisdirectedRequest, "The sidecar does not go by this name"}
	tooMany      = kind{"too_many", http.StatusTooManyRequests, "Too many ask at once"}
	unknown      = kind{"unknown_position", http.StatusServiceUnavailable, "The replica's position is not known"}
	shuttingDown = kind{"shutting_down", http.StatusServiceUnavailable, "The sidecar is shutting down"}
	lagging      = kind{"lagging", http.StatusServiceUnavailable, "The replica is too far behind"}
	lagUnknown   = kind{"lag_unknown", http.StatusServiceUnavailable, "The replica's lag is not known"}
	timedOut     = kind{"timeout", http.StatusGatewayTimeout, "The time was up"}
)

func (k kind) problem(detail string) *Problem {
	return &Problem{Type: "urn:walwake:" + k.reason, Title: k.title, Status: k.status, Detail: detail, Reason: k.reason}
}

func (s *Server) fail(w http.ResponseWriter, p *Problem) {
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	s.answer(w, p.Status, "application/problem+json", p)
}

func (s *Server) ok(w http.ResponseWriter, v any) {
	s.answer(w, http.StatusOK, "application/json", v)
}

// answer writes v as JSON. A client that does not read it is given up after WriteTimeout.
func (s *Server) answer(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := encode(v)
	if err != nil { // of nothing that is written here
		status, body = http.StatusInternalServerError, []byte(`{}`)
		s.cfg.Logger.Error("answer cannot be written", "err", err)
	}
	s.write(w, status, contentType, append(body, '\n'))
}

// encode is json.Marshal, but with < and & as they are: people read it, and it is never part of HTML.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

func (s *Server) write(w http.ResponseWriter, status int, contentType string, body []byte) {
	s.deadline(w)
	s.answers[status].Add(1)
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // nobody is left to tell
}
