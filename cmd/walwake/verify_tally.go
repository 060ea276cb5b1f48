package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/walwake/walwake/tracker"
)

// How a read was made.
const (
	atOnce = iota // without waiting
	waited
)

// verifyCounts is what the writers of a verification saw.
type verifyCounts struct {
	writes      int64
	reads       [2]int64 // atOnce, waited; without those that failed
	stale       [2]int64
	timeouts    int64
	lost        int64
	errors      int64
	verifyFirst // of what went wrong; of the rest the number will do
}

type verifyFirst struct{ firstStale, firstTimeout, firstLost, firstError error }

// verifyTally counts for all writers. It does not grow.
type verifyTally struct {
	mu   sync.Mutex
	all  verifyCounts            // guarded by mu
	took *hdrhistogram.Histogram // of waits that succeeded, in µs; guarded by mu
}

func newVerifyTally(longest time.Duration) *verifyTally {
	return &verifyTally{took: hdrhistogram.New(1, max(longest.Microseconds(), 1000), 3)}
}

func (t *verifyTally) wrote() { t.count(func(c *verifyCounts) { c.writes++ }) }

// read counts a read; stale says in what it was, nil: it was not.
func (t *verifyTally) read(how int, stale error) {
	t.count(func(c *verifyCounts) {
		c.reads[how]++
		if stale != nil {
			c.stale[how]++
		}
		if how == waited {
			first(&c.firstStale, stale)
		}
	})
}

func (t *verifyTally) timeout(err error) {
	t.count(func(c *verifyCounts) { c.timeouts++; first(&c.firstTimeout, err) })
}

func (t *verifyTally) lose(err error) {
	t.count(func(c *verifyCounts) { c.lost++; first(&c.firstLost, err) })
}

func (t *verifyTally) failed(err error) {
	t.count(func(c *verifyCounts) { c.errors++; first(&c.firstError, err) })
}

func first(kept *error, err error) {
	if *kept == nil {
		*kept = err
	}
}

func (t *verifyTally) count(f func(*verifyCounts)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.all)
}

// replayed notes how long a write took from COMMIT acknowledged to the wait's end.
func (t *verifyTally) replayed(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	us := min(max(took.Microseconds(), 1), t.took.HighestTrackableValue())
	_ = t.took.RecordValue(us) // it is in range
}

func (t *verifyTally) counts() verifyCounts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all
}

// latency is nil when no wait succeeded.
func (t *verifyTally) latency() *verifyLatency {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.took.TotalCount() == 0 {
		return nil
	}
	at := t.took.ValueAtPercentile
	return &verifyLatency{P50: at(50), P90: at(90), P99: at(99), Max: t.took.Max()}
}

var errUnverified = errors.New("no read was made after waiting: give it a longer --duration, or a higher --rate")

// verdict is the error that the counts stand for; nil when all is well.
func (c *verifyCounts) verdict() error {
	switch {
	case c.stale[waited] > 0:
		return fmt.Errorf("%d of %d: %w, unless the replica's connection string leads to several servers: %w",
			c.stale[waited], c.reads[waited], errStale, c.firstStale)
	case c.lost > 0:
		return fmt.Errorf("%d of %d writes lost, the first: %w", c.lost, c.writes, c.firstLost)
	case c.timeouts > 0:
		return fmt.Errorf("%d of %d writes were not replayed in time, the first: %w", c.timeouts, c.writes, c.firstTimeout)
	case c.reads[waited] == 0:
		return errUnverified
	}
	return nil
}

// result names how it ended.
func (c *verifyCounts) result(ctx context.Context, err error) string {
	_, interrupted := errors.AsType[*interruptedError](context.Cause(ctx))
	switch {
	case c.stale[waited] > 0:
		return "stale"
	case errors.Is(err, tracker.ErrDiverged):
		return "lost"
	case interrupted:
		return "interrupted"
	case errors.Is(err, tracker.ErrWrongSystem):
		return "wrong_system"
	case errors.Is(err, tracker.ErrTimeout):
		return "timeouts"
	case err != nil:
		return "errors"
	}
	return "ok"
}

// verifyAnswer is what --json prints.
type verifyAnswer struct {
	Result       string         `json:"result"`
	Writes       int64          `json:"writes"`
	Reads        int64          `json:"reads"`
	ReadsWithout int64          `json:"reads_without"`
	ReadsWith    int64          `json:"reads_with"`
	StaleWithout int64          `json:"stale_without"`
	StaleWith    int64          `json:"stale_with"`
	Timeouts     int64          `json:"timeouts"`
	Lost         int64          `json:"lost"`
	Errors       int64          `json:"errors"`
	Rate         float64        `json:"rate"`
	Source       string         `json:"source"`
	Seconds      float64        `json:"seconds"`
	Latency      *verifyLatency `json:"latency_us"` // null: no wait succeeded
	Error        string         `json:"error,omitempty"`
}

// verifyLatency is from COMMIT acknowledged to Wait returned.
type verifyLatency struct {
	P50 int64 `json:"p50"`
	P90 int64 `json:"p90"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

func (r *verification) result(c verifyCounts) *verifyAnswer {
	a := &verifyAnswer{
		Writes: c.writes, Reads: c.reads[atOnce] + c.reads[waited], ReadsWithout: c.reads[atOnce], ReadsWith: c.reads[waited],
		StaleWithout: c.stale[atOnce], StaleWith: c.stale[waited], Timeouts: c.timeouts, Lost: c.lost, Errors: c.errors,
		Source: r.using, Seconds: math.Round(r.took.Seconds()*1e3) / 1e3, Latency: r.tally.latency(),
	}
	if r.took > 0 {
		a.Rate = math.Round(float64(c.writes)/r.took.Seconds()*10) / 10
	}
	return a
}

// table is what a person reads at the end.
func (a *verifyAnswer) table(r *verification) string {
	text := fmt.Sprintf("A row is written on %s, then read on %s (source %s): %d writes in %s, %.4g a second.\n\n",
		r.primaryServer, r.replicaServer, a.Source, a.Writes, short(r.took), a.Rate)
	wait := []string{"-", "-", "-", "-"}
	if l := a.Latency; l != nil {
		wait = []string{micros(l.P50), micros(l.P90), micros(l.P99), micros(l.Max)}
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	text += columns([][]string{
		{"READ", "READS", "STALE", "TIMEOUTS", "LOST", "WAIT p50", "p90", "p99", "max"},
		{"without waiting", number(a.ReadsWithout), number(a.StaleWithout), "-", "-", "-", "-", "-", "-"},
		append([]string{"with waiting", number(a.ReadsWith), number(a.StaleWith), number(a.Timeouts), number(a.Lost)}, wait...),
	})
	text += "\nWAIT: from COMMIT acknowledged to Wait returned, asking the primary for the token included.\n"
	return text + fmt.Sprintf("\nStale reads: %d without waiting, %d with it. Errors: %d.\n", a.StaleWithout, a.StaleWith, a.Errors)
}
