package main

import (
	"log/slog"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/tracker/metrics"
)

// serveMetrics is what /metrics shows: the tracker, the sidecar and its process.
type serveMetrics struct {
	trackers *metrics.Collector
	registry *prometheus.Registry
}

func newServeMetrics() *serveMetrics {
	m := &serveMetrics{trackers: metrics.New(metrics.Config{}), registry: prometheus.NewRegistry()}
	m.registry.MustRegister(m.trackers, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *serveMetrics) handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true,
	})
}

// show adds what the server counts.
func (m *serveMetrics) show(stats func() sidecar.Stats) {
	m.registry.MustRegister(sidecarMetrics{stats})
}

// sidecarMetrics collects a server's counts when they are asked for.
type sidecarMetrics struct{ stats func() sidecar.Stats }

var (
	waitsDesc   = prometheus.NewDesc("walwake_sidecar_waits", "Requests of /v1/wait that wait now.", nil, nil)
	streamsDesc = prometheus.NewDesc("walwake_sidecar_streams", "Streams that are open now.", nil, nil)
	droppedDesc = prometheus.NewDesc("walwake_sidecar_streams_dropped_total", "Streams ended because the client did not read.", nil, nil)
	answersDesc = prometheus.NewDesc("walwake_sidecar_answers_total", "Answers by status, but for streams, metrics and the page.", []string{"code"}, nil)
)

// Describe is prometheus.Collector's.
func (sidecarMetrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{waitsDesc, streamsDesc, droppedDesc, answersDesc} {
		c <- d
	}
}

// Collect is prometheus.Collector's.
func (m sidecarMetrics) Collect(c chan<- prometheus.Metric) {
	s := m.stats()
	c <- prometheus.MustNewConstMetric(waitsDesc, prometheus.GaugeValue, float64(s.Waiting))
	c <- prometheus.MustNewConstMetric(streamsDesc, prometheus.GaugeValue, float64(s.Streaming))
	c <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(s.DroppedReaders))
	for code, n := range s.Answers {
		c <- prometheus.MustNewConstMetric(answersDesc, prometheus.CounterValue, float64(n), strconv.Itoa(code))
	}
}
