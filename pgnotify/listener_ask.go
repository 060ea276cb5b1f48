package pgnotify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// positionQuery asks what changes of what Capture asks; its text is its name.
const positionQuery = `SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()`

// position asks where the server is now, in a third of the time that Capture
// takes. Its token is owed a flush where somebody has written since the last one:
// see settle. It covers all that was heard before.
func (k *link) position(ctx context.Context) (tok tracker.Token, err error) {
	conn := k.mouth.PgConn().Conn()
	_ = conn.SetDeadline(time.Now().Add(k.cfg.Primary.QueryTimeout))
	if ctx.Err() != nil {
		return tok, ctx.Err()
	}
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	r := k.mouth.PgConn().ExecPrepared(context.Background(), positionQuery, nil, nil, []int16{pgx.BinaryFormatCode}).Read()
	if r.Err == nil && (len(r.Rows) != 1 || len(r.Rows[0]) != 2 || len(r.Rows[0][0]) != 8 || len(r.Rows[0][1]) != 8) {
		r.Err = errors.New("not two positions")
	}
	if r.Err != nil {
		return tok, fmt.Errorf("pgnotify: ask the primary for its position: %w", r.Err)
	}
	insert, flush := tracker.LSN(binary.BigEndian.Uint64(r.Rows[0][0])), tracker.LSN(binary.BigEndian.Uint64(r.Rows[0][1]))
	tok = k.at
	tok.LSN = insert.Normalize(k.page, k.segment)
	k.owed = flush < tok.LSN
	return tok, nil
}

// settle sees to it that the position told last is flushed: on an idle primary
// nobody else might do so for many seconds, and a replica does not get the WAL
// before. Capture has it flushed; its token is of no use here.
func (k *link) settle(ctx context.Context) error {
	if _, err := k.position(ctx); err != nil || !k.owed {
		return err
	}
	k.owed = false
	return k.bounded(ctx, func(ctx context.Context) error {
		_, err := replication.Capture(ctx, k.mouth)
		if err != nil {
			return fmt.Errorf("pgnotify: have the primary flush: %w", err)
		}
		return nil
	})
}

// probe asks whether the server process still listens for us. Behind a pooler in
// transaction mode another one answers, sooner or later, which does not.
func (k *link) probe(ctx context.Context) error {
	var backend string
	var listening int
	err := k.bounded(ctx, func(ctx context.Context) error {
		var names []string
		for _, c := range k.cfg.Channels {
			names = append(names, c.Name)
		}
		return k.ear.QueryRow(ctx, `SELECT pg_backend_pid()::text, (SELECT count(*) FROM pg_listening_channels() c WHERE c = ANY ($1))`,
			pgx.QueryExecModeExec, names).Scan(&backend, &listening)
	})
	switch {
	case err != nil:
		return fmt.Errorf("pgnotify: the server does not answer: %w", err)
	case backend != k.backend || listening < len(k.cfg.Channels):
		return fmt.Errorf("%w: the server process that answers is %s and listens on %d of %d channels, the one that was asked to is %s: %s",
			ErrCannotListen, backend, listening, len(k.cfg.Channels), k.backend, pooled)
	}
	return nil
}

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
		if e, is := m.(*pgproto3.ErrorResponse); is {
			return false, fmt.Errorf("pgnotify: the connection has ended: %w", pgconn.ErrorResponseToPgError(e))
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
	for k.ear.PgConn().Frontend().ReadBufferLen() > 0 && len(k.heard) < maxBurst {
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
