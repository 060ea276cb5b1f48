package metrics

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walwake/walwake/tracker"
)

// How a wait may end, for the label result.
const (
	replayed    = "replayed"
	timeout     = "timeout"
	canceled    = "canceled"
	diverged    = "diverged"
	wrongSystem = "wrong_system"
	refused     = "refused"
)

// resultOf says how a wait ended, as tracker.Stats counts it.
func resultOf(err error) string {
	switch {
	case err == nil:
		return replayed
	case errors.Is(err, tracker.ErrTimeout):
		return timeout
	case errors.Is(err, tracker.ErrDiverged):
		return diverged
	case errors.Is(err, tracker.ErrWrongSystem):
		return wrongSystem
	case errors.Is(err, tracker.ErrTooManyWaiters), errors.Is(err, tracker.ErrClosed):
		return refused
	}
	return canceled // by Cancel, or the caller's context
}

// buckets are the classic ones, in seconds: from a replica that keeps up to one
// that does not.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// newWaits is a tracker's histogram, in both forms: Prometheus takes the native one
// where it is told to.
func newWaits() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:                            waitDuration.name,
		Help:                            waitDuration.help,
		Buckets:                         buckets,
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  160,
		NativeHistogramMinResetDuration: time.Hour,
	}, waitDuration.labels)
}

// timed has waits recorded before next, which may be nil, is called.
func (e *entry) timed(next func(context.Context, tracker.WaitResult)) func(context.Context, tracker.WaitResult) {
	return func(ctx context.Context, r tracker.WaitResult) {
		e.waits.WithLabelValues(e.name, resultOf(r.Err)).Observe(r.Waited.Seconds())
		if next != nil {
			next(ctx, r)
		}
	}
}
