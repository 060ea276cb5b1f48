package main

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// recordEnds takes a bare LSN that lies behind a WAL page's header back to where the last record before it ends: see
// waitCommand.recordEnd. The replica is asked for its sizes when the first such LSN comes, once for all who want to know.
type recordEnds struct {
	server  *server
	ctx     context.Context // of the question, which goes on for others when who asked first has no more time
	running *sync.WaitGroup // of the question

	mu    sync.Mutex
	sizes *walSizes // guarded by mu; nil: nobody has asked, or there was no answer
}

// walSizes are those of a cluster, which never change, or a question for them.
type walSizes struct {
	over           chan struct{} // closed when the question is
	block, segment uint64        // to be read after over
	err            error         // the same
}

// of blocks until ctx ends, or for connectTimeout, the first time.
func (e *recordEnds) of(ctx context.Context, lsn tracker.LSN) (tracker.LSN, error) {
	const smallest = 1024 // of wal_block_size, which divides all others and the segment sizes
	if lsn.Normalize(smallest, smallest) == lsn {
		return lsn, nil
	}
	sizes := e.ask()
	select {
	case <-sizes.over:
	default:
		select {
		case <-sizes.over:
		case <-ctx.Done():
			return lsn, ctx.Err()
		}
	}
	if sizes.err != nil {
		return lsn, sizes.err
	}
	return lsn.Normalize(sizes.block, sizes.segment), nil
}

// ask returns what is known, or a question that is under way.
func (e *recordEnds) ask() *walSizes {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sizes == nil {
		sizes := &walSizes{over: make(chan struct{})}
		e.sizes = sizes
		e.running.Go(func() { e.answer(sizes) })
	}
	return e.sizes
}

func (e *recordEnds) answer(sizes *walSizes) {
	defer close(sizes.over)
	var block, segment int64
	sizes.err = e.server.query(e.ctx, connectTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `select current_setting('wal_block_size')::bigint,
			pg_size_bytes(current_setting('wal_segment_size'))`).Scan(&block, &segment)
	})
	sizes.block, sizes.segment = uint64(block), uint64(segment)
	if sizes.err != nil {
		e.mu.Lock()
		e.sizes = nil // the next asks again
		e.mu.Unlock()
	}
}
