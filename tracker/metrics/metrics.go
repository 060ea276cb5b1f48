package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walwake/walwake/tracker"
)

// metric is the description of one.
type metric struct {
	name   string
	kind   prometheus.ValueType // UntypedValue: a histogram
	labels []string             // the first is replica
	help   string
	desc   *prometheus.Desc
}

// all are the metrics, in the order of their definition.
var all []*metric

func define(kind prometheus.ValueType, name, help string, labels ...string) *metric {
	labels = append([]string{"replica"}, labels...)
	m := &metric{name, kind, labels, help, prometheus.NewDesc(name, help, labels, nil)}
	all = append(all, m)
	return m
}

func gauge(name, help string, labels ...string) *metric {
	return define(prometheus.GaugeValue, name, help, labels...)
}

func counter(name, help string, labels ...string) *metric {
	return define(prometheus.CounterValue, name, help, labels...)
}

var (
	positionKnown = gauge("walwake_replay_position_known",
		"1 while the replica's position is known, 0 before it is and when the connection that it came over is gone.")
	position = gauge("walwake_replay_position_bytes",
		"Position in the WAL up to which the replica has replayed; on a primary what it has written. Falls when a standby crashes. Absent while not known.")
	positionAge = gauge("walwake_replay_position_age_seconds",
		"Time since the replica last said where it is. Goes on while it does not answer; absent until it has.")
	timeline = gauge("walwake_replay_timeline",
		"Timeline that the replica replays; it grows with each failover. Absent while not known.")
	isPrimary = gauge("walwake_replica_is_primary",
		"1 when the server is not in recovery: a primary, or a replica that was promoted. Absent while the position is not known.")

	primaryPosition = gauge("walwake_primary_position_bytes",
		"Position in the WAL that the primary is known to have come to, by announcements. Absent until there was one of this cluster, and of the replica's timeline or a later one.")
	primaryAge = gauge("walwake_primary_position_age_seconds",
		"Time since the primary's position was last announced; grows while nobody writes. Absent until it was.")
	lagBytes = gauge("walwake_replay_lag_bytes",
		"WAL that the primary is known to have written and the replica has not replayed. Absent while either position is not known, "+
			"and while the replica is not known to have followed the primary to its timeline.")
	lagSeconds = gauge("walwake_replay_lag_seconds",
		"Time since it was first announced that the primary is beyond the replica's position; 0 when the replica has replayed all that was announced. "+
			"The true lag is this at least. Absent where walwake_replay_lag_bytes is.")
	catchUp = gauge("walwake_replay_catch_up_seconds",
		"Estimate of the time in which the replica will have replayed walwake_replay_lag_bytes, from how fast it replays; 0 when there is no lag. "+
			"Absent when it has replayed nothing for 5 s, while something holds replay back, above a day, and while the lag is not known.")

	sourceInUse = gauge("walwake_source_in_use",
		"1 for the source that the position comes from, 0 for the others that may be used. Absent while none runs.", "source")
	sourceUp = gauge("walwake_source_up",
		"1 while this source works and could be used, 0 while it rests or fails. Absent while none runs.", "source")
	sourceFailing = gauge("walwake_source_failing",
		"1 while this source cannot be used or has failed, 0 while it works or rests because no wait needs it. Absent while none runs.", "source")
	sourceChanges = counter("walwake_source_changes_total",
		"Times that another source has taken over, for the better or the worse.")
	sourceFailures = counter("walwake_source_failures_total",
		"Times that the connection to the replica was lost or could not be made; each is followed by another attempt.")
	epochs = counter("walwake_epochs_total",
		"Connections that a position came from. What was known before is forgotten with each.")
	observations = counter("walwake_observations_total",
		"Times that the replica has said where it is.")

	waiters = gauge("walwake_waiters",
		"Those who wait for a position now.")
	waits = counter("walwake_waits_total",
		"Waits that have ended, by result: replayed, timeout, canceled (by the caller), diverged (the write was lost in a failover), "+
			"wrong_system (a token of another cluster), refused (too many wait, or the tracker was closed). "+
			"What was replayed when it was asked for is not counted.", "result")
	waitDuration = define(prometheus.UntypedValue, "walwake_wait_duration_seconds",
		"How long those who blocked have waited, by result as in walwake_waits_total.", "result")
)

// series sends metrics of one tracker.
type series struct {
	out     chan<- prometheus.Metric
	replica string
	since   time.Time // of counters
}

func (s series) set(m *metric, value float64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(m.desc, m.kind, value, append([]string{s.replica}, labels...)...)
}

func (s series) is(m *metric, holds bool, labels ...string) {
	value := 0.0
	if holds {
		value = 1
	}
	s.set(m, value, labels...)
}

func (s series) age(m *metric, since time.Time) {
	if !since.IsZero() {
		s.set(m, time.Since(since).Seconds())
	}
}

func (s series) total(m *metric, n uint64, labels ...string) {
	s.out <- prometheus.MustNewConstMetricWithCreatedTimestamp(m.desc, m.kind, float64(n), s.since, append([]string{s.replica}, labels...)...)
}

func (e *entry) collect(out chan<- prometheus.Metric) {
	s := series{out, e.name, e.since}
	state := e.tr.State()
	s.replay(state)
	s.primary(state)
	s.sources(state)
	s.counts(e.tr.Stats())
	e.waits.Collect(out)
}

func (s series) replay(state tracker.State) {
	s.is(positionKnown, state.Known)
	s.age(positionAge, state.ObservedAt)
	if !state.Known {
		return
	}
	s.set(position, float64(state.Position.LSN))
	s.is(isPrimary, state.Position.Primary)
	if state.Position.Timeline != 0 {
		s.set(timeline, float64(state.Position.Timeline))
	}
}

func (s series) primary(state tracker.State) {
	if state.Primary.IsZero() {
		return
	}
	s.set(primaryPosition, float64(state.Primary.LSN))
	s.age(primaryAge, state.PrimaryHeard)
	if !state.BehindKnown {
		return
	}
	s.set(lagBytes, float64(state.Behind))
	s.set(lagSeconds, state.BehindFor.Seconds())
	if state.Behind == 0 || state.ETA > 0 {
		s.set(catchUp, state.ETA.Seconds())
	}
}

func (s series) sources(state tracker.State) {
	if state.Source != "" && !slices.ContainsFunc(state.Ladder, func(r tracker.Rung) bool { return r.Source == state.Source }) {
		s.is(sourceInUse, true, state.Source) // a source without a ladder, or none of whose rungs is up
	}
	for _, r := range state.Ladder {
		s.is(sourceInUse, r.Source == state.Source, r.Source)
		s.is(sourceUp, r.Up, r.Source)
		s.is(sourceFailing, !r.Up && !r.Resting, r.Source)
	}
}

func (s series) counts(n tracker.Stats) {
	s.set(waiters, float64(n.Waiting))
	s.total(waits, n.Woken, replayed)
	s.total(waits, n.TimedOut, timeout)
	s.total(waits, n.Canceled, canceled)
	s.total(waits, n.Diverged, diverged)
	s.total(waits, n.WrongSystem, wrongSystem)
	s.total(waits, n.Refused, refused)
	s.total(sourceChanges, n.SourceChanges)
	s.total(sourceFailures, n.Failures)
	s.total(epochs, n.Epochs)
	s.total(observations, n.Observations)
}
