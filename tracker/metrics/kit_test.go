package metrics_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/metrics"
)

// shared is a primary with one standby for the tests that break nothing.
var shared = sync.OnceValues(func() (*replicationtest.Cluster, error) {
	c, err := replicationtest.New(context.Background(), replicationtest.Options{})
	if err != nil {
		return nil, err
	}
	toClose = c
	return c, c.Primary.Exec(context.Background(), `CREATE TABLE writes (v int)`)
})

var toClose *replicationtest.Cluster

func TestMain(m *testing.M) {
	code := m.Run()
	if toClose != nil {
		if err := toClose.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func cluster(t *testing.T) *replicationtest.Cluster {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// write commits on the primary and returns the token.
func write(t *testing.T, c *replicationtest.Cluster) tracker.Token {
	t.Helper()
	conn, err := c.Primary.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	return writeOn(t, conn)
}

func writeOn(t *testing.T, conn *pgx.Conn) tracker.Token {
	t.Helper()
	if _, err := conn.Exec(t.Context(), `INSERT INTO writes VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	tok, err := replication.Capture(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// follow runs a tracker of the server at dsn until the test ends, and returns it
// when the position is known.
func follow(t *testing.T, m *metrics.Collector, name, dsn string, observer tracker.Observer, use ...replication.Kind) *tracker.Tracker {
	t.Helper()
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: dsn}, Use: use})
	if err != nil {
		t.Fatal(err)
	}
	return run(t, m, tracker.Config{Source: source, Name: name, Timeout: time.Minute, Observer: observer})
}

func run(t *testing.T, m *metrics.Collector, cfg tracker.Config) *tracker.Tracker {
	t.Helper()
	tr, err := m.NewTracker(cfg)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	t.Cleanup(tr.Close)
	select {
	case <-tr.Ready():
	case <-time.After(time.Minute):
		t.Fatalf("not ready: %+v", tr.State())
	}
	return tr
}

// patient is a Collector whose scrapes wait for a busy machine, with its registry.
func patient(t *testing.T) (*metrics.Collector, *prometheus.Registry) {
	t.Helper()
	return registered(t, metrics.Config{Refresh: 30 * time.Second})
}

func registered(t *testing.T, cfg metrics.Config) (*metrics.Collector, *prometheus.Registry) {
	t.Helper()
	m, reg := metrics.New(cfg), prometheus.NewPedanticRegistry()
	if err := reg.Register(m); err != nil {
		t.Fatal(err)
	}
	return m, reg
}

// scraped are values by what Prometheus would show: name{label="value",…}; of a
// histogram the numbers of waits.
type scraped map[string]float64

func scrape(t *testing.T, reg prometheus.Gatherer) scraped {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := scraped{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = value
		}
	}
	return out
}

// of returns the value of a metric of replica db2, and whether there is one.
func (s scraped) of(name string, labels ...string) (float64, bool) {
	v, ok := s[name+"{"+strings.Join(append([]string{`replica="db2"`}, labels...), ",")+"}"]
	return v, ok
}

// want compares values of replica db2: pairs of "name" or `name{label="value"}` and number.
func (s scraped) want(t *testing.T, want map[string]float64) {
	t.Helper()
	for key, value := range want {
		name, labels, _ := strings.Cut(strings.TrimSuffix(key, "}"), "{")
		got, ok := s.of(name, strings.FieldsFunc(labels, func(r rune) bool { return r == ',' })...)
		if !ok || got != value {
			t.Errorf("%s: %v (there: %t), want %v", key, got, ok, value)
		}
	}
}

func (s scraped) absent(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		for key, v := range s {
			if strings.HasPrefix(key, name+"{") {
				t.Errorf("%s is %v: want none", key, v)
			}
		}
	}
}

// eventually scrapes until holds.
func eventually(t *testing.T, reg prometheus.Gatherer, what string, holds func(scraped) bool) scraped {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		s := scrape(t, reg)
		if holds(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s: %v", what, s)
		}
		time.Sleep(time.Millisecond) // not to starve what it waits for
	}
}
