package replication

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

func TestWaitForWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		tr := laddered(t, s.scripted, slow(WaitFor))
		if r := rung(t, tr, WaitFor); r.Up || r.Reason != "starts when a wait lasts" {
			t.Errorf("%+v", r)
		}
		w, later := tr.Request(tok(200)), tr.Request(tok(300))
		time.Sleep(3*waitSlice + waitSlice/2) // several time out meanwhile
		synctest.Wait()
		if r := rung(t, tr, WaitFor); !r.Up || tr.State().Source != "waitfor" {
			t.Errorf("%+v, source %s", r, tr.State().Source)
		}
		s.replay(200)
		time.Sleep(time.Millisecond)
		if !woken(t, w) || woken(t, later) {
			t.Errorf("%+v", tr.State())
		}
		time.Sleep(time.Second)
		s.replay(300)
		time.Sleep(time.Millisecond)
		if !woken(t, later) {
			t.Errorf("%+v", tr.State())
		}
	})
}

func TestWaitForALowerOneIsNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		tr := laddered(t, s.scripted, slow(WaitFor))
		high := tr.Request(tok(1000))
		time.Sleep(2*waitSlice + waitSlice/10)
		if n, conn := s.waits(1000); n != 1 || conn == 0 {
			t.Fatalf("%d waits, the one for 0/3E8 on connection %d", n, conn)
		}
		low := tr.Request(tok(200))
		lower := tr.Request(tok(150))
		synctest.Wait()
		if n, _ := s.waits(1000); n != 2 {
			t.Errorf("%d waits, want a second one for the lower position", n)
		}
		for _, step := range []struct {
			lsn    uint64
			waiter *tracker.Waiter
		}{{120, nil}, {150, lower}, {190, nil}, {200, low}} {
			s.replay(step.lsn)
			time.Sleep(time.Millisecond)
			if step.waiter != nil && !woken(t, step.waiter) {
				t.Errorf("not woken at %d: %+v", step.lsn, tr.State())
			}
		}
		if woken(t, high) {
			t.Error("0/3E8 was woken")
		}
		s.replay(1000)
		time.Sleep(time.Millisecond)
		if !woken(t, high) {
			t.Error("the higher one was not woken")
		}
	})
}

func TestWaitForDoesNotHoldTheEndUp(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprintf("deaf=%v", deaf), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newWaiting(t)
				s.deaf.Store(deaf)
				tr := laddered(t, s.scripted, slow(WaitFor))
				tr.Request(tok(1000))
				time.Sleep(100 * time.Millisecond)
				tr.Request(tok(200))
				time.Sleep(time.Millisecond)
				if n, _ := s.waits(1000); n != 2 {
					t.Fatalf("%d waits", n)
				}
				start := time.Now()
				tr.Close()
				d := time.Since(start)
				if !deaf && d > time.Millisecond || d > waitSlice {
					t.Errorf("the end took %s", d)
				}
				if s.cancels.Load() < 2 {
					t.Errorf("%d waits were cancelled", s.cancels.Load())
				}
			})
		})
	}
}

func TestWaitForSurvivesAConflict(t *testing.T) {
	for _, code := range []string{"40001", "57014"} {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newWaiting(t)
				tr := laddered(t, s.scripted, Config{Use: []Kind{WaitFor}})
				w, later := tr.Request(tok(200)), tr.Request(tok(300))
				time.Sleep(100 * time.Millisecond)
				_, conn := s.waits(200)
				s.end(conn, &pgconn.PgError{Severity: "ERROR", Code: code, Message: "canceling statement due to conflict with recovery"})
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if r := rung(t, tr, WaitFor); r.Up || !strings.Contains(r.Reason, "conflict with recovery") || tr.State().Source != "poll" {
					t.Errorf("%+v, source %s", r, tr.State().Source)
				}
				s.replay(200)
				time.Sleep(DefaultMaxInterval + time.Millisecond)
				if !woken(t, w) || tr.Stats().Failures != 0 || tr.Stats().Epochs != 1 {
					t.Errorf("not woken by polling over the same session: %+v", tr.State())
				}
				time.Sleep(firstPause)
				synctest.Wait()
				if r := rung(t, tr, WaitFor); !r.Up || r.Reason != "" {
					t.Errorf("it did not come back: %+v", r)
				}
				s.replay(300)
				time.Sleep(time.Millisecond)
				if !woken(t, later) {
					t.Error("not woken after it came back")
				}
			})
		})
	}
}

