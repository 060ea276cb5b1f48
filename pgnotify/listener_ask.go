package pgnotify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// position asks where the server is now, in half of the time that Capture takes. It
// covers all that was heard before. The two functions are called directly, as the
// protocol's FunctionCall message can, and the first answer is not kept waiting for
// the second, which says whether the position is flushed: see settle. Behind a
// pooler, which may not know that message, it is Capture.
func (k *link) position(ctx context.Context) (tok tracker.Token, err error) {
	if k.pooled {
		return k.capture(ctx)
	}
	if err := k.finish(ctx); err != nil {
		return tok, err
	}
	conn := k.mouth.PgConn()
	conn.Frontend().Send(&pgproto3.FunctionCall{Function: k.insert, ResultFormatCode: pgx.BinaryFormatCode})
	conn.Frontend().Send(&pgproto3.FunctionCall{Function: k.flush, ResultFormatCode: pgx.BinaryFormatCode})
	k.asked = 2
	if err := k.patient(ctx); err != nil {
		return tok, err
	}
	if err := conn.Frontend().Flush(); err != nil {
		return tok, fmt.Errorf("pgnotify: ask the primary for its position: %w", err)
	}
	insert, err := k.answer()
	if err != nil {
		return tok, err
	}
	tok = k.at
	tok.LSN = insert.Normalize(k.page, k.segment)
	k.latest = tok.LSN
	return tok, nil
}

// finish reads what is left of the answers, which has come by now.
func (k *link) finish(ctx context.Context) error {
	if k.mouth == nil {
		return nil
	}
	for k.asked > 0 {
		if err := k.patient(ctx); err != nil {
			return err
		}
		if _, err := k.answer(); err != nil {
			return err
		}
	}
	return nil
}

// patient gives what the mouth is asked QueryTimeout.
func (k *link) patient(ctx context.Context) error {
	_ = k.mouth.PgConn().Conn().SetDeadline(time.Now().Add(k.cfg.Primary.QueryTimeout))
	return ctx.Err() // before it dials.interrupt may have been overruled
}

// answer reads the next position, and the last with all that belongs to it.
func (k *link) answer() (lsn tracker.LSN, err error) {
	for {
		m, err := k.mouth.PgConn().ReceiveMessage(context.Background())
		if err != nil {
			return 0, fmt.Errorf("pgnotify: ask the primary for its position: %w", err)
		}
		switch m := m.(type) {
		case *pgproto3.FunctionCallResponse:
			if len(m.Result) != 8 {
				return 0, errors.New("pgnotify: ask the primary for its position: not a position")
			}
			lsn = tracker.LSN(binary.BigEndian.Uint64(m.Result))
			if k.asked == 2 {
				return lsn, nil
			}
			k.owed = lsn < k.latest
		case *pgproto3.ErrorResponse:
			return 0, fmt.Errorf("pgnotify: ask the primary for its position: %w", pgconn.ErrorResponseToPgError(m))
		case *pgproto3.ReadyForQuery:
			if k.asked--; k.asked == 0 {
				_ = k.mouth.PgConn().Conn().SetDeadline(time.Time{})
				return lsn, nil
			}
		}
	}
}

// settle sees to it that the position told last is flushed: on an idle primary
// nobody else might do so for many seconds, and a replica does not get the WAL
// before.
func (k *link) settle(ctx context.Context) error {
	if _, err := k.position(ctx); err != nil {
		return err
	}
	if err := k.finish(ctx); err != nil || !k.owed {
		return err
	}
	k.owed = false
	_, err := k.capture(ctx)
	return err
}

// capture asks where the server is, and has it flush that.
func (k *link) capture(ctx context.Context) (tok tracker.Token, err error) {
	err = k.bounded(ctx, func(ctx context.Context) error {
		tok, err = replication.Capture(ctx, k.mouth)
		return err
	})
	if err != nil {
		return tok, fmt.Errorf("pgnotify: ask the primary for its position: %w", err)
	}
	return tok, nil
}

// probeQuery asks whether the server process still listens for us. Behind a pooler
// in transaction mode another one answers, sooner or later, which does not.
const probeQuery = `SELECT pg_backend_pid(), c FROM pg_listening_channels() c`

// probe asks it. What is notified of may come before the answer, without end: so
// receive takes that when it comes, and nobody reads on for its sake.
func (k *link) probe(ctx context.Context) error {
	conn := k.ear.PgConn()
	conn.Frontend().Send(&pgproto3.Query{String: probeQuery})
	_ = conn.Conn().SetWriteDeadline(time.Now().Add(k.cfg.Primary.QueryTimeout))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	defer func() { _ = conn.Conn().SetWriteDeadline(time.Time{}) }()
	k.probing, k.listening = true, 0
	if err := conn.Frontend().Flush(); err != nil {
		return fmt.Errorf("pgnotify: the server does not answer: %w", err)
	}
	return nil
}

