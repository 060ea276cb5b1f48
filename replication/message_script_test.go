package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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

// What pgoutput sends.
func begins(commit tracker.LSN, xid uint32) []byte {
	data := binary.BigEndian.AppendUint64([]byte{'B'}, uint64(commit))
	return binary.BigEndian.AppendUint32(append(data, make([]byte, 8)...), xid)
}

func commits(commit, end tracker.LSN) []byte {
	data := binary.BigEndian.AppendUint64([]byte{'C', 0}, uint64(commit))
	return append(binary.BigEndian.AppendUint64(data, uint64(end)), make([]byte, 8)...)
}

func message(flags byte, prefix, payload string) []byte {
	data := append([]byte{'M', flags, 0, 0, 0, 0, 0, 0, 0, 0}, prefix...)
	data = binary.BigEndian.AppendUint32(append(data, 0), uint32(len(payload)))
	return append(data, payload...)
}

// transaction is a stream of one that committed at commit.
func transaction(commit tracker.LSN, messages ...[]byte) (data [][]byte) {
	all := slices.Concat([][]byte{begins(commit, 7)}, messages, [][]byte{commits(commit, commit+40)})
	for _, m := range all {
		data = append(data, xlogData(commit, string(m)))
	}
	return data
}

// recorder is a handler that takes down what it is called with.
type recorder struct {
	mu    sync.Mutex
	calls []string                    // guarded by mu
	take  func(context.Context) error // called with each message
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

// since returns the calls that were not returned before.
func (r *recorder) since() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := strings.Join(r.calls, "\n")
	r.calls = nil
	return calls
}

func (r *recorder) Wants(prefix string) bool { return prefix == "ours" }

func (r *recorder) Began(_ context.Context, tok tracker.Token) error {
	r.note("began %s", tok)
	return nil
}

func (r *recorder) Message(ctx context.Context, m Message) error {
	if r.take != nil {
		if err := r.take(ctx); err != nil {
			return err
		}
	}
	r.note("%s %q %d %s", m.Prefix, m.Payload, m.Size, m.Token)
	return nil
}

func (r *recorder) Missing(reason string) { r.note("missing: %s", reason) }

func (r *recorder) expect(t *testing.T, want ...string) {
	t.Helper()
	if got := r.since(); got != strings.Join(want, "\n") {
		t.Errorf("the handler was called with\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// messaging is a standby whose stream the test speaks for, with a tracker of it.
type messaging struct {
	*recorder
	lsn    atomic.Uint64
	steer  *steered
	server *scripted
	*tracker.Tracker
}

func withMessages(t *testing.T, cfg Config, change func(*scripted)) *messaging {
	t.Helper()
	m := &messaging{recorder: &recorder{}}
	m.lsn.Store(100)
	m.steer = newSteered(&m.lsn)
	m.steer.mute.Store(true)
	m.server = streamScript(t, &m.lsn, m.steer.stream)
	if change != nil {
		change(m.server)
	}
	cfg.Messages = m.recorder
	m.Tracker = laddered(t, m.server, cfg)
	return m
}

const (
	theBegin = "missing: the slot is being made\nbegan v1.7.1.0-1"
	soonest  = 10 * time.Millisecond
)

func (m *messaging) send(t *testing.T, st *scriptedStream, data ...[]byte) {
	t.Helper()
	if err := st.send(data...); err != nil {
		t.Fatal(err)
	}
	time.Sleep(soonest)
}

func TestMessageIsHandedOnWhenTheSessionVouchesForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var timeline atomic.Value
		timeline.Store("1")
		m := withMessages(t, Config{}, func(s *scripted) {
			answer := s.answer
			s.answer = func(conn int, query string) ([][]*string, error) {
				switch {
				case query == lookQuery:
					time.Sleep(queryTakes)
					rows, err := answer(conn, query)
					rows[0][3] = row(timeline.Load().(string))[0]
					return rows, err
				case strings.HasPrefix(query, "TIMELINE_HISTORY"):
					return [][]*string{row("2.history", "1\t0/190\tx\n")}, nil
				}
				return answer(conn, query)
			}
		})
		st := <-m.steer.streams
		m.expect(t, theBegin)
		if !strings.HasSuffix(st.command, ` LOGICAL 0/0 (proto_version '1', publication_names '"walwake"', messages 'true')`) {
			t.Error(st.command)
		}
		m.send(t, st, transaction(200,
			message(1, "ours", "one"), message(1, "others", "two"), message(0, "ours", "three"), message(1, "ours", ""))...)
		m.expect(t) // the stream says so, and the session does not yet
		m.lsn.Store(200)
		time.Sleep(time.Second)
		m.expect(t) // the commit record begins at 200
		m.lsn.Store(240)
		time.Sleep(DefaultMaxInterval + time.Millisecond)
		m.expect(t, `ours "one" 3 v1.7.1.0-C9`, `ours "" 0 v1.7.1.0-C9`)

		// A timeline that replay has gone over to since is not missed.
		timeline.Store("2")
		m.lsn.Store(1000)
		m.send(t, st, transaction(500, message(1, "ours", "later"))...)
		m.expect(t, `ours "later" 5 v1.7.2.0-1F5`)

		// While the timeline is not told there is nothing to vouch with.
		timeline.Store("NULL")
		m.lsn.Store(2000)
		m.server.noWalsender.Store(true)
		m.send(t, st, transaction(1500, message(1, "ours", "unknown"))...)
		m.expect(t)
		timeline.Store("2")
		time.Sleep(time.Second)
		m.expect(t, `ours "unknown" 7 v1.7.2.0-5DD`)
	})
}

func TestMessagesShareTheStreamAndKeepItOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := withMessages(t, Config{}, nil)
		m.steer.mute.Store(false)
		<-m.steer.streams
		m.expect(t, theBegin)
		for range 20 {
			time.Sleep(time.Minute) // long after Linger
			w := m.Request(tok(tracker.LSN(m.lsn.Load()) + 10))
			time.Sleep(time.Second) // long enough for any other kind to be opened
			m.lsn.Add(10)
			time.Sleep(DefaultMaxInterval + time.Millisecond)
			if !woken(t, w) {
				t.Fatal("not woken")
			}
		}
		m.expect(t)
		if n := m.server.count("START_REPLICATION"); n != 1 {
			t.Errorf("%d streams were opened, want one for all", n)
		}
		if r := rung(t, m.Tracker, Logical); !r.Up || m.State().Source != "logical" || m.State().Ladder[0].Source != "logical" {
			t.Errorf("%+v", m.State())
		}
	})
}

func TestStreamThatEndsIsAGap(t *testing.T) {
	for how, end := range map[string]struct {
		do     func(m *messaging, st *scriptedStream) error
		reason string
	}{
		"killed": {func(_ *messaging, st *scriptedStream) error {
			st.say(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P01", Message: "terminating connection due to administrator command"})
			return nil
		}, "missing: the stream has ended: FATAL: terminating connection due to administrator command (SQLSTATE 57P01)\n"},
		"slot invalidated": {func(_ *messaging, st *scriptedStream) error {
			st.say(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "55000", Message: `canceling statement due to conflict with recovery`})
			return nil
		}, "missing: the stream has ended: ERROR: canceling statement due to conflict with recovery (SQLSTATE 55000)\n"},
		"garbage": {func(_ *messaging, st *scriptedStream) error {
			return st.send(xlogData(200, "M\x01garbage"))
		}, "missing: message 'M' of pgoutput: it ends too early\n"},
		"of no transaction": {func(_ *messaging, st *scriptedStream) error {
			return st.send(xlogData(200, string(message(1, "ours", "x"))))
		}, "missing: message 'M' of pgoutput: it is of no transaction\n"},
		"everything crashed": {func(m *messaging, _ *scriptedStream) error {
			m.server.cut()
			return nil
		}, "missing: the session to the server has ended\n"},
	} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := withMessages(t, Config{}, nil)
				st := <-m.steer.streams
				m.expect(t, theBegin)
				if err := end.do(m, st); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				st = <-m.steer.streams
				got := m.since()
				first := strings.TrimSuffix(got, end.reason+theBegin) // of a crash the stream may tell too
				if first == got || first != "" && how != "everything crashed" {
					t.Errorf("the handler was called with\n%s", got)
				}
				m.lsn.Store(1000)
				m.send(t, st, transaction(500, message(1, "ours", "after"))...)
				m.expect(t, `ours "after" 5 v1.7.1.0-1F5`)
			})
		})
	}
}