// One that is terminated takes the position with it: it may have been a crash.
func TestWaitForSurvivesAnAdministrator(t *testing.T) {
	for _, which := range []string{"main", "second"} {
		t.Run(which, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newWaiting(t)
				tr := laddered(t, s.scripted, Config{Use: []Kind{WaitFor}})
				high := tr.Request(tok(1000))
				time.Sleep(waitSlice / 2)
				low := tr.Request(tok(200))
				time.Sleep(time.Millisecond)
				conn := 1
				if n, main := s.waits(1000); n != 2 || main != 1 {
					t.Fatalf("%d waits, the higher one on connection %d", n, main)
				}
				if which == "second" {
					_, conn = s.waits(101)
				}
				s.end(conn, &pgconn.PgError{Severity: "FATAL", Code: "57P01", Message: "terminating connection due to administrator command"})
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if st := tr.State(); st.Known || st.Failure == nil || !strings.Contains(st.Failure.Error(), "administrator command") {
					t.Errorf("%+v", st)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if r := rung(t, tr, WaitFor); !r.Up {
					t.Errorf("it did not come back: %+v", tr.State())
				}
				s.replay(200)
				time.Sleep(time.Millisecond)
				if !woken(t, low) {
					t.Error("the lower one was not woken")
				}
				s.replay(1000)
				time.Sleep(time.Millisecond)
				if !woken(t, high) {
					t.Error("the higher one was not woken")
				}
			})
		})
	}
}

func TestWaitForEndsWhenNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		cfg := slow(WaitFor)
		cfg.Linger = 3 * time.Second
		tr := laddered(t, s.scripted, cfg)
		w := tr.Request(tok(200))
		time.Sleep(time.Second)
		w.Cancel()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if r := rung(t, tr, WaitFor); !r.Up {
			t.Errorf("it did not linger: %+v", r)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if r := rung(t, tr, WaitFor); r.Up || r.Reason != "no wait has lasted" {
			t.Errorf("it goes on for nobody: %+v", r)
		}
		if st := tr.State(); !st.Known || st.Failure != nil || tr.Stats().Failures != 0 {
			t.Errorf("the session went with it: %+v", st)
		}
		before := s.count("")
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := s.count("") - before; n > 361 {
			t.Errorf("%d queries in an idle hour", n)
		}
		w = tr.Request(tok(200))
		time.Sleep(time.Second)
		s.replay(200)
		time.Sleep(time.Millisecond)
		if !woken(t, w) || !rung(t, tr, WaitFor).Up {
			t.Errorf("the next one who waits: %+v", tr.State())
		}
		if tr.Stats().Epochs != 1 {
			t.Errorf("%d epochs", tr.Stats().Epochs)
		}
	})
}

func TestWaitForOverAPromotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		tr := laddered(t, s.scripted, Config{Use: []Kind{WaitFor}})
		w := tr.Request(tok(200))
		time.Sleep(waitSlice / 2)
		s.changed(func() {
			s.primary = true
			s.lsn.Store(250)
		})
		time.Sleep(time.Second)
		if !woken(t, w) {
			t.Errorf("%+v", tr.State())
		}
		if r := rung(t, tr, WaitFor); r.Up || r.Reason != "the server is a primary" {
			t.Errorf("%+v", r)
		}
		if o, _ := tr.LastReplay(); !o.Primary {
			t.Errorf("%+v", o)
		}
	})
}

func TestWaitForThatCannotBeSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*waiting)
		reason string
	}{
		"before 19":      {func(s *waiting) { s.version, s.call = "18.1", nil }, "needs PostgreSQL 19, the server is 18"},
		"another server": {func(s *waiting) { s.after("max(extract(epoch", [][]*string{row("another time")}, nil) }, "a second connection reached another server than the first"},
		"a stranger":     {func(s *waiting) { s.after("max(extract(epoch", [][]*string{row("NULL")}, nil) }, "a second connection reached another server than the first"},
		"no such thing":  {func(s *waiting) { s.after("WAIT FOR", nil, errors.New("syntax error")) }, "WAIT FOR LSN: "},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newWaiting(t)
				c.change(s)
				tr := laddered(t, s.scripted, Config{Use: []Kind{WaitFor}})
				w := tr.Request(tok(200))
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if r := rung(t, tr, WaitFor); r.Up || !strings.Contains(r.Reason, c.reason) || tr.State().Source != "poll" {
					t.Errorf("%+v, want %q", r, c.reason)
				}
				s.replay(200)
				time.Sleep(DefaultMaxInterval + time.Millisecond)
				if !woken(t, w) || tr.Stats().Failures != 0 {
					t.Errorf("not woken by polling: %+v", tr.State())
				}
			})
		})
	}
}

