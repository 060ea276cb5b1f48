package ryw

import (
	"context"
	"errors"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// mark is what is known of a connection, for as long as it lasts.
type mark struct {
	of       *tracker.Tracker // whose positions it has been shown to stand for: epochs of others have the same numbers
	epoch    uint64
	readOnly bool
	pooled   bool // a pooler stands between: the next statement may go to another server process
	primary  bool // it leads to a primary, which only a restart makes a standby
}

// askFor bounds what it takes to have a connection that can be read over: to take it
// from its pool, and to ask where it leads. A replica that takes longer is not read
// from.
const askFor = time.Second

// soon is take for a replica: it waits no longer than askFor for its pool. To have a
// deadline costs some allocations, and is of no use while connections are idle.
func soon(t take, idle func() bool) take {
	return func(ctx context.Context) (link, error) {
		if idle() {
			return t(ctx)
		}
		ctx, cancel := context.WithTimeout(ctx, askFor)
		defer cancel()
		return t(ctx)
	}
}

// peers is a source that tells which server process positions come from: a
// *replication.Ladder.
type peers interface {
	Peer() (replication.Peer, bool)
}

// vouched reports whether what is read over l shows tok. No round trip is needed
// when l has been shown to lead to the same life of the same server as the session
// that the tracker's positions come from: both end with the same crash.
func (r *replica) vouched(ctx context.Context, l link, tok tracker.Token) (bool, error) {
	m := l.mark()
	if m == nil {
		m = new(mark)
	}
	if m.readOnly && m.of == r.tracker {
		before, known := r.tracker.LastReplay()
		if !known || !r.tracker.Replayed(tok) {
			return false, nil
		}
		// Of this epoch before and after: so was the answer between.
		if now, known := r.tracker.LastReplay(); known && now.Epoch == m.epoch && before.Epoch == m.epoch {
			return true, nil
		}
	}
	return r.shown(ctx, l, m, tok)
}

// shown is vouched, of a connection that has to be asked.
func (r *replica) shown(ctx context.Context, l link, m *mark, tok tracker.Token) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	if !m.readOnly && !m.pooled {
		var err error
		if m.pooled, err = pooled(ctx, l); err != nil {
			return false, err
		}
		if !m.pooled { // whose processes are others' as well, and may outlive a promotion
			if err := l.exec(ctx, `SET default_transaction_read_only = on`); err != nil {
				return false, err
			}
			m.readOnly = true
		}
	}
	before, known := r.tracker.LastReplay()
	if !known || !r.tracker.Replayed(tok) {
		return false, nil
	}
	switch {
	case m.pooled:
		r.strange.Add(1)
		return shows(ctx, l, tok)
	case r.source == nil:
		return shows(ctx, l, tok)
	}
	p, is := r.source.Peer()
	if !is || p.Epoch != before.Epoch {
		return false, nil
	}
	met, err := l.met(ctx, p)
	if err != nil {
		return false, err
	}
	if !met {
		r.strange.Add(1)
		return shows(ctx, l, tok)
	}
	m.of, m.epoch = r.tracker, p.Epoch
	now, known := r.tracker.LastReplay()
	return known && now.Epoch == p.Epoch, nil // what was replayed when it was asked, is
}

// pooled reports whether a pooler stands between: it gives a connection another number
// of process than the server's own has.
func pooled(ctx context.Context, l link) (bool, error) {
	said := l.pid()
	if said == 0 {
		return false, nil
	}
	var pid int64
	if err := l.query(ctx, `SELECT pg_backend_pid()`, &pid); err != nil {
		return false, err
	}
	return pid != int64(said), nil
}

// ErrNotPrimary is of a read that only the primary would do for.
var ErrNotPrimary = errors.New("ryw: the pool of the primary leads to a standby: connect with target_session_attrs=read-write")

// isPrimary fails where l, of the primary's pool, leads to a standby. It asks once
// for each connection.
func isPrimary(ctx context.Context, l link) error {
	m := l.mark()
	if m != nil && m.primary {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	var standby bool
	if err := l.query(ctx, `SELECT pg_is_in_recovery()`, &standby); err != nil {
		return err
	}
	if standby {
		return ErrNotPrimary
	}
	if m != nil {
		m.primary = true
	}
	return nil
}

// showsQuery asks the position first and its timeline after it.
const showsQuery = `SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, (SELECT system_identifier FROM pg_control_system()),
       (SELECT received_tli::bigint FROM pg_stat_wal_receiver)`

// shows asks the very connection whether its server has replayed tok, for
// connections that lead to another server than the tracker's.
func shows(ctx context.Context, l link, tok tracker.Token) (bool, error) {
	var recovery bool
	var at *string
	var system int64
	var timeline *int64
	if err := l.query(ctx, showsQuery, &recovery, &at, &system, &timeline); err != nil {
		return false, err
	}
	if !recovery || at == nil {
		return false, nil
	}
	lsn, err := tracker.ParseLSN(*at)
	switch {
	case err != nil:
		return false, err
	case tok.System != 0 && tok.System != uint64(system):
		return false, nil
	case tok.Timeline != 0 && (timeline == nil || int64(tok.Timeline) != *timeline):
		return false, nil
	}
	return lsn >= tok.LSN, nil
}
