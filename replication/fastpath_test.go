package replication

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// The functions that the scripted standbys have, and where in their record
// position and timeline are.
const (
	positionFunction = 900
	recordFunction   = 901
)

// binaryRecord is a record as record_send writes it; nil is NULL.
func binaryRecord(values ...[]byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(values)))
	for _, v := range values {
		out = binary.BigEndian.AppendUint32(out, 25) // the type
		if v == nil {
			out = binary.BigEndian.AppendUint32(out, 1<<32-1)
			continue
		}
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(v))), v...)
	}
	return out
}

func uint64Bytes(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
func uint32Bytes(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// fastScript is a standby on PostgreSQL 17 whose functions can be called:
// timeline returns the walreceiver's, of which NULL is nil, the whole record's
// NULL too.
func fastScript(t *testing.T, lsn *atomic.Uint64, record func() []byte) *scripted {
	s := streamScript(t, lsn, nil)
	answer := s.answer
	s.answer = func(conn int, query string) ([][]*string, error) {
		if query == fastQuery {
			return [][]*string{row(fmt.Sprint(positionFunction), fmt.Sprint(recordFunction), "0", "2")}, nil
		}
		return answer(conn, query)
	}
	s.call = func(_ int, function uint32) []byte {
		time.Sleep(queryTakes)
		if function == positionFunction {
			return uint64Bytes(lsn.Load())
		}
		return record()
	}
	return s
}

func TestFastpathTellsPositionAndTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		var timeline atomic.Uint32
		timeline.Store(1)
		s := fastScript(t, &lsn, func() []byte { return binaryRecord([]byte("streaming"), uint32Bytes(timeline.Load())) })
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		queries := s.count(lookQuery)
		lsn.Store(200)
		if err := tr.Wait(t.Context(), tok(200)); err != nil {
			t.Fatal(err)
		}
		if calls := s.count("call"); calls < 2 || calls > 4 || s.count(lookQuery) != queries {
			t.Errorf("%d calls and %d queries, want a call for the position and one for the timeline", calls, s.count(lookQuery)-queries)
		}
		if o, known := tr.LastReplay(); !known || o.LSN != 200 || o.Timeline != 1 || o.System != 7 || o.Primary || o.Epoch != 1 {
			t.Errorf("%+v %v", o, known)
		}
		w := tr.Request(tok(300))
		time.Sleep(time.Second)
		synctest.Wait()
		if n := s.count(lookQuery) - queries; n < 8 || n > 12 {
			t.Errorf("%d full questions in a second of waiting, want one each %s", n, fullEvery)
		}
		w.Cancel()
	})
}

func TestFastpathWithoutATimelineFallsBackToTheFullQuestion(t *testing.T) {
	for name, record := range map[string][]byte{
		"NULL record":   nil,
		"NULL timeline": binaryRecord([]byte("waiting"), nil),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				lsn.Store(100)
				var streaming atomic.Bool
				streaming.Store(true)
				s := fastScript(t, &lsn, func() []byte {
					if streaming.Load() {
						return binaryRecord([]byte("streaming"), uint32Bytes(1))
					}
					return record
				})
				s.noWalsender.Store(true)
				answer := s.answer
				s.answer = func(conn int, query string) ([][]*string, error) {
					rows, err := answer(conn, query)
					if query == lookQuery && !streaming.Load() {
						rows[0][3] = nil
					}
					return rows, err
				}
				tr := laddered(t, s, Config{Use: []Kind{Poll}})
				streaming.Store(false)
				lsn.Store(200)
				w, later := tr.Request(tok(200)), tr.Request(tok(300))
				time.Sleep(3 * time.Second) // for less a walreceiver may be gone
				synctest.Wait()
				if note := tr.State().Note; !strings.Contains(note, "walreceiver is not streaming") || !strings.Contains(note, "permission denied to start WAL sender") {
					t.Errorf("State has the note %q", note)
				}
				if woken(t, w) {
					t.Error("woken by a position without a timeline")
				}
				calls := s.count("call")
				time.Sleep(time.Second)
				synctest.Wait()
				if n := s.count("call") - calls; n > 0 {
					t.Errorf("%d more calls while they tell no timeline", n)
				}
				streaming.Store(true)
				time.Sleep(DefaultMaxInterval + time.Millisecond)
				if !woken(t, w) || tr.State().Note != "" {
					t.Errorf("when it streams again: %+v", tr.State())
				}
				calls = s.count("call")
				time.Sleep(time.Second)
				synctest.Wait()
				if s.count("call") == calls {
					t.Error("no calls any more")
				}
				later.Cancel()
			})
		})
	}
}

