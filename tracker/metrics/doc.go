// Package metrics shows trackers to Prometheus.
//
// # Model
//
// A Collector is registered once, and makes the trackers: its NewTracker takes
// the place of tracker.New.
//
//	collector := metrics.New(metrics.Config{})
//	prometheus.MustRegister(collector)
//	replica, err := collector.NewTracker(tracker.Config{Source: source, Name: "db2"})
//
// Each tracker's metrics have the label replica, its Config.Name. They begin with
// NewTracker and end when the Tracker is closed, or its Run has ended. Labels of
// your own come from prometheus.WrapRegistererWith.
//
// What a Tracker counts anyway is read when Prometheus scrapes, from one State and
// one Stats. Only how long waits take is recorded as they end: by an Observer, after
// which the Observer of your Config is called.
//
// # Guarantees
//
//   - What is not known is absent, never 0: a position whose connection is gone, a
//     lag while nobody has told where the primary is (see tracker.PrimaryAt and
//     package pgnotify) or the replica has not followed it to another timeline, a
//     timeline that the role may not see.
//   - Position and lag are of the time of the scrape, where the replica answers in
//     time: see Config.Refresh. How old they are is a metric too.
//   - No metric is made of an error's text or of what a client sent: labels take few
//     values.
//
// A Wait that found its token replayed is not counted, in anything: it takes less
// time than counting it would. A Waiter that is not Awaited is counted, and its
// time is not.
//
// Positions are numbers of bytes in the WAL. They are gauges, since a standby that
// crashes comes back lower, and exact up to 2^53, 9 PB: that is how Prometheus
// stores numbers.
//
// # Lag in seconds
//
// Nothing here is pg_last_xact_replay_timestamp(), whose age grows while the
// primary has nothing to write. walwake_replay_lag_seconds is how long ago it was
// announced that the primary is beyond the replica's position, so it is 0 beside an
// idle primary, and at most as long as the truth, since an announcement takes its
// time. walwake_replay_catch_up_seconds looks the other way: an estimate of when
// what lags behind will be replayed, from the speed of replay.
//
// # Failures
//
// A scrape does not fail. A replica that does not answer costs it Config.Refresh.
//
// # Concurrency
//
// All methods may be called by any number of goroutines, also while trackers come,
// run and are closed.
//
// # Testing
//
// The metrics are scraped from trackers of real servers that are paused, crashed and
// cut off, and each query of testdata's dashboard and alerts is checked against what
// came out.
package metrics