// channelSeen takes a row of the answer, and probed its end.
func (k *link) channelSeen(row *pgproto3.DataRow) {
	if len(row.Values) == 2 && string(row.Values[0]) == k.backend &&
		slices.ContainsFunc(k.cfg.Channels, func(c Channel) bool { return c.Name == string(row.Values[1]) }) {
		k.listening++
	}
}

func (k *link) probed() error {
	k.probing = false
	if k.listening < len(k.cfg.Channels) {
		return fmt.Errorf("%w: the server process that answers is not the one that was asked to, or listens on %d of %d channels: %s",
			ErrCannotListen, k.listening, len(k.cfg.Channels), transactionMode)
	}
	return nil
}

var errSilent = errors.New("pgnotify: the server does not answer")

// bounded gives f QueryTimeout.
func (k *link) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Primary.QueryTimeout)
	defer cancel()
	return f(ctx)
}

// receive reads one message, for at most as long as told; silent: none came.
// A context of the driver's would cost a goroutine each time, in the way of what
// comes: see dials.interrupt.
func (k *link) receive(ctx context.Context, most time.Duration) (silent bool, err error) {
	conn := k.ear.PgConn().Conn()
	_ = conn.SetReadDeadline(time.Now().Add(most))
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	m, err := k.ear.PgConn().ReceiveMessage(context.Background())
	switch {
	case err == nil:
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			return false, fmt.Errorf("pgnotify: the connection has ended: %w", pgconn.ErrorResponseToPgError(m))
		case *pgproto3.DataRow:
			k.channelSeen(m)
		case *pgproto3.ReadyForQuery:
			return false, k.probed()
		}
		return false, nil
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case k.ear.IsClosed():
		return false, fmt.Errorf("pgnotify: the connection has ended: %w", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	return true, nil
}

// more reads what has come already, which makes a burst of it.
func (k *link) more(ctx context.Context) error {
	defer func() { _ = k.ear.PgConn().Conn().SetReadDeadline(time.Time{}) }()
	for k.ear.PgConn().Frontend().ReadBufferLen() > 0 && len(k.heard) < maxBurst && k.bytes < maxBytes {
		silent, err := k.receive(ctx, k.cfg.Primary.QueryTimeout)
		if err != nil {
			return err
		}
		if silent {
			return errors.New("pgnotify: the connection has ended: the rest of a message did not come")
		}
	}
	return nil
}

// leads refuses a server that the replica's history has left: the primary from
// before a failover, which may still be there. With it the next server that is
// named is tried. A standby is not asked.
func (l *Listener) leads(ctx context.Context, conn *pgconn.PgConn) error {
	if l.cfg.Replica == nil {
		return nil
	}
	if o, known := l.cfg.Replica.LastReplay(); !known || o.Timeline < 2 {
		return nil
	}
	const query = `SELECT CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END, system_identifier FROM pg_control_system()`
	results, err := conn.Exec(ctx, query).ReadAll()
	if err != nil || len(results) != 1 || len(results[0].Rows) != 1 || results[0].Rows[0][0] == nil {
		return err
	}
	row := results[0].Rows[0]
	timeline, err := strconv.ParseUint(string(row[0]), 16, 32)
	if err != nil {
		return fmt.Errorf("pgnotify: read the primary's timeline: %w", err)
	}
	system, err := strconv.ParseInt(string(row[1]), 10, 64)
	if err != nil {
		return fmt.Errorf("pgnotify: read the system identifier: %w", err)
	}
	return l.superseded(tracker.Token{System: uint64(system), Timeline: uint32(timeline)})
}

// superseded fails where the replica follows another primary than the one whose
// position this is.
func (l *Listener) superseded(at tracker.Token) error {
	if l.cfg.Replica == nil {
		return nil
	}
	o, known := l.cfg.Replica.LastReplay()
	switch {
	case !known || o.System == 0:
		return nil
	case o.System != at.System:
		return fmt.Errorf("pgnotify: Config.Primary and Config.Replica: %w: the primary's system identifier is %d, the replica's %d",
			tracker.ErrWrongSystem, at.System, o.System)
	case o.Timeline > at.Timeline:
		return fmt.Errorf("pgnotify: the replica is on timeline %d, and this primary writes timeline %d: another one has taken over", o.Timeline, at.Timeline)
	}
	return nil
}
