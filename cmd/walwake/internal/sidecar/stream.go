package sidecar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/walwake/walwake/tracker"
)

// Bounds of a stream's parameter keepalive.
const (
	minKeepalive     = 100 * time.Millisecond
	maxKeepalive     = 30 * time.Second
	defaultKeepalive = 5 * time.Second
)

// End is the event "end", the last of a stream that the sidecar ends.
type End struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

// stream is one client of /v1/stream. Its goroutine owns it.
type stream struct {
	s         *Server
	w         http.ResponseWriter
	rc        *http.ResponseController
	buf       []byte
	n         uint64        // of the latest frame or event that it was told of
	frameN    uint64        // of the latest frame
	stateN    uint64        // of the latest state
	lazy      bool          // the client says what it waits for: of other positions it hears in place of keepalives
	told      about         // the state that a position is to be read with
	wait      *waiting      // nil: the client waits for nothing
	expiry    *time.Timer   // of wait
	keepalive time.Duration // between two writes
}

// about is what a position is a position of.
type about struct {
	epoch    uint64
	system   uint64
	timeline uint32
	primary  bool
	history  bool // whether it is known
}

func aboutOf(o tracker.Observation) about {
	return about{o.Epoch, o.System, o.Timeline, o.Primary, o.History != nil}
}

// waiting is a demand that the tracker has been told of.
type waiting struct {
	*tracker.Waiter
	done <-chan struct{}
}

func (s *Server) serveStream(w http.ResponseWriter, r *http.Request) {
	keepalive, err := parseKeepalive(r.URL.RawQuery)
	if err != nil {
		s.fail(w, badRequest.problem(err.Error()))
		return
	}
	defer s.streaming.Add(-1)
	if s.streaming.Add(1) > int64(s.cfg.Streams) {
		s.dismiss(w, r)
		s.fail(w, tooMany.problem("as many streams as the sidecar takes are open: share one in each process, or raise --max-streams"))
		return
	}
	poke(s.cfg.Hub.urgent) // or the hub might sleep on
	st := &stream{
		s: s, w: w, rc: http.NewResponseController(w), keepalive: keepalive,
		expiry: time.NewTimer(demandFor), n: s.lastEvent(r),
	}
	defer st.expiry.Stop()
	err = st.run(r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.dropped.Add(1)
		s.cfg.Logger.Warn("stream dropped: the client does not read", "streams_dropped", s.dropped.Load())
	}
}

