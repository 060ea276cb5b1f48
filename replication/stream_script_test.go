package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
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

func TestStreamWakesWhoWaits(t *testing.T) {
	copyData := func(data []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{'d'}, uint32(4+len(data))), data...)
	}
	for how, say := range map[string]func(st *scriptedStream, lsn tracker.LSN) error{
		"a keepalive": func(st *scriptedStream, lsn tracker.LSN) error { return st.send(keepalive(lsn, false)) },
		"WAL":         func(st *scriptedStream, lsn tracker.LSN) error { return st.send(xlogData(lsn-10, "0123456789")) },
		"unknown types before it": func(st *scriptedStream, lsn tracker.LSN) error {
			st.say(&pgproto3.NoticeResponse{Message: "hello"}, &pgproto3.ParameterStatus{Name: "in_hot_standby", Value: "on"})
			return st.send([]byte{'z', 1, 2, 3}, []byte{0}, keepalive(lsn, false))
		},
		"byte by byte": func(st *scriptedStream, lsn tracker.LSN) error {
			for _, c := range copyData(keepalive(lsn, false)) {
				time.Sleep(10 * time.Microsecond)
				if _, err := st.c.Write([]byte{c}); err != nil {
					return err
				}
			}
			return nil
		},
		"two in one and a half": func(st *scriptedStream, lsn tracker.LSN) error {
			both := slices.Concat(copyData(keepalive(lsn-50, false)), copyData(keepalive(lsn, false)))
			if _, err := st.c.Write(both[:30]); err != nil {
				return err
			}
			_, err := st.c.Write(both[30:])
			return err
		},
		"a lower one after it": func(st *scriptedStream, lsn tracker.LSN) error {
			return st.send(keepalive(lsn, false), keepalive(5, false), xlogData(1, ""))
		},
	} {
		t.Run(how, func(t *testing.T) {
			eachStream(t, func(t *testing.T, kind Kind) {
				var lsn atomic.Uint64
				lsn.Store(100)
				steer := newSteered(&lsn)
				steer.mute.Store(true)
				s := streamScript(t, &lsn, steer.stream)
				tr := laddered(t, s, slow(kind))
				if r := rung(t, tr, kind); r.Up || r.Reason != "starts when somebody waits" || s.count("START_REPLICATION") != 0 {
					t.Errorf("before anybody waits: %+v", r)
				}
				w, later := tr.Request(tok(200)), tr.Request(tok(300))
				st := <-steer.streams
				time.Sleep(time.Second)
				synctest.Wait()
				if r := rung(t, tr, kind); !r.Up || tr.State().Source != string(kind) {
					t.Errorf("with a stream: %+v, source %s", r, tr.State().Source)
				}
				lsn.Store(200)
				if woken(t, w) {
					t.Fatal("woken before the stream said anything: the test shows nothing")
				}
				if err := say(st, 200); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
				if !woken(t, w) {
					t.Errorf("not woken: %+v", tr.State())
				}
				if woken(t, later) {
					t.Error("0/12C was woken at 0/C8")
				}
				if r := rung(t, tr, kind); !r.Up {
					t.Errorf("after it: %+v", r)
				}
			})
		})
	}
}

// A hint is no position: what a stream says wakes nobody by itself.
func TestStreamIsNotBelieved(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, Config{Use: []Kind{kind}})
		w := tr.Request(tok(200))
		st := <-steer.streams
		time.Sleep(time.Second)
		before := s.count(lookQuery)
		for _, data := range [][]byte{keepalive(1<<64-1, false), xlogData(1<<64-2, "wraps around")} {
			if err := st.send(data); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if woken(t, w) {
			t.Fatal("a stream's position woke a waiter")
		}
		if n := s.count(lookQuery) - before; n > 100 {
			t.Errorf("%d queries in a second after a hint that never came true", n)
		}
		lsn.Store(200)
		time.Sleep(DefaultMaxInterval + time.Millisecond)
		if !woken(t, w) {
			t.Error("not woken by polling, the safety net")
		}
	})
}

