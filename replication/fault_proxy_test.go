package replication_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

// proxy stands between a source and its server, and has the faults of a network.
type proxy struct {
	listener net.Listener
	all      sync.WaitGroup

	mu     sync.Mutex
	node   *replicationtest.Node // where connections lead to
	change *sync.Cond
	links  map[*link]bool
	cutNew bool          // a connection that comes now leads nowhere
	delay  time.Duration // of all that is forwarded
	closed bool
}

// link is one connection: what the client has and what the server has.
type link struct {
	client, server net.Conn
	walsender      bool // it asked for a replication connection
	cut            bool // nothing is forwarded any more, and both sides stay open
}

func through(t *testing.T, n *replicationtest.Node) *proxy {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{node: n, listener: listener, links: map[*link]bool{}}
	p.change = sync.NewCond(&p.mu)
	p.all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			p.all.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		p.closed = true
		for l := range p.links {
			l.close()
		}
		p.change.Broadcast()
		p.mu.Unlock()
		p.all.Wait()
	})
	return p
}

// target is where connections lead to now.
func (p *proxy) target() *replicationtest.Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.node
}

// dsn is the node's, by way of the proxy.
func (p *proxy) dsn() string { return p.by(p.target().DSN()) }

// by is one of the node's connection strings, by way of the proxy.
func (p *proxy) by(dsn string) string {
	return strings.Replace(dsn, fmt.Sprintf("127.0.0.1:%d", p.target().Port()), p.listener.Addr().String(), 1)
}

// lead ends all connections; those that come lead to another node.
func (p *proxy) lead(n *replicationtest.Node) {
	p.mu.Lock()
	p.node = n
	p.mu.Unlock()
	p.drop()
}

func (l *link) close() {
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}

func (p *proxy) serve(client net.Conn) {
	l := &link{client: client}
	p.mu.Lock()
	l.cut = p.cutNew
	if p.closed {
		_ = client.Close()
	}
	p.links[l] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
		l.close()
	}()
	first := make([]byte, 4096) // the startup packet: there is no TLS
	n, err := client.Read(first)
	if err != nil || !p.pass(l) {
		return
	}
	server, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", p.target().Port()), 5*time.Second) //nolint:noctx // it has its own end
	if err != nil {
		return
	}
	p.mu.Lock()
	l.server, l.walsender = server, bytes.Contains(first[:n], []byte("replication\x00"))
	if p.closed {
		_ = server.Close()
	}
	p.mu.Unlock()
	if _, err := server.Write(first[:n]); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { p.forward(l, server, client) })
	p.forward(l, client, server)
	back.Wait()
}

// forward ends both sides with the first that ends, unless the link is cut.
func (p *proxy) forward(l *link, from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if !p.pass(l) {
			return
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			p.mu.Lock()
			l.close()
			p.mu.Unlock()
			return
		}
	}
}

// pass blocks for as long as nothing may pass; false: the link is over.
func (p *proxy) pass(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.delay; d > 0 {
		p.mu.Unlock()
		<-time.After(d)
		p.mu.Lock()
	}
	for l.cut && p.links[l] && !p.closed {
		p.change.Wait()
	}
	return p.links[l] && !p.closed
}

// cut stops all forwarding, without a FIN; connections that come are taken and
// lead nowhere.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutNew = true
	for l := range p.links {
		l.cut = true
	}
}

// cutStreams does so to the replication connections that there are, and returns
// how many there were.
func (p *proxy) cutStreams() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		if l.walsender && !l.cut {
			l.cut = true
			n++
		}
	}
	return n
}

// heal lets new connections pass. What was cut is over for the server, and the
// client is left with a connection on which nothing comes.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutNew = false
	for l := range p.links {
		if l.cut && l.server != nil {
			_ = l.server.Close()
		}
	}
}

// drop closes all connections.
func (p *proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// slow delays all that is forwarded from now on.
func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

func TestTheProxyCutsWithoutAFIN(t *testing.T) {
	p := through(t, cluster(t).Standbys[0])
	conn := dial(t, p.dsn())
	if got := value[int](t, conn, `SELECT 1`); got != 1 {
		t.Fatal(got)
	}
	p.cut()
	link := conn.PgConn().Conn()
	_ = link.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := link.Write([]byte("S\x00\x00\x00\x04")); err != nil { // Sync
		t.Errorf("the client's side is not open: %v", err)
	}
	if n, err := link.Read(make([]byte, 1)); err == nil || err == io.EOF || n > 0 { //nolint:errorlint // exactly that
		t.Errorf("got %d bytes, %v; want silence", n, err)
	}
	p.heal()
	if got := value[int](t, dial(t, p.dsn()), `SELECT 2`); got != 2 {
		t.Error(got)
	}
}