func parseKeepalive(query string) (time.Duration, error) {
	got, err := parameters(query, "keepalive")
	text, is := got["keepalive"]
	if err != nil || !is {
		return defaultKeepalive, err
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < minKeepalive || d > maxKeepalive {
		return 0, fmt.Errorf("keepalive %.64q: want a duration with its unit from %s to %s", text, minKeepalive, maxKeepalive)
	}
	return d, nil
}

// lastEvent is the n of the event that a client which comes back has had last, of this run
// of the sidecar; 0 otherwise.
func (s *Server) lastEvent(r *http.Request) uint64 {
	boot, text, _ := strings.Cut(r.Header.Get("Last-Event-ID"), "-")
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || boot != s.boot {
		return 0
	}
	return n
}

func (st *stream) run(r *http.Request) error {
	h := st.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // of proxies that would keep events back
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	demands, stop := st.demands(r, cancel)
	defer stop()
	st.lazy = demands != nil
	defer st.demand(0)
	_, _ = st.w.Write([]byte("retry: 1000\n\n")) // goes out with the first event
	hub := st.s.cfg.Hub
	alive := time.NewTimer(st.keepalive)
	defer alive.Stop()
	for due := true; ; {
		f, events, changed := hub.since(st.n)
		wrote, err := st.tell(f, events, due)
		if err != nil {
			return err
		}
		due = false
		if wrote {
			alive.Reset(st.keepalive)
		}
		var reached <-chan struct{}
		if st.wait != nil {
			reached = st.wait.done
		}
		select {
		case <-changed:
		case lsn := <-demands:
			st.demand(lsn)
		case <-st.expiry.C:
			st.demand(0)
		case <-reached:
			if err = st.reached(); err == nil {
				alive.Reset(st.keepalive)
			}
		case <-alive.C:
			if due = f.n > st.frameN; !due {
				err = st.write([]byte(":\n\n"))
			}
			alive.Reset(st.keepalive)
		case <-ctx.Done():
			err = st.end(context.Cause(ctx))
		}
		if err != nil {
			return err
		}
	}
}

// tell writes what is new since the last time, and reports whether anything was. A position may wait until it
// is due.
func (st *stream) tell(f frame, events []Event, due bool) (wrote bool, err error) {
	st.buf = st.buf[:0]
	for _, e := range events {
		data, err := encode(e)
		if err != nil {
			return false, err
		}
		st.event("event", e.N, data)
		st.n = max(st.n, e.N)
	}
	if f.n > st.frameN && (due || !st.lazy || f.stateN > st.stateN || !f.known) {
		st.n, st.frameN = max(st.n, f.n), f.n
		st.present(f)
	}
	if len(st.buf) == 0 {
		return false, nil
	}
	return true, st.write(st.buf)
}

// present appends the present position, from f where that is of it. What f says may be over:
// the tracker knows.
func (st *stream) present(f frame) {
	o, known := st.s.cfg.Tracker.LastReplay()
	is := aboutOf(o)
	switch {
	case known != f.known || is != aboutOf(f.seen):
		now := st.s.cfg.Tracker.State()
		st.state(aboutOf(now.Position), st.s.described(now), f)
	case is != st.told || f.stateN > st.stateN || f.position == nil:
		st.state(is, f.state, f)
	default:
		st.event("position", f.n, f.position)
	}
}

// state appends a state, of which positions are from now on.
func (st *stream) state(is about, data []byte, f frame) {
	st.told, st.stateN = is, f.stateN
	st.event("state", f.n, data)
}

// described is a state as JSON.
func (s *Server) described(st tracker.State) []byte {
	b, _ := encode(s.describe(st, time.Now())) // nothing in it can fail
	return b
}

// reached tells the client of a position that it waits for, at once.
func (st *stream) reached() error {
	lsn, err := st.wait.Token().LSN, st.wait.Err()
	st.wait = nil
	if err != nil {
		return st.end(err)
	}
	o, known := st.s.cfg.Tracker.LastReplay()
	if !known || o.LSN < lsn { // the epoch is over: the hub will tell of it, and the client waits on
		st.demand(lsn)
		return nil
	}
	st.buf = st.buf[:0]
	if aboutOf(o) != st.told {
		f, _, _ := st.s.cfg.Hub.since(st.n)
		st.present(f)
	} else {
		data, _ := encode(Moved{Epoch: o.Epoch, LSN: o.LSN}) // nothing in it can fail
		st.event("position", st.n, data)
	}
	return st.write(st.buf)
}

// event appends an event.
func (st *stream) event(name string, n uint64, data []byte) {
	st.buf = append(st.buf, "id: "+st.s.boot+"-"...)
	st.buf = strconv.AppendUint(st.buf, n, 10)
	st.buf = append(st.buf, "\nevent: "+name+"\ndata: "...)
	st.buf = append(st.buf, data...)
	st.buf = append(st.buf, "\n\n"...)
}

// write sends b, or gives the client up.
func (st *stream) write(b []byte) error {
	if err := st.rc.SetWriteDeadline(time.Now().Add(st.s.cfg.WriteTimeout)); err != nil {
		return err
	}
	if _, err := st.w.Write(b); err != nil {
		return err
	}
	if err := st.rc.Flush(); err != nil {
		return err
	}
	return st.rc.SetWriteDeadline(time.Time{})
}

// errEnded ends a stream that has been told.
var errEnded = errors.New("sidecar: stream ended")

// end says why the stream is over, where the client is there to hear it.
func (st *stream) end(err error) error {
	e := End{"closed", "come again"}
	switch {
	case errors.Is(err, errShutdown), errors.Is(err, tracker.ErrClosed):
		e = End{shuttingDown.reason, "the sidecar is shutting down: come again"}
	case errors.Is(err, tracker.ErrTooManyWaiters):
		e = End{tooMany.reason, "too many wait: come again later"}
	case errors.Is(err, errDemand):
		e = End{badRequest.reason, err.Error()}
	}
	data, _ := encode(e) // nothing in it can fail
	st.buf = st.buf[:0]
	st.event("end", st.n, data)
	if err := st.write(st.buf); err != nil {
		return err
	}
	return errEnded
}

// demand has the tracker ask for lsn; 0: for nothing.
func (st *stream) demand(lsn tracker.LSN) {
	if st.wait != nil {
		st.wait.Cancel()
		st.wait = nil
	}
	if lsn == 0 {
		return
	}
	w := st.s.cfg.Tracker.Request(tracker.Token{LSN: lsn})
	st.wait = &waiting{w, w.Done()}
	st.expiry.Reset(demandFor)
}

var errDemand = errors.New("a line of the request's body: want an LSN, such as 0/174FFB0, or 0/0")

// maxDemand is longer than any LSN and its newline.
const maxDemand = 32

// demands reads what the client waits for from the body of a POST. The channel has the
// latest; it is nil where there is no body. stop returns when nobody reads the body any more.
func (st *stream) demands(r *http.Request, cancel context.CancelCauseFunc) (demands <-chan tracker.LSN, stop func()) {
	if r.Method != http.MethodPost || r.ContentLength == 0 {
		return nil, func() {}
	}
	if r.ProtoMajor == 1 {
		st.w.Header().Set("Connection", "close")
		_ = st.rc.EnableFullDuplex() // HTTP/2 has no need to
	}
	c := make(chan tracker.LSN, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := readDemands(r.Body, c); !errors.Is(err, io.EOF) { // at its end the body says no more, and the client still hears
			cancel(err)
		}
	}()
	return c, func() {
		_ = st.rc.SetReadDeadline(time.Now())
		<-ended
	}
}

// readDemands reads lines until the body ends, and says why it did. The last may come without a newline, as from curl -d.
func readDemands(body io.Reader, c chan tracker.LSN) error {
	lines := bufio.NewReaderSize(body, maxDemand)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return errDemand
		case err != nil && (len(line) == 0 || !errors.Is(err, io.EOF)): // of a body that was cut the rest is no LSN
			return err
		}
		lsn, err := tracker.ParseLSN(strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r"))
		if err != nil {
			return errDemand
		}
		select {
		case <-c: // the latest counts
		default:
		}
		c <- lsn // there is room: nobody else sends
	}
}