func TestStreamBurstIsOneQuestion(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, slow(kind))
		w, later := tr.Request(tok(2000)), tr.Request(tok(5000))
		st := <-steer.streams
		time.Sleep(time.Second)
		lsn.Store(3000)
		before := s.count(lookQuery)
		var burst [][]byte
		for i := range 2000 {
			burst = append(burst, keepalive(tracker.LSN(1000+i), false))
		}
		if err := st.send(burst...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if n := s.count(lookQuery) - before; n < 1 || n > 3 {
			t.Errorf("%d questions for a burst of %d messages", n, len(burst))
		}
		if !woken(t, w) {
			t.Error("not woken")
		}
		later.Cancel()
	})
}

// Whatever ends a stream: State says why, who waits is woken by polling, and
// the stream comes back.
func TestStreamThatEndsIsReplaced(t *testing.T) {
	for name, bad := range map[string]struct {
		reason string
		do     func(st *scriptedStream)
	}{
		"an empty message":  {"an empty message in the stream", func(st *scriptedStream) { _ = st.send([]byte{}) }},
		"a short keepalive": {"must be 17 bytes", func(st *scriptedStream) { _ = st.send([]byte("k123")) }},
		"short WAL":         {"must be at least 24 bytes", func(st *scriptedStream) { _ = st.send([]byte("w123")) }},
		"bytes that are no message": {"the stream has ended: ", func(st *scriptedStream) {
			_, _ = st.c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		}},
		"an absurd length": {"the stream has ended: ", func(st *scriptedStream) {
			_, _ = st.c.Write([]byte{'d', 0x7f, 0xff, 0xff, 0xff, 'w'})
		}},
		"a length below its own": {"the stream has ended: ", func(st *scriptedStream) {
			_, _ = st.c.Write([]byte{'d', 0, 0, 0, 3})
		}},
		"CopyDone": {"a promotion, or a timeline that has ended", func(st *scriptedStream) {
			st.say(&pgproto3.CopyDone{})
		}},
		"an error": {"can no longer access replication slot", func(st *scriptedStream) {
			st.say(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "55000", Message: "can no longer access replication slot"})
		}},
		"the end of the command": {"the stream has ended", func(st *scriptedStream) {
			st.say(&pgproto3.CommandComplete{CommandTag: []byte("START_STREAMING")}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
		}},
		"the end of the connection": {"the stream has ended: ", func(st *scriptedStream) { _ = st.c.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			eachStream(t, func(t *testing.T, kind Kind) {
				var lsn atomic.Uint64
				lsn.Store(100)
				steer := newSteered(&lsn)
				s := streamScript(t, &lsn, steer.stream)
				tr := laddered(t, s, Config{Use: []Kind{kind}})
				w, later := tr.Request(tok(200)), tr.Request(tok(300))
				st := <-steer.streams
				time.Sleep(confirmEvery / 2) // nothing is being sent just then
				bad.do(st)
				time.Sleep(time.Millisecond)
				synctest.Wait()
				r := rung(t, tr, kind)
				if r.Up || !strings.Contains(r.Reason, bad.reason) || tr.State().Source != string(Poll) {
					t.Fatalf("%+v, source %s, want down because of %q", r, tr.State().Source, bad.reason)
				}
				lsn.Store(200)
				time.Sleep(DefaultMaxInterval + time.Millisecond)
				if !woken(t, w) {
					t.Errorf("not woken by polling: %+v", tr.State())
				}
				time.Sleep(firstPause)
				synctest.Wait()
				if r := rung(t, tr, kind); !r.Up || r.Reason != "" || s.count("START_REPLICATION") != 2 {
					t.Errorf("%+v after %d starts, want it back", r, s.count("START_REPLICATION"))
				}
				if kind == Logical && s.count("CREATE_REPLICATION_SLOT") != 2 {
					t.Error("the slot went with the first stream, and no new one was made")
				}
				lsn.Store(300)
				if err := (<-steer.streams).send(keepalive(300, false)); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
				if !woken(t, later) {
					t.Error("not woken after the stream came back")
				}
			})
		})
	}
}

