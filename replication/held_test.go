package replication

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

const (
	pausedNote   = "replay is paused on the standby: SELECT pg_wal_replay_resume()"
	conflictNote = "a query on the standby holds replay back (RecoveryConflictSnapshot): see max_standby_streaming_delay (-1) and hot_standby_feedback (off); the longest transaction there is process 4711's"
	delayNote    = "recovery_min_apply_delay = 1min on the standby holds replay back"
	aloneNote    = "the standby receives no WAL, no walreceiver is running: is its primary down, or primary_conninfo wrong?"
)

// What the last columns of the full answer are, and what is said of them.
func TestReasonsNameWhatHoldsReplay(t *testing.T) {
	const conflicting = "33 IPC RecoveryConflictSnapshot -1 off 4711"
	for name, c := range map[string]struct {
		columns []*string
		want    string
	}{
		"nothing":              {row("not paused", "t", "NULL", "33"), ""},
		"nothing to be seen":   {row("not paused", "t", "NULL", "NULL"), ""},
		"a primary":            {row("NULL", "NULL", "NULL", "NULL"), ""},
		"paused":               {row("paused", "t", "NULL", "NULL"), pausedNote},
		"about to be paused":   {row("pause requested", "t", "NULL", "NULL"), pausedNote},
		"a query":              {row("not paused", "t", "NULL", conflicting), conflictNote},
		"nobody's query":       {row("not paused", "t", "NULL", "33 Buffer BufferCleanup 30s on"), "a query on the standby holds replay back (BufferCleanup): see max_standby_streaming_delay (30s) and hot_standby_feedback (on)"},
		"a lock":               {row("not paused", "t", "NULL", "33 Lock relation 30s on 1"), "a query on the standby holds replay back (Lock relation): see max_standby_streaming_delay (30s) and hot_standby_feedback (on); the longest transaction there is process 1's"},
		"a delay":              {row("not paused", "t", "1min", "NULL"), delayNote},
		"no walreceiver":       {row("not paused", "f", "NULL", "NULL"), aloneNote},
		"a query, in a delay":  {row("not paused", "t", "1min", conflicting), conflictNote},
		"all":                  {row("paused", "f", "1min", conflicting), pausedNote + "; " + conflictNote + "; " + aloneNote},
		"what no server sends": {row("not paused", "t", "NULL", "x IPC RecoveryConflictSnapshot -1 off"), ""},
		"nothing but spaces":   {row("not paused", "t", "NULL", " "), ""},
	} {
		h, _ := parseHeld(c.columns)
		if got := strings.Join(h.reasons(), "; "); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// Who looks at State and does not wait is told too.
func TestTheNoteIsThereForWhoOnlyLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newHolding(t)
		tr := polling(t, s.scripted, tracker.Config{})
		<-tr.Ready()
		for _, want := range []struct {
			delay, note string
		}{{"1min", delayNote}, {"NULL", ""}} {
			s.hold(map[int]string{6: want.delay})
			fullQuestions(s.scripted, tr.Refresh)
			if got := tr.State().Note; got != want.note {
				t.Errorf("the note is %q, want %q", got, want.note)
			}
		}
	})
}

// Waits that are short do not last longer for it.
func TestTheFullQuestionIsAskedBetweenShortWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := fastScript(t, &lsn, func() []byte { return binaryRecord([]byte("streaming"), uint32Bytes(1)) })
		var during atomic.Bool
		answer := s.answer
		var of atomic.Pointer[tracker.Tracker]
		s.answer = func(conn int, query string) ([][]*string, error) {
			if tr := of.Load(); query == lookQuery && tr != nil && tr.Stats().Waiting > 0 {
				during.Store(true)
			}
			return answer(conn, query)
		}
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		of.Store(tr)
		n := fullQuestions(s, func() {
			if err := tr.Wait(t.Context(), tok(tracker.LSN(lsn.Add(1)))); err != nil {
				t.Error(err)
			}
		})
		if n != 1 || during.Load() {
			t.Errorf("%d full questions, want one each %s; while somebody waited: %t", n, betweenEvery, during.Load())
		}
	})
}

// fullQuestions returns how many are asked while something is done each tenth of betweenEvery, for a little longer than that.
func fullQuestions(s *scripted, do func()) int {
	before := s.count(lookQuery)
	for range 12 {
		time.Sleep(betweenEvery / 10)
		do()
	}
	synctest.Wait()
	return s.count(lookQuery) - before
}

// holding is a standby whose full answers have columns that change.
type holding struct {
	*scripted
	lsn     atomic.Uint64
	columns atomic.Pointer[map[int]string]
}

