package replication

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// waiting is a standby on PostgreSQL 19: WAIT FOR LSN returns when replay has
// come to the position, its TIMEOUT has passed, or the wait is cancelled.
type waiting struct {
	*scripted
	lsn atomic.Uint64

	deaf    atomic.Bool // does not hear CancelRequest
	cancels atomic.Int32

	state   sync.Mutex
	change  chan struct{}  // guarded by state; closed when something has happened
	ends    map[int]error  // guarded by state; what a connection's wait ends with
	targets map[int]string // guarded by state; what each connection waits for now
	primary bool           // guarded by state
}

func newWaiting(t *testing.T) *waiting {
	s := &waiting{change: make(chan struct{}), ends: map[int]error{}, targets: map[int]string{}}
	s.lsn.Store(100)
	s.scripted = streamScript(t, &s.lsn, nil)
	s.version = "19.0"
	answer := s.answer
	s.answer = func(conn int, query string) ([][]*string, error) {
		s.state.Lock()
		primary := s.primary
		s.state.Unlock()
		switch {
		case query == fastQuery19:
			return [][]*string{row("0", fmt.Sprint(recordFunction), "2", "3")}, nil
		case strings.HasPrefix(query, "WAIT FOR LSN"):
			return s.wait(conn, query)
		}
		rows, err := answer(conn, query)
		switch {
		case primary && query == serverQuery:
			rows[0][5] = new("f")
		case primary && query == lookQuery:
			rows = [][]*string{row(fmt.Sprint(conn), "f", tracker.LSN(s.lsn.Load()).String(), "000000010000000000000001")}
		}
		return rows, err
	}
	s.call = func(int, uint32) []byte {
		time.Sleep(queryTakes)
		s.state.Lock()
		defer s.state.Unlock()
		if s.primary {
			return nil
		}
		return binaryRecord([]byte("x"), uint64Bytes(s.lsn.Load()), uint32Bytes(1))
	}
	s.cancel = func(conn int) {
		s.cancels.Add(1)
		if !s.deaf.Load() {
			s.end(conn, &pgconn.PgError{Severity: "ERROR", Code: "57014", Message: "canceling statement due to user request"})
		}
	}
	return s
}

func (s *waiting) wait(conn int, query string) ([][]*string, error) {
	parts := strings.Split(query, "'")
	target, err := tracker.ParseLSN(parts[1])
	if err != nil {
		return nil, err
	}
	timeout, err := time.ParseDuration(parts[3])
	if err != nil {
		return nil, err
	}
	after := time.After(timeout)
	defer func() {
		s.state.Lock()
		defer s.state.Unlock()
		delete(s.targets, conn)
	}()
	for {
		s.state.Lock()
		s.targets[conn] = parts[1]
		change, end, primary := s.change, s.ends[conn], s.primary
		delete(s.ends, conn)
		s.state.Unlock()
		switch {
		case end != nil:
			return nil, end
		case primary:
			return [][]*string{row("not in recovery")}, nil
		case tracker.LSN(s.lsn.Load()) >= target:
			time.Sleep(queryTakes)
			return [][]*string{row("success")}, nil
		}
		select {
		case <-change:
		case <-after:
			return [][]*string{row("timeout")}, nil
		}
	}
}

// changed tells the waits that something has happened; do is done before.
func (s *waiting) changed(do func()) {
	s.state.Lock()
	defer s.state.Unlock()
	do()
	close(s.change)
	s.change = make(chan struct{})
}

func (s *waiting) replay(lsn uint64)       { s.changed(func() { s.lsn.Store(lsn) }) }
func (s *waiting) end(conn int, err error) { s.changed(func() { s.ends[conn] = err }) }

// waits returns how many waits there are, and on which connection the one for
// lsn is; 0: on none.
func (s *waiting) waits(lsn tracker.LSN) (n, conn int) {
	s.state.Lock()
	defer s.state.Unlock()
	for c, target := range s.targets {
		if n++; target == lsn.String() {
			conn = c
		}
	}
	return n, conn
}

// after has queries that contain part answered so.
func (s *waiting) after(part string, rows [][]*string, err error) {
	answer := s.answer
	s.answer = func(conn int, query string) ([][]*string, error) {
		if strings.Contains(query, part) {
			return rows, err
		}
		return answer(conn, query)
	}
}