func TestStreamComesBackLessAndLessOften(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		var starts []time.Time
		s := streamScript(t, &lsn, func(st *scriptedStream) { starts = append(starts, time.Now()) }) // and closes
		tr := laddered(t, s, Config{Use: []Kind{kind}, MaxInterval: time.Second})
		w := tr.Request(tok(200))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(starts); n < 15 || n > 30 {
			t.Errorf("%d starts in ten minutes", n)
		}
		if first, last := starts[1].Sub(starts[0]), starts[len(starts)-1].Sub(starts[len(starts)-2]); first > firstPause || last < lastPause/2 {
			t.Errorf("the first pause was %s, the last %s", first, last)
		}
		if r := rung(t, tr, kind); r.Up || r.Reason == "" {
			t.Errorf("%+v", r)
		}
		lsn.Store(200)
		time.Sleep(time.Second + time.Millisecond)
		if !woken(t, w) {
			t.Error("not woken by polling")
		}
	})
}

func TestStreamThatFallsSilentEnds(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		steer.mute.Store(true)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, Config{Use: []Kind{kind}, MaxInterval: time.Second})
		w := tr.Request(tok(200))
		<-steer.streams
		start := time.Now()
		time.Sleep(silentFor - time.Second)
		synctest.Wait()
		if r := rung(t, tr, kind); !r.Up {
			t.Errorf("too early: %+v", r)
		}
		if pings(steer.since(start)) == 0 {
			t.Error("a silent server was not asked whether it lives")
		}
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		if r := rung(t, tr, kind); r.Up || !strings.Contains(r.Reason, "silent for 30s") {
			t.Errorf("%+v", r)
		}
		lsn.Store(200)
		time.Sleep(time.Second + time.Millisecond)
		if !woken(t, w) {
			t.Error("not woken by polling")
		}
	})
}

func TestStreamOfAServerThatStopsReadingEnds(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		hold, up := make(chan struct{}), make(chan *scriptedStream, 100)
		defer close(hold)
		s := streamScript(t, &lsn, func(st *scriptedStream) { up <- st; <-hold })
		tr := laddered(t, s, Config{Use: []Kind{kind}})
		w := tr.Request(tok(200))
		<-up
		for range 100 { // it comes back soon after
			time.Sleep((confirmEvery + DefaultQueryTimeout) / 100)
			synctest.Wait()
			if !rung(t, tr, kind).Up {
				break
			}
		}
		if r := rung(t, tr, kind); r.Up || !strings.Contains(r.Reason, "tell the server how far the stream was read") {
			t.Errorf("%+v", r)
		}
		lsn.Store(200)
		time.Sleep(DefaultMaxInterval + time.Millisecond)
		if !woken(t, w) {
			t.Error("not woken by polling")
		}
		// A send that hangs does not hold the end up.
		tr.Request(tok(300))
		<-up
		time.Sleep(confirmEvery + time.Second)
		start := time.Now()
		tr.Close()
		if d := time.Since(start); d > 2*closeTimeout {
			t.Errorf("the end took %s", d)
		}
	})
}

func TestStreamRepliesAtOnceWhenAsked(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		steer.mute.Store(true)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, slow(kind))
		w := tr.Request(tok(200))
		st := <-steer.streams
		time.Sleep(10500*time.Millisecond + 333*time.Microsecond)
		start := time.Now()
		if err := st.send(keepalive(150, true)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := steer.got[len(steer.got)-1]; !got.at.Equal(start) || got.ping {
			t.Errorf("the last status came at %s of %s, ping %v", got.at, start, got.ping)
		}
		// And while nobody waits, within the rest between two reads.
		w.Cancel()
		time.Sleep(time.Second)
		_ = st.send(keepalive(160, false)) // which the reader rests after
		start = time.Now()
		if err := st.send(keepalive(170, true)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(restFor)
		synctest.Wait()
		if got := steer.since(start.Add(-1)); len(got) == 0 || got[0].at.Sub(start) > restFor {
			t.Errorf("%v", got)
		}
	})
}

