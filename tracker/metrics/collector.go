package metrics

import (
	"fmt"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walwake/walwake/tracker"
)

// Config configures a Collector.
type Config struct {
	// Refresh bounds how long a scrape waits for the replicas to say where they are
	// now. While nobody waits they are asked seldom otherwise, and position and lag
	// would be as old as that. 0 means DefaultRefresh; negative: they are not asked.
	Refresh time.Duration
}

// DefaultRefresh is what a zero Config.Refresh means.
const DefaultRefresh = 100 * time.Millisecond

// A Collector is a prometheus.Collector for the trackers that it makes. A nil
// *Collector makes trackers that nothing is collected of.
type Collector struct {
	cfg Config

	mu      sync.Mutex
	entries []*entry // of trackers that are not known to be closed; in order of age
}

var _ prometheus.Collector = (*Collector)(nil)

// entry is one tracker.
type entry struct {
	tr    *tracker.Tracker
	name  string
	since time.Time
	waits *prometheus.HistogramVec
}

// New returns a Collector without trackers. Register it once.
func New(cfg Config) *Collector {
	if cfg.Refresh == 0 {
		cfg.Refresh = DefaultRefresh
	}
	return &Collector{cfg: cfg}
}

// NewTracker is tracker.New, and has the Collector show the Tracker until it is
// closed. The functions of cfg.Observer are called as without it. Names must
// differ: it is an error to use that of a Tracker that is not closed. It is one
// too when cfg.Name is not UTF-8, which Prometheus cannot show.
func (c *Collector) NewTracker(cfg tracker.Config) (*tracker.Tracker, error) {
	if c == nil {
		return tracker.New(cfg)
	}
	if !utf8.ValidString(cfg.Name) {
		return nil, fmt.Errorf("metrics: Config.Name %q is not UTF-8: Prometheus shows nothing else", cfg.Name)
	}
	e := &entry{since: time.Now(), waits: newWaits()}
	cfg.Observer.WaitEnd = e.timed(cfg.Observer.WaitEnd)
	tr, err := tracker.New(cfg)
	if err != nil {
		return nil, err
	}
	e.tr, e.name = tr, tr.State().Name
	e.waits.WithLabelValues(e.name, replayed) // there from the start, so that the first one counts in a rate
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pruneLocked()
	if slices.ContainsFunc(c.entries, func(other *entry) bool { return other.name == e.name }) {
		return nil, fmt.Errorf("metrics: a tracker named %q is there already: give each its own Config.Name, or close the other first", e.name)
	}
	c.entries = append(c.entries, e)
	return tr, nil
}

// pruneLocked forgets trackers that are closed.
func (c *Collector) pruneLocked() {
	c.entries = slices.DeleteFunc(c.entries, func(e *entry) bool { return e.tr.State().Closed })
}

// Describe sends all descriptions.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range all {
		out <- m.desc
	}
}

// Collect sends the metrics of all trackers. It blocks while the replicas are
// asked, for Config.Refresh at most.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	c.pruneLocked()
	entries := slices.Clone(c.entries)
	c.mu.Unlock()
	c.refresh(entries)
	for _, e := range entries {
		e.collect(out)
	}
}

// refreshStep is how often it is looked whether the replicas have answered: a
// Tracker does not tell that of a position that is the same as before.
const refreshStep = time.Millisecond

// refresh has all replicas asked where they are, and returns when they have
// answered or the time for it is up. Nobody is waited for whose position is unknown.
func (c *Collector) refresh(entries []*entry) {
	if c.cfg.Refresh < 0 {
		return
	}
	began := time.Now()
	for _, e := range entries {
		e.tr.Refresh()
	}
	pending := slices.Clone(entries)
	for {
		pending = slices.DeleteFunc(pending, func(e *entry) bool {
			s := e.tr.State()
			return !s.Known || !s.ObservedAt.Before(began)
		})
		left := c.cfg.Refresh - time.Since(began)
		if len(pending) == 0 || left <= 0 {
			return
		}
		time.Sleep(min(refreshStep, left))
	}
}
