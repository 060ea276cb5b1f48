package ryw

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/tracker"
)

const (
	measureEvery = 10 * time.Second
	measureFor   = time.Second // a replica that does not answer within it is as far
	measurePings = 3           // of which the shortest counts: the others met something else

	// aboutAsNear is how much further than the nearest counts as near: a tenth of a
	// millisecond is noise within one zone, between two there is half a millisecond.
	aboutAsNear = 200 * time.Microsecond
)

// distance is how far a replica is.
type distance struct {
	trip     atomic.Int64 // in nanoseconds; 0: not measured yet
	measured atomic.Int64 // when, in nanoseconds since began
}

var began = time.Now()

// roundTrip is the one that was measured last; 0 before.
func (d *distance) roundTrip() time.Duration { return time.Duration(d.trip.Load()) }

// due reports, to one who asks, that it is to be measured.
func (d *distance) due() bool {
	last, now := d.measured.Load(), int64(time.Since(began))
	return (last == 0 || now-last > int64(measureEvery)) && d.measured.CompareAndSwap(last, now)
}

// near is up to which round trip a replica counts as near, of those that may be
// read from. All that are due are measured, in the background: also those that
// nobody reads from, which would stay far otherwise.
func (c *core) near(tok tracker.Token, not []*replica) time.Duration {
	nearest := measureFor
	for _, r := range c.replicas {
		if r.due() {
			go r.measure()
		}
		if r.may(tok, not) {
			nearest = min(nearest, r.roundTrip())
		}
	}
	return max(nearest+aboutAsNear, nearest+nearest/2)
}

// measure measures the round trip to r.
func (r *replica) measure() {
	ctx, cancel := context.WithTimeout(context.Background(), measureFor)
	defer cancel()
	shortest := measureFor
	defer func() { r.trip.Store(int64(shortest)) }()
	l, err := r.take(ctx)
	if err != nil {
		return
	}
	defer l.release()
	for range measurePings {
		start := time.Now()
		if err := l.ping(ctx); err != nil {
			return
		}
		shortest = min(shortest, time.Since(start))
	}
}
