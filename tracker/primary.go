package tracker

import (
	"math"
	"time"
)

// announced is the furthest position of the primary that PrimaryAt was told: see lowerAfter.
type announced struct {
	at    Token // zero before the first
	heard time.Time
}

// PrimaryAt says that the primary has come to tok, as somebody knows who has
// asked it: package pgnotify brings what writers announce. State then says how
// far behind the replica is (see its BehindKnown), and TimeoutError whether the
// token was beyond what the primary has written, as far as is known.
//
// Positions may come late and in any order: the furthest is kept, where a later
// timeline is further than an earlier one. When for 3 s only lower ones have come,
// the next takes its place: a primary that crashed is back without what it had not
// flushed, or one that was on a later timeline is none any more. Until then they
// are not heard, and PrimaryHeard grows old. What lacks system or timeline, or is
// of another system than the replica, is ignored. It does not block, and neither
// wakes nor ends a wait: what the primary has written the replica need not have
// replayed, and what was announced last is less than what the primary has
// written since.
func (t *Tracker) PrimaryAt(tok Token) {
	if tok.System == 0 || tok.Timeline == 0 {
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.view.Load()
	if v != nil && v.system != 0 && v.system != tok.System {
		return
	}
	was := t.announced.at
	if was.System == tok.System && was.Compare(tok) > 0 && !t.staysLowerLocked(now) {
		return
	}
	t.announced, t.lowerSince = announced{tok, now}, time.Time{}
	if was.System != tok.System || was.Timeline != tok.Timeline {
		t.trail = nil
	}
	t.trail.upTo(tok.LSN)
	var at LSN
	if v != nil {
		at = LSN(v.lsn.Load())
	}
	t.trail.told(t.announced, at)
}

// lowerAfter is for how long only lower positions have to be announced until they
// are believed. Announcements of several writers overtake each other by about a
// second. One that could not be sent for long comes alone: its writer's next is of
// what the primary has written by then.
const lowerAfter = 3 * time.Second

// staysLowerLocked takes down that a lower position was announced, and reports
// whether it is to be believed.
func (t *Tracker) staysLowerLocked(now time.Time) bool {
	if t.lowerSince.IsZero() {
		t.lowerSince = now
	}
	return now.Sub(t.lowerSince) >= lowerAfter
}

// Refresh has the source look where the replica is, as if somebody had just begun
// to wait: while nobody does it looks seldom, and State's position and lag are of
// ObservedAt. It does not block; a round trip to the replica later State knows.
// While the position is unknown it does nothing: the source is at it anyway.
func (t *Tracker) Refresh() {
	t.mu.Lock()
	v := t.view.Load()
	if v == nil || t.closed {
		t.mu.Unlock()
		return
	}
	t.seq++
	w := &Waiter{t: t, lsn: LSN(v.lsn.Load()) + 1, seq: t.seq, uncounted: true}
	t.placeLocked(w, behind)
	t.mu.Unlock()
	t.signalDemand()
	t.mu.Lock()
	if w.place != over {
		t.listOf(w).remove(w)
		w.finishLocked(nil)
	}
	idle := t.waitingLocked() == 0
	t.mu.Unlock()
	if idle {
		t.signalDemand()
	}
}

// primaryLocked returns what is known of the primary whose WAL v replays: nothing
// where v, which may be nil, is of another system or of a later timeline, which
// then nobody has announced yet. leads says that v's position is known to be on
// the way to the primary's.
func (t *Tracker) primaryLocked(v *view) (p announced, leads bool) {
	p = t.announced
	if v == nil || p.at.IsZero() {
		return p, false
	}
	at := Token{v.system, v.timeline, LSN(v.lsn.Load())}
	if at.Timeline == 0 && v.vouched != nil {
		at.Timeline = v.vouched.timeline
	}
	d := t.wayLocked(p.at).judge(at)
	switch {
	case d == wrongSystem || at.Timeline > p.at.Timeline:
		return announced{}, false
	case at.Timeline == 0 && p.at.Timeline > 1: // judge takes it for a bare LSN
		return p, false
	}
	return p, d == replayed
}

// wayLocked is the view of a server that has replayed all that leads to at, and is
// on its timeline: it judges positions of replicas as a replica's does tokens. The
// timeline's history is known where the replica was on it before, and is not any
// more: it crashed, or another answers now.
func (t *Tracker) wayLocked(at Token) *view {
	way := &view{system: at.System, timeline: at.Timeline}
	way.lsn.Store(math.MaxUint64)
	if v := t.latest; v != nil && v.system == at.System && v.timeline == at.Timeline {
		way.history = v.history
	}
	return way
}

// announcedWithin is the time in which an announcement is expected: what was
// captured less than that before may be under way.
const announcedWithin = 250 * time.Millisecond

// aheadOf returns by how many bytes tok is beyond the primary's position, after
// it was waited for; 0 when it is not, or that cannot be told.
func (p announced) aheadOf(tok Token, waited time.Duration) uint64 {
	switch {
	case p.at.IsZero() || waited < announcedWithin:
		return 0
	case tok.System != 0 && tok.System != p.at.System, tok.Timeline != 0 && tok.Timeline != p.at.Timeline:
		return 0
	}
	return p.at.LSN.Behind(tok.LSN)
}
