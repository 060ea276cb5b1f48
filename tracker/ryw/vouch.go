package ryw

import (
	"context"

	"github.com/walwake/walwake/tracker"
)

// mark is what is known of a connection, for as long as it lasts.
type mark struct {
	of       *tracker.Tracker // whose positions it has been shown to stand for: epochs of others have the same numbers
	epoch    uint64
	readOnly bool
}

// vouched reports whether what is read over l shows tok. No round trip is needed
// when l has been shown to lead to the same life of the same server as the session
// that the tracker's positions come from: both end with the same crash.
func (r *replica) vouched(ctx context.Context, l link, tok tracker.Token) (bool, error) {
	m := l.mark()
	if m == nil {
		m = new(mark)
	}
	if !m.readOnly {
		if err := l.exec(ctx, `SET default_transaction_read_only = on`); err != nil {
			return false, err
		}
		m.readOnly = true
	}
	for range 2 {
		before, known := r.tracker.LastReplay()
		if !known || !r.tracker.Replayed(tok) {
			return false, nil
		}
		if m.of == r.tracker && m.epoch == before.Epoch {
			// Of this epoch before and after: so was the answer between.
			if now, known := r.tracker.LastReplay(); known && now.Epoch == m.epoch {
				return true, nil
			}
			continue
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
	}
	return false, nil
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
