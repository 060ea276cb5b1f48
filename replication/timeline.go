package replication

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pglogrepl"

	"github.com/walwake/walwake/tracker"
)

// identifySystem returns the timeline that is being replayed, on a replication
// connection (src/backend/replication/walsender.c, IdentifySystem).
func (s *session) identifySystem(ctx context.Context) (uint32, error) {
	id, err := pglogrepl.IdentifySystem(ctx, s.conn.PgConn())
	if err != nil {
		return 0, fmt.Errorf("replication: IDENTIFY_SYSTEM: %w", err)
	}
	if id.SystemID != strconv.FormatUint(s.system, 10) {
		return 0, fmt.Errorf("replication: the replication connection reached system %s, not %d", id.SystemID, s.system)
	}
	if id.Timeline <= 0 {
		return 0, fmt.Errorf("replication: IDENTIFY_SYSTEM: timeline %d", id.Timeline)
	}
	return uint32(id.Timeline), nil
}

// historyFor returns how timeline came about, read once for each timeline of a
// session. nil, with the reason, when this role may not read it.
func (s *session) historyFor(ctx context.Context, timeline uint32) (tracker.History, error) {
	switch timeline {
	case 0:
		return nil, nil
	case 1:
		return tracker.History{}, nil // the first has no ancestors, and no history file
	}
	if s.historyOf != timeline {
		s.history, s.historyErr = s.readHistory(ctx, timeline)
		s.historyOf = timeline
	}
	return s.history, s.historyErr
}

func (s *session) readHistory(ctx context.Context, timeline uint32) (tracker.History, error) {
	ws := s
	if !s.walsender {
		var err error
		if ws, err = openSession(ctx, s.server, true); err != nil {
			return nil, fmt.Errorf("replication: read the history of timeline %d: %w", timeline, err)
		}
		defer ws.close()
		ws.system = s.system // one DSN may lead to several servers: identifySystem compares
	}
	ctx, cancel := context.WithTimeout(ctx, s.server.QueryTimeout)
	defer cancel()
	if _, err := ws.identifySystem(ctx); err != nil {
		return nil, err
	}
	file, err := pglogrepl.TimelineHistory(ctx, ws.conn.PgConn(), int32(timeline))
	if err != nil {
		return nil, fmt.Errorf("replication: TIMELINE_HISTORY %d: %w", timeline, err)
	}
	history, err := tracker.ParseHistory(file.Content)
	if err != nil {
		return nil, fmt.Errorf("replication: TIMELINE_HISTORY %d: %w", timeline, err)
	}
	return history, nil
}
