package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/walwake/walwake/tracker"
)

const system = 7301234567890123456

// on is a position of the script's replica.
func on(timeline uint32, lsn tracker.LSN) tracker.Observation {
	return tracker.Observation{LSN: lsn, System: system, Timeline: timeline, History: tracker.History{}}
}

func token(timeline uint32, lsn tracker.LSN) tracker.Token {
	return tracker.Token{System: system, Timeline: timeline, LSN: lsn}
}

// script is a source that says what the test says.
type script struct {
	fails chan error
	feeds chan *tracker.Feed

	mu   sync.Mutex
	feed *tracker.Feed  // guarded by mu
	e    *tracker.Epoch // guarded by mu
}

func newScript() *script {
	return &script{fails: make(chan error), feeds: make(chan *tracker.Feed, 16)}
}

func (*script) Name() string { return "script" }

func (s *script) Observe(ctx context.Context, feed *tracker.Feed) error {
	s.mu.Lock()
	s.feed, s.e = feed, feed.Begin()
	s.mu.Unlock()
	s.feeds <- feed
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-s.fails:
		return err
	}
}

func (s *script) running() *tracker.Feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.feed
}

func (s *script) observe(o tracker.Observation) {
	s.mu.Lock()
	e := s.e
	s.mu.Unlock()
	e.Observe(o)
}

// over ends the epoch, without a failure, and begins another.
func (s *script) over() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.e.End()
	s.e = s.feed.Begin()
}

// kit is a server beside a script, over pipes, so that it runs in a synctest bubble.
type kit struct {
	t      testing.TB
	script *script
	tr     *tracker.Tracker
	server *Server
	pipes  *pipes
	client *http.Client
	stop   context.CancelFunc
	ended  chan error
}

// pipes is a listener whose connections are net.Pipes.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7432}
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// start runs a server until the test ends. change may be nil.
func start(t testing.TB, change func(*Config)) *kit {
	t.Helper()
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	k := startOn(t, p, change)
	transport := &http.Transport{DialContext: p.dial, DisableCompression: true}
	k.pipes, k.client = p, &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
	return k
}

// startOn is start, with a listener of the caller's, and no client.
func startOn(t testing.TB, l net.Listener, change func(*Config)) *kit {
	t.Helper()
	k := &kit{t: t, script: newScript(), ended: make(chan error, 1)}
	cfg := Config{Hub: NewHub(), Server: "127.0.0.1:5433"}
	if change != nil {
		change(&cfg)
	}
	var err error
	if k.tr, err = tracker.New(tracker.Config{Source: k.script, Observer: cfg.Hub.Observer()}); err != nil {
		t.Fatal(err)
	}
	cfg.Tracker = k.tr
	if k.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, is := l.(*pipes); is {
		k.server.parkAbove = 0 // every wait that lasts
	}
	var running sync.WaitGroup
	running.Go(func() { _ = k.tr.Run(context.Background()) })
	<-k.script.feeds
	ctx, stop := context.WithCancel(context.Background())
	k.stop = stop
	running.Go(func() { k.ended <- k.server.Serve(ctx, []net.Listener{l}, nil) })
	t.Cleanup(func() {
		stop()
		k.tr.Close()
		running.Wait()
	})
	return k
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (k *kit) do(req *http.Request) answer {
	resp, err := k.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	a := answer{resp.StatusCode, resp.Header, body, err}
	if err == nil && req.Method != http.MethodHead {
		if err := theSpec().check(req.Method, req.URL.Path, a); err != nil {
			k.t.Error(err)
		}
	}
	return a
}

func (k *kit) request(method, path string) *http.Request {
	req, err := http.NewRequestWithContext(k.t.Context(), method, "http://127.0.0.1:7432"+path, http.NoBody)
	if err != nil {
		k.t.Fatal(err)
	}
	return req
}

func (k *kit) get(path string) answer { return k.do(k.request(http.MethodGet, path)) }

// asked gets in another goroutine.
func (k *kit) asked(path string) <-chan answer {
	c := make(chan answer, 1)
	req := k.request(http.MethodGet, path)
	go func() { c <- k.do(req) }()
	return c
}

// is checks status and reason of a problem.
func (a answer) is(t testing.TB, k kind) Problem {
	t.Helper()
	var p Problem
	if a.err != nil || json.Unmarshal(a.body, &p) != nil || a.status != k.status || p.Status != k.status || p.Reason != k.reason ||
		p.Title != k.title || p.Type != "urn:walwake:"+k.reason || p.Detail == "" || a.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("want %+v, got %d %s, %v", k, a.status, a.body, a.err)
	}
	return p
}

// ok decodes a success.
func ok[T any](t testing.TB, a answer) T {
	t.Helper()
	var v T
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil || a.err != nil || a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("want status 200, got %d %s, %v, %v", a.status, a.body, a.err, err)
	}
	return v
}

// sse is an open stream.
type sse struct {
	t     testing.TB
	resp  *http.Response
	lines *bufio.Scanner
	body  *io.PipeWriter // nil: a GET
	sent  chan sent      // what has come: a pipe holds nothing, and the server is not to wait for a test
}

// sent is an event.
type sent struct{ id, name, data string }

func (k *kit) stream(query string, header ...string) *sse {
	k.t.Helper()
	return k.open(k.request(http.MethodGet, "/v1/stream"+query), nil, header)
}

func (k *kit) demanding(query string) *sse {
	k.t.Helper()
	in, out := io.Pipe()
	req := k.request(http.MethodPost, "/v1/stream"+query)
	req.Body, req.ContentLength = in, -1
	return k.open(req, out, nil)
}

func (k *kit) open(req *http.Request, body *io.PipeWriter, header []string) *sse {
	k.t.Helper()
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := k.client.Do(req) //nolint:bodyclose // close does
	if err != nil {
		k.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		k.t.Fatalf("the stream is answered with %s", resp.Status)
	}
	s := &sse{t: k.t, resp: resp, lines: bufio.NewScanner(resp.Body), body: body, sent: make(chan sent, 10_000)}
	go func() {
		defer close(s.sent)
		for e, more := s.scan(); more; e, more = s.scan() {
			if e.name != ":" {
				if err := theSpec().checkEvent(e); err != nil {
					s.t.Error(err)
				}
			}
			s.sent <- e
		}
	}()
	k.t.Cleanup(s.close)
	return s
}

func (s *sse) close() {
	if s.body != nil {
		_ = s.body.Close()
	}
	_ = s.resp.Body.Close()
}

// next returns the next event; a comment is one named ":".
func (s *sse) next() (sent, bool) {
	e, more := <-s.sent
	return e, more
}

func (s *sse) scan() (e sent, ok bool) {
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch name {
		case ":":
			return sent{name: ":"}, true
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if e.name != "" {
				return e, true
			}
		}
	}
	return sent{}, false
}

// until returns the next event of a name.
func (s *sse) until(name string) sent {
	s.t.Helper()
	for {
		e, ok := s.next()
		if !ok {
			s.t.Fatalf("the stream ended before an event %s", name)
		}
		if e.name == name {
			return e
		}
	}
}

func read[T any](t testing.TB, e sent) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(e.data))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v: %s", e.name, err, e.data)
	}
	return v
}

func (s *sse) say(lsn tracker.LSN) {
	s.t.Helper()
	if _, err := io.WriteString(s.body, lsn.String()+"\n"); err != nil {
		s.t.Fatal(err)
	}
}
