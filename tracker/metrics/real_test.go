package metrics_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

func TestAWaitForAPausedStandby(t *testing.T) {
	c := cluster(t)
	standby := c.Standbys[0]
	m, reg := patient(t)
	ended := make(chan tracker.WaitResult, 2)
	started := make(chan struct{}, 2)
	tr := follow(t, m, "db2", standby.DSN(), tracker.Observer{
		WaitStart: func(ctx context.Context, _ tracker.Token) context.Context {
			started <- struct{}{}
			return ctx
		},
		WaitEnd: func(_ context.Context, r tracker.WaitResult) { ended <- r }, // as without metrics
	})
	before := write(t, c)
	if err := tr.Wait(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	for len(started) > 0 { // it may have been replayed already
		<-started
		<-ended
	}
	first := scrape(t, reg)
	counted, _ := first.of("walwake_waits_total", `result="replayed"`)
	first.want(t, map[string]float64{
		"walwake_replay_position_known": 1, "walwake_replay_timeline": 1, "walwake_replica_is_primary": 0,
		"walwake_waiters": 0, "walwake_epochs_total": first["walwake_epochs_total{replica=\"db2\"}"],
		`walwake_wait_duration_seconds{result="replayed"}`: counted,
	})
	first.absent(t, "walwake_primary_position_bytes", "walwake_primary_position_age_seconds", "walwake_replay_lag_bytes",
		"walwake_replay_lag_seconds", "walwake_replay_catch_up_seconds")

	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = standby.Resume(context.Background()) }()
	tok := write(t, c)
	tr.PrimaryAt(tok)
	failed := make(chan error, 2)
	wait, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { failed <- tr.Wait(wait, tok) }()
	<-started
	blocked := scrape(t, reg)
	at, _ := blocked.of("walwake_replay_position_bytes")
	if at < float64(before.LSN) || at >= float64(tok.LSN) {
		t.Errorf("position %v, want from %v to below %v", at, float64(before.LSN), float64(tok.LSN))
	}
	blocked.want(t, map[string]float64{
		"walwake_waiters": 1, "walwake_primary_position_bytes": float64(tok.LSN), "walwake_replay_lag_bytes": float64(tok.LSN) - at,
		`walwake_waits_total{result="replayed"}`: counted,
	})
	if lag, _ := blocked.of("walwake_replay_lag_seconds"); lag <= 0 || lag > 60 {
		t.Errorf("lag %v s", lag)
	}
	if age, ok := blocked.of("walwake_primary_position_age_seconds"); !ok || age <= 0 || age > 60 {
		t.Errorf("the primary was announced %v s ago", age)
	}

	// One more gives up.
	short, cancelShort := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancelShort()
	if err := tr.Wait(short, tok); !errors.Is(err, tracker.ErrTimeout) {
		t.Fatal(err)
	}
	scrape(t, reg).want(t, map[string]float64{
		"walwake_waiters": 1, `walwake_waits_total{result="timeout"}`: 1, `walwake_wait_duration_seconds{result="timeout"}`: 1,
	})
	if r := <-ended; !errors.Is(r.Err, tracker.ErrTimeout) {
		t.Errorf("the embedder's own Observer got %+v", r)
	}

	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	after := scrape(t, reg)
	after.want(t, map[string]float64{
		"walwake_waiters": 0, "walwake_replay_lag_bytes": 0, "walwake_replay_lag_seconds": 0, "walwake_replay_catch_up_seconds": 0,
		`walwake_waits_total{result="replayed"}`:           counted + 1,
		`walwake_wait_duration_seconds{result="replayed"}`: counted + 1,
	})
	if at, _ := after.of("walwake_replay_position_bytes"); at < float64(tok.LSN) {
		t.Errorf("position %v after %v was replayed", at, float64(tok.LSN))
	}
}

func TestAStandbyThatCrashesHasNoPosition(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	if err := c.Primary.Exec(t.Context(), `CREATE TABLE writes (v int)`); err != nil {
		t.Fatal(err)
	}
	m, reg := patient(t)
	tr := follow(t, m, "db2", standby.DSN(), tracker.Observer{})
	tok := write(t, c)
	tr.PrimaryAt(tok)
	if err := tr.Wait(t.Context(), tok); err != nil {
		t.Fatal(err)
	}
	up := scrape(t, reg)
	up.want(t, map[string]float64{"walwake_replay_position_known": 1, "walwake_replay_lag_bytes": 0})
	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost, _ := up.of("walwake_source_failures_total")
	down := eventually(t, reg, "the crash is seen", func(s scraped) bool {
		known, _ := s.of("walwake_replay_position_known")
		failures, _ := s.of("walwake_source_failures_total")
		return known == 0 && failures > lost+1 // it was tried again
	})
	down.absent(t, "walwake_replay_position_bytes", "walwake_replay_timeline", "walwake_replica_is_primary",
		"walwake_replay_lag_bytes", "walwake_replay_lag_seconds", "walwake_replay_catch_up_seconds")
	if age, ok := down.of("walwake_replay_position_age_seconds"); !ok || age <= 0 {
		t.Errorf("it was last heard of %v s ago (there: %t)", age, ok)
	}
	epochs, _ := up.of("walwake_epochs_total")
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := eventually(t, reg, "the standby is back", func(s scraped) bool {
		at, _ := s.of("walwake_replay_position_bytes")
		return at >= float64(tok.LSN)
	})
	if n, _ := again.of("walwake_epochs_total"); n <= epochs {
		t.Errorf("%v epochs after %v", n, epochs)
	}
}

