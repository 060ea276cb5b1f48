package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/tracker"
)

// scripted is a PostgreSQL server made of a function for each query, over
// net.Pipe, so that a source runs against it in a synctest bubble unmodified.
type scripted struct {
	t       *testing.T
	version string
	// answer returns the rows' columns, text, nil for NULL, or an error to send.
	answer func(conn int, query string) ([][]*string, error)
	// call, where it is set, answers a FunctionCall: the connection is then one to
	// the server itself, not through a pooler.
	call func(conn int, function uint32) []byte
	// callFails, where it is set, may refuse a FunctionCall.
	callFails func(function uint32) error
	// stream, where it is set, has the connection from START_REPLICATION on.
	stream func(st *scriptedStream)
	// cancel, where it is set, is called with the process that is to be cancelled.
	cancel func(conn int)
	// noWalsender refuses replication connections.
	noWalsender atomic.Bool

	mu      sync.Mutex
	conns   []net.Conn // the server's ends; guarded by mu
	queries []string   // guarded by mu
	refuse  error      // guarded by mu; what dialling returns
}

func (s *scripted) server() Server {
	cfg, err := pgx.ParseConfig("host=scripted user=app password=secret dbname=postgres sslmode=disable")
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.refuse != nil {
			return nil, s.refuse
		}
		client, server := net.Pipe()
		s.conns = append(s.conns, server)
		n := len(s.conns)
		go s.serve(n, server)
		return client, nil
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"192.0.2.1"}, nil }
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return Server{Config: cfg}
}

// cut closes the server's end of every connection, as a crash does.
func (s *scripted) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.Close()
	}
}

func (s *scripted) setRefuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// asked returns how many queries came, and connections.
func (s *scripted) asked() (queries, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queries), len(s.conns)
}

