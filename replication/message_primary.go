package replication

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// snapshots waits until a snapshot of a primary sees a transaction. There, other
// than on a standby, a commit record comes first and what it commits can be seen
// later: with synchronous replication as much later as the standbys take
// (src/backend/access/transam/xact.c, RecordTransactionCommit).
type snapshots struct {
	conn *pgx.Conn // nil until it is needed
	last snapshot
}

// wait blocks until a snapshot sees what xid, which has written its commit record,
// has committed.
func (s *snapshots) wait(ctx context.Context, l *listener, xid uint32) error {
	const most = 25 * time.Millisecond
	for pause := 100 * time.Microsecond; !s.last.sees(xid); pause = min(2*pause, most) {
		if err := s.take(ctx, l); err != nil || s.last.sees(xid) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *snapshots) take(ctx context.Context, l *listener) error {
	if s.conn == nil {
		conn, err := l.cfg.Replica.connect(ctx, false)
		if err != nil {
			return err
		}
		s.conn = conn
		if err := sameServer(ctx, conn, l); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Replica.QueryTimeout)
	defer cancel()
	var text string
	err := s.conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`, pgx.QueryExecModeSimpleProtocol).Scan(&text)
	if err == nil {
		s.last, err = parseSnapshot(text)
	}
	if err != nil {
		return fmt.Errorf("ask what can be seen: %w", err)
	}
	return nil
}

func (s *snapshots) close() {
	if s.conn != nil {
		disconnect(s.conn)
	}
}

// snapshot is a pg_snapshot: what is below next can be seen, but for what runs.
type snapshot struct {
	next    uint64
	running []uint64
}

func parseSnapshot(text string) (sn snapshot, err error) {
	parts := strings.Split(text, ":") // xmin:xmax:xip,…
	if len(parts) != 3 {
		return sn, fmt.Errorf("snapshot %q", text)
	}
	if sn.next, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return sn, err
	}
	for field := range strings.SplitSeq(parts[2], ",") {
		if field == "" {
			continue
		}
		xid, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return sn, err
		}
		sn.running = append(sn.running, xid)
	}
	return sn, nil
}

// sees reports whether the snapshot sees what the transaction has committed. Its
// number is cut to 32 bits, and within 2^31 of the next.
func (sn snapshot) sees(xid uint32) bool {
	before := int32(uint32(sn.next) - xid)
	return before > 0 && !slices.ContainsFunc(sn.running, func(r uint64) bool { return uint32(r) == xid })
}