func TestSourceChangesAreCountedAndTheOneInUseIsShown(t *testing.T) {
	c := cluster(t)
	standby := c.Standbys[0]
	write(t, c)
	grant(t, c, `CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'wachtwoord' IN ROLE pg_read_all_stats`)
	defer func() { _ = c.Primary.Exec(context.Background(), `DROP ROLE streamer`) }()
	m, reg := patient(t)
	tr := follow(t, m, "db2", standby.DSNFor("streamer", "wachtwoord", "postgres"), tracker.Observer{}, replication.Physical)
	scrape(t, reg).want(t, map[string]float64{
		`walwake_source_in_use{source="physical"}`: 0, `walwake_source_in_use{source="poll"}`: 1,
		`walwake_source_up{source="physical"}`: 0, `walwake_source_up{source="poll"}`: 1,
		`walwake_source_failing{source="physical"}`: 0, `walwake_source_failing{source="poll"}`: 0, // it rests
		"walwake_source_changes_total": 0,
	})
	inUse := func(source string) func(scraped) bool {
		return func(s scraped) bool {
			used, _ := s.of("walwake_source_in_use", `source="`+source+`"`)
			return used == 1
		}
	}
	w := tr.Request(tracker.Token{LSN: 1 << 60}) // a wait that lasts has the stream opened
	defer w.Cancel()
	eventually(t, reg, "the stream is up", inUse("physical")).want(t, map[string]float64{
		`walwake_source_in_use{source="poll"}`: 0, `walwake_source_up{source="physical"}`: 1, "walwake_source_changes_total": 1,
	})
	grant(t, c, `ALTER ROLE streamer NOREPLICATION`)
	if err := standby.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE usename = 'streamer'`); err != nil {
		t.Fatal(err)
	}
	eventually(t, reg, "the stream has failed", func(s scraped) bool {
		failing, _ := s.of("walwake_source_failing", `source="physical"`)
		return failing == 1
	}).want(t, map[string]float64{
		`walwake_source_in_use{source="physical"}`: 0, `walwake_source_in_use{source="poll"}`: 1,
		`walwake_source_up{source="physical"}`: 0, "walwake_source_changes_total": 2,
	})
}

// grant changes a role, and returns when the standby knows.
func grant(t *testing.T, c *replicationtest.Cluster, sql string) {
	t.Helper()
	if err := c.Primary.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAScrapeHasTheReplicaSayWhereItIs(t *testing.T) {
	c := cluster(t)
	m, reg := patient(t)
	follow(t, m, "db2", c.Standbys[0].DSN(), tracker.Observer{})
	// Nobody waits: the source would look once in ten seconds.
	for range 20 {
		tok := write(t, c)
		if err := c.Standbys[0].WaitForReplay(t.Context(), tok.LSN.String()); err != nil {
			t.Fatal(err)
		}
		s := scrape(t, reg)
		if at, _ := s.of("walwake_replay_position_bytes"); at < float64(tok.LSN) {
			t.Fatalf("position %v after %v was replayed", at, float64(tok.LSN))
		}
	}
	if n, _ := scrape(t, reg).of(`walwake_waits_total`, `result="canceled"`); n != 0 {
		t.Errorf("the looks count as %v waits", n)
	}
}

func TestAPrimaryAndALostWrite(t *testing.T) {
	c := cluster(t)
	m, reg := patient(t)
	tr := follow(t, m, "db2", c.Primary.DSN(), tracker.Observer{})
	tok := write(t, c)
	other := tok
	other.System++
	if err := tr.Wait(t.Context(), other); !errors.Is(err, tracker.ErrWrongSystem) {
		t.Fatal(err)
	}
	s := scrape(t, reg)
	s.want(t, map[string]float64{"walwake_replica_is_primary": 1, `walwake_waits_total{result="wrong_system"}`: 1, `walwake_waits_total{result="diverged"}`: 0})
	s.absent(t, `walwake_wait_duration_seconds{replica="db2",result="wrong_system"}`) // nobody blocked
}
