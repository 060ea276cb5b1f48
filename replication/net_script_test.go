package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// hinting sends hints from first on, one each gap, until stop is called.
func hinting(st *scriptedStream, first tracker.LSN, gap time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := tracker.LSN(0); ctx.Err() == nil; i++ {
			if st.send(keepalive(first+i, false)) != nil {
				return
			}
			time.Sleep(gap)
		}
	}()
	return func() { cancel(); <-done }
}

// A stream that lags, or leads to another standby, hints below what is waited
// for, for ever. The safety net wakes all the same.
func TestHintsBelowTheTargetStarveNobody(t *testing.T) {
	for _, gap := range []time.Duration{500 * time.Microsecond, 2 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond} {
		t.Run(gap.String(), func(t *testing.T) {
			eachStream(t, func(t *testing.T, kind Kind) {
				var lsn atomic.Uint64
				lsn.Store(100)
				steer := newSteered(&lsn)
				steer.mute.Store(true)
				s := streamScript(t, &lsn, steer.stream)
				tr := laddered(t, s, Config{Use: []Kind{kind}})
				w := tr.Request(tok(1_000_000))
				st := <-steer.streams
				time.Sleep(time.Second)
				stop := hinting(st, 200, gap)
				defer stop()
				time.Sleep(100 * time.Millisecond)
				lsn.Store(1_000_000)
				time.Sleep(DefaultMaxInterval + 2*queryTakes)
				if !woken(t, w) {
					t.Error("not woken within the safety net's bound")
				}
			})
		})
	}
}

// WAL that comes while replay stands still says nothing about replay.
func TestHintsWhileReplayLagsAreNoReasonToAsk(t *testing.T) {
	for _, gap := range []time.Duration{100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond} {
		t.Run(gap.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				lsn.Store(100)
				steer := newSteered(&lsn)
				s := streamScript(t, &lsn, steer.stream)
				tr := laddered(t, s, Config{Use: []Kind{Physical}})
				w := tr.Request(tok(1000))
				st := <-steer.streams
				time.Sleep(time.Second)
				stop := hinting(st, 2000, gap)
				defer stop()
				time.Sleep(time.Second)
				before := s.count(lookQuery)
				time.Sleep(time.Second)
				if n := s.count(lookQuery) - before; n > 60 {
					t.Errorf("%d questions in a second while replay stands still", n)
				}
				lsn.Store(1500)
				time.Sleep(DefaultMaxInterval + 2*queryTakes)
				if !woken(t, w) {
					t.Error("not woken")
				}
				before = s.count(lookQuery)
				time.Sleep(time.Second)
				if n := s.count(lookQuery) - before; n > int(freshFor/freshGap)+10 {
					t.Errorf("%d questions for nobody", n)
				}
			})
		})
	}
}

// A waiter who is parked for want of a history is judged when that can be read,
// whatever the stream says.
func TestHintsDoNotPutOffTheHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(150)
		var broken atomic.Bool
		broken.Store(true)
		s := promotedScript(t, &lsn, func() error {
			if broken.Load() {
				return errors.New("no such file")
			}
			return nil
		})
		steer := newSteered(&lsn)
		s.stream = steer.stream
		tr := laddered(t, s, Config{Use: []Kind{Physical}})
		w := tr.Request(tok(50))
		stop := hinting(<-steer.streams, 200, 5*time.Millisecond)
		defer stop()
		time.Sleep(100 * time.Millisecond)
		broken.Store(false)
		time.Sleep(2 * firstPause)
		if !woken(t, w) {
			t.Error("not woken")
		}
	})
}

// What has come during a rest is read in one go.
func TestIdleStreamDoesNotFallBehind(t *testing.T) {
	eachStream(t, func(t *testing.T, kind Kind) {
		var lsn atomic.Uint64
		lsn.Store(100)
		steer := newSteered(&lsn)
		s := streamScript(t, &lsn, steer.stream)
		tr := laddered(t, s, Config{Use: []Kind{kind}})
		w := tr.Request(tok(1000))
		st := <-steer.streams
		time.Sleep(time.Second)
		w.Cancel()
		time.Sleep(time.Second)
		const batch = 20
		sent := 0
		for start := time.Now(); time.Since(start) < 5*time.Second; sent++ {
			var b [][]byte
			for range batch {
				b = append(b, xlogData(tracker.LSN(2000+sent*100), "0123456789"))
			}
			if err := st.send(b...); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		// What has come meanwhile, and one that came after it.
		if want := 2 * int(5*time.Second/restFor); sent < want*9/10 || sent > want*11/10 {
			t.Errorf("%d batches were read in 5 s, want two each %s", sent, restFor)
		}
	})
}

// A statement_timeout on the role ends every question.
func TestAnswersThatAreCancelledForEverArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := standbyScript(t, &lsn)
		answer := s.answer
		var on atomic.Bool
		s.answer = func(conn int, query string) ([][]*string, error) {
			if query == lookQuery && on.Load() {
				time.Sleep(time.Millisecond)
				return nil, &pgconn.PgError{Severity: "ERROR", Code: queryCanceled, Message: "canceling statement due to statement timeout"}
			}
			return answer(conn, query)
		}
		tr := polling(t, s, tracker.Config{Timeout: time.Hour})
		<-tr.Ready()
		synctest.Wait()
		on.Store(true)
		w := tr.Request(tok(200))
		time.Sleep(time.Second)
		before, _ := s.asked()
		time.Sleep(10 * time.Second)
		if after, _ := s.asked(); after-before > 500 {
			t.Errorf("%d questions in 10 s", after-before)
		}
		if note := tr.State().Note; !strings.Contains(note, "cancel") {
			t.Errorf("State has the note %q", note)
		}
		on.Store(false)
		lsn.Store(200)
		time.Sleep(2 * DefaultMaxInterval)
		if !woken(t, w) || tr.State().Note != "" {
			t.Errorf("%+v", tr.State())
		}
	})
}

