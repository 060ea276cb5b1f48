package sidecar

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

//go:embed openapi.yaml
var openAPI []byte

// A Server answers HTTP requests from a Tracker. All methods may be called by any
// goroutine.
type Server struct {
	cfg  Config
	boot string // tells this run of the sidecar from others

	ctx  context.Context // of all requests; ended by shut, with errShutdown
	shut context.CancelCauseFunc

	waiting, streaming atomic.Int64
	open               atomic.Int64   // connections
	refusals           atomic.Int64   // connections that the log is yet to tell of
	parked             sync.WaitGroup // what runs beside net/http
	parkAbove          int64          // see there; tests change it before Serve
	dropped            atomic.Uint64
	answers            [600]atomic.Uint64 // by status
}

// errShutdown ends requests that wait.
var errShutdown = errors.New("sidecar: shutting down")

// New returns a Server. It does no I/O; an error names the field that is wrong. Serve
// runs it.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.checked()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, boot: rand.Text()[:10], parkAbove: parkAbove}
	s.ctx, s.shut = context.WithCancelCause(context.Background())
	cfg.Hub.attach(s)
	cfg.Hub.look(s) // so that there always is a frame
	return s, nil
}

// Stats is what a Server has done, and does now.
type Stats struct {
	Waiting        int            // requests of /v1/wait that wait
	Streaming      int            // streams
	DroppedReaders uint64         // streams that ended because the client did not read
	Answers        map[int]uint64 // by status, but for streams, metrics and the page
}

// Stats returns the counts. It does not block.
func (s *Server) Stats() Stats {
	st := Stats{Waiting: int(s.waiting.Load()), Streaming: int(s.streaming.Load()), DroppedReaders: s.dropped.Load(), Answers: map[int]uint64{}}
	for code := range s.answers {
		if n := s.answers[code].Load(); n > 0 {
			st.Answers[code] = n
		}
	}
	return st
}

func (s *Server) closing() bool { return s.ctx.Err() != nil }

// routes are the paths that there are, but for the page's, and what answers them.
func (s *Server) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"/v1/position":     s.servePosition,
		"/v1/wait":         s.serveWait,
		"/v1/stream":       s.serveStream,
		"/v1/fleet":        s.serveFleet,
		"/v1/openapi.yaml": s.serveOpenAPI,
		"/healthz":         s.serveHealth,
		"/readyz":          s.serveReady,
		"/metrics":         s.serveMetrics,
	}
}

// Handler returns what answers requests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, h := range s.routes() {
		second := http.MethodHead
		if path == "/v1/stream" {
			second = http.MethodPost
		}
		mux.HandleFunc(path, s.only(h, http.MethodGet, second))
	}
	mux.HandleFunc("/v1/", s.serveNothing)
	if s.cfg.Page != nil {
		mux.HandleFunc("/", s.only(s.servePage, http.MethodGet, http.MethodHead))
	} else {
		mux.HandleFunc("/", s.serveNothing)
	}
	return s.guard(mux)
}

func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Metrics == nil {
		s.serveNothing(w, r)
		return
	}
	s.deadline(w)
	s.cfg.Metrics.ServeHTTP(w, r)
}

func (s *Server) servePage(w http.ResponseWriter, r *http.Request) {
	s.deadline(w)
	page := &pageWriter{ResponseWriter: w}
	s.cfg.Page.ServeHTTP(page, r)
	if page.nothing {
		s.serveNothing(w, r)
	}
}

// pageWriter keeps back what the page says where it has nothing: all failures are problems.
type pageWriter struct {
	http.ResponseWriter
	nothing bool
}

// WriteHeader is http.ResponseWriter's.
func (p *pageWriter) WriteHeader(status int) {
	if p.nothing = status == http.StatusNotFound; !p.nothing {
		p.ResponseWriter.WriteHeader(status)
	}
}

// Write is http.ResponseWriter's.
func (p *pageWriter) Write(b []byte) (int, error) {
	if p.nothing {
		return len(b), nil
	}
	return p.ResponseWriter.Write(b)
}

// only lets methods through.
func (s *Server) only(h http.HandlerFunc, methods ...string) http.HandlerFunc {
	allow := methods[0] + ", " + methods[1]
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != methods[0] && r.Method != methods[1] {
			w.Header().Set("Allow", allow)
			s.fail(w, badMethod.problem("use "+allow))
			return
		}
		h(w, r)
	}
}

func (s *Server) serveNothing(w http.ResponseWriter, _ *http.Request) {
	s.fail(w, notFound.problem("see /v1/openapi.yaml for what there is"))
}

func (s *Server) serveOpenAPI(w http.ResponseWriter, r *http.Request) {
	if s.noParameters(w, r) {
		s.write(w, http.StatusOK, "application/yaml", openAPI)
	}
}

func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	if s.noParameters(w, r) {
		s.ok(w, struct {
			Status string `json:"status"`
		}{"ok"})
	}
}

// noParameters refuses a query, and reports whether there was none.
func (s *Server) noParameters(w http.ResponseWriter, r *http.Request) bool {
	_, err := parameters(r.URL.RawQuery)
	if err != nil {
		s.fail(w, badRequest.problem(err.Error()))
	}
	return err == nil
}

// deadline bounds the time for what is written from now on.
func (s *Server) deadline(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout)) // recorders have none
}
