package replication

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// histories keeps the history of the timeline that was asked for last. It is
// read in the background, over a replication connection of its own: a server
// that lets none in must not hold up who waits for a position.
type histories struct {
	server Server

	mu       sync.Mutex // guards what follows
	timeline uint32
	history  tracker.History
	err      error
	reading  bool
	pauses   pauses
	again    time.Time // when to read again after a failure
}

// errReading is why a history is not known while it is being read.
var errReading = errors.New("replication: the timeline's history is being read")

// of returns how timeline came about: nil, with the reason, while that is not
// known. spawn runs what reads it; known is called when it has been read.
func (h *histories) of(ctx context.Context, s *session, timeline uint32, spawn func(func()) bool, known func()) (tracker.History, error) {
	switch timeline {
	case 0:
		return nil, nil
	case 1:
		return tracker.History{}, nil // the first has no ancestors, and no history file
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timeline != timeline {
		h.timeline, h.history, h.err, h.again = timeline, nil, errReading, time.Time{}
		h.pauses.reset()
	}
	if h.history == nil && !h.reading && !time.Now().Before(h.again) {
		h.reading = spawn(func() {
			history, err := readHistory(ctx, h.server, s.system, timeline, s)
			h.mu.Lock()
			h.reading = false
			if h.timeline == timeline {
				h.history, h.err = history, err
				h.again = time.Now().Add(h.pause(err))
			}
			h.mu.Unlock()
			known()
		})
	}
	return h.history, h.err
}

// pause is how long to wait before the history is read again: somebody may wait for
// it, so not long where it may work the next time.
func (h *histories) pause(err error) time.Duration {
	return min(h.pauses.next(), refusedFor(err))
}

// readHistory reads it from the server that peer is a session to, nil: from any
// of that system. Two servers that were promoted apart know two histories of one
// timeline.
func readHistory(ctx context.Context, server Server, system uint64, timeline uint32, peer *session) (tracker.History, error) {
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
	if err := meet(ctx, conn, peer); err != nil {
		return nil, err
	}
	file, err := pglogrepl.TimelineHistory(ctx, conn.PgConn(), int32(timeline))
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the server did not answer within %s", server.QueryTimeout)
	}
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
