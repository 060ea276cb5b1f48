package prometheus_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// interval is what lies between two scrapes, by the recorder's clock.
const interval = 15 * time.Second

// recorder keeps what a Prometheus would that scrapes every interval: a copy as it is where Prometheus takes native
// histograms, and one as it is where it does not.
type recorder struct {
	from            client.Gatherer
	now             time.Time // of the latest scrape; moved on without waiting
	native, classic series
}

// series are by their labels' text.
type series map[string]*storedSeries

type storedSeries struct {
	labels  labels.Labels
	samples []chunks.Sample
	seen    time.Time
}

func newRecorder(from client.Gatherer) *recorder {
	return &recorder{from: from, now: time.Now(), native: series{}, classic: series{}}
}

// pass lets time pass in which there is no scrape.
func (r *recorder) pass(d time.Duration) { r.now = r.now.Add(d) }

// scrape is one, an interval after the latest.
func (r *recorder) scrape(t *testing.T) {
	t.Helper()
	r.pass(interval)
	for _, form := range []struct {
		format expfmt.Format
		into   series
	}{
		{expfmt.NewFormat(expfmt.TypeProtoDelim), r.native},
		{expfmt.NewFormat(expfmt.TypeOpenMetrics), r.classic},
	} {
		families, err := r.from.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		encoder := expfmt.NewEncoder(&text, form.format)
		for _, f := range families {
			if err := encoder.Encode(f); err != nil {
				t.Fatal(err)
			}
		}
		if closer, ok := encoder.(expfmt.Closer); ok {
			if err := closer.Close(); err != nil {
				t.Fatal(err)
			}
		}
		form.into.take(t, text.Bytes(), string(form.format), r.now)
	}
}

// take parses a scrape as Prometheus does. What was there before and is not any more is marked as stale.
func (s series) take(t *testing.T, text []byte, contentType string, now time.Time) {
	t.Helper()
	p, err := textparse.New(text, contentType, nil, textparse.ParserOptions{OpenMetricsSkipSTSeries: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		sample := sample{at: now.UnixMilli()}
		switch entry {
		case textparse.EntrySeries:
			_, _, sample.float = p.Series()
		case textparse.EntryHistogram:
			_, _, sample.histogram, _ = p.Histogram()
		default:
			continue
		}
		var l labels.Labels
		p.Labels(&l)
		s.add(labels.NewBuilder(l).Set("job", "walwake").Set("instance", "service:7432").Labels(), sample, now)
	}
	for _, one := range s {
		if one.seen.Equal(now.Add(-interval)) {
			one.samples = append(one.samples, sample{at: now.UnixMilli(), float: math.Float64frombits(value.StaleNaN)})
		}
	}
}

func (s series) add(l labels.Labels, one sample, now time.Time) {
	key := l.String()
	if s[key] == nil {
		s[key] = &storedSeries{labels: l}
	}
	s[key].samples, s[key].seen = append(s[key].samples, one), now
}

// Select returns what matches, for PromQL's engine.
func (s series) Select(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found []storage.Series
	for _, key := range slices.Sorted(maps.Keys(s)) {
		one := s[key]
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(one.labels.Get(m.Name)) }) {
			found = append(found, storage.NewListSeries(one.labels, one.samples))
		}
	}
	return &seriesSet{left: found}
}

// seriesSet is a storage.SeriesSet.
type seriesSet struct {
	left []storage.Series
	at   storage.Series
}

func (s *seriesSet) Next() bool {
	if len(s.left) == 0 {
		return false
	}
	s.at, s.left = s.left[0], s.left[1:]
	return true
}

func (s *seriesSet) At() storage.Series                { return s.at }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// names returns which labels each metric has, with their values.
func (s series) names() map[string]map[string][]string {
	out := map[string]map[string][]string{}
	for _, one := range s {
		name := one.labels.Get(model.MetricNameLabel)
		if out[name] == nil {
			out[name] = map[string][]string{}
		}
		one.labels.Range(func(l labels.Label) { out[name][l.Name] = append(out[name][l.Name], l.Value) })
	}
	return out
}

var (
	language = parser.NewParser(parser.Options{})
	engine   = promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, EnableAtModifier: true, EnableNegativeOffset: true, Parser: language})
)

// query evaluates at one instant. NaN is no value.
func (s series) query(t *testing.T, text string, at time.Time) promql.Vector {
	t.Helper()
	from := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{SelectMockFunction: s.Select}}
	q, err := engine.NewInstantQuery(context.Background(), from, nil, text, at)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	defer q.Close()
	result := q.Exec(t.Context())
	if result.Err != nil || len(result.Warnings) > 0 {
		t.Fatalf("%s: %v, %v", text, result.Err, result.Warnings)
	}
	vector, err := result.Vector()
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	vector = slices.Clone(vector)
	return slices.DeleteFunc(vector, func(s promql.Sample) bool { return s.H == nil && math.IsNaN(s.F) })
}

// sample is a chunks.Sample.
type sample struct {
	at        int64
	float     float64
	histogram *histogram.Histogram
}

func (s sample) T() int64                      { return s.at }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.float }
func (s sample) H() *histogram.Histogram       { return s.histogram }
func (s sample) FH() *histogram.FloatHistogram { return s.histogram.ToFloat(nil) }
func (s sample) Copy() chunks.Sample           { return s }
func (s sample) Type() chunkenc.ValueType {
	if s.histogram != nil {
		return chunkenc.ValHistogram
	}
	return chunkenc.ValFloat
}
