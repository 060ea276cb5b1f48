package bench

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// line leads to the replica, and counts what goes over it.
type line struct {
	replica, primary *pgx.ConnConfig
	most             int // sessions

	requests atomic.Int64 // a write to the server each
	bytes    atomic.Int64 // both ways
	open     atomic.Int64 // connections
}

// config is the replica's, with a dialer that counts.
func (l *line) config() *pgx.ConnConfig {
	cfg := l.replica.Copy()
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		l.open.Add(1)
		return &countingConn{Conn: conn, line: l}, nil
	}
	return cfg
}

type countingConn struct {
	net.Conn
	line   *line
	closed sync.Once
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.line.bytes.Add(int64(n))
	return n, err
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.line.requests.Add(1)
	n, err := c.Conn.Write(p)
	c.line.bytes.Add(int64(n))
	return n, err
}

// Close may be called more than once.
func (c *countingConn) Close() error {
	c.closed.Do(func() { c.line.open.Add(-1) })
	return c.Conn.Close()
}

// sessions are connected in advance, and taken in turns.
type sessions chan *pgx.Conn

// sessions connects as many as l has.
func (l *line) sessions(ctx context.Context) (sessions, error) {
	s := make(sessions, l.most)
	for range l.most {
		conn, err := pgx.ConnectConfig(ctx, l.config())
		if err != nil {
			s.close()
			return nil, err
		}
		s <- conn
	}
	return s, nil
}

func (s sessions) with(ctx context.Context, f func(*pgx.Conn) error) error {
	select {
	case conn := <-s:
		defer func() { s <- conn }()
		return f(conn)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close is called when none is in use.
func (s sessions) close() {
	for {
		select {
		case conn := <-s:
			disconnect(conn)
		default:
			return
		}
	}
}

func disconnect(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
	select {
	case <-conn.PgConn().CleanupDone(): // a query that was given up has been cancelled
	case <-ctx.Done():
	}
}

// broadcast tells all who wait of a position.
type broadcast struct {
	mu    sync.Mutex
	at    tracker.LSN
	err   error
	moved chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{moved: make(chan struct{})} }

func (b *broadcast) set(at tracker.LSN) { b.change(func() { b.at = at }) }
func (b *broadcast) fail(err error)     { b.change(func() { b.err = err }) }

func (b *broadcast) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.moved)
	b.moved = make(chan struct{})
}

func (b *broadcast) wait(ctx context.Context, tok tracker.Token) error {
	for {
		b.mu.Lock()
		at, err, moved := b.at, b.err, b.moved
		b.mu.Unlock()
		switch {
		case at >= tok.LSN:
			return nil
		case err != nil:
			return errors.Join(errors.New("the loop on the server has ended"), err)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
