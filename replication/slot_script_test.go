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
)

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

// A primary that takes a connection and then says nothing is no help, and no
// hindrance.
func TestPrimaryThatHangsHoldsNoSlotUp(t *testing.T) {
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed=%t", closed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				lsn.Store(100)
				steer := newSteered(&lsn)
				s := streamScript(t, &lsn, steer.stream)
				made, hang := make(chan struct{}), make(chan struct{})
				answer := s.answer
				s.answer = func(conn int, query string) ([][]*string, error) {
					if strings.HasPrefix(query, "CREATE_REPLICATION_SLOT") {
						<-made
					}
					return answer(conn, query)
				}
				help := &scripted{t: t, version: "17.5", answer: func(int, string) ([][]*string, error) {
					<-hang
					return nil, errors.New("too late")
				}}
				tr := laddered(t, s, Config{Use: []Kind{Logical}, Primary: help.server()})
				tr.Request(tok(200))
				time.Sleep(time.Second)
				start := time.Now()
				if closed {
					tr.Close()
				} else {
					close(made)
					time.Sleep(2 * closeTimeout)
					synctest.Wait()
					if r := rung(t, tr, Logical); !r.Up {
						t.Errorf("%+v", r)
					}
				}
				if d := time.Since(start); d > 2*closeTimeout {
					t.Errorf("it took %s", d)
				}
				tr.Close()
				if closed {
					close(made)
				}
				close(hang)
				time.Sleep(time.Minute) // pgx goes on saying goodbye
			})
		})
	}
}