// What a stream has brought and nobody has vouched for goes with it: a standby
// that crashed may come back without it.
func TestMessageDoesNotOutliveItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := withMessages(t, Config{}, nil)
		st := <-m.steer.streams
		m.expect(t, theBegin)
		m.send(t, st, transaction(200, message(1, "ours", "lost"))...)
		m.server.cut()
		m.lsn.Store(1000)
		time.Sleep(10 * time.Second)
		if got := m.since(); strings.Contains(got, "lost") || !strings.HasSuffix(got, theBegin) {
			t.Errorf("the handler was called with\n%s", got)
		}
	})
}

func TestLargeMessagesAreCutAndEndNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := withMessages(t, Config{}, nil)
		st := <-m.steer.streams
		m.expect(t, theBegin)
		m.lsn.Store(100_000_000)
		large := strings.Repeat("x", MaxMessage)
		m.send(t, st, transaction(200,
			message(1, "others", large+large+large),
			message(0, "ours", large+large),
			message(1, strings.Repeat("p", 3*MaxMessage), "x"),
			append([]byte{'I'}, large+large...), // a row of a publication that is not empty
			message(1, "ours", large+"x"),
			message(1, "ours", "small"))...)
		m.expect(t, fmt.Sprintf(`ours "" %d v1.7.1.0-C9`, MaxMessage+1), `ours "small" 5 v1.7.1.0-C9`)
		m.send(t, st, transaction(300, message(1, "ours", large))...)
		m.expect(t, fmt.Sprintf(`ours %q %d v1.7.1.0-12D`, large, MaxMessage))
	})
}

func TestHandlerThatFailsOrBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := withMessages(t, Config{}, nil)
		st := <-m.steer.streams
		m.expect(t, theBegin)
		m.lsn.Store(1_000_000)
		m.take = func(context.Context) error { return errors.New("no, thank you") }
		m.send(t, st, transaction(200, message(1, "ours", "x"))...)
		time.Sleep(time.Second)
		m.expect(t, "missing: a message was not taken: no, thank you", theBegin)

		st = <-m.steer.streams
		free := make(chan struct{})
		m.take = func(ctx context.Context) error {
			select {
			case <-free:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		const many = 3 * inboxRoom
		sent := make(chan error, 1)
		go func() {
			for i := range many {
				if err := st.send(transaction(tracker.LSN(1000+i), message(1, "ours", fmt.Sprint(i)))...); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		time.Sleep(time.Hour) // the server is told all the time that somebody is there
		m.expect(t)
		if n := len(m.steer.since(time.Now().Add(-time.Minute))); n < 50 {
			t.Errorf("the server heard %d times of us in a minute", n)
		}
		w := m.Request(tok(1_000_100))
		time.Sleep(time.Second)
		m.lsn.Store(1_000_100)
		time.Sleep(DefaultMaxInterval + time.Millisecond)
		if !woken(t, w) {
			t.Error("who waits for replay was held up by a handler of messages")
		}
		close(free)
		time.Sleep(time.Second)
		got := strings.Split(m.since(), "\n")
		if err := <-sent; err != nil || len(got) != many || got[0] != `ours "0" 1 v1.7.1.0-3E9` || !strings.HasPrefix(got[many-1], fmt.Sprintf(`ours "%d"`, many-1)) {
			t.Errorf("%v, %d came: %q", err, len(got), got)
		}
		free = make(chan struct{})
		m.send(t, st, transaction(5000, message(1, "ours", "at the end"))...)
		started := time.Now()
		m.Close()
		if d := time.Since(started); d > 2*closeTimeout {
			t.Errorf("the end took %s", d)
		}
		m.expect(t, "missing: the session to the server has ended")
	})
}

// A walsender that has missed that something was replayed is asked again a few
// times after something came, and an idle one is left alone.
func TestMessagesAreAskedForOnceItIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := withMessages(t, Config{}, nil)
		m.steer.mute.Store(false)
		st := <-m.steer.streams
		m.expect(t, theBegin)
		time.Sleep(time.Minute)
		idle := time.Now()
		time.Sleep(10 * time.Minute)
		if n := pings(m.steer.since(idle)); n > 61 {
			t.Errorf("%d pings in ten idle minutes, want one in 10 s", n)
		}
		for i := range 5 {
			came := time.Now()
			m.send(t, st, keepalive(tracker.LSN(1000+i), false))
			time.Sleep(500 * time.Millisecond)
			got := m.steer.since(came)
			if n := pings(got); n < 5 || n > 9 {
				t.Errorf("%d pings after something came", n)
			} else if d := got[0].at.Sub(came); d > 2*firstLook {
				t.Errorf("the first ping came %s after it", d)
			}
		}
		busy := time.Now()
		for i := range 1000 {
			if err := st.send(keepalive(tracker.LSN(2000+i), false)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(firstLook / 2)
		}
		if n := pings(m.steer.since(busy)); n > 2 {
			t.Errorf("%d pings of a server that always sends", n)
		}
	})
}

