package pgnotify

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// link is two connections to one server: the ear, on which nothing is asked but
// to LISTEN, and in silence whether it does, and the mouth, which asks
// for the position. With one alone, the answer would stand behind all that the
// server has to notify of, which would have to be read, and held, first.
//
// Run's goroutine alone uses it, and with it heard.
type link struct {
	cfg   *Config
	ear   *pgx.Conn
	mouth *pgx.Conn // nil once it is known that nobody asks for positions
	dials *dials
	stop  func() bool // ends the watch of the context that the link was made with

	heard   []*pgconn.Notification // by the ear, and not passed on yet
	bytes   int                    // that their payloads have
	checked bool                   // what was notified of on the channel check has come
	check   string

	probing   bool // the ear was asked whether it listens
	listening int  // on how many of our channels it has said so

	backend string        // the ear's server process
	at      tracker.Token // where the server was when the ear listened; system and timeline do not change
	page    uint64        // wal_block_size
	segment uint64        // wal_segment_size

	pooled        bool        // the process number that the mouth was told is not the server's
	insert, flush uint32      // the functions' numbers
	asked         int         // answers that are not read to their end
	latest        tracker.LSN // the position that was told last
	owed          bool        // it was not flushed yet; known when asked is 0
}

const (
	// maxMessage bounds what is read from a server; a payload has less than 8,000 bytes.
	maxMessage = 1 << 20

	// maxBurst and maxBytes bound what is heard and not passed on yet.
	maxBurst = 1024
	maxBytes = 64 << 10

	// SQLSTATEs: of LISTEN during recovery, and of NOTIFY when the queue is full.
	readOnlyTransaction = "25006"
	queueFull           = "54000"
)

// connect makes both connections, and listens.
func (l *Listener) connect(ctx context.Context) (*link, error) {
	k := &link{cfg: &l.cfg, check: "walwake_" + rand.Text(), dials: newDials()}
	k.stop = context.AfterFunc(ctx, k.dials.interrupt)
	err := k.openEar(ctx, l)
	if err == nil {
		err = k.subscribe(ctx)
	}
	if err == nil {
		err = k.openMouth(ctx)
	}
	if err == nil {
		err = k.verify(ctx)
	}
	if err == nil {
		err = l.superseded(k.at)
	}
	if err != nil {
		k.close()
		return nil, err
	}
	if !l.waits() {
		disconnect(k.mouth)
		k.mouth = nil
	}
	return k, nil
}

func (k *link) openEar(ctx context.Context, l *Listener) (err error) {
	k.ear, err = k.cfg.Primary.Connect(ctx, func(cfg *pgx.ConnConfig) {
		cfg.DialFunc = k.dials.counted(cfg.DialFunc)
		cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) {
			if n.Channel == k.check {
				k.checked = true
				return
			}
			k.heard = append(k.heard, n)
			k.bytes += len(n.Payload)
		}
		was := cfg.ValidateConnect
		cfg.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
			if was != nil {
				if err := was(ctx, conn); err != nil {
					return err
				}
			}
			return l.leads(ctx, conn)
		}
	})
	if err != nil {
		return err
	}
	k.ear.PgConn().Frontend().SetMaxBodyLen(maxMessage)
	return nil
}

// openMouth connects to where the ear is, whatever other servers are named.
func (k *link) openMouth(ctx context.Context) (err error) {
	network, address := k.dials.latest()
	k.mouth, err = k.cfg.Primary.Connect(ctx, func(cfg *pgx.ConnConfig) {
		dial := k.dials.counted(cfg.DialFunc)
		cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, network, address) }
	})
	if err != nil {
		return fmt.Errorf("pgnotify: a second connection, which asks for the position: %w", err)
	}
	k.mouth.PgConn().Frontend().SetMaxBodyLen(maxMessage)
	return nil
}

