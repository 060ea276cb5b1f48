package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// write is a transaction with a commit record that is flushed as that of any
// other write, and needs no table: nothing on the servers is changed.
const write = `SELECT pg_logical_emit_message(true, 'walwake bench', 'as long as a row of some length')`

// leap is how far ahead of the primary a position is that many wait for before it
// is written: further than the background comes meanwhile.
const leap = 64 << 10

// crossing is a write that is longer than leap.
const crossing = `SELECT pg_logical_emit_message(true, 'walwake bench', repeat('x', $1))`

// writer commits, and takes tokens.
type writer struct {
	conn  *pgx.Conn
	token tracker.Token // of the primary
}

func newWriter(ctx context.Context, primary *pgx.ConnConfig) (*writer, error) {
	conn, err := pgx.ConnectConfig(ctx, primary)
	if err != nil {
		return nil, err
	}
	w := &writer{conn: conn}
	if w.token, err = replication.Capture(ctx, conn); err == nil {
		_, err = conn.Prepare(ctx, "write", write)
	}
	if err == nil {
		_, err = conn.Prepare(ctx, "crossing", crossing)
	}
	if err == nil {
		// All of a commit that was acknowledged is flushed, and all that is flushed
		// reaches the replica.
		_, err = conn.Prepare(ctx, "flushed", `SELECT pg_current_wal_flush_lsn()`)
	}
	if err != nil {
		disconnect(conn)
		return nil, err
	}
	return w, nil
}

func (w *writer) close() { disconnect(w.conn) }

// commit writes, and takes the token in the same round trip, as a service that
// cares for latency does: replay has hardly begun when it is back.
func (w *writer) commit(ctx context.Context) (tok tracker.Token, committed time.Time, err error) {
	p := w.conn.PgConn().StartPipeline(ctx)
	p.SendQueryPrepared("write", nil, nil, nil)
	p.SendPipelineSync()
	p.SendQueryPrepared("flushed", nil, nil, nil)
	if err := p.Sync(); err != nil {
		return tok, committed, errors.Join(err, p.Close())
	}
	var lsn []byte
	for {
		result, err := p.GetResults()
		if err != nil {
			return tok, committed, errors.Join(err, p.Close())
		}
		switch r := result.(type) {
		case nil:
			tok = w.token
			if tok.LSN, err = tracker.ParseLSN(string(lsn)); err != nil {
				err = fmt.Errorf("the primary's position: %w", err)
			}
			return tok, committed, errors.Join(err, p.Close())
		case *pgconn.PipelineSync:
			if committed.IsZero() {
				committed = time.Now()
			}
		case *pgconn.ResultReader:
			rows := r.Read()
			if rows.Err != nil {
				return tok, committed, errors.Join(rows.Err, p.Close())
			}
			lsn = rows.Rows[0][0]
		}
	}
}

// ahead returns a token for what will be written soon, by cross.
func (w *writer) ahead(ctx context.Context) (tracker.Token, error) {
	tok := w.token
	if err := w.conn.QueryRow(ctx, "flushed").Scan(&tok.LSN); err != nil {
		return tok, err
	}
	tok.LSN += leap
	return tok, nil
}

func (w *writer) cross(ctx context.Context) error {
	_, err := w.conn.Exec(ctx, "crossing", leap)
	return err
}

// Load writes rate transactions a second on the primary, over so many sessions,
// until ctx ends. It calls ready when it begins, and returns how many a second it
// made from then on.
func Load(ctx context.Context, primary *pgx.ConnConfig, rate, sessions int, ready func() error) (made float64, err error) {
	var conns []*pgx.Conn
	defer func() {
		for _, conn := range conns {
			disconnect(conn)
		}
	}()
	for range sessions {
		conn, err := pgx.ConnectConfig(ctx, primary)
		switch {
		case err != nil && ctx.Err() != nil: // the end has come before the beginning
			return 0, nil
		case err != nil:
			return 0, err
		}
		conns = append(conns, conn)
	}
	var all sync.WaitGroup
	var count atomic.Int64
	failed := make(chan error, sessions)
	if err := ready(); err != nil {
		return 0, err
	}
	start := time.Now()
	every := time.Duration(sessions) * time.Second / time.Duration(rate)
	for i, conn := range conns {
		all.Go(func() {
			due := start.Add(every * time.Duration(i) / time.Duration(sessions))
			for {
				if early := time.Until(due); early > 0 {
					pause(ctx, early)
				}
				if ctx.Err() != nil {
					return
				}
				due = due.Add(every)
				if _, err := conn.Exec(context.WithoutCancel(ctx), write); err != nil {
					failed <- err
					return
				}
				count.Add(1)
			}
		})
	}
	all.Wait()
	close(failed)
	return float64(count.Load()) / time.Since(start).Seconds(), <-failed
}