func TestMessagesSayWhyThereAreNone(t *testing.T) {
	for why, c := range map[string]struct {
		change func(*scripted)
		reason string
	}{
		"old": {func(s *scripted) { s.version = "15.4" }, "needs PostgreSQL 16, the server is 15"},
		"no publication": {func(s *scripted) {
			answer := s.answer
			s.answer = func(conn int, query string) ([][]*string, error) {
				if strings.Contains(query, "pg_publication") {
					return [][]*string{row("logical", "f")}, nil
				}
				return answer(conn, query)
			}
		}, `publication "walwake" does not exist: CREATE PUBLICATION "walwake" on the primary`},
		"level": {func(s *scripted) {
			answer := s.answer
			s.answer = func(conn int, query string) ([][]*string, error) {
				if strings.Contains(query, "pg_publication") {
					return [][]*string{row("replica", "t")}, nil
				}
				return answer(conn, query)
			}
		}, "wal_level is replica: ALTER SYSTEM SET wal_level = logical on the primary and on the standby, and restart both"},
		"rights": {func(s *scripted) { s.noWalsender.Store(true) }, "ALTER ROLE"},
		"another server": {func(s *scripted) {
			answer := s.answer
			s.answer = func(conn int, query string) ([][]*string, error) {
				if strings.Contains(query, "max(extract(epoch") {
					return [][]*string{row("another time")}, nil
				}
				return answer(conn, query)
			}
		}, "the connection string has to lead to one server"},
		"slots": {func(s *scripted) {
			answer := s.answer
			s.answer = func(conn int, query string) ([][]*string, error) {
				if strings.HasPrefix(query, "CREATE_REPLICATION_SLOT") {
					return nil, &pgconn.PgError{Severity: "ERROR", Code: "53400", Message: "all replication slots are in use"}
				}
				return answer(conn, query)
			}
		}, "make a temporary slot: ERROR: all replication slots are in use (SQLSTATE 53400)"},
	} {
		t.Run(why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := withMessages(t, Config{Use: []Kind{Poll}}, c.change)
				time.Sleep(time.Second)
				got := m.since()
				if !strings.Contains(got, c.reason) || strings.Contains(got, "began") {
					t.Errorf("the handler was called with\n%s", got)
				}
				if r := rung(t, m.Tracker, Logical); r.Up || !strings.Contains(got, r.Reason) {
					t.Errorf("%+v", r)
				}
				m.lsn.Store(200)
				if err := m.Wait(t.Context(), tok(200)); err != nil {
					t.Errorf("waits: %v", err)
				}
				time.Sleep(10 * time.Minute)
				if n := strings.Count(m.since(), c.reason); why != "old" && (n < 5 || n > 30) {
					t.Errorf("it was tried %d times in ten minutes", n)
				}
			})
		})
	}
}
