package replication

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/tracker"
)

// scriptedStream is the server's end of a connection in COPY mode.
type scriptedStream struct {
	s       *scripted
	b       *pgproto3.Backend
	c       net.Conn
	conn    int
	command string
	sending sync.Mutex
}

func keepalive(lsn tracker.LSN, reply bool) []byte {
	data := binary.BigEndian.AppendUint64([]byte{'k'}, uint64(lsn))
	data = binary.BigEndian.AppendUint64(data, 0)
	if reply {
		return append(data, 1)
	}
	return append(data, 0)
}

func xlogData(start tracker.LSN, wal string) []byte {
	data := binary.BigEndian.AppendUint64([]byte{'w'}, uint64(start))
	data = binary.BigEndian.AppendUint64(data, uint64(start))
	data = binary.BigEndian.AppendUint64(data, 0)
	return append(data, wal...)
}

func (st *scriptedStream) send(data ...[]byte) error {
	st.sending.Lock()
	defer st.sending.Unlock()
	for _, d := range data {
		st.b.Send(&pgproto3.CopyData{Data: d})
	}
	return st.b.Flush()
}

// say sends other messages.
func (st *scriptedStream) say(msgs ...pgproto3.BackendMessage) {
	st.sending.Lock()
	defer st.sending.Unlock()
	for _, m := range msgs {
		st.b.Send(m)
	}
	_ = st.b.Flush()
}

// status is what a client said in the stream.
type status struct {
	at                    time.Time
	write, flush, applied tracker.LSN
	ping                  bool
}

// receive returns the next status, and an error when the client has gone.
func (st *scriptedStream) receive() (status, error) {
	for {
		msg, err := st.b.Receive()
		if err != nil {
			return status{}, err
		}
		m, is := msg.(*pgproto3.CopyData)
		switch {
		case !is:
			return status{}, fmt.Errorf("the client sent %T", msg)
		case len(m.Data) != 34 || m.Data[0] != 'r':
			st.s.t.Errorf("the client sent %q", m.Data)
		default:
			at := func(i int) tracker.LSN { return tracker.LSN(binary.BigEndian.Uint64(m.Data[i:])) }
			return status{time.Now(), at(1), at(9), at(17), m.Data[33] != 0}, nil
		}
	}
}

// queryTakes is what the scripted standby takes for an answer: without it no
// time would pass in a bubble while somebody asks in a row.
const queryTakes = 50 * time.Microsecond

// streamScript is a standby of system 7 on timeline 1 that also streams.
func streamScript(t *testing.T, lsn *atomic.Uint64, stream func(*scriptedStream)) *scripted {
	s := standbyScript(t, lsn)
	look := s.answer
	s.answer = func(conn int, query string) ([][]*string, error) {
		switch {
		case query == lookQuery:
			time.Sleep(queryTakes)
		case query == "IDENTIFY_SYSTEM":
			return [][]*string{row("7", "1", tracker.LSN(lsn.Load()).String(), "postgres")}, nil
		case strings.Contains(query, "max(extract(epoch"):
			return [][]*string{row("then")}, nil
		case strings.Contains(query, "pg_publication"):
			return [][]*string{row("logical", "t")}, nil
		case strings.HasPrefix(query, "CREATE_REPLICATION_SLOT"):
			return [][]*string{row("walwake", "0/1", "NULL", "pgoutput")}, nil
		}
		return look(conn, query)
	}
	s.stream = stream
	return s
}

// count returns how many queries begin with prefix.
func (s *scripted) count(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queries {
		if strings.HasPrefix(q, prefix) {
			n++
		}
	}
	return n
}

// laddered runs a tracker on s with kinds until the test ends. MinInterval is so
// high that only a stream can be the cause of an early wake.
func laddered(t *testing.T, s *scripted, cfg Config) *tracker.Tracker {
	t.Helper()
	cfg.Replica = s.server()
	ladder, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	tr := tracking(t, tracker.Config{Source: ladder, Timeout: 24 * time.Hour})
	<-tr.Ready()
	synctest.Wait()
	return tr
}

// slow is a Config that polls so seldom that an early wake is a stream's.
func slow(kinds ...Kind) Config {
	return Config{Use: kinds, MinInterval: 10 * time.Second, MaxInterval: 10 * time.Second, IdleInterval: 10 * time.Second}
}

// rung returns what State says of kind.
func rung(t *testing.T, tr *tracker.Tracker, kind Kind) tracker.Rung {
	t.Helper()
	for _, r := range tr.State().Ladder {
		if r.Source == string(kind) {
			return r
		}
	}
	t.Fatalf("State has no rung %s: %+v", kind, tr.State().Ladder)
	return tracker.Rung{}
}

// woken reports whether w has ended, and fails where it ended badly.
func woken(t *testing.T, w *tracker.Waiter) bool {
	t.Helper()
	synctest.Wait()
	select {
	case <-w.Done():
		if err := w.Err(); err != nil {
			t.Errorf("woken with %v", err)
		}
		return true
	default:
		return false
	}
}

// steered is a stream that the test speaks for; statuses are kept.
type steered struct {
	lsn     *atomic.Uint64
	streams chan *scriptedStream
	mute    atomic.Bool // does not answer pings

	mu  sync.Mutex
	got []status // guarded by mu
}

func newSteered(lsn *atomic.Uint64) *steered {
	return &steered{lsn: lsn, streams: make(chan *scriptedStream, 1000)}
}

func (st *steered) stream(s *scriptedStream) {
	st.streams <- s
	for {
		m, err := s.receive()
		if err != nil {
			return
		}
		st.mu.Lock()
		st.got = append(st.got, m)
		st.mu.Unlock()
		if m.ping && !st.mute.Load() && s.send(keepalive(tracker.LSN(st.lsn.Load()), false)) != nil {
			return
		}
	}
}

// since returns the statuses that came after at.
func (st *steered) since(at time.Time) (out []status) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, m := range st.got {
		if m.at.After(at) {
			out = append(out, m)
		}
	}
	return out
}

// pings counts those that asked for an answer.
func pings(got []status) (n int) {
	for _, m := range got {
		if m.ping {
			n++
		}
	}
	return n
}

// eachStream runs test with a waiter that has brought the stream up.
func eachStream(t *testing.T, test func(t *testing.T, kind Kind)) {
	for _, kind := range []Kind{Physical, Logical} {
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, kind) })
		})
	}
}
