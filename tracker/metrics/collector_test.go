package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/metrics"
)

// source is one of a server of system 7, timeline 2, which left timeline 1 at 500:
// at 1000, and where at says once it is asked.
type source struct {
	at func() (tracker.LSN, bool) // false: no answer; nil: as before
}

func (source) Name() string { return "test" }

func (s source) Observe(ctx context.Context, feed *tracker.Feed) error {
	epoch := feed.Begin()
	defer epoch.End()
	observe := func(lsn tracker.LSN) {
		epoch.Observe(tracker.Observation{System: 7, Timeline: 2, LSN: lsn, History: tracker.History{{Timeline: 1, End: 500}}})
	}
	observe(1000)
	feed.Ladder([]tracker.Rung{{Source: "better", Resting: true}, {Source: "test", Up: true}})
	asked := make(chan struct{}, 1)
	feed.OnDemand(func() {
		select {
		case asked <- struct{}{}:
		default:
		}
	})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-asked:
		}
		if s.at == nil {
			observe(1000)
		} else if lsn, answers := s.at(); answers {
			observe(lsn)
		}
	}
}

func token(lsn tracker.LSN) tracker.Token { return tracker.Token{System: 7, Timeline: 2, LSN: lsn} }

func TestEachResultOfAWaitIsCountedAsWhatItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, reg := registered(t, metrics.Config{})
		moved := make(chan tracker.LSN, 1)
		at := tracker.LSN(1000)
		tr := run(t, m, tracker.Config{Source: source{at: func() (tracker.LSN, bool) {
			select {
			case at = <-moved:
			default:
			}
			return at, true
		}}, Name: "db2", MaxWaiters: 1})
		wait := func(ctx context.Context, tok tracker.Token) error { return tr.Wait(ctx, tok) }
		check := func(err, want error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		check(wait(ctx, token(1500)), tracker.ErrTimeout) // the caller's time
		check(wait(t.Context(), token(1500)), tracker.ErrTimeout)
		canceled, cancelIt := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancelIt)
		check(wait(canceled, token(1500)), context.Canceled)
		check(wait(t.Context(), tracker.Token{System: 7, Timeline: 1, LSN: 700}), tracker.ErrDiverged) // at once
		check(wait(t.Context(), tracker.Token{System: 8, LSN: 700}), tracker.ErrWrongSystem)
		check(wait(t.Context(), token(1000)), nil) // replayed: counted nowhere
		synctest.Wait()                            // the source has looked for the last time: it takes this only for who waits next
		moved <- 2000
		first := make(chan error, 1)
		go func() { first <- wait(t.Context(), token(1500)) }()
		check(<-first, nil)
		go func() { first <- wait(t.Context(), token(2500)) }()
		synctest.Wait()
		check(wait(t.Context(), token(2500)), tracker.ErrTooManyWaiters)
		check(<-first, tracker.ErrTimeout)
		s := scrape(t, reg)
		s.want(t, map[string]float64{
			`walwake_waits_total{result="replayed"}`: 1, `walwake_wait_duration_seconds{result="replayed"}`: 1,
			`walwake_waits_total{result="timeout"}`: 3, `walwake_wait_duration_seconds{result="timeout"}`: 3,
			`walwake_waits_total{result="canceled"}`: 1, `walwake_wait_duration_seconds{result="canceled"}`: 1,
			`walwake_waits_total{result="diverged"}`: 1, `walwake_waits_total{result="wrong_system"}`: 1, `walwake_waits_total{result="refused"}`: 1,
		})
		s.absent(t, `walwake_wait_duration_seconds{replica="db2",result="diverged"}`) // they did not block
	})
}

func TestWaitsThatEndBecauseOfWhatIsLearnedHaveTheirResultToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, reg := registered(t, metrics.Config{})
		begin := make(chan *tracker.Feed, 1)
		tr, err := m.NewTracker(tracker.Config{Source: feeder(begin), Name: "db2"})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = tr.Run(context.Background()) }()
		defer tr.Close()
		feed := <-begin
		errs := make(chan error, 3)
		for _, tok := range []tracker.Token{{System: 7, Timeline: 1, LSN: 700}, {System: 8, LSN: 700}} {
			go func() { errs <- tr.Wait(t.Context(), tok) }()
		}
		synctest.Wait() // nothing is known, so they block
		time.Sleep(time.Second)
		feed.Begin().Observe(tracker.Observation{System: 7, Timeline: 2, LSN: 1000, History: tracker.History{{Timeline: 1, End: 500}}})
		for range 2 {
			if err := <-errs; !errors.Is(err, tracker.ErrDiverged) && !errors.Is(err, tracker.ErrWrongSystem) {
				t.Error(err)
			}
		}
		scrape(t, reg).want(t, map[string]float64{
			`walwake_wait_duration_seconds{result="diverged"}`: 1, `walwake_waits_total{result="diverged"}`: 1,
			`walwake_wait_duration_seconds{result="wrong_system"}`: 1, `walwake_waits_total{result="wrong_system"}`: 1,
		})
	})
}