// A stream that comes up while the session is in a WAIT FOR LSN takes over in
// the same epoch, and nobody notices.
func TestWaitForGivesWayToAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		steer := newSteered(&s.lsn)
		s.stream = steer.stream
		s.noWalsender.Store(true)
		tr := laddered(t, s.scripted, slow(Physical, WaitFor))
		w, later := tr.Request(tok(200)), tr.Request(tok(300))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n, _ := s.waits(200); n == 0 || tr.State().Source != "waitfor" {
			t.Fatalf("%d waits, %+v", n, tr.State())
		}
		s.noWalsender.Store(false)
		st := <-steer.streams
		synctest.Wait()
		time.Sleep(time.Millisecond)
		if s := tr.State(); s.Source != "physical" || !s.Known {
			t.Errorf("%+v", s)
		}
		s.replay(200)
		if err := st.send(keepalive(200, false)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Millisecond)
		if !woken(t, w) || woken(t, later) {
			t.Errorf("%+v", tr.State())
		}
		if got := tr.Stats(); got.Epochs != 1 || got.Failures != 0 {
			t.Errorf("%+v", got)
		}
		if n, _ := s.waits(300); n != 0 {
			t.Errorf("%d still WAIT FOR LSN", n)
		}
	})
}

// Without the timeline a position is no token's: WAIT FOR LSN is not used then, and does not seem to be.
func TestWaitForIsNotUpWhereTheTimelineIsNotSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		s.noWalsender.Store(true) // or it would be seen over a replication connection
		var granted atomic.Bool
		answer, call := s.answer, s.call
		s.answer = func(conn int, query string) ([][]*string, error) {
			rows, err := answer(conn, query)
			if query == lookQuery && !granted.Load() {
				rows[0][3] = new("")
			}
			return rows, err
		}
		s.call = func(conn int, function uint32) []byte {
			if !granted.Load() {
				time.Sleep(queryTakes)
				return binaryRecord(nil, nil, nil)
			}
			return call(conn, function)
		}
		tr := laddered(t, s.scripted, Config{Use: []Kind{WaitFor}})
		always := tr.Request(tracker.Token{LSN: 1000})
		defer always.Cancel()
		for _, may := range []bool{false, true, false, true} {
			granted.Store(may)
			time.Sleep(2 * lastPause)
			before := s.count("WAIT FOR LSN")
			time.Sleep(10 * time.Second)
			r, n := rung(t, tr, WaitFor), s.count("WAIT FOR LSN")-before
			if want := map[bool]string{true: "waitfor", false: "poll"}[may]; r.Up != may || tr.State().Source != want || (n > 0) != may {
				t.Errorf("the timeline is seen: %t; %+v, source %s, %d times WAIT FOR LSN", may, r, tr.State().Source, n)
			}
			if !may && !strings.Contains(r.Reason, "GRANT pg_read_all_stats") {
				t.Errorf("the reason is %q", r.Reason)
			}
		}
	})
}

// A walreceiver that does not stream for a while, as when the primary is restarted, is none of WAIT FOR LSN's business:
// it is in use again as soon as the timeline is seen.
func TestWaitForOutlivesAWalreceiverThatDoesNotStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		s.noWalsender.Store(true)
		var away atomic.Bool
		answer, call := s.answer, s.call
		s.answer = func(conn int, query string) ([][]*string, error) {
			rows, err := answer(conn, query)
			if query == lookQuery && away.Load() {
				rows[0][3] = nil
			}
			return rows, err
		}
		s.call = func(conn int, function uint32) []byte {
			if away.Load() {
				time.Sleep(queryTakes)
				return binaryRecord(nil, nil, nil)
			}
			return call(conn, function)
		}
		tr := laddered(t, s.scripted, Config{Use: []Kind{WaitFor}})
		always := tr.Request(tok(1000))
		defer always.Cancel()
		time.Sleep(time.Second)
		changes := tr.Stats().SourceChanges
		for range 3 {
			away.Store(true)
			time.Sleep(lastPause)
			away.Store(false)
			before := s.count("WAIT FOR LSN")
			time.Sleep(time.Second)
			if r, n := rung(t, tr, WaitFor), s.count("WAIT FOR LSN")-before; !r.Up || n == 0 {
				t.Errorf("a second after it streams again: %+v, %d times WAIT FOR LSN", r, n)
			}
		}
		if n := tr.Stats().SourceChanges - changes; n != 0 {
			t.Errorf("%d changes of source", n)
		}
	})
}
