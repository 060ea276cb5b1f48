package replication

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

// promotedScript is a standby on timeline 2, which left timeline 1 at 0/64.
// history is asked before its TIMELINE_HISTORY is answered.
func promotedScript(t *testing.T, lsn *atomic.Uint64, history func() error) *scripted {
	s := streamScript(t, lsn, nil)
	answer := s.answer
	s.answer = func(conn int, query string) ([][]*string, error) {
		if strings.HasPrefix(query, "TIMELINE_HISTORY") {
			return [][]*string{row("00000002.history", "1\t0/64\tno recovery target specified\n")}, history()
		}
		rows, err := answer(conn, query)
		switch query {
		case lookQuery:
			rows[0][3] = new("2")
		case "IDENTIFY_SYSTEM":
			rows[0][1] = new("2")
		}
		return rows, err
	}
	return s
}

// A server that lets no replication connection in, or gives no history, holds up
// those alone who hold a token of an older timeline; and is asked again.
func TestHistoryThatCannotBeReadHoldsNobodyElseUp(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *scripted, broken bool)
		fail   func() error
		reason string
	}{
		"refused": {change: func(s *scripted, broken bool) { s.noWalsender.Store(broken) }, reason: "REPLICATION"},
		"failing": {fail: func() error { return errors.New("no such file") }, reason: "no such file"},
		"hanging": {fail: func() error { time.Sleep(30 * time.Second); return nil }, reason: "the server did not answer within 5s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				lsn.Store(150)
				var broken atomic.Bool
				broken.Store(true)
				s := promotedScript(t, &lsn, func() error {
					if c.fail != nil && broken.Load() {
						return c.fail()
					}
					return nil
				})
				if c.change != nil {
					c.change(s, true)
				}
				tr := laddered(t, s, Config{Use: []Kind{Poll}})
				now := func(at tracker.LSN) tracker.Token { return tracker.Token{System: 7, Timeline: 2, LSN: at} }
				kept, lost, next := tr.Request(tok(50)), tr.Request(tok(120)), tr.Request(now(200))
				if !woken(t, tr.Request(now(150))) {
					t.Error("a token of the replayed timeline was held up")
				}
				for range 10 {
					time.Sleep(time.Second)
					lsn.Add(10)
				}
				synctest.Wait()
				if !woken(t, next) || woken(t, kept) || woken(t, lost) {
					t.Errorf("%+v", tr.State())
				}
				if note := tr.State().Note; !strings.Contains(note, c.reason) {
					t.Errorf("State has the note %q, want %q", note, c.reason)
				}
				if got := tr.Stats(); got.Epochs != 1 || got.Failures != 0 {
					t.Errorf("%+v", got)
				}
				broken.Store(false)
				if c.change != nil {
					c.change(s, false)
				}
				time.Sleep(2 * lastPause)
				synctest.Wait()
				if !woken(t, kept) || !errors.Is(lost.Err(), tracker.ErrDiverged) {
					t.Errorf("after the history could be read: %v, %v", kept.Err(), lost.Err())
				}
				if note := tr.State().Note; note != "" {
					t.Errorf("the note %q is left", note)
				}
				time.Sleep(time.Minute) // for who hangs
			})
		})
	}
}

// One connection string may lead to two servers that were promoted apart.
func TestHistoryOfAnotherServerIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(150)
		s := promotedScript(t, &lsn, func() error { return nil })
		answer := s.answer
		s.answer = func(conn int, query string) ([][]*string, error) {
			if strings.Contains(query, "max(extract(epoch") {
				return [][]*string{row("another time")}, nil
			}
			return answer(conn, query)
		}
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		w := tr.Request(tok(50))
		time.Sleep(time.Minute)
		if woken(t, w) {
			t.Error("woken by another server's history")
		}
		if note := tr.State().Note; !strings.Contains(note, "another server") {
			t.Errorf("State has the note %q", note)
		}
	})
}

