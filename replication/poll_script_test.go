package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

// standbyScript is a standby of system 7 on timeline 1, at lsn.
func standbyScript(t *testing.T, lsn *atomic.Uint64) *scripted {
	return &scripted{t: t, version: "17.5", answer: func(conn int, query string) ([][]*string, error) {
		if query == serverQuery {
			return [][]*string{row(fmt.Sprint(conn), "then", "7", "8192", "16777216", "t")}, nil
		}
		return [][]*string{told(conn, tracker.LSN(lsn.Load()))}, nil
	}}
}

// polling runs a tracker that polls s until the test ends.
func polling(t *testing.T, s *scripted, cfg tracker.Config) *tracker.Tracker {
	t.Helper()
	poll, err := New(Config{Replica: s.server(), Use: []Kind{Poll}})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Source = poll
	return tracking(t, cfg)
}

func tracking(t *testing.T, cfg tracker.Config) *tracker.Tracker {
	t.Helper()
	tr, err := tracker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	t.Cleanup(tr.Close)
	return tr
}

func tok(lsn tracker.LSN) tracker.Token { return tracker.Token{System: 7, Timeline: 1, LSN: lsn} }

func TestPollAsksNothingButASignOfLifeWhileNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := standbyScript(t, &lsn)
		tr := polling(t, s, tracker.Config{})
		<-tr.Ready()
		synctest.Wait()
		before, _ := s.asked()
		time.Sleep(time.Hour)
		synctest.Wait()
		queries, conns := s.asked()
		if n := queries - before; n < 300 || n > 361 || conns != 1 {
			t.Errorf("%d queries in an idle hour over %d connections, want one each 10 s over one", n, conns)
		}
	})
}

func TestPollAsksAtOnceThenFinelyThenCoarsely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := standbyScript(t, &lsn)
		tr := polling(t, s, tracker.Config{Timeout: time.Hour})
		<-tr.Ready()
		synctest.Wait()
		// What is replayed already costs one query, and no time.
		lsn.Store(200)
		start := time.Now()
		if err := tr.Wait(t.Context(), tok(200)); err != nil || time.Since(start) != 0 {
			t.Errorf("took %s: %v", time.Since(start), err)
		}
		for _, after := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, time.Minute} {
			before, _ := s.asked()
			target := tracker.LSN(lsn.Load() + 100)
			time.AfterFunc(after, func() { lsn.Store(uint64(target)) })
			start := time.Now()
			if err := tr.Wait(t.Context(), tok(target)); err != nil {
				t.Fatal(err)
			}
			late := time.Since(start) - after
			if limit := min(max(after/6, DefaultMinInterval), DefaultMaxInterval); late > limit {
				t.Errorf("replayed after %s, told %s later, want at most %s", after, late, limit)
			}
			queries, _ := s.asked()
			t.Logf("replayed after %s: told %s later, with %d queries", after, late, queries-before)
			if n := queries - before; n > 70+int(after/DefaultMaxInterval) {
				t.Errorf("replayed after %s: %d queries", after, n)
			}
			synctest.Wait()
		}
	})
}

func TestPollForgetsThePositionTheMomentItsConnectionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(500)
		s := standbyScript(t, &lsn)
		tr := polling(t, s, tracker.Config{})
		<-tr.Ready()
		synctest.Wait()
		if !tr.Replayed(tok(400)) {
			t.Fatal("not replayed")
		}
		s.setRefuse(errors.New("connection refused"))
		s.cut() // nobody waits, nobody asks
		synctest.Wait()
		if _, known := tr.LastReplay(); known || tr.Replayed(tok(400)) {
			t.Error("the position outlived its connection")
		}
		// It comes back lower, and catches up.
		lsn.Store(300)
		s.setRefuse(nil)
		w := tr.Request(tok(400))
		time.Sleep(time.Second)
		synctest.Wait()
		if o, known := tr.LastReplay(); !known || o.LSN != 300 || o.Epoch != 2 {
			t.Errorf("after the crash: %+v %v", o, known)
		}
		lsn.Store(400)
		if err := w.Await(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestPollEndsWithItsDeadlineWhenTheServerStopsAnswering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := standbyScript(t, &lsn)
		var mute atomic.Bool
		answer, hold := s.answer, make(chan struct{})
		s.answer = func(conn int, query string) ([][]*string, error) {
			if mute.Load() {
				<-hold
			}
			return answer(conn, query)
		}
		tr := polling(t, s, tracker.Config{})
		<-tr.Ready()
		mute.Store(true)
		start := time.Now()
		err := tr.Wait(t.Context(), tok(200))
		if !errors.Is(err, tracker.ErrTimeout) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		time.Sleep(DefaultQueryTimeout)
		synctest.Wait()
		if st := tr.State(); st.Known || st.Failure == nil {
			t.Errorf("a server that does not answer is still believed: %+v", st)
		}
		mute.Store(false)
		close(hold)
		lsn.Store(200)
		if err := tr.Wait(t.Context(), tok(200)); err != nil {
			t.Error(err)
		}
	})
}

