package replicationtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// Proxy stands between clients and a node, on a port of its own of 127.0.0.1, and has the faults of a
// network: it can be slow, close connections, cut them off without a word, and lead to another node. Its
// methods may be called from any goroutine.
type Proxy struct {
	listener net.Listener
	all      sync.WaitGroup

	mu     sync.Mutex
	change *sync.Cond
	node   *Node          // guarded by mu, as all that follows
	links  map[*link]bool // the connections that there are
	cutNew bool           // a connection that comes now leads nowhere
	delay  time.Duration  // of all that is forwarded
	lag    time.Duration  // of what replication connections forward
	closed bool
}

// link is one connection: what the client has and what the server has.
type link struct {
	client, server net.Conn
	walsender      bool // it asked for a replication connection
	cut            bool // nothing is forwarded any more, and both sides stay open
}

// NewProxy makes a proxy that leads to a node. The caller closes it.
func NewProxy(ctx context.Context, n *Node) (*Proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("replicationtest: a proxy: %w", err)
	}
	p := &Proxy{node: n, listener: listener, links: map[*link]bool{}}
	p.change = sync.NewCond(&p.mu)
	p.all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return // Close
			}
			p.all.Go(func() { p.serve(c) })
		}
	})
	return p, nil
}

// Close closes all connections and waits until nothing of the proxy is left.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for l := range p.links {
		l.close()
	}
	p.change.Broadcast()
	p.mu.Unlock()
	p.all.Wait()
}

// DSN is the node's [Node.DSN], by way of the proxy.
func (p *Proxy) DSN(parameters ...string) string {
	return p.by(func(n *Node) string { return n.DSN(parameters...) })
}

// DSNFor is the node's [Node.DSNFor], by way of the proxy.
func (p *Proxy) DSNFor(user, password, database string, parameters ...string) string {
	return p.by(func(n *Node) string { return n.DSNFor(user, password, database, parameters...) })
}

func (p *Proxy) by(dsn func(*Node) string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Replace(dsn(p.node), fmt.Sprintf("127.0.0.1:%d", p.node.Port()), p.listener.Addr().String(), 1)
}

// LeadTo lets connections that come from now on reach another node; those that there are stay, see
// [Proxy.Drop].
func (p *Proxy) LeadTo(n *Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.node = n
}

// Drop closes all connections.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// Slow delays all that is forwarded from now on.
func (p *Proxy) Slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// SlowStreams delays what is forwarded over replication connections from now on.
func (p *Proxy) SlowStreams(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag = d
}

// Cut stops all forwarding, without a FIN; connections that come are taken and lead nowhere. See
// [Proxy.Heal].
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutNew = true
	for l := range p.links {
		l.cut = true
	}
}

// CutStreams does so to the replication connections that there are, and returns how many there were.
func (p *Proxy) CutStreams() (n int) {
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

// Heal lets new connections pass. What was cut is over for the server, and the client is left with a
// connection on which nothing comes.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutNew = false
	for l := range p.links {
		if l.cut && l.server != nil {
			_ = l.server.Close()
		}
	}
}

func (l *link) close() {
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}

func (p *Proxy) serve(client net.Conn) {
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
	p.mu.Lock()
	to := fmt.Sprintf("127.0.0.1:%d", p.node.Port())
	p.mu.Unlock()
	server, err := net.DialTimeout("tcp4", to, connectTimeout) //nolint:noctx // it has its own end
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
func (p *Proxy) forward(l *link, from, to net.Conn) {
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
func (p *Proxy) pass(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.delay
	if l.walsender {
		d = max(d, p.lag)
	}
	if d > 0 {
		p.mu.Unlock()
		<-time.After(d)
		p.mu.Lock()
	}
	for l.cut && p.links[l] && !p.closed {
		p.change.Wait()
	}
	return p.links[l] && !p.closed
}
