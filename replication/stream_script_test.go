package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/tracker"
)

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
				if r := rung(t, tr, kind); r.Up || r.Reason != "starts when a wait lasts" || s.count("START_REPLICATION") != 0 {
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
		if r := rung(t, tr, kind); r.Up || r.Reason != "no wait has lasted" {
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
