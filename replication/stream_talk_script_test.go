package replication

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

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
