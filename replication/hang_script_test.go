package replication

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

// A server that takes questions and answers none, as one behind a network that is cut in silence: nobody waits.
func TestAServerThatFallsSilentIsFoundOutWhileNobodyWaits(t *testing.T) {
	const each = time.Second // between two looks of who looks
	for _, c := range []struct {
		name  string
		looks bool
		most  time.Duration
	}{
		{"for who looks", true, each + DefaultQueryTimeout},
		{"by the sign of life", false, DefaultIdleInterval + DefaultQueryTimeout},
	} {
		for _, kind := range Kinds() {
			t.Run(c.name+", "+string(kind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var silent atomic.Bool
					over := make(chan struct{})
					t.Cleanup(func() { close(over); time.Sleep(time.Second) }) // for the answers that were held back
					say := func() {
						if silent.Load() {
							<-over
						}
					}
					s, replay := silencing(t, kind, say)
					tr := laddered(t, s, Config{Use: []Kind{kind}})
					w := tr.Request(tok(200))
					time.Sleep(time.Second) // which brings the stream up, and it stays for a while
					replay()
					time.Sleep(time.Second)
					if r := rung(t, tr, kind); !woken(t, w) || !r.Up {
						t.Fatalf("nobody waits and %s is up: %+v", kind, r)
					}
					if c.looks {
						stop := make(chan struct{})
						defer close(stop)
						go looks(tr, each, stop)
						time.Sleep(each / 10)
					}
					silent.Store(true)
					began := time.Now()
					for _, known := tr.LastReplay(); known && time.Since(began) < time.Minute; _, known = tr.LastReplay() {
						time.Sleep(time.Millisecond)
					}
					took := time.Since(began)
					t.Logf("unknown after %s", took)
					if took > c.most+2*waitSlice {
						t.Errorf("want it within %s", c.most)
					}
				})
			})
		}
	}
}

// silencing is a server on which a kind works, and what has it replay 0/C8. say is called before it answers a question.
func silencing(t *testing.T, kind Kind, say func()) (s *scripted, replay func()) {
	if kind == WaitFor {
		w := newWaiting(t)
		s, replay = w.scripted, func() { w.replay(200) }
	} else {
		lsn := new(atomic.Uint64)
		lsn.Store(100)
		s, replay = streamScript(t, lsn, newSteered(lsn).stream), func() { lsn.Store(200) }
	}
	answer, call := s.answer, s.call
	s.answer = func(conn int, query string) ([][]*string, error) {
		say()
		return answer(conn, query)
	}
	if call != nil {
		s.call = func(conn int, function uint32) []byte {
			say()
			return call(conn, function)
		}
	}
	return s, replay
}

// looks is somebody who looks at the state and does not wait.
func looks(tr *tracker.Tracker, each time.Duration, stop chan struct{}) {
	for {
		tr.Refresh()
		select {
		case <-stop:
			return
		case <-time.After(each):
		}
	}
}
