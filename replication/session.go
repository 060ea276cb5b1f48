package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/tracker"
)

// session asks one server process for its position. A goroutine of its own
// reads all the time: so the end of the connection is seen at once, and asking
// never has to interrupt listening. Whoever wants to know asks, under the
// owner's mutex; one request may be under way at a time.
type session struct {
	server    Server
	conn      *pgx.Conn // used for connecting and cancelling; link is what we speak over
	link      *pgconn.HijackedConn
	walsender bool // a replication connection: no prepared statements, but IDENTIFY_SYSTEM
	major     int

	backend string // the server process; with started it names one life of one server
	started string
	system  uint64
	standby bool // whether it was one when the session began
	sizes   walSizes
	fast    *fastpath // nil where it cannot be used
	startup uint32    // the startup process; 0: not known. Of the reader, and of who asks once the answer was taken

	parts       atomic.Int32 // ReadyForQuery messages that the request's answer has
	waiting     atomic.Bool  // the first of them is WAIT FOR LSN's
	interrupted atomic.Bool  // we have had it cancelled; cleared with the answer
	read        sync.WaitGroup
	busy        bool      // a request is under way; guarded by the owner's mutex
	deadline    *deadline // ends the connection when a request takes too long
}

// answer is what came of a request: a reading, or the error that has ended the
// session.
type answer struct {
	reading
	waited   string // what WAIT FOR LSN returned: success, timeout, not in recovery; empty without one
	waitErr  error  // what it failed with
	canceled bool   // somebody cancelled the request: there is no reading
	err      error
}

// maxAnswer bounds a message from the server; a position is a hundred bytes.
const maxAnswer = 1 << 20

// openSession connects. With peer, it fails where it reaches another server than
// peer has, or another life of it: two sessions that are both alive, one of
// which sees the other's process, end with the same crash.
func openSession(ctx context.Context, server Server, walsender bool, peer *session) (*session, error) {
	conn, err := server.connect(ctx, walsender)
	if err != nil {
		return nil, err
	}
	s := &session{server: server, conn: conn, walsender: walsender, major: majorVersion(conn)}
	ctx, cancel := context.WithTimeout(ctx, server.QueryTimeout)
	defer cancel()
	err = s.identify(ctx)
	if err == nil {
		err = meet(ctx, conn, peer)
	}
	if err == nil {
		s.link, err = conn.PgConn().Hijack()
	}
	if err != nil {
		disconnect(conn)
		return nil, err
	}
	_ = s.link.Conn.SetDeadline(time.Time{})
	s.link.Frontend.SetMaxBodyLen(maxAnswer)
	s.deadline = newDeadline(func() { _ = s.link.Conn.SetDeadline(time.Unix(1, 0)) })
	return s, nil
}

// identify reads what is fixed for the server process, and prepares the
// questions.
func (s *session) identify(ctx context.Context) error {
	var backend, system, block, segment int64
	var started *string
	if err := s.conn.QueryRow(ctx, serverQuery).Scan(&backend, &started, &system, &block, &segment, &s.standby); err != nil {
		return fmt.Errorf("replication: ask for the system identifier: %w", err)
	}
	if started != nil {
		s.started = *started
	}
	s.backend = strconv.FormatInt(backend, 10)
	s.system, s.sizes = uint64(system), walSizes{uint64(block), uint64(segment)}
	if s.walsender {
		return nil
	}
	questions := []question{short, full}
	if !s.standby {
		questions = []question{primary}
	}
	for _, q := range questions {
		if _, err := s.conn.PgConn().Prepare(ctx, string(q), q.sql(s.major), nil); err != nil {
			return fmt.Errorf("replication: prepare the question for the position: %w", err)
		}
	}
	return s.findFastpath(ctx, backend)
}

// meet fails where conn has reached another server than peer has, or another
// life of it: it looks for peer's process.
func meet(ctx context.Context, conn *pgx.Conn, peer *session) error {
	if peer == nil {
		return nil
	}
	met, err := Peer{backend: peer.backend, started: peer.started}.Met(ctx, conn)
	if err != nil {
		return err
	}
	if !met {
		return errors.New("replication: a second connection reached another server than the first: the connection string has to lead to one server")
	}
	return nil
}

// listen starts the reader, which hands each answer to take. The one with an
// error is the last.
func (s *session) listen(take func(answer)) {
	s.read.Go(func() {
		for {
			a := s.receive()
			take(a)
			if a.err != nil {
				return
			}
		}
	})
}

// close ends the session and waits for its reader. busy says that a request is
// under way: a WAIT FOR LSN is cancelled, or its server process would go on
// until the wait's own TIMEOUT.
func (s *session) close(busy bool) {
	s.deadline.done()
	if busy {
		s.interrupt()
	}
	_ = s.link.Conn.SetWriteDeadline(time.Now().Add(closeTimeout))
	s.link.Frontend.Send(&pgproto3.Terminate{})
	_ = s.link.Frontend.Flush() // a courtesy
	_ = s.link.Conn.Close()
	s.read.Wait()
}

// interrupt has the server cancel what it is at, if it is still there.
func (s *session) interrupt() {
	s.interrupted.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = s.conn.PgConn().CancelRequest(ctx)
}

// ask asks for the position.
func (s *session) ask(q question) error {
	s.parts.Store(0)
	s.waiting.Store(false)
	s.send(q)
	return s.flush(s.server.QueryTimeout)
}