// hiding is a standby that tells its timeline over a replication connection
// alone.
func hiding(t *testing.T, lsn *atomic.Uint64) *scripted {
	s := streamScript(t, lsn, nil)
	answer := s.answer
	s.answer = func(conn int, query string) ([][]*string, error) {
		rows, err := answer(conn, query)
		if query == lookQuery || query == full.sql(17) || query == short.sql(17) {
			rows[0][3] = new("")
		}
		return rows, err
	}
	return s
}

// The plain connection goes on for as long as no other is let in.
func TestReplicationConnectionThatIsRefusedEndsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := hiding(t, &lsn)
		s.noWalsender.Store(true)
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		w := tr.Request(tok(100))
		for range 10 {
			time.Sleep(time.Minute)
			lsn.Add(10)
			if !woken(t, tr.Request(tracker.Token{System: 7, LSN: tracker.LSN(lsn.Load())})) {
				time.Sleep(DefaultMaxInterval)
			}
		}
		if woken(t, w) {
			t.Error("a token of a timeline that is not told")
		}
		if note := tr.State().Note; !strings.Contains(note, "GRANT pg_read_all_stats") || !strings.Contains(note, "permission denied") {
			t.Errorf("State has the note %q", note)
		}
		if got := tr.Stats(); got.Epochs != 1 || got.Failures != 0 {
			t.Errorf("%+v", got)
		}
		if _, conns := s.asked(); conns < 9 || conns > 13 {
			t.Errorf("%d connections in ten minutes, want one a minute to try", conns)
		}
		s.noWalsender.Store(false)
		time.Sleep(time.Minute + time.Second)
		if !woken(t, w) {
			t.Errorf("%+v", tr.State())
		}
		if got := tr.Stats(); got.Epochs != 2 || got.Failures != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// One that comes when all is over is closed.
func TestReplicationConnectionThatComesTooLate(t *testing.T) {
	for _, by := range []string{"Close", "a failure"} {
		t.Run(by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				lsn.Store(100)
				s := hiding(t, &lsn)
				answer := s.answer
				var asked atomic.Int32
				s.answer = func(conn int, query string) ([][]*string, error) {
					if query == serverQuery && asked.Add(1) == 2 {
						time.Sleep(time.Second)
					}
					return answer(conn, query)
				}
				tr := laddered(t, s, Config{Use: []Kind{Poll}})
				time.Sleep(500 * time.Millisecond)
				if by == "Close" {
					tr.Close()
				} else {
					s.cut()
					time.Sleep(time.Minute)
					synctest.Wait()
					if st := tr.State(); !st.Known {
						t.Errorf("%+v", st)
					}
				}
				tr.Close()
				time.Sleep(time.Minute) // pgx goes on saying goodbye
			})
		})
	}
}

// A walreceiver that is gone for a moment, however often, is no reason to leave
// the plain connection, and one that stays away is.
func TestWalreceiverThatIsGoneForAMomentChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		var gone atomic.Bool
		s := fastScript(t, &lsn, func() []byte {
			if gone.Load() {
				return nil
			}
			return binaryRecord([]byte("streaming"), uint32Bytes(1))
		})
		answer := s.answer
		s.answer = func(conn int, query string) ([][]*string, error) {
			rows, err := answer(conn, query)
			if query == lookQuery && gone.Load() {
				rows[0][3] = nil
			}
			return rows, err
		}
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		w := tr.Request(tok(1000))
		defer w.Cancel()
		for i := range 8 { // whichever question meets it first
			gone.Store(true)
			time.Sleep(time.Second)
			gone.Store(false)
			time.Sleep(10*time.Second + time.Duration(i)*fullEvery/7)
		}
		synctest.Wait()
		if _, conns := s.asked(); conns != 1 || tr.Stats().Epochs != 1 {
			t.Errorf("%d connections, %+v", conns, tr.Stats())
		}
		gone.Store(true)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if st := tr.Stats(); st.Epochs != 2 || st.Failures != 0 {
			t.Errorf("after 5 s: %+v", st)
		}
	})
}