// feeder is a source that hands out its feed.
type feeder chan *tracker.Feed

func (feeder) Name() string { return "feeder" }

func (f feeder) Observe(ctx context.Context, feed *tracker.Feed) error {
	f <- feed
	<-ctx.Done()
	return ctx.Err()
}

func TestBeforeTheReplicaHasAnsweredOnlyWhatIsKnownIsThere(t *testing.T) {
	m, reg := registered(t, metrics.Config{})
	if _, err := m.NewTracker(tracker.Config{Source: feeder(nil), Name: "db2"}); err != nil {
		t.Fatal(err)
	}
	s := scrape(t, reg)
	for key := range s {
		switch name, _, _ := strings.Cut(key, "{"); name {
		case "walwake_replay_position_known", "walwake_waiters", "walwake_waits_total", "walwake_wait_duration_seconds",
			"walwake_source_changes_total", "walwake_source_failures_total", "walwake_epochs_total", "walwake_observations_total":
		default:
			t.Errorf("there is %s", key)
		}
	}
	s.want(t, map[string]float64{"walwake_replay_position_known": 0, "walwake_waiters": 0, `walwake_waits_total{result="timeout"}`: 0})
	if len(s) != 13 {
		t.Errorf("%d metrics: %v", len(s), s)
	}
}

func TestTrackersComeAndGo(t *testing.T) {
	m, reg := registered(t, metrics.Config{})
	one := run(t, m, tracker.Config{Source: source{}, Name: "db1"})
	run(t, m, tracker.Config{Source: source{}, Name: "db2"})
	if _, err := m.NewTracker(tracker.Config{Source: source{}, Name: "db2"}); err == nil || !strings.Contains(err.Error(), `"db2"`) {
		t.Errorf("a second db2: %v", err)
	}
	if _, err := m.NewTracker(tracker.Config{Name: "db3"}); err == nil || !strings.Contains(err.Error(), "Config.Source") {
		t.Errorf("without a source: %v", err)
	}
	replicas := func() (n int) {
		for key := range scrape(t, reg) {
			if strings.HasPrefix(key, "walwake_replay_position_known{") {
				n++
			}
		}
		return n
	}
	if n := replicas(); n != 2 {
		t.Errorf("%d replicas, want 2", n)
	}
	one.Close()
	if n := replicas(); n != 1 {
		t.Errorf("%d replicas after one was closed", n)
	}
	run(t, m, tracker.Config{Source: source{}, Name: "db1"}).Close()
	run(t, m, tracker.Config{Source: source{}, Name: "db1"}) // without a scrape in between
	if n := replicas(); n != 2 {
		t.Errorf("%d replicas after one came back", n)
	}
}

// Prometheus shows text in UTF-8 alone.
func TestANameThatIsNotUTF8IsAnError(t *testing.T) {
	m, reg := registered(t, metrics.Config{Refresh: -1})
	_, err := m.NewTracker(tracker.Config{Source: source{}, Name: "db\xff"})
	if want := `Config.Name "db\xff" is not UTF-8`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	run(t, m, tracker.Config{Source: source{}, Name: "Datenbank süd"})
	if s := scrape(t, reg); s[`walwake_replay_position_bytes{replica="Datenbank süd"}`] != 1000 {
		t.Errorf("got %v", s)
	}
}

func TestANilCollectorMakesTrackers(t *testing.T) {
	var m *metrics.Collector
	if tr := run(t, m, tracker.Config{Source: source{}}); !tr.Replayed(token(1000)) {
		t.Error("it does not work")
	}
}

func TestAScrapeWaitsForTheReplicasButNotForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, reg := registered(t, metrics.Config{})
		late := run(t, m, tracker.Config{Name: "db2", Source: source{at: func() (tracker.LSN, bool) {
			time.Sleep(40 * time.Millisecond)
			return 3000, true
		}}})
		time.Sleep(time.Minute)
		began := time.Now()
		s := scrape(t, reg)
		s.want(t, map[string]float64{"walwake_replay_position_bytes": 3000})
		if age, ok := s.of("walwake_replay_position_age_seconds"); !ok || age > .001 || time.Since(began) > 41*time.Millisecond {
			t.Errorf("the position was %v s old, %s after the scrape began", age, time.Since(began))
		}
		late.Close()
		run(t, m, tracker.Config{Name: "db2", Source: source{at: func() (tracker.LSN, bool) { return 0, false }}})
		time.Sleep(time.Minute)
		began = time.Now()
		s = scrape(t, reg)
		s.want(t, map[string]float64{"walwake_replay_position_bytes": 1000, "walwake_replay_position_age_seconds": 60.1})
		if took := time.Since(began); took != metrics.DefaultRefresh {
			t.Errorf("a replica that does not answer held the scrape up for %s", took)
		}
	})
}

func TestTheLagOfAReplicaThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, reg := registered(t, metrics.Config{Refresh: -1})
		tr := run(t, m, tracker.Config{Source: source{}, Name: "db2"})
		time.Sleep(time.Minute)
		tr.PrimaryAt(token(1000)) // an idle primary
		time.Sleep(time.Hour)
		level := map[string]float64{
			"walwake_primary_position_bytes": 1000, "walwake_primary_position_age_seconds": 3600,
			"walwake_replay_lag_bytes": 0, "walwake_replay_lag_seconds": 0, "walwake_replay_catch_up_seconds": 0,
		}
		scrape(t, reg).want(t, level)
		tr.PrimaryAt(token(1500))
		time.Sleep(time.Minute)
		s := scrape(t, reg)
		s.want(t, map[string]float64{
			"walwake_primary_position_bytes": 1500, "walwake_primary_position_age_seconds": 60,
			"walwake_replay_lag_bytes": 500, "walwake_replay_lag_seconds": 60,
		})
		s.absent(t, "walwake_replay_catch_up_seconds") // nobody can tell
	})
}

// Behind a primary that it does not come to, no lag is better than one of 0.
func TestAReplicaOfAnAbandonedTimelineHasNoLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, reg := registered(t, metrics.Config{Refresh: -1})
		tr := run(t, m, tracker.Config{Source: source{}, Name: "db2"})
		tr.PrimaryAt(token(1000))
		scrape(t, reg).want(t, map[string]float64{"walwake_replay_lag_bytes": 0})
		tr.PrimaryAt(tracker.Token{System: 7, Timeline: 3, LSN: 900})
		s := scrape(t, reg)
		s.want(t, map[string]float64{"walwake_primary_position_bytes": 900, "walwake_primary_position_age_seconds": 0, "walwake_replay_timeline": 2})
		s.absent(t, "walwake_replay_lag_bytes", "walwake_replay_lag_seconds", "walwake_replay_catch_up_seconds")
	})
}

func TestAScrapeThatIsNotToAskDoesNot(t *testing.T) {
	m, reg := registered(t, metrics.Config{Refresh: -1})
	run(t, m, tracker.Config{Name: "db2", Source: source{at: func() (tracker.LSN, bool) {
		t.Error("it was asked")
		return 0, false
	}}})
	scrape(t, reg)
}

func TestScrapesWhileTrackersComeWaitAndGo(t *testing.T) {
	m, reg := registered(t, metrics.Config{})
	stop := make(chan struct{})
	var scrapes, all sync.WaitGroup
	for range 3 {
		scrapes.Go(func() {
			for {
				if _, err := reg.Gather(); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 8 {
		all.Go(func() {
			for round := range 25 {
				tr, err := m.NewTracker(tracker.Config{Source: source{}, Name: fmt.Sprint("db", i), Timeout: time.Millisecond})
				if err != nil {
					t.Error(err)
					return
				}
				over := make(chan struct{})
				go func() { defer close(over); _ = tr.Run(context.Background()) }()
				<-tr.Ready()
				for range 4 {
					all.Go(func() { _ = tr.Wait(t.Context(), token(5000)) })
				}
				tr.PrimaryAt(token(tracker.LSN(1000 + round)))
				tr.Close()
				<-over
			}
		})
	}
	all.Wait()
	close(stop)
	scrapes.Wait()
	if s := scrape(t, reg); len(s) != 0 {
		t.Errorf("left: %v", s)
	}
}

func TestWhatTheCollectorSaysKeepsPrometheusRules(t *testing.T) {
	m, reg := registered(t, metrics.Config{})
	tr := run(t, m, tracker.Config{Source: source{}, Name: "db2"})
	tr.PrimaryAt(token(1000))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	complaints, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(families) != 20 {
		t.Fatal(len(families), err)
	}
	for _, c := range complaints {
		t.Errorf("%s: %s", c.Metric, c.Text)
	}
	described := make(chan *prometheus.Desc, 100)
	m.Describe(described)
	if len(described) != 20 {
		t.Errorf("%d descriptions", len(described))
	}
}

func TestWaitsAreAHistogramOfBothKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, reg := registered(t, metrics.Config{})
		tr := run(t, m, tracker.Config{Source: source{}, Name: "db2", Timeout: 300 * time.Millisecond})
		_ = tr.Wait(t.Context(), token(5000))
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "walwake_wait_duration_seconds" {
				continue
			}
			for _, h := range f.GetMetric() {
				if n := h.GetHistogram().GetSampleCount(); n == 0 {
					continue
				}
				if sum := h.GetHistogram().GetSampleSum(); sum != .3 {
					t.Errorf("waited for %v s", sum)
				}
				if len(h.GetHistogram().GetPositiveSpan()) != 1 {
					t.Error("no native histogram")
				}
				for _, b := range h.GetHistogram().GetBucket() {
					if want := b.GetUpperBound() >= .3; (b.GetCumulativeCount() == 1) != want {
						t.Errorf("up to %v s: %d", b.GetUpperBound(), b.GetCumulativeCount())
					}
				}
				return
			}
		}
		t.Error("no histogram")
	})
}
