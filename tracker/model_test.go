package tracker

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// naive is the tracker's model: no lists, no atomics, no shortcuts. It decides
// each waiter anew after each step, in the words of the invariants.
type naive struct {
	known   bool
	now     Observation
	earlier []Observation // of this epoch, while now.Timeline is not known
	waiting map[*Waiter]Token
}

func (m *naive) verdict(tok Token) error {
	if tok == (Token{}) {
		return nil
	}
	if !m.known {
		return errPending
	}
	return m.verdictAt(m.now, tok)
}

var errPending = errors.New("goes on waiting")

func (m *naive) verdictAt(o Observation, tok Token) error {
	if tok.System != 0 {
		if o.System == 0 {
			return errPending
		}
		if o.System != tok.System {
			return ErrWrongSystem
		}
	}
	if tok.Timeline != 0 && o.Timeline == 0 {
		for _, e := range m.earlier {
			if err := m.verdictAt(e, tok); err == nil || errors.Is(err, ErrDiverged) {
				return err
			}
		}
		return errPending
	}
	if tok.Timeline != 0 && tok.Timeline != o.Timeline {
		if tok.Timeline > o.Timeline || o.History == nil {
			return errPending
		}
		ancestor := false
		for _, f := range o.History {
			if f.Timeline == tok.Timeline {
				ancestor = tok.LSN <= f.End
			}
		}
		if !ancestor {
			return ErrDiverged
		}
	}
	if tok.LSN > o.LSN {
		return errPending
	}
	return nil
}

// observe takes o as the tracker should: a newer epoch or another timeline
// replaces what was known, the same one only moves it on.
func (m *naive) observe(o Observation) {
	if m.known && m.now.Epoch == o.Epoch {
		same := m.now.System == o.System && m.now.Timeline == o.Timeline
		switch {
		case same && (m.now.History == nil) == (o.History == nil):
			o.LSN = max(o.LSN, m.now.LSN)
			o.History = m.now.History
		case m.now.System != o.System || o.Timeline != 0:
			m.earlier = nil
		case m.now.Timeline != 0:
			m.earlier = []Observation{m.now}
		}
	} else {
		m.earlier = nil
	}
	m.known, m.now = true, o
}

var (
	genTimeline = rapid.SampledFrom([]uint32{0, 1, 1, 2, 3})
	genSystem   = rapid.SampledFrom([]uint64{0, 7, 7, 7, 7, 7, 8})
	genLSN      = rapid.Uint64Range(0, 100)
	histories   = map[uint32][]History{
		0: {nil},
		1: {nil, {}},
		2: {nil, {{Timeline: 1, End: 40}}},
		3: {nil, {{Timeline: 1, End: 40}, {Timeline: 2, End: 60}}, {{Timeline: 1, End: 50}}},
	}
)

// TestTrackerDoesWhatTheModelDoes covers requests, cancels, observations,
// timelines, epochs that overlap, and ends in any order, and compares who
// waits and how each wait ended.
func TestTrackerDoesWhatTheModelDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr, err := New(Config{Source: noSource{}, MaxWaiters: 200})
		if err != nil {
			t.Fatal(err)
		}
		feed := tr.openFeed()
		m := &naive{waiting: map[*Waiter]Token{}}
		var all []*Waiter
		var epochs []*Epoch
		newest := func() uint64 {
			if m.known {
				return m.now.Epoch
			}
			return 0
		}
		t.Repeat(map[string]func(*rapid.T){
			"request": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					tok := Token{genSystem.Draw(t, "system"), genTimeline.Draw(t, "timeline"), LSN(genLSN.Draw(t, "lsn"))}
					w := tr.Request(tok)
					if want := m.verdict(tok); want == errPending && len(m.waiting) == 200 { //nolint:errorlint // ours, never wrapped
						expectEnded(t, w, ErrTooManyWaiters)
					} else if want == errPending { //nolint:errorlint // as above
						m.waiting[w] = tok
						all = append(all, w)
					} else {
						expectEnded(t, w, want)
					}
				}
			},
			"cancel": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip("nobody")
				}
				w := all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
				_, waits := m.waiting[w]
				w.Cancel()
				if waits {
					expectEnded(t, w, ErrCanceled)
					delete(m.waiting, w)
				}
			},
			"begin": func(*rapid.T) { epochs = append(epochs, feed.Begin()) },
			"end": func(t *rapid.T) {
				if len(epochs) == 0 {
					t.Skip("none")
				}
				e := rapid.SampledFrom(epochs).Draw(t, "epoch")
				e.End()
				if m.known && m.now.Epoch == e.n {
					m.known = false
				}
			},
			"observe": func(t *rapid.T) {
				if len(epochs) == 0 {
					t.Skip("none")
				}
				e := rapid.SampledFrom(epochs).Draw(t, "epoch")
				o := Observation{System: genSystem.Draw(t, "system"), Timeline: genTimeline.Draw(t, "timeline"), LSN: LSN(genLSN.Draw(t, "lsn"))}
				o.History = rapid.SampledFrom(histories[o.Timeline]).Draw(t, "history")
				if m.known && m.now.Epoch == e.n && m.now.Timeline == o.Timeline && m.now.History != nil && o.History != nil {
					o.History = m.now.History // one epoch has one history of a timeline
				}
				e.Observe(o)
				if o.Epoch = e.n; !e.ended && e.n >= newest() {
					m.observe(o)
				}
			},
			"": func(t *rapid.T) { compare(t, tr, m, all) },
		})
		tr.Close()
		for w := range m.waiting {
			expectEnded(t, w, ErrClosed)
		}
	})
}

func expectEnded(t *rapid.T, w *Waiter, want error) {
	t.Helper()
	select {
	case <-w.Done():
	default:
		t.Fatalf("wait for %v goes on, want it ended with %v", w.Token(), want)
	}
	if err := w.Err(); want == nil && err != nil || !errors.Is(err, want) {
		t.Fatalf("wait for %v ended with %v, want %v", w.Token(), err, want)
	}
}

func compare(t *rapid.T, tr *Tracker, m *naive, all []*Waiter) {
	t.Helper()
	for w, tok := range m.waiting {
		//nolint:errorlint // ours, never wrapped
		if want := m.verdict(tok); want != errPending {
			expectEnded(t, w, want)
			delete(m.waiting, w)
		}
	}
	for i, w := range all {
		if tok, waits := m.waiting[w]; waits {
			if i%4 == 0 { // sometimes nobody has asked for the channel when the wait ends
				continue
			}
			select {
			case <-w.Done():
				t.Fatalf("wait for %v ended with %v, early", tok, w.Err())
			default:
			}
		}
	}
	if got := tr.Stats().Waiting; got != len(m.waiting) {
		t.Fatalf("%d wait, want %d", got, len(m.waiting))
	}
	for _, tok := range []Token{{}, {LSN: 50}, {7, 1, 30}, {7, 1, 45}, {7, 2, 45}, {7, 2, 61}, {7, 3, 99}, {8, 1, 1}} {
		if got, want := tr.Replayed(tok), m.verdict(tok) == nil; got != want {
			t.Fatalf("Replayed(%v) = %v, want %v at %+v", tok, got, want, m.now)
		}
	}
	if o, known := tr.LastReplay(); known != m.known || known && (o.LSN != m.now.LSN || o.Epoch != m.now.Epoch) {
		t.Fatalf("LastReplay = %+v %v, want %+v %v", o, known, m.now, m.known)
	}
}