// A standby may have no position to tell: the question says why.
func TestFastpathWithoutAPositionFallsBackToTheFullQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		var silent atomic.Bool
		s := fastScript(t, &lsn, func() []byte { return binaryRecord([]byte("streaming"), uint32Bytes(1)) })
		call, answer := s.call, s.answer
		s.call = func(conn int, function uint32) []byte {
			if function == positionFunction && silent.Load() {
				return nil
			}
			return call(conn, function)
		}
		s.answer = func(conn int, query string) ([][]*string, error) {
			rows, err := answer(conn, query)
			if query == lookQuery && silent.Load() {
				rows[0][2] = nil
			}
			return rows, err
		}
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		silent.Store(true)
		w := tr.Request(tok(200))
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if st := tr.State(); st.Failure != nil || !strings.Contains(st.Note, "has not begun to replay") {
			t.Errorf("note %q, failure %v", st.Note, st.Failure)
		}
		silent.Store(false)
		lsn.Store(200)
		time.Sleep(DefaultMaxInterval + time.Millisecond)
		if !woken(t, w) || tr.Stats().Failures != 0 {
			t.Errorf("%+v after %d failures", tr.State(), tr.Stats().Failures)
		}
	})
}

func TestFastpathRefusesWhatAServerWouldNotSay(t *testing.T) {
	for name, c := range map[string]struct {
		position, record []byte
	}{
		"a position of 7 bytes":   {make([]byte, 7), binaryRecord(nil, uint32Bytes(1))},
		"a position of 9 bytes":   {make([]byte, 9), binaryRecord(nil, uint32Bytes(1))},
		"an empty position":       {[]byte{}, binaryRecord(nil, uint32Bytes(1))},
		"an empty record":         {uint64Bytes(200), []byte{}},
		"too few fields":          {uint64Bytes(200), binaryRecord([]byte("streaming"))},
		"a record that ends":      {uint64Bytes(200), binaryRecord([]byte("streaming"), uint32Bytes(1))[:20]},
		"fields without end":      {uint64Bytes(200), []byte{0xff, 0xff, 0xff, 0xff}},
		"a length below NULL's":   {uint64Bytes(200), []byte{0, 0, 0, 2, 0, 0, 0, 25, 0x80, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 4, 0, 0, 0, 1}},
		"a timeline of 5 bytes":   {uint64Bytes(200), binaryRecord(nil, []byte{0, 0, 0, 0, 1})},
		"a length beyond the end": {uint64Bytes(200), []byte{0, 0, 0, 2, 0, 0, 0, 25, 0x7f, 0xff, 0xff, 0xff, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lsn atomic.Uint64
				lsn.Store(100)
				s := fastScript(t, &lsn, nil)
				s.call = func(_ int, function uint32) []byte {
					time.Sleep(queryTakes)
					if function == positionFunction {
						return c.position
					}
					return c.record
				}
				tr := laddered(t, s, Config{Use: []Kind{Poll}})
				w := tr.Request(tok(200))
				var st tracker.State
				for start := time.Now(); st.Failure == nil && time.Since(start) < 2*closeTimeout; time.Sleep(time.Millisecond) {
					st = tr.State()
				}
				if st.Known || st.Failure == nil || !strings.Contains(st.Failure.Error(), "replication: a ") {
					t.Errorf("%+v", st)
				}
				if woken(t, w) {
					t.Error("woken by it")
				}
				w.Cancel()
			})
		})
	}
}

func TestFastpathIsNotUsedOverAPoolerOrAWalsender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := fastScript(t, &lsn, nil)
		s.call = nil // which gives the connection another process number
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		lsn.Store(200)
		if err := tr.Wait(t.Context(), tok(200)); err != nil {
			t.Error(err)
		}
		if s.count(fastQuery) != 0 {
			t.Error("the functions were looked up")
		}
		if o, _ := tr.LastReplay(); o.LSN != tracker.LSN(200) {
			t.Errorf("%+v", o)
		}
	})
}

// A question of two calls, the first of which somebody cancels, tells nothing:
// the second call's result must not be taken for the first's.
func TestFastpathOfWhichTheFirstCallIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lsn atomic.Uint64
		lsn.Store(100)
		s := fastScript(t, &lsn, func() []byte { return binaryRecord([]byte("streaming"), uint32Bytes(1)) })
		var cancelled atomic.Int32
		s.callFails = func(function uint32) error {
			if function == positionFunction && lsn.Load() == 200 && cancelled.Add(1) <= 3 {
				return &pgconn.PgError{Severity: "ERROR", Code: queryCanceled, Message: "canceling statement due to user request"}
			}
			return nil
		}
		tr := laddered(t, s, Config{Use: []Kind{Poll}})
		w := tr.Request(tok(200))
		lsn.Store(200)
		time.Sleep(10 * time.Millisecond)
		if !woken(t, w) {
			t.Error("not woken by the question after it")
		}
		if st := tr.Stats(); st.Epochs != 1 || st.Failures != 0 || cancelled.Load() <= 3 {
			t.Errorf("%+v, %d calls", st, cancelled.Load())
		}
	})
}
