package replication

import (
	"sync/atomic"
	"time"
)

// deadline calls what it was made with when something that began is not done in
// time. Beginning and being done are cheap, where resetting a timer each time
// would wake a thread of the runtime: the timer runs on, and looks when it fires.
// One goroutine at a time may begin, and one be done.
type deadline struct {
	due   atomic.Int64 // in ns since madeAt; 0: nothing is under way
	armed atomic.Bool  // the timer will fire
	timer *time.Timer

	madeAt time.Time
}

func newDeadline(missed func()) *deadline {
	d := &deadline{madeAt: time.Now()}
	d.timer = time.AfterFunc(time.Hour, func() { d.look(missed) })
	d.timer.Stop()
	return d
}

// begin says that something is to be done within limit.
func (d *deadline) begin(limit time.Duration) {
	d.due.Store(int64(time.Since(d.madeAt) + limit))
	if d.armed.CompareAndSwap(false, true) {
		d.timer.Reset(limit)
	}
}

func (d *deadline) done() { d.due.Store(0) }

func (d *deadline) look(missed func()) {
	d.armed.Store(false) // before due is read: what begins now arms it
	due := d.due.Load()
	left := time.Duration(due) - time.Since(d.madeAt)
	switch {
	case due == 0:
	case left <= 0:
		missed()
	case d.armed.CompareAndSwap(false, true):
		d.timer.Reset(left)
	}
}
