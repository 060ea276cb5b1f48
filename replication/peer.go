package replication

import (
	"context"
	"fmt"
)

// Peer is the server process that a Ladder's positions come from now.
type Peer struct {
	Epoch uint64 // of those positions: see tracker.Observation

	backend, started string // its number and when it began; empty: the role may not see that
}

// Peer returns the process that is asked now; false: there is no session.
func (l *Ladder) Peer() (Peer, bool) {
	p := l.peer.Load()
	if p == nil {
		return Peer{}, false
	}
	return *p, true
}

// peerQuery gives the beginning of a process that lives; NULL: there is no such
// process, or the role may not see it. Seconds are the same in every time zone.
const peerQuery = `SELECT max(extract(epoch FROM backend_start)::text) FROM pg_stat_get_activity($1::text::int)`

// Met reports whether the process lives on conn's server. Then conn leads to the
// same life of the same server, and ends with the same crash as the process: what
// is read over conn shows all that the positions of p.Epoch say. It stays so for
// as long as conn lasts. The role of conn needs to be that of the Ladder, or
// pg_read_all_stats; otherwise it is false. It takes a round trip.
func (p Peer) Met(ctx context.Context, conn Querier) (bool, error) {
	return p.met(func(to any) error { return conn.QueryRow(ctx, peerQuery, p.backend).Scan(to) })
}

// MetSQL is Met for package database/sql: a *sql.Conn, since a *sql.DB is many.
func (p Peer) MetSQL(ctx context.Context, conn SQLQuerier) (bool, error) {
	return p.met(func(to any) error { return conn.QueryRowContext(ctx, peerQuery, p.backend).Scan(to) })
}

func (p Peer) met(query func(to any) error) (bool, error) {
	if p.started == "" {
		return false, nil
	}
	var started *string
	if err := query(&started); err != nil {
		return false, fmt.Errorf("replication: look for the process that is asked for positions: %w", err)
	}
	return started != nil && *started == p.started, nil
}