// askAfter asks for the position as soon as target is replayed, or timeout has
// passed: WAIT FOR LSN (PostgreSQL 19) and the question in one go. The
// question's answer says how far replay is; that the wait succeeded is not
// relied on, since it knows no timeline.
func (s *session) askAfter(target tracker.LSN, timeout time.Duration) error {
	s.parts.Store(1)
	s.waiting.Store(true)
	s.link.Frontend.Send(&pgproto3.Query{String: fmt.Sprintf(
		"WAIT FOR LSN '%s' WITH (TIMEOUT '%dms', NO_THROW)", target, max(timeout.Milliseconds(), 1))})
	s.send(short)
	return s.flush(timeout + s.server.QueryTimeout)
}

func (s *session) send(q question) {
	if !s.standby {
		q = primary
	}
	f := s.link.Frontend
	switch {
	case s.walsender:
		s.parts.Add(2)
		sql := q.sql(s.major)
		if q == full {
			sql = strings.ReplaceAll(sql, "$1", cmp.Or(string(s.startupParameter()), "NULL"))
		}
		f.Send(&pgproto3.Query{String: sql})
		f.Send(&pgproto3.Query{String: "IDENTIFY_SYSTEM"})
	case q == short && s.fast != nil:
		s.parts.Add(s.fast.send(f))
	default:
		s.parts.Add(1)
		bind := &pgproto3.Bind{PreparedStatement: q.prepared()}
		if q == full {
			bind.Parameters = [][]byte{s.startupParameter()}
		}
		f.Send(bind)
		f.Send(&pgproto3.Execute{})
		f.Send(&pgproto3.Sync{})
	}
}

// startupParameter is heldQuery's $1, nil for NULL.
func (s *session) startupParameter() []byte {
	if s.startup == 0 {
		return nil
	}
	return strconv.AppendUint(nil, uint64(s.startup), 10)
}

func (s *session) flush(limit time.Duration) error {
	s.busy = true
	s.deadline.begin(limit)
	if err := s.link.Frontend.Flush(); err != nil {
		return fmt.Errorf("replication: ask for the replayed position: %w", err)
	}
	return nil
}

// done takes note that the request's answer has come.
func (s *session) done() {
	s.busy = false
	s.deadline.done()
}

// receive reads one answer: all that comes up to as many ReadyForQuery as the
// request has parts.
func (s *session) receive() answer {
	var a answer
	var row []*string
	var identified uint32
	var failed error
	var called bool
	for parts := int32(0); ; {
		msg, err := s.link.Frontend.Receive()
		if err != nil {
			return answer{err: s.ended(cmp.Or(failed, err))}
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			switch {
			case len(msg.Values) == 1: // WAIT FOR LSN
				a.waited = string(msg.Values[0])
			case s.walsender && row != nil: // IDENTIFY_SYSTEM, which is asked last
				if identified, err = s.identified(msg.Values); err != nil {
					return answer{err: err}
				}
			default:
				row = columns(msg.Values)
			}
		case *pgproto3.FunctionCallResponse:
			if s.fast == nil {
				return answer{err: errors.New("replication: a function's result that was not asked for")}
			}
			called = true
			if a.canceled {
				continue // of two calls, the first was: the second tells nothing
			}
			if err := s.fast.take(msg.Result, &a.reading); err != nil {
				return answer{err: err}
			}
		case *pgproto3.ErrorResponse:
			failed = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			parts++
			if parts == 1 && s.waiting.Load() {
				a.waitErr, failed = failed, nil
			}
			if e, is := errors.AsType[*pgconn.PgError](failed); is && e.Code == queryCanceled {
				a.canceled, failed = true, nil
			}
			if failed != nil {
				return answer{err: fmt.Errorf("replication: ask for the replayed position: %w", failed)}
			}
			if parts < s.parts.Load() {
				continue
			}
			if !called && !a.canceled {
				a.reading, a.err = s.parse(row, identified)
			}
			return a
		}
	}
}

// ended says why the connection has ended.
func (s *session) ended(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return fmt.Errorf("replication: the server did not answer within %s", s.server.QueryTimeout)
	}
	return fmt.Errorf("replication: the connection has ended: %w", err)
}

// identified reads IDENTIFY_SYSTEM's row: the timeline is the one being
// replayed (src/backend/replication/walsender.c, IdentifySystem).
func (s *session) identified(row [][]byte) (uint32, error) {
	if len(row) < 2 || string(row[0]) != strconv.FormatUint(s.system, 10) {
		return 0, fmt.Errorf("replication: IDENTIFY_SYSTEM: %q, want system %d", row, s.system)
	}
	n, err := strconv.ParseUint(string(row[1]), 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("replication: IDENTIFY_SYSTEM: timeline %q", row[1])
	}
	return uint32(n), nil
}

// columns copies a row: the message is gone with the next one. nil is NULL.
func columns(values [][]byte) []*string {
	row := make([]*string, len(values))
	for i, v := range values {
		if v != nil {
			row[i] = new(string(v))
		}
	}
	return row
}

// majorVersion is the server's, from what it says of itself when a connection
// begins; 0 when it says nothing that can be read.
func majorVersion(conn *pgx.Conn) int {
	v := conn.PgConn().ParameterStatus("server_version")
	if i := strings.IndexFunc(v, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		v = v[:i]
	}
	n, _ := strconv.Atoi(v)
	return n
}
