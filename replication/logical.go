package replication

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker"
)

// listenLogical makes a temporary logical slot on the standby and listens to
// its keepalives. The walsender decodes what is replayed, and says how far it is
// before it sleeps (src/backend/replication/walsender.c, WalSndWaitForWal). It
// does miss wake-ups, so it is pinged while somebody waits.
func listenLogical(ctx context.Context, l *listener) error {
	server, options := l.cfg.Replica, ""
	if l.messages != nil {
		server, options = server.cutting(), ", messages 'true'"
	}
	conn, err := server.connect(ctx, true)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	if err := mayDecode(ctx, conn, l.cfg); err != nil {
		return err
	}
	if l.messages != nil { // what this connection brings, the session's answers must be able to vouch for
		if err := sameServer(ctx, conn, l); err != nil {
			return err
		}
	}
	slot := "walwake_" + strings.ToLower(rand.Text()[:16])
	from, err := createSlot(ctx, conn, slot, l)
	if err != nil {
		return err
	}
	start, cancel := context.WithTimeout(ctx, l.cfg.Replica.QueryTimeout)
	defer cancel()
	err = copyBoth(start, conn, fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1', publication_names '%s'%s)",
		slot, strings.ReplaceAll(pgx.Identifier{l.cfg.Publication}.Sanitize(), "'", "''"), options))
	if err != nil {
		return err
	}
	s := &walStream{l: l, conn: conn, pings: true}
	var confirmed pglogrepl.LSN
	var confirmedAt time.Time
	s.status = func(ping bool) pglogrepl.StandbyStatusUpdate {
		// Confirming is what lets the server drop WAL and catalog rows; a ping says
		// again what was confirmed.
		if now := time.Now(); now.Sub(confirmedAt) >= confirmEvery {
			confirmed, confirmedAt = pglogrepl.LSN(s.received.Load()), now
		}
		return pglogrepl.StandbyStatusUpdate{WALWritePosition: confirmed, ReplyRequested: ping}
	}
	l.up()
	if l.messages != nil {
		in := &inbox{l: l, items: make(chan item, inboxRoom)}
		return in.streamed(ctx, s, from)
	}
	return s.run(ctx)
}

func sameServer(ctx context.Context, conn *pgx.Conn, l *listener) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Replica.QueryTimeout)
	defer cancel()
	return meet(ctx, conn, l.run.s)
}

// mayDecode says what is missing for logical decoding, before a slot is asked
// for: the server's own message comes late, or names no remedy.
func mayDecode(ctx context.Context, conn *pgx.Conn, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.Replica.QueryTimeout)
	defer cancel()
	var level string
	var published bool
	err := conn.QueryRow(ctx, `SELECT current_setting('wal_level'), EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, cfg.Publication).Scan(&level, &published)
	switch {
	case err != nil:
		return fmt.Errorf("ask what can be decoded: %w", err)
	case level != "logical":
		return fmt.Errorf("wal_level is %s: ALTER SYSTEM SET wal_level = logical on the primary and on the standby, and restart both", level)
	case !published:
		return fmt.Errorf("publication %s does not exist: CREATE PUBLICATION %[1]s on the primary", pgx.Identifier{cfg.Publication}.Sanitize())
	}
	return nil
}

const (
	// snapshotEvery is how often the primary is asked to help while a slot is
	// being made, slotWithin how long that may take.
	snapshotEvery = time.Second
	slotWithin    = time.Minute
)

// createSlot makes the slot, and returns where what it gives begins. On a standby that waits for a record of running
// transactions, which an idle primary writes seldom, and at once when it is
// asked to (src/backend/replication/logical/snapbuild.c).
func createSlot(ctx context.Context, conn *pgx.Conn, slot string, l *listener) (tracker.LSN, error) {
	ctx, cancel := context.WithTimeout(ctx, slotWithin)
	defer cancel()
	var help sync.WaitGroup
	defer help.Wait()
	helping, stop := context.WithCancel(ctx)
	defer stop()
	l.note("the slot is being made")
	if !l.cfg.Primary.isZero() {
		help.Go(func() { logSnapshots(helping, l) })
	}
	made, err := pglogrepl.CreateReplicationSlot(ctx, conn.PgConn(), slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{
		Temporary: true, Mode: pglogrepl.LogicalReplication, SnapshotAction: "NOEXPORT_SNAPSHOT",
	})
	if err != nil {
		return 0, fmt.Errorf("make a temporary slot: %w", err)
	}
	from, err := tracker.ParseLSN(made.ConsistentPoint)
	if err != nil {
		return 0, fmt.Errorf("make a temporary slot: %w", err)
	}
	return from, nil
}

// logSnapshots has the primary log its running transactions until ctx ends. Where
// it cannot, the slot waits for the primary's own.
func logSnapshots(ctx context.Context, l *listener) {
	alone := func(err error) {
		if ctx.Err() == nil {
			l.note("the slot is being made, without the primary's help: " + err.Error())
		}
	}
	conn, err := l.cfg.Primary.connect(ctx, false)
	if err != nil {
		alone(err)
		return
	}
	defer disconnect(conn)
	for pause := 10 * time.Millisecond; ; pause = snapshotEvery {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if _, err := conn.Exec(ctx, `SELECT pg_log_standby_snapshot()`); err != nil {
			alone(err)
			return
		}
	}
}
