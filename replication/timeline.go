package replication

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// histories keeps the history of the timeline that was asked for last.
type histories struct {
	server   Server
	timeline uint32
	history  tracker.History
	err      error
}

// of returns how timeline came about: nil, with the reason, when this role may
// not read it. It is read once, over a replication connection of its own.
func (h *histories) of(ctx context.Context, system uint64, timeline uint32) (tracker.History, error) {
	switch timeline {
	case 0:
		return nil, nil
	case 1:
		return tracker.History{}, nil // the first has no ancestors, and no history file
	}
	if h.timeline != timeline {
		h.history, h.err = readHistory(ctx, h.server, system, timeline)
		h.timeline = timeline
	}
	return h.history, h.err
}

func readHistory(ctx context.Context, server Server, system uint64, timeline uint32) (tracker.History, error) {
	conn, err := server.connect(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("replication: read the history of timeline %d: %w", timeline, err)
	}
	defer disconnect(conn)
	ctx, cancel := context.WithTimeout(ctx, server.QueryTimeout)
	defer cancel()
	if _, err := identifySystem(ctx, conn.PgConn(), system); err != nil {
		return nil, err
	}
	file, err := pglogrepl.TimelineHistory(ctx, conn.PgConn(), int32(timeline))
	if err != nil {
		return nil, fmt.Errorf("replication: TIMELINE_HISTORY %d: %w", timeline, err)
	}
	history, err := tracker.ParseHistory(file.Content)
	if err == nil && len(history) > 0 && history[len(history)-1].Timeline >= timeline {
		err = fmt.Errorf("it names timeline %d as an ancestor", history[len(history)-1].Timeline)
	}
	if err != nil {
		return nil, fmt.Errorf("replication: TIMELINE_HISTORY %d: %w", timeline, err)
	}
	return history, nil
}

// identifySystem asks a replication connection which server it has reached, and
// fails when that is one of another cluster: one DSN may lead to several.
func identifySystem(ctx context.Context, conn *pgconn.PgConn, system uint64) (pglogrepl.IdentifySystemResult, error) {
	id, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return id, fmt.Errorf("replication: IDENTIFY_SYSTEM: %w", err)
	}
	if id.SystemID != strconv.FormatUint(system, 10) {
		return id, fmt.Errorf("replication: a replication connection reached system %s, the other one system %d", id.SystemID, system)
	}
	return id, nil
}