func (s *holding) hold(columns map[int]string) { s.columns.Store(&columns) }

func newHolding(t *testing.T) *holding {
	s := &holding{}
	s.lsn.Store(100)
	s.hold(nil)
	s.scripted = standbyScript(t, &s.lsn)
	answer := s.answer
	s.answer = func(conn int, query string) ([][]*string, error) {
		rows, err := answer(conn, query)
		if query == lookQuery {
			for i, c := range *s.columns.Load() {
				rows[0][i] = row(c)[0]
			}
		}
		return rows, err
	}
	return s
}

// A reason is there within a tenth of a second, and gone when replay has moved.
func TestTheNoteGoesWithWhatHeldReplay(t *testing.T) {
	for name, c := range map[string]struct {
		columns map[int]string
		note    string
	}{
		"paused":         {map[int]string{4: "paused"}, pausedNote},
		"no walreceiver": {map[int]string{5: "f"}, aloneNote},
		"a delay":        {map[int]string{6: "1min"}, delayNote},
		"a query":        {map[int]string{7: "33 IPC RecoveryConflictSnapshot -1 off 4711"}, conflictNote},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newHolding(t)
				tr := polling(t, s.scripted, tracker.Config{})
				<-tr.Ready()
				note := func(when, want string) {
					t.Helper()
					synctest.Wait()
					if got := tr.State().Note; got != want {
						t.Errorf("%s: the note is %q, want %q", when, got, want)
					}
				}
				note("at first", "")
				s.hold(c.columns)
				w := tr.Request(tok(200))
				time.Sleep(fullEvery + DefaultMaxInterval)
				note("while it waits", c.note)
				time.Sleep(fullEvery / 2) // short answers, and full ones
				note("later", c.note)
				s.hold(nil)
				s.lsn.Store(200)
				if err := w.Await(t.Context()); err != nil {
					t.Error(err)
				}
				note("when it is replayed", "")
			})
		})
	}
}

// Replay that is delayed moves all the time; what is left after the primary has
// gone is replayed yet.
func TestWhatMovesIsHeldByADelayAlone(t *testing.T) {
	for name, c := range map[string]struct {
		columns map[int]string
		note    string
	}{
		"no walreceiver": {map[int]string{5: "f"}, ""},
		"a delay":        {map[int]string{6: "1min"}, delayNote},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newHolding(t)
				tr := polling(t, s.scripted, tracker.Config{})
				<-tr.Ready()
				s.hold(c.columns)
				w := tr.Request(tok(100_000))
				defer w.Cancel()
				time.Sleep(3 * fullEvery)
				for range 100 { // more often than it is asked
					s.lsn.Add(1)
					time.Sleep(DefaultMaxInterval / 10)
				}
				for i := range 100 {
					s.lsn.Add(1)
					time.Sleep(DefaultMaxInterval)
					synctest.Wait()
					if got := tr.State().Note; got != c.note {
						t.Fatalf("step %d: the note is %q, want %q", i, got, c.note)
					}
				}
			})
		})
	}
}

// A role that does not see the timeline asks why at every turn; what holds replay
// is asked for ten times a second all the same.
func TestTheFullQuestionIsAskedTenTimesASecond(t *testing.T) {
	for name, timeline := range map[string]string{"timeline": "1", "no right to see it": "", "no walreceiver": "NULL"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newHolding(t)
				s.noWalsender.Store(true)
				s.hold(map[int]string{3: timeline, 5: map[bool]string{true: "f", false: "t"}[timeline == "NULL"]})
				tr := polling(t, s.scripted, tracker.Config{})
				<-tr.Ready()
				w := tr.Request(tok(200))
				defer w.Cancel()
				time.Sleep(10 * time.Second)
				fulls, all := s.count(lookQuery+" "+string(full)), s.count(lookQuery)
				if fulls < 70 || fulls > 102 || all < 4*fulls {
					t.Errorf("%d full questions of %d in ten seconds", fulls, all)
				}
				// The startup process is looked for once.
				if n := s.count(lookQuery + " " + string(full) + " 33"); n != fulls-1 || s.count(lookQuery+" "+string(full)+" NULL") != 1 {
					t.Errorf("%d of %d full questions name the startup process", n, fulls)
				}
				note := tr.State().Note
				if strings.Contains(note, aloneNote) || strings.Contains(note, "walreceiver is not streaming") != (timeline == "NULL") {
					t.Errorf("the note is %q", note)
				}
			})
		})
	}
}
