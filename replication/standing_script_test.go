package replication

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// Before a stream is worth opening the session itself waits, for whatever is
// replayed next, so that nobody who comes later is held up.
func TestTheSessionStandsByAfterALittleWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		tr := laddered(t, s.scripted, slow(WaitFor))
		_, conns := s.asked()
		high := tr.Request(tok(300))
		time.Sleep(streamAfter / 2)
		if n, conn := s.waits(101); n != 1 || conn == 0 {
			t.Fatalf("%d waits, the one for 0/65 on connection %d", n, conn)
		}
		low := tr.Request(tok(200))
		s.replay(200)
		time.Sleep(streamAfter / 4)
		if !woken(t, low) || woken(t, high) {
			t.Errorf("replayed up to 0/C8: %+v", tr.State())
		}
		if n, conn := s.waits(201); n != 1 || conn == 0 {
			t.Errorf("%d waits, the one for 0/C9 on connection %d", n, conn)
		}
		s.replay(300)
		time.Sleep(streamAfter / 4)
		if !woken(t, high) {
			t.Errorf("replayed up to 0/12C: %+v", tr.State())
		}
		if _, now := s.asked(); now != conns {
			t.Errorf("%d connections, before it %d", now, conns)
		}
		if r := rung(t, tr, WaitFor); r.Up {
			t.Errorf("%+v", r)
		}
	})
}

func TestAWaitThatFailsIsNotTriedAgainForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWaiting(t)
		tr := laddered(t, s.scripted, slow(WaitFor))
		stands := func(target tracker.LSN) bool {
			w := tr.Request(tok(target))
			defer w.Cancel()
			time.Sleep(streamAfter / 2)
			n, conn := s.waits(101)
			if n > 0 {
				s.end(conn, &pgconn.PgError{Severity: "ERROR", Code: "40001", Message: "canceling statement due to conflict with recovery"})
				time.Sleep(streamAfter / 4)
			}
			return n > 0
		}
		if !stands(200) {
			t.Error("it does not wait")
		}
		if n, _ := s.waits(101); n != 0 {
			t.Error("it waits again at once")
		}
		time.Sleep(time.Second)
		if stands(201) {
			t.Error("it waits again after a second")
		}
		time.Sleep(2 * lastPause)
		if !stands(202) {
			t.Error("it does not wait again after two minutes")
		}
	})
}