func (s *scripted) serve(n int, c net.Conn) {
	defer c.Close()
	b := pgproto3.NewBackend(c, c)
	startup, err := b.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if c, is := startup.(*pgproto3.CancelRequest); is {
		if s.cancel != nil {
			s.cancel(int(c.ProcessID))
		}
		return
	}
	if m, is := startup.(*pgproto3.StartupMessage); is && m.Parameters["replication"] != "" && s.noWalsender.Load() {
		_ = sendError(b, &pgconn.PgError{Severity: "FATAL", Code: "42501", Message: "permission denied to start WAL sender"})
		return
	}
	pid := uint32(n)
	if s.call == nil {
		pid += 1000 // a pooler: no fastpath
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: s.version})
	b.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
	b.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"})
	b.Send(&pgproto3.BackendKeyData{ProcessID: pid, SecretKey: []byte{0, 0, 0, 1}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() != nil {
		return
	}
	for {
		msg, err := b.Receive()
		if err != nil {
			return
		}
		switch msg := msg.(type) {
		case *pgproto3.Query:
			if s.stream != nil && strings.HasPrefix(msg.String, "START_REPLICATION") {
				s.note(msg.String)
				b.Send(&pgproto3.CopyBothResponse{})
				if b.Flush() == nil {
					s.stream(&scriptedStream{s: s, b: b, c: c, conn: n, command: msg.String})
				}
				return
			}
			if s.reply(b, n, msg.String) != nil {
				return
			}
		case *pgproto3.Parse:
			b.Send(&pgproto3.ParseComplete{})
			b.Send(&pgproto3.ParameterDescription{})
			b.Send(&pgproto3.RowDescription{Fields: fields(len(told(1, 0)))})
		case *pgproto3.Bind: // of what was parsed: the look
			b.Send(&pgproto3.BindComplete{})
			s.note(strings.Join(append([]string{lookQuery, msg.PreparedStatement}, texts(msg.Parameters)...), " "))
			most := len(told(1, 0))
			if msg.PreparedStatement == string(short) {
				most -= heldColumns
			}
			if s.rows(b, n, lookQuery, most, msg.PreparedStatement == "") != nil {
				return
			}
		case *pgproto3.FunctionCall:
			s.note(fmt.Sprint("call ", msg.Function))
			result, err := s.call(n, msg.Function), error(nil)
			if s.callFails != nil {
				err = s.callFails(msg.Function)
			}
			if err == nil {
				b.Send(&pgproto3.FunctionCallResponse{Result: result})
			} else if sendError(b, err) != nil {
				return
			}
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if b.Flush() != nil {
				return
			}
		case *pgproto3.Sync:
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if b.Flush() != nil {
				return
			}
		case *pgproto3.Terminate:
			return
		}
	}
}

// texts are parameters; "NULL" is one.
func texts(parameters [][]byte) (all []string) {
	for _, p := range parameters {
		if p == nil {
			p = []byte("NULL")
		}
		all = append(all, string(p))
	}
	return all
}

// reply answers a simple query.
func (s *scripted) reply(b *pgproto3.Backend, n int, query string) error {
	s.note(query)
	if err := s.rows(b, n, query, 100, true); err != nil {
		return err
	}
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	return b.Flush()
}

func (s *scripted) note(query string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries = append(s.queries, query)
}

// rows sends what answer returned, of each row the first columns at the most. Its
// error says that the connection is to end.
func (s *scripted) rows(b *pgproto3.Backend, n int, query string, most int, describe bool) error {
	rows, err := s.answer(n, query)
	if err != nil {
		return sendError(b, err)
	}
	for i, row := range rows {
		row = row[:min(len(row), most)]
		if i == 0 && describe {
			b.Send(&pgproto3.RowDescription{Fields: fields(len(row))})
		}
		values := make([][]byte, len(row))
		for j, v := range row {
			if v != nil {
				values[j] = []byte(*v)
			}
		}
		b.Send(&pgproto3.DataRow{Values: values})
	}
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT")})
	return nil
}

// sendError sends err as the server's; its own error says that the connection is
// to end.
func sendError(b *pgproto3.Backend, err error) error {
	failed, is := errors.AsType[*pgconn.PgError](err)
	if !is {
		failed = &pgconn.PgError{Severity: "ERROR", Code: "XX000", Message: err.Error()}
	}
	b.Send(&pgproto3.ErrorResponse{Severity: failed.Severity, Code: failed.Code, Message: failed.Message})
	if failed.Severity == "FATAL" {
		return cmp.Or(b.Flush(), err)
	}
	return nil
}

// lookQuery is what answer is asked for a position with, whichever question it was.
const lookQuery = "position"

// told is the answer to the full question that process pid of a standby on timeline
// 1 gives, where nothing holds replay back.
func told(pid int, lsn tracker.LSN) []*string {
	return row(fmt.Sprint(pid), "t", lsn.String(), "1", "not paused", "t", "NULL", fmt.Sprint(startupProcess))
}

// startupProcess is the scripted standby's.
const startupProcess = 33

// toldOtherwise is it with other columns.
func toldOtherwise(columns map[int]string) []*string {
	answer := told(1, 0x16B3748)
	for i, c := range columns {
		answer[i] = row(c)[0]
	}
	return answer
}

// fields describes the columns of mayDecode (2), fastQuery (4), serverQuery (6),
// full (8) and others.
func fields(n int) []pgproto3.FieldDescription {
	const (
		boolean, bigint, integer, text = 16, 20, 23, 25
	)
	oids := map[int][]uint32{2: {text, boolean}, 4: {bigint, bigint, integer, integer}, 6: {integer, text, bigint, bigint, bigint, boolean}, 8: {integer, boolean, text, text, text, boolean, text, text}}[n]
	var out []pgproto3.FieldDescription
	for i := range n {
		oid := uint32(text)
		if oids != nil {
			oid = oids[i]
		}
		out = append(out, pgproto3.FieldDescription{Name: fmt.Appendf(nil, "c%d", i), DataTypeOID: oid, DataTypeSize: -1, TypeModifier: -1})
	}
	return out
}

// row makes a row of text; "NULL" is one.
func row(columns ...string) []*string {
	var out []*string
	for _, c := range columns {
		if c == "NULL" {
			out = append(out, nil)
			continue
		}
		out = append(out, &c)
	}
	return out
}