// A pooler that hands every other question to another server process.
func TestSessionsThatEndAtOnceAreNotMadeWithoutAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := standbyScript(t, &lsn)
		answer := s.answer
		var n atomic.Int64
		s.answer = func(conn int, query string) ([][]*string, error) {
			if query == lookQuery && n.Add(1)%2 == 0 {
				return [][]*string{told(conn+5000, tracker.LSN(lsn.Load()))}, nil
			}
			return answer(conn, query)
		}
		tr := polling(t, s, tracker.Config{Timeout: time.Hour})
		<-tr.Ready()
		w := tr.Request(tok(200))
		defer w.Cancel()
		_, before := s.asked()
		time.Sleep(10 * time.Second)
		if _, conns := s.asked(); conns-before > 60 {
			t.Errorf("%d connections in 10 s", conns-before)
		}
	})
}

// One connection, and behind it another server that is not as far: its process
// has the same number.
func TestPositionThatGoesDownEndsTheEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(500)
		s := standbyScript(t, &lsn)
		tr := polling(t, s, tracker.Config{})
		<-tr.Ready()
		lsn.Store(300)
		if w := tr.Request(tok(600)); woken(t, w) {
			t.Error("woken")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if o, known := tr.LastReplay(); !known || o.LSN != 300 || o.Epoch != 2 || tr.Replayed(tok(400)) {
			t.Errorf("%+v %t", o, known)
		}
	})
}

// The history that was read from one server says nothing about another.
func TestHistoryIsForgottenWithItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(150)
		var other atomic.Bool
		s := streamScript(t, &lsn, nil)
		answer := s.answer
		s.answer = func(conn int, query string) ([][]*string, error) {
			if strings.HasPrefix(query, "TIMELINE_HISTORY") {
				end := "0/64"
				if other.Load() {
					end = "0/32"
				}
				return [][]*string{row("00000002.history", "1\t"+end+"\tno recovery target specified\n")}, nil
			}
			rows, err := answer(conn, query)
			switch {
			case query == lookQuery && conn == 1 && other.Load():
				rows[0][3] = nil // the first server's walreceiver does not stream
			case query == lookQuery, query == "IDENTIFY_SYSTEM":
				rows[0][map[string]int{lookQuery: 3}[query]+map[string]int{"IDENTIFY_SYSTEM": 1}[query]] = new("2")
			}
			return rows, err
		}
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		time.Sleep(time.Second)
		lost := tok(80) // on the second server, which left timeline 1 at 0/32
		if !tr.Replayed(lost) {
			t.Fatalf("%+v", tr.State())
		}
		other.Store(true)
		w := tr.Request(tracker.Token{System: 7, Timeline: 9, LSN: 1 << 40})
		defer w.Cancel()
		time.Sleep(10 * time.Second)
		if _, conns := s.asked(); conns < 3 || tr.Replayed(lost) {
			t.Errorf("after %d connections the lost write is replayed: %+v", conns, tr.State().Position)
		}
	})
}

// The first host of several takes connections and says nothing.
func TestSilentHostDoesNotUseUpTheTimeOfTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(500)
		s := standbyScript(t, &lsn)
		good := s.server().Config.DialFunc
		cfg, err := pgx.ParseConfig("host=dead,alive user=app password=secret dbname=postgres sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if strings.HasPrefix(addr, "192.0.2.66") {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return good(ctx, network, addr)
		}
		cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) {
			return []string{map[string]string{"dead": "192.0.2.66", "alive": "192.0.2.1"}[host]}, nil
		}
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		ladder, err := New(Config{Replica: Server{Config: cfg}, Use: []Kind{Poll}})
		if err != nil {
			t.Fatal(err)
		}
		tr := tracking(t, tracker.Config{Source: ladder, Timeout: time.Hour})
		time.Sleep(2 * DefaultConnectTimeout)
		if _, known := tr.LastReplay(); !known {
			t.Error(fmt.Sprint("not connected: ", tr.State().Failure))
		}
	})
}
