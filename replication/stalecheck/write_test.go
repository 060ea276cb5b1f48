package stalecheck

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// commitAndCapture writes a row, commits, and returns the token of the commit.
type commitAndCapture func(ctx context.Context, conn *pgx.Conn, id, writer int64) (tracker.Token, error)

const insert = `INSERT INTO writes VALUES ($1, $2)`

// afterCommit is the right way.
func afterCommit(ctx context.Context, conn *pgx.Conn, id, writer int64) (tracker.Token, error) {
	if _, err := conn.Exec(ctx, insert, id, writer); err != nil {
		return tracker.Token{}, err
	}
	return replication.Capture(ctx, conn)
}

// operation bounds what a writer or reader does in one go beside waiting.
const operation = 5 * time.Second

// ids are never used twice, whatever becomes of the write.
var ids atomic.Int64

// write commits until ctx ends. What fails was not acknowledged, and is not in
// the history: it may have been written or not.
func (s *scene) write(ctx context.Context, writer int64) {
	var conn *pgx.Conn
	var to *station
	defer func() { disconnect(conn) }()
	for ctx.Err() == nil {
		if leader := s.leader(); leader != to || conn == nil || conn.IsClosed() {
			disconnect(conn)
			conn, to = nil, leader
			c, err := s.connect(ctx, leader)
			if err != nil {
				rest(ctx, 10*time.Millisecond)
				continue
			}
			conn = c
			if s.o.async {
				_, _ = conn.Exec(ctx, `SET synchronous_commit = off`)
			}
		}
		w := write{id: ids.Add(1), writer: writer}
		step, cancel := context.WithTimeout(ctx, operation)
		var err error
		w.token, err = s.o.capture(step, conn, w.id, writer)
		cancel()
		if err != nil {
			disconnect(conn)
			conn = nil
			continue
		}
		s.history.acknowledged(w)
		rest(ctx, s.o.pause)
	}
}

func (s *scene) connect(ctx context.Context, to *station) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, operation)
	defer cancel()
	return to.Connect(ctx)
}

func disconnect(conn *pgx.Conn) {
	if conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}
}

// rest lets time pass: it is what a user does, nothing depends on it.
func rest(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
