package replication

import (
	"context"
	"fmt"

	"github.com/jackc/pglogrepl"
)

// listenPhysical streams WAL from the standby as another standby would, without
// a slot, from where it is now. What comes has been received by the standby and
// is about to be replayed (src/backend/replication/walsender.c,
// GetStandbyFlushRecPtr): a hint, no more.
func listenPhysical(ctx context.Context, l *listener) error {
	conn, err := l.cfg.Replica.connect(ctx, true)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	start, cancel := context.WithTimeout(ctx, l.cfg.Replica.QueryTimeout)
	defer cancel()
	id, err := identifySystem(start, conn.PgConn(), l.system)
	if err != nil {
		return err
	}
	// pglogrepl always names a slot, and an empty name is a syntax error.
	if err := copyBoth(start, conn, fmt.Sprintf("START_REPLICATION PHYSICAL %s TIMELINE %d", id.XLogPos, id.Timeline)); err != nil {
		return err
	}
	s := &walStream{l: l, conn: conn}
	s.received.Store(uint64(id.XLogPos))
	s.status = func(ping bool) pglogrepl.StandbyStatusUpdate {
		return pglogrepl.StandbyStatusUpdate{WALWritePosition: pglogrepl.LSN(s.received.Load()), ReplyRequested: ping}
	}
	l.up()
	return s.run(ctx)
}
