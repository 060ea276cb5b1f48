package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// parkAfter is how long a wait is left to net/http, as those are that a replica which keeps up ends. One that lasts is
// parked: its connection is taken out of net/http, whose buffers and stack are 26 kB, and waits with two small
// goroutines, 8 kB. With the next request it is handed back. That leaves 12 kB of garbage, so it is only done while
// more than parkAbove wait, whose memory matters.
const (
	parkAfter = 100 * time.Millisecond
	parkAbove = 1000
)

// refusedEvery is how often the log tells of connections that are refused.
const refusedEvery = time.Second

// parked is a connection that waits outside of net/http. It is the http.ResponseWriter of its answer.
type parked struct {
	conn   *limitedConn
	last   bool          // whether the client wants no answer but this one
	head   bool          // whether it wants no body
	watch  chan struct{} // closed when the client has sent something, or is gone
	sent   bool          // which of the two; to be read after watch
	header http.Header
	buf    bytes.Buffer
}

// park takes a request's connection out of net/http; nil where that is not worth it, or cannot be: over TLS and HTTP/2. gone is called
// when the client is.
func (s *Server) park(w http.ResponseWriter, r *http.Request, gone func()) *parked {
	if r.ProtoMajor != 1 || r.TLS != nil || s.waiting.Load() <= s.parkAbove {
		return nil
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil
	}
	conn, is := c.(*limitedConn)
	if !is {
		_ = c.Close() // which cannot be: every connection comes from our listener
		return nil
	}
	if n := rw.Reader.Buffered(); n > 0 { // the next request has come already
		early, _ := rw.Peek(n)
		conn.ahead = bytes.Clone(early)
	}
	p := &parked{conn: conn, last: r.Close || !r.ProtoAtLeast(1, 1), head: r.Method == http.MethodHead, watch: make(chan struct{})}
	s.parked.Go(func() { p.listen(gone) })
	return p
}

// listen returns when the client has sent something, or is gone.
func (p *parked) listen(gone func()) {
	defer close(p.watch)
	if len(p.conn.ahead) > 0 {
		p.sent = true
		return
	}
	var first [1]byte
	n, _ := p.conn.Conn.Read(first[:])
	if p.sent = n == 1; p.sent {
		p.conn.ahead = first[:]
		return
	}
	gone()
}

// finish sends the answer, and hands the connection back to net/http with the next request.
func (s *Server) finish(p *parked, answer func(http.ResponseWriter)) {
	answer(p)
	_, err := p.conn.Write(p.buf.Bytes())
	p.buf = bytes.Buffer{}
	late := time.NewTimer(idleTimeout)
	defer late.Stop()
	if err == nil && !p.last {
		select {
		case <-p.watch:
			if p.sent && p.conn.of.again(p.conn) {
				return
			}
		case <-late.C:
		case <-s.ctx.Done():
		}
	}
	_ = p.conn.Close()
	<-p.watch
}

// Header is http.ResponseWriter's.
func (p *parked) Header() http.Header {
	if p.header == nil {
		p.header = http.Header{}
		commonHeaders(p.header)
	}
	return p.header
}

// WriteHeader is http.ResponseWriter's.
func (p *parked) WriteHeader(status int) {
	p.buf.Grow(1 << 10)
	fmt.Fprintf(&p.buf, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, http.StatusText(status), time.Now().UTC().Format(http.TimeFormat))
	if p.last {
		p.Header().Set("Connection", "close")
	}
	_ = p.Header().Write(&p.buf) // a bytes.Buffer takes all
	p.buf.WriteString("\r\n")
}

// Write is http.ResponseWriter's.
func (p *parked) Write(b []byte) (int, error) {
	if p.head {
		return len(b), nil
	}
	return p.buf.Write(b)
}

// SetWriteDeadline is for http.ResponseController.
func (p *parked) SetWriteDeadline(t time.Time) error { return p.conn.SetWriteDeadline(t) }

// limitedListener closes connections beyond most, and accepts once more those that were parked.
type limitedListener struct {
	net.Listener
	s      *Server
	fresh  chan accepted
	parked chan *limitedConn
	closed chan struct{}
	once   sync.Once
}

type accepted struct {
	conn net.Conn
	err  error
}

func (s *Server) limit(l net.Listener) *limitedListener {
	limited := &limitedListener{Listener: l, s: s, fresh: make(chan accepted), parked: make(chan *limitedConn), closed: make(chan struct{})}
	s.parked.Go(limited.accept)
	return limited
}

func (l *limitedListener) accept() {
	for {
		c, err := l.Listener.Accept()
		if err == nil && l.s.open.Add(1) > int64(l.s.cfg.Conns) {
			l.s.open.Add(-1)
			_ = c.Close()
			l.s.oneTooMany()
			continue
		}
		if err == nil {
			c = &limitedConn{Conn: c, of: l}
		}
		select {
		case l.fresh <- accepted{c, err}:
		case <-l.closed:
			if err == nil {
				_ = c.Close()
			}
			return
		}
	}
}

// oneTooMany counts a connection that was refused. What is refused within refusedEvery is one line of the log: connections
// cost who opens them less than lines cost the disk.
func (s *Server) oneTooMany() {
	if s.refusals.Add(1) == 1 {
		time.AfterFunc(refusedEvery, s.tellRefusals)
	}
}

func (s *Server) tellRefusals() {
	if n := s.refusals.Swap(0); n > 0 { // or Serve has ended, and told of them
		s.cfg.Logger.Warn("connections refused: too many are open", "refused", n, "limit", s.cfg.Conns)
	}
}

// Accept is net.Listener's.
func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.parked:
		return c, nil
	case a := <-l.fresh:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close is net.Listener's.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// again has a connection accepted once more, and reports whether it will be.
func (l *limitedListener) again(c *limitedConn) bool {
	select {
	case l.parked <- c:
		return true
	case <-l.closed:
		return false
	}
}

// limitedConn counts among the connections that are open. One goroutine reads it at a time.
type limitedConn struct {
	net.Conn
	of     *limitedListener
	ahead  []byte // what was read while it was parked
	closed sync.Once
}

// Read is net.Conn's.
func (c *limitedConn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 && len(b) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// Close is net.Conn's.
func (c *limitedConn) Close() error {
	c.closed.Do(func() { c.of.s.open.Add(-1) })
	return c.Conn.Close()
}

// await waits for as long as timeout, and calls answer with how that ended, once, perhaps after it has returned.
func (s *Server) await(w http.ResponseWriter, r *http.Request, timeout time.Duration, wait func(context.Context) error, answer func(http.ResponseWriter, error)) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	over, handover := make(chan error), make(chan *parked, 1)
	s.parked.Go(func() {
		defer cancel()
		err := wait(ctx)
		select {
		case over <- err:
		case p := <-handover:
			s.finish(p, func(w http.ResponseWriter) { answer(w, err) })
		}
	})
	patience := time.NewTimer(parkAfter)
	defer patience.Stop()
	select {
	case err := <-over:
		answer(w, err)
		return
	case <-r.Context().Done():
		cancel()
	case <-patience.C:
		if p := s.park(w, r, cancel); p != nil {
			handover <- p
			return
		}
		select {
		case err := <-over:
			answer(w, err)
			return
		case <-r.Context().Done():
			cancel()
		}
	}
	answer(w, <-over)
}