func TestStreamPingsOnlyWhileSomebodyWaits(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, slow(kind))
		w := tr.Request(tok(200))
		st := <-steer.streams
		start := time.Now()
		time.Sleep(time.Second - time.Millisecond)
		w.Cancel()
		synctest.Wait()
		got := steer.since(start.Add(-1))
		if kind == Physical && pings(got) > 0 {
			t.Errorf("%d pings; what a standby receives it passes on by itself", pings(got))
		}
		if kind == Logical {
			var at []time.Duration
			for _, m := range got {
				if m.ping {
					at = append(at, m.at.Sub(start))
				}
			}
			if len(at) < 12 || len(at) > 20 || at[0] > firstPing || at[1]-at[0] != 2*firstPing || at[2]-at[1] != 4*firstPing {
				t.Errorf("pings at %v, want the first after %s, and doubling", at, firstPing)
			}
		}
		start = time.Now()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := pings(steer.since(start)); n > 0 {
			t.Errorf("%d pings while nobody waits", n)
		}
		// What the server has said it has come to needs no ping either.
		w = tr.Request(tok(200))
		if err := st.send(keepalive(200, false)); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := pings(steer.since(start)); n > 1 {
			t.Errorf("%d pings for a position that the stream has told", n)
		}
		w.Cancel()
	})
}

func TestLogicalConfirmsOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, slow(Logical))
		w := tr.Request(tok(1 << 40))
		st := <-steer.streams
		start := time.Now()
		for time.Since(start) < 10*time.Second {
			lsn.Add(100)
			if err := st.send(keepalive(tracker.LSN(lsn.Load()), time.Since(start)%(70*time.Millisecond) == 0)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		var confirmed []tracker.LSN
		for _, m := range steer.since(start) {
			if n := len(confirmed); n == 0 || confirmed[n-1] != m.flush {
				confirmed = append(confirmed, m.flush)
			}
			if m.flush > tracker.LSN(lsn.Load()) {
				t.Errorf("%s was confirmed before it came", m.flush)
			}
		}
		if n := len(confirmed); n < 9 || n > 12 || !slices.IsSorted(confirmed) {
			t.Errorf("confirmed %v in ten seconds, want about ten", confirmed)
		}
		w.Cancel()
	})
}

func TestStreamLingersThenEnds(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		const linger = 3 * time.Second
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		cfg := slow(kind)
		cfg.Linger = linger
		tr := laddered(t, s, cfg)
		w := tr.Request(tok(200))
		<-steer.streams
		time.Sleep(time.Second)
		w.Cancel()
		time.Sleep(linger - time.Second)
		synctest.Wait()
		if r := rung(t, tr, kind); !r.Up {
			t.Errorf("it did not linger: %+v", r)
		}
		// The next one who waits finds it, and it begins to linger anew.
		w = tr.Request(tok(200))
		time.Sleep(time.Second)
		w.Cancel()
		time.Sleep(linger - time.Second)
		synctest.Wait()
		if r := rung(t, tr, kind); !r.Up || s.count("START_REPLICATION") != 1 {
			t.Errorf("it did not linger after the second: %+v", r)
		}
		time.Sleep(time.Second + confirmEvery + restFor)
		synctest.Wait()
		if r := rung(t, tr, kind); r.Up || r.Reason != "nobody waits" {
			t.Errorf("%s after the last one waited: %+v", linger+confirmEvery, r)
		}
		before, _ := s.asked()
		time.Sleep(time.Hour)
		synctest.Wait()
		if after, _ := s.asked(); after-before > 361 {
			t.Errorf("%d queries in an idle hour", after-before)
		}
		w = tr.Request(tok(200))
		(<-steer.streams).s.t.Log("and starts again")
		w.Cancel()
	})
}

func TestSlotThatIsLongInTheMaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		made := make(chan struct{})
		answer := s.answer
		s.answer = func(conn int, query string) ([][]*string, error) {
			if strings.HasPrefix(query, "CREATE_REPLICATION_SLOT") {
				<-made
			}
			return answer(conn, query)
		}
		helped := 0
		help := &scripted{t: t, version: "17.5", answer: func(_ int, query string) ([][]*string, error) {
			if query != "SELECT pg_log_standby_snapshot()" {
				t.Errorf("the primary was asked %q", query)
			}
			if helped++; helped == 5 {
				close(made)
			}
			return [][]*string{row("0/1")}, nil
		}}
		tr := laddered(t, s, Config{Use: []Kind{Logical}, Primary: help.server()})
		w, later := tr.Request(tok(200)), tr.Request(tok(300))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if r := rung(t, tr, Logical); r.Up || r.Reason != "the slot is being made" || tr.State().Source != "poll" {
			t.Errorf("%+v", r)
		}
		lsn.Store(200)
		time.Sleep(DefaultMaxInterval + time.Millisecond)
		if !woken(t, w) {
			t.Error("the slot in the making held a waiter up")
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if r := rung(t, tr, Logical); !r.Up || r.Reason != "" || helped != 5 {
			t.Errorf("%+v with %d snapshots", r, helped)
		}
		later.Cancel()
	})
}

func TestSlotInTheMakingDoesNotHoldTheEndUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := streamScript(t, &lsn, func(*scriptedStream) {})
		hold := make(chan struct{})
		answer := s.answer
		s.answer = func(conn int, query string) ([][]*string, error) {
			if strings.HasPrefix(query, "CREATE_REPLICATION_SLOT") {
				<-hold
			}
			return answer(conn, query)
		}
		tr := laddered(t, s, Config{Use: []Kind{Logical}})
		tr.Request(tok(200))
		time.Sleep(time.Second)
		start := time.Now()
		tr.Close()
		if d := time.Since(start); d > closeTimeout {
			t.Errorf("the end took %s", d)
		}
		close(hold)
		time.Sleep(time.Minute) // pgx goes on saying goodbye
	})
}

func TestPrimaryThatMayNotHelpIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		made := make(chan struct{})
		answer := s.answer
		s.answer = func(conn int, query string) ([][]*string, error) {
			if strings.HasPrefix(query, "CREATE_REPLICATION_SLOT") {
				<-made
			}
			return answer(conn, query)
		}
		help := &scripted{t: t, version: "17.5", answer: func(int, string) ([][]*string, error) {
			return nil, &pgconn.PgError{Severity: "ERROR", Code: "42501", Message: "permission denied for function pg_log_standby_snapshot"}
		}}
		tr := laddered(t, s, Config{Use: []Kind{Logical}, Primary: help.server()})
		w := tr.Request(tok(200))
		time.Sleep(time.Second)
		synctest.Wait()
		if r := rung(t, tr, Logical); r.Up || !strings.Contains(r.Reason, "without the primary's help") || !strings.Contains(r.Reason, "permission denied") {
			t.Errorf("%+v", r)
		}
		close(made)
		synctest.Wait()
		if r := rung(t, tr, Logical); !r.Up || r.Reason != "" {
			t.Errorf("%+v", r)
		}
		w.Cancel()
	})
}

func TestStreamGivesWayToABetterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		var physical atomic.Bool
		s := streamScript(t, &lsn, func(st *scriptedStream) {
			if strings.Contains(st.command, "PHYSICAL") && !physical.Load() {
				st.b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "53300", Message: "too many walsenders"})
				_ = st.b.Flush()
				return
			}
			steer.stream(st)
		})
		tr := laddered(t, s, slow(Physical, Logical))
		w := tr.Request(tok(200))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if p, l := rung(t, tr, Physical), rung(t, tr, Logical); p.Up || !strings.Contains(p.Reason, "too many walsenders") || !l.Up || tr.State().Source != "logical" {
			t.Errorf("while physical fails: %+v %+v", p, l)
		}
		physical.Store(true)
		time.Sleep(2 * lastPause)
		synctest.Wait()
		if p, l := rung(t, tr, Physical), rung(t, tr, Logical); !p.Up || l.Up || l.Reason != errBetter.Error() || tr.State().Source != "physical" {
			t.Errorf("when physical works: %+v %+v", p, l)
		}
		lsn.Store(200)
		for len(steer.streams) > 1 {
			<-steer.streams
		}
		if err := (<-steer.streams).send(keepalive(200, false)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Millisecond)
		if !woken(t, w) {
			t.Error("not woken by the better one")
		}
	})
}

// A kind that cannot be says why, and the next one takes its place.
func TestStreamThatCannotBeSaysWhy(t *testing.T) {
	refuse := func(prefix string, rows [][]*string, err error) func(*scripted) {
		return func(s *scripted) {
			answer := s.answer
			s.answer = func(conn int, query string) ([][]*string, error) {
				if strings.Contains(query, prefix) {
					return rows, err
				}
				return answer(conn, query)
			}
		}
	}
	for name, c := range map[string]struct {
		kind   Kind
		change func(*scripted)
		reason string
	}{
		"logical before 16":   {Logical, func(s *scripted) { s.version = "15.9" }, "needs PostgreSQL 16, the server is 15"},
		"wal_level":           {Logical, refuse("pg_publication", [][]*string{row("replica", "t")}, nil), "wal_level is replica: ALTER SYSTEM"},
		"no publication":      {Logical, refuse("pg_publication", [][]*string{row("logical", "f")}, nil), `publication "walwake" does not exist: CREATE PUBLICATION`},
		"no right to a slot":  {Logical, refuse("CREATE_REPLICATION_SLOT", nil, errors.New("permission denied")), "make a temporary slot: "},
		"a slot of garbage":   {Logical, refuse("CREATE_REPLICATION_SLOT", [][]*string{row("x")}, nil), "make a temporary slot: "},
		"another system":      {Physical, refuse("IDENTIFY_SYSTEM", [][]*string{row("8", "1", "0/64", "NULL")}, nil), "reached system 8, the other one system 7"},
		"a position of noise": {Physical, refuse("IDENTIFY_SYSTEM", [][]*string{row("7", "1", "noise", "NULL")}, nil), "IDENTIFY_SYSTEM"},
		"a timeline of noise": {Physical, refuse("IDENTIFY_SYSTEM", [][]*string{row("7", "99999999999", "0/64", "NULL")}, nil), "IDENTIFY_SYSTEM"},
		"few columns":         {Physical, refuse("IDENTIFY_SYSTEM", [][]*string{row("7", "1")}, nil), "IDENTIFY_SYSTEM"},
		"nothing to stream":   {Physical, func(s *scripted) { s.stream = nil }, "nothing to stream on this timeline"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				lsn.Store(100)
				s := streamScript(t, &lsn, func(*scriptedStream) {})
				c.change(s)
				tr := laddered(t, s, Config{Use: []Kind{c.kind}})
				w := tr.Request(tok(200))
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if r := rung(t, tr, c.kind); r.Up || !strings.Contains(r.Reason, c.reason) || tr.State().Source != "poll" {
					t.Errorf("%+v, want %q", r, c.reason)
				}
				lsn.Store(200)
				time.Sleep(DefaultMaxInterval + time.Millisecond)
				if !woken(t, w) {
					t.Error("not woken by polling")
				}
			})
		})
	}
}

// The end comes at once whatever the stream is about.
func TestStreamEndsWithItsTracker(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, Config{Use: []Kind{kind}})
		w := tr.Request(tok(200))
		<-steer.streams
		time.Sleep(time.Second)
		start := time.Now()
		tr.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("the end took %s", d)
		}
		if err := w.Await(context.Background()); !errors.Is(err, tracker.ErrClosed) {
			t.Errorf("who waited got %v", err)
		}
	})
}
