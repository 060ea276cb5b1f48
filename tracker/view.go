package tracker

import (
	"fmt"
	"sync/atomic"
)

// view is what one epoch says of the replica on one timeline. All but lsn is
// fixed, so a reader that holds a view never sees the position of one
// timeline with the name of another.
type view struct {
	lsn      atomic.Uint64 // replayed up to here; only rises
	system   uint64        // 0: not known
	timeline uint32        // 0: not known
	primary  bool
	history  History // how timeline came about; nil: not known
	epoch    uint64

	// vouched is, while timeline is not known, the view of the same epoch in
	// which it last was. What that view had replayed stays replayed.
	vouched *view
}

// verdict is what a view says of a token.
type verdict uint8

const (
	replayed    verdict = iota
	behind              // its position is not replayed yet
	unvouched           // its position is replayed, but not known to be on its timeline and system
	diverged            // a lost write
	wrongSystem         // a write of another cluster
)

// passed is judge's commonest way to say replayed, small enough to be inlined.
func (v *view) passed(tok Token) bool {
	return v.reached(tok) && v.timeline == tok.Timeline && v.system == tok.System
}

// judge is the one place that decides whether a token is replayed; nil is the
// view while nothing is known. It never says replayed where system or timeline
// could not be verified: numbers alone are equal on timelines that have parted
// (PostgreSQL's timeline.c, tliSwitchPoint).
//
// All that it calls is inlined, so that it needs no stack: Replayed is this
// call, and takes a quarter less time.
func (v *view) judge(tok Token) verdict {
	if v == nil {
		if tok == (Token{}) {
			return replayed
		}
		return behind
	}
	if v.passed(tok) {
		return replayed
	}
	unsure := behind
	if v.reached(tok) {
		unsure = unvouched
	}
	if tok.System != 0 && tok.System != v.system {
		if v.system == 0 {
			return unsure
		}
		return wrongSystem
	}
	if tok.Timeline != 0 {
		if v.timeline == 0 && v.vouched != nil {
			v = v.vouched
		}
		switch {
		case tok.Timeline == v.timeline:
		case tok.Timeline > v.timeline || v.history == nil:
			return unsure
		default:
			// The token is of an older timeline: what was written to it before this
			// history left it is part of this history. Timelines grow in number, so an
			// older one that the history does not name is not an ancestor.
			if end, ok := v.history.End(tok.Timeline); !ok || tok.LSN > end {
				return diverged
			}
		}
	}
	if v.reached(tok) {
		return replayed
	}
	return unsure
}

func (v *view) reached(tok Token) bool { return v.lsn.Load() >= uint64(tok.LSN) }

// err is the error for a verdict that ends a wait; nil for replayed.
func (v *view) err(d verdict, tok Token, replica string) error {
	switch d {
	case diverged:
		at := v
		if v.timeline == 0 && v.vouched != nil {
			at = v.vouched
		}
		end, _ := at.history.End(tok.Timeline)
		return &DivergedError{Replica: replica, Token: tok, Timeline: at.timeline, Fork: end}
	case wrongSystem:
		return fmt.Errorf("%w: %s is of system %d, token %s of system %d", ErrWrongSystem, replica, v.system, tok.LSN, tok.System)
	}
	return nil
}

// pending reports whether a waiter with this verdict goes on waiting.
func (d verdict) pending() bool { return d == behind || d == unvouched }

func (v *view) observation() Observation {
	return Observation{
		LSN:      LSN(v.lsn.Load()),
		System:   v.system,
		Timeline: v.timeline,
		History:  v.history,
		Primary:  v.primary,
		Epoch:    v.epoch,
	}
}
