package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/tracker"
)

const (
	// aliveEvery is how often a silent server is asked for a keepalive, well
	// within wal_sender_timeout (60 s), and silentFor how long it may stay silent.
	aliveEvery = 10 * time.Second
	silentFor  = 3 * aliveEvery
	// restFor is the pause between two reads while nobody waits: what has come
	// meanwhile is read in one go.
	restFor = 50 * time.Millisecond
	// drained is how long the next message takes to come when all that has come was
	// read: rests are between those.
	drained = 200 * time.Microsecond
	// burstFor is how long messages that have come in part or whole may put off
	// the hint: a stream without a gap is a burst without an end.
	burstFor = time.Millisecond
	// maxMessage bounds a message of a stream: the server sends at most 128 KiB of
	// WAL in one (src/backend/replication/walsender.c, MAX_SEND_SIZE), or a Message
	// and what stands before its payload.
	maxMessage = MaxMessage + 1<<10
)

// walStream is a replication connection in COPY mode. One goroutine reads it,
// another one writes to it.
type walStream struct {
	l    *listener
	conn *pgx.Conn

	received atomic.Uint64 // the highest position that has come
	reply    chan struct{} // the server wants a status now
	status   func(ping bool) pglogrepl.StandbyStatusUpdate
	news     bool // something has come that was not hinted at yet; the reader's
	pings    bool // whether to ping while somebody waits

	decode func([]byte) error // takes what pgoutput sends, where that is wanted
	quiet  quiet
}

// copyBoth sends a START_REPLICATION and waits for the stream to begin.
func copyBoth(ctx context.Context, conn *pgx.Conn, command string) error {
	f := conn.PgConn().Frontend()
	f.SendQuery(&pgproto3.Query{String: command})
	if err := f.Flush(); err != nil {
		return fmt.Errorf("START_REPLICATION: %w", err)
	}
	for {
		msg, err := conn.PgConn().ReceiveMessage(ctx)
		if err != nil {
			return fmt.Errorf("START_REPLICATION: %w", err)
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyBothResponse:
			return nil
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("START_REPLICATION: %w", pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.ReadyForQuery:
			return errors.New("START_REPLICATION: the server has nothing to stream on this timeline")
		}
	}
}

// run reads and writes until the stream ends, nobody has waited for a while, or
// ctx ends.
func (s *walStream) run(ctx context.Context) error {
	s.reply = make(chan struct{}, 1)
	s.quiet.over = make(chan struct{}, 1)
	s.conn.PgConn().Frontend().SetMaxBodyLen(maxMessage)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { _ = s.conn.PgConn().Conn().SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var writer sync.WaitGroup
	writer.Go(func() {
		if err := s.write(ctx); err != nil {
			cancel(err)
		}
	})
	err := s.read(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(err)
	writer.Wait()
	return err
}

func (s *walStream) read(ctx context.Context) error {
	f, link := s.conn.PgConn().Frontend(), s.conn.PgConn().Conn()
	var extended, hinted time.Time
	waited := time.Now()
	for {
		if now := time.Now(); now.Sub(extended) > time.Second {
			extended = now
			_ = link.SetReadDeadline(now.Add(silentFor))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		before := time.Now()
		msg, err := f.Receive()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				return fmt.Errorf("the server was silent for %s", silentFor)
			}
			return fmt.Errorf("the stream has ended: %w", err)
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			if err := s.take(msg.Data); err != nil {
				return err
			}
		case *pgproto3.CopyDone:
			return errors.New("the server has ended the stream: a promotion, or a timeline that has ended")
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("the stream has ended: %w", pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
			return errors.New("the stream has ended: the server waits for the next command")
		}
		now := time.Now()
		if f.ReadBufferLen() > 0 && now.Sub(hinted) < burstFor {
			continue // a burst is one hint
		}
		if s.news {
			s.news, hinted = false, now
			s.l.hint(tracker.LSN(s.received.Load()))
		}
		switch {
		case s.l.demand().Waiting > 0:
			waited = now
		case s.decode != nil: // messages are not to come late
		case now.Sub(waited) > freshFor && now.Sub(before) > drained:
			select {
			case <-time.After(restFor):
			case <-ctx.Done():
			}
		}
	}
}

// take reads one message of the stream. A kind that is not known is skipped, as
// the protocol's own clients do.
func (s *walStream) take(data []byte) error {
	if len(data) == 0 {
		return errors.New("an empty message in the stream")
	}
	var at tracker.LSN
	switch data[0] {
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		m, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return err
		}
		if m.ReplyRequested {
			select {
			case s.reply <- struct{}{}:
			default:
			}
		}
		at = tracker.LSN(m.ServerWALEnd)
	case pglogrepl.XLogDataByteID:
		m, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return err
		}
		at = tracker.LSN(m.WALStart)
		if s.decode == nil {
			at += tracker.LSN(len(m.WALData))
		} else if err := s.decode(m.WALData); err != nil {
			return err
		}
	default:
		return nil
	}
	if uint64(at) > s.received.Load() {
		s.received.Store(uint64(at))
		s.news = true
		s.quiet.came()
	}
	return nil
}

const (
	firstPing = 500 * time.Microsecond
	lastPing  = 100 * time.Millisecond
	// confirmEvery is how often the server learns how far the stream was read: a
	// confirmation of a logical slot may write it to disk.
	confirmEvery = time.Second
)

// write confirms, pings and replies until ctx ends or nobody has waited for a
// while.
func (s *walStream) write(ctx context.Context) error {
	confirm := time.NewTicker(confirmEvery)
	defer confirm.Stop()
	ping := time.NewTimer(firstPing)
	defer ping.Stop()
	pause := firstPing
	var target tracker.LSN
	alive := time.Now()
	look := time.NewTimer(firstLook)
	defer look.Stop()
	if s.decode == nil {
		look.Stop()
	}
	if s.pings {
		s.l.run.streams.attentive.Add(1)
		defer s.l.run.streams.attentive.Add(-1)
	}
	for {
		d := s.l.demand()
		behind := s.pings && d.Waiting > 0 && uint64(d.Lowest) > s.received.Load()
		if behind && d.Lowest != target {
			target, pause = d.Lowest, firstPing
			ping.Reset(pause)
		}
		asking := false
		select {
		case <-ctx.Done():
			return nil
		case <-s.l.kicked:
			continue
		case <-s.reply:
		case <-confirm.C:
			if s.l.idle() > s.l.cfg.Linger { // a silent server does not let the reader look
				return errNobodyWaits
			}
			if asking = time.Since(alive) > aliveEvery; asking {
				alive = time.Now()
			}
		case <-ping.C:
			if !behind {
				target = 0
				continue
			}
			pause = min(2*pause, lastPing)
			ping.Reset(pause)
			asking = true
		case <-s.quiet.over:
			look.Reset(firstLook)
			continue
		case <-look.C:
			var again time.Duration
			if again, asking = s.quiet.look(&s.received); again > 0 {
				look.Reset(again)
			}
			if !asking {
				continue
			}
		}
		_ = s.conn.PgConn().Conn().SetWriteDeadline(time.Now().Add(s.l.cfg.Replica.QueryTimeout))
		if err := pglogrepl.SendStandbyStatusUpdate(ctx, s.conn.PgConn(), s.status(asking)); err != nil {
			return fmt.Errorf("tell the server how far the stream was read: %w", err)
		}
	}
}
