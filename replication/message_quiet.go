package replication

import (
	"sync/atomic"
	"time"
)

// quiet decides when to ping a stream of which nobody knows what is to come. The
// walsender may miss that something was replayed when it has just looked and not
// gone to sleep yet, so what is missed follows something that came. A server that
// always sends is never pinged, and one that never does neither.
type quiet struct {
	over   chan struct{} // has room for one: something has come, when nobody was to look again
	dozing atomic.Bool   // nobody is to look again
	seen   uint64
	pause  time.Duration
}

// firstLook is how long after something came nothing has to have come for a ping.
const firstLook = time.Millisecond

// look returns after what time to look again, 0: not until something comes, and
// whether to ping now.
func (q *quiet) look(received *atomic.Uint64) (again time.Duration, ping bool) {
	at := received.Load()
	if at == q.seen && q.pause >= lastPing {
		q.dozing.Store(true)
		if at = received.Load(); at == q.seen {
			return 0, false
		}
		q.dozing.Store(false)
	}
	if ping = at == q.seen; ping {
		q.pause = max(2*q.pause, firstLook)
	} else {
		q.seen, q.pause = at, firstLook
	}
	return q.pause, ping
}

// came is called by the reader when something has come.
func (q *quiet) came() {
	if q.dozing.Load() && q.dozing.CompareAndSwap(true, false) {
		select {
		case q.over <- struct{}{}:
		default: // it has yet to take the last one
		}
	}
}