// subscribe LISTENs on all channels, from the same moment.
func (k *link) subscribe(ctx context.Context) error {
	var sql strings.Builder
	sql.WriteString("LISTEN " + quoted(k.check))
	for _, c := range k.cfg.Channels {
		sql.WriteString("; LISTEN " + quoted(c.Name))
	}
	err := k.bounded(ctx, func(ctx context.Context) error {
		_, err := k.ear.PgConn().Exec(ctx, sql.String()).ReadAll()
		return err
	})
	if e, is := errors.AsType[*pgconn.PgError](err); is && e.Code == readOnlyTransaction {
		return fmt.Errorf("%w: the server is a standby: connect to the primary (for failovers name all servers, with target_session_attrs=read-write): %w", ErrCannotListen, err)
	}
	if err != nil {
		return fmt.Errorf("pgnotify: LISTEN: %w", err)
	}
	return nil
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

const (
	// backendQuery names one life of one server process. The number is text, for
	// which no type is looked up.
	backendQuery = `SELECT pid::text, backend_start::text FROM pg_stat_get_activity(pg_backend_pid())`

	// peerQuery looks for it from another: both are of one server then, and end
	// with it.
	peerQuery = `SELECT pg_backend_pid()::text, coalesce((SELECT backend_start::text FROM pg_stat_get_activity($1::text::int)), ''),
       current_setting('wal_block_size')::bigint, pg_size_bytes(current_setting('wal_segment_size')),
       'pg_current_wal_insert_lsn()'::regprocedure::oid::bigint, 'pg_current_wal_flush_lsn()'::regprocedure::oid::bigint`
)

// verify looks whether the ear hears what the mouth says, and where the server
// is.
func (k *link) verify(ctx context.Context) error {
	return k.bounded(ctx, func(ctx context.Context) error {
		var started, mouth, peer string
		var page, segment, insert, flush int64
		if err := k.ear.QueryRow(ctx, backendQuery, pgx.QueryExecModeExec).Scan(&k.backend, &started); err != nil {
			return fmt.Errorf("pgnotify: ask for the server process: %w", err)
		}
		if err := k.mouth.QueryRow(ctx, peerQuery, pgx.QueryExecModeExec, k.backend).Scan(&mouth, &peer, &page, &segment, &insert, &flush); err != nil {
			return fmt.Errorf("pgnotify: look for our other connection: %w", err)
		}
		k.page, k.segment, k.insert, k.flush = uint64(page), uint64(segment), uint32(insert), uint32(flush)
		switch {
		case mouth == k.backend:
			return fmt.Errorf("%w: two connections are served by one server process: %s", ErrCannotListen, transactionMode)
		case peer != started:
			return errors.New("pgnotify: a second connection reached another server than the first: the connection string has to lead to one primary")
		}
		k.pooled = mouth != strconv.FormatUint(uint64(k.mouth.PgConn().PID()), 10)
		if err := k.hears(ctx); err != nil {
			return err
		}
		var err error
		k.at, err = k.capture(ctx)
		return err
	})
}

const transactionMode = "there is a pooler in transaction mode: connect directly, or through one in session mode"

// hears looks whether what is notified of reaches the ear by itself. When the
// server has acknowledged a NOTIFY, a process that listens has been signalled: it
// tells of it before it answers anything. What comes with an answer proves nothing,
// since a pooler passes on then what it drops at other times: the ear is given more
// time then, to hear it while it asks nothing.
//
// A queue that is full, because we have not read for long, stays so for everybody
// when we are gone, until somebody asks how full it is: all that else has the server
// discard what everybody has read is a NOTIFY (src/backend/commands/async.c,
// asyncQueueAdvanceTail).
func (k *link) hears(ctx context.Context) error {
	const least, most = 20 * time.Millisecond, 700 * time.Millisecond
	for patience := least; patience < most; patience *= 2 {
		k.checked = false
		_, err := k.mouth.PgConn().Exec(ctx, "SELECT pg_notification_queue_usage(); NOTIFY "+quoted(k.check)).ReadAll()
		if e, is := errors.AsType[*pgconn.PgError](err); is && e.Code == queueFull && !k.pooled {
			return nil // by others: we listen until it is free
		}
		if err != nil {
			return fmt.Errorf("pgnotify: NOTIFY, to see whether it is heard: %w", err)
		}
		for over := time.Now().Add(patience); !k.checked; {
			silent, err := k.receive(ctx, time.Until(over))
			if err != nil {
				return err
			}
			if silent {
				break
			}
		}
		_ = k.ear.PgConn().Conn().SetReadDeadline(time.Time{})
		if k.checked {
			_, err := k.ear.PgConn().Exec(ctx, "UNLISTEN "+quoted(k.check)).ReadAll()
			if err != nil {
				return fmt.Errorf("pgnotify: UNLISTEN: %w", err)
			}
			return nil
		}
		if err := k.probe(ctx); err != nil {
			return err
		}
		for k.probing {
			silent, err := k.receive(ctx, k.cfg.Primary.QueryTimeout)
			if err != nil {
				return err
			}
			if silent {
				return errSilent
			}
		}
		if !k.checked {
			break
		}
	}
	return fmt.Errorf("%w: what is notified of does not come: %s", ErrCannotListen, transactionMode)
}

// close says goodbye where somebody listens, and returns when nothing is left.
func (k *link) close() {
	k.stop()
	for _, conn := range []*pgx.Conn{k.ear, k.mouth} {
		if conn != nil && !conn.IsClosed() {
			disconnect(conn)
		}
	}
	k.dials.close()
	for _, conn := range []*pgx.Conn{k.ear, k.mouth} {
		if conn != nil {
			<-conn.PgConn().CleanupDone()
		}
	}
}

func disconnect(conn *pgx.Conn) {
	const goodbye = 250 * time.Millisecond
	_ = conn.PgConn().Conn().SetDeadline(time.Now().Add(goodbye)) // it may have been interrupted
	_ = conn.Close(context.Background())
}