func TestPollRefusesWhatAServerWouldNotSay(t *testing.T) {
	for name, answer := range map[string][]*string{
		"garbage position":   toldOtherwise(map[int]string{2: "0/16B3748garbage"}),
		"overlong position":  toldOtherwise(map[int]string{2: "0/1FFFFFFFF"}),
		"few columns":        told(1, 0x16B3748)[:3],
		"columns in between": told(1, 0x16B3748)[:6],
		"garbage timeline":   toldOtherwise(map[int]string{3: "1x"}),
		"null backend":       toldOtherwise(map[int]string{0: "NULL"}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				s := standbyScript(t, &lsn)
				good := s.answer
				s.answer = func(conn int, query string) ([][]*string, error) {
					if query == serverQuery {
						return good(conn, query)
					}
					return [][]*string{answer}, nil
				}
				tr := polling(t, s, tracker.Config{})
				err := tr.Wait(t.Context(), tracker.Token{LSN: 1})
				if !errors.Is(err, tracker.ErrTimeout) || !strings.Contains(err.Error(), "replication: ") {
					t.Errorf("got %v, want a timeout that says what the server said", err)
				}
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the error holds the password: %v", err)
				}
				if _, known := tr.LastReplay(); known {
					t.Error("a position came of it")
				}
			})
		})
	}
}

func TestPollStartsAnEpochForEachServerProcessBehindAPooler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn, backend atomic.Uint64
		lsn.Store(500)
		backend.Store(11)
		s := standbyScript(t, &lsn)
		s.answer = func(_ int, query string) ([][]*string, error) {
			pid := int(backend.Load())
			if query == serverQuery {
				return [][]*string{row(fmt.Sprint(pid), "then", "7", "8192", "16777216", "t")}, nil
			}
			return [][]*string{told(pid, tracker.LSN(lsn.Load()))}, nil
		}
		tr := polling(t, s, tracker.Config{})
		<-tr.Ready()
		// The pooler kept our connection, and reached the crashed server anew.
		lsn.Store(300)
		backend.Store(12)
		w := tr.Request(tok(600))
		time.Sleep(time.Second)
		synctest.Wait()
		if o, _ := tr.LastReplay(); o.LSN != 300 || o.Epoch != 2 {
			t.Errorf("got %+v, want 0/12C in epoch 2", o)
		}
		w.Cancel()
	})
}

func TestConfigErrorsNameTheField(t *testing.T) {
	replica := Server{DSN: "host=x"}
	for want, cfg := range map[string]Config{
		"Config.Replica: neither DSN nor Config": {},
		"Config.Replica: DSN":                    {Replica: Server{DSN: "postgres://u:secret@host:port/"}},
		"Config.Primary: DSN":                    {Replica: replica, Primary: Server{DSN: "postgres://u:secret@host:port/"}},
		"MinInterval":                            {Replica: replica, MinInterval: -1},
		"want 0 < Min <= Max":                    {Replica: replica, MinInterval: 2, MaxInterval: 1},
		"Config.Replica: ConnectTimeout":         {Replica: Server{DSN: "host=x", ConnectTimeout: -1}},
		"Config.Linger":                          {Replica: replica, Linger: -1},
		`kind "pol"`:                             {Replica: replica, Use: []Kind{"pol"}},
		`kind "poll" twice`:                      {Replica: replica, Use: []Kind{Poll, Poll}},
	} {
		_, err := New(cfg)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}
