package replication_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

func TestPollReadsYourWrites(t *testing.T) {
	c := cluster(t)
	writer, reader := connect(t, c.Primary), connect(t, c.Standbys[0])
	tr := poll(t, c.Standbys[0].DSN(), tracker.Config{})
	for i := range 500 {
		id := newID()
		exec(t, writer, `INSERT INTO writes VALUES ($1)`, id)
		wait(t, tr, capture(t, writer))
		if !value[bool](t, reader, `SELECT EXISTS (SELECT FROM writes WHERE id = $1)`, id) {
			t.Fatalf("write %d is stale", i)
		}
	}
}

// What a role may see decides how the timeline is learned. Each must end with
// the same guarantee, or with an error that says what to grant.
func TestPollLearnsTheTimelineFromWhatTheRoleMaySee(t *testing.T) {
	c := cluster(t)
	for _, tt := range []struct{ name, attributes, grant string }{
		{name: "pg_read_all_stats", grant: "pg_read_all_stats"},
		{name: "REPLICATION", attributes: "REPLICATION"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var grants []string
			if tt.grant != "" {
				grants = append(grants, tt.grant)
			}
			name, password := role(t, c, tt.attributes, grants...)
			tr := poll(t, c.Standbys[0].DSNFor(name, password, "postgres"), tracker.Config{})
			writer := connect(t, c.Primary)
			for i := range 50 {
				exec(t, writer, `INSERT INTO writes SELECT max(id) + $1 FROM writes`, i+1)
				wait(t, tr, capture(t, writer))
			}
			if o, known := tr.LastReplay(); !known || o.Timeline != 1 || o.History == nil {
				t.Errorf("got %+v", o)
			}
		})
	}
	t.Run("LOGIN alone", func(t *testing.T) {
		name, password := role(t, c, "")
		tr := poll(t, c.Standbys[0].DSNFor(name, password, "postgres"), tracker.Config{Timeout: time.Second})
		writer := connect(t, c.Primary)
		tok := capture(t, writer)
		wait(t, tr, tracker.Token{System: tok.System, LSN: tok.LSN}) // no timeline asked for
		err := tr.Wait(t.Context(), tok)
		if !errors.Is(err, tracker.ErrTimeout) || !strings.Contains(err.Error(), `GRANT pg_read_all_stats TO "`+name+`"`) {
			t.Errorf("got %v, want what to grant", err)
		}
		if strings.Contains(err.Error(), password) {
			t.Errorf("the error holds the password: %v", err)
		}
		// Who waits is woken once it is granted, on the same connection.
		w := tr.Request(tok)
		exec(t, writer, `GRANT pg_read_all_stats TO `+name)
		if err := w.Await(t.Context()); err != nil && !errors.Is(err, tracker.ErrTimeout) {
			t.Error(err)
		}
		wait(t, tr, tok)
	})
}

func TestPollGoesOnWithoutAPrimary(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{})
	writer := connect(t, c.Primary)
	tok := capture(t, writer)
	if err := c.Standbys[0].WaitForReplay(t.Context(), tok.LSN.String()); err != nil {
		t.Fatal(err)
	}
	if err := c.Primary.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr := poll(t, c.Standbys[0].DSN(), tracker.Config{Timeout: 30 * time.Second})
	wait(t, tr, tok) // no walreceiver tells the timeline any more
}

func TestPollSaysThatReplayIsPaused(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	tr := poll(t, standby.DSN(), tracker.Config{})
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	writer := connect(t, c.Primary)
	exec(t, writer, `CREATE TABLE t AS SELECT 1`)
	tok := capture(t, writer)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := tr.Wait(ctx, tok)
	te, ok := errors.AsType[*tracker.TimeoutError](err)
	if !ok || te.Behind == 0 || !strings.Contains(err.Error(), "replay is paused") {
		t.Errorf("got %v", err)
	}
	w := tr.Request(tok)
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Await(t.Context()); err != nil {
		t.Error(err)
	}
}

// A thousand wait while the standby crashes and comes back, lower than it was
// where replay had not been made durable. None is lost, none is early.
func TestPollWakesAThousandWaitersAfterACrash(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	writer := connect(t, c.Primary)
	exec(t, writer, `CREATE TABLE crash (id bigint)`)
	tr := poll(t, standby.DSN(), tracker.Config{Timeout: time.Minute})
	exec(t, writer, `INSERT INTO crash SELECT generate_series(1, 200000)`)
	first := capture(t, writer)
	wait(t, tr, first)
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	var waiters sync.WaitGroup
	errs := make(chan error, 1000)
	for range 20 {
		exec(t, writer, `INSERT INTO crash VALUES (0)`)
		tok := capture(t, writer)
		for range 50 {
			waiters.Go(func() { errs <- tr.Wait(t.Context(), tok) })
		}
	}
	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the position is forgotten", func() bool { _, known := tr.LastReplay(); return !known })
	if tr.Replayed(first) {
		t.Error("a position outlived the crash")
	}
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiters.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	reader := connect(t, standby)
	if n := value[int](t, reader, `SELECT count(*) FROM crash WHERE id = 0`); n != 20 {
		t.Errorf("%d of 20 rows are there", n)
	}
	if s := tr.Stats(); s.Epochs < 2 || s.Waiting != 0 {
		t.Errorf("got %+v", s)
	}
}

func TestPollJudgesTokensAfterAPromotion(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	old, promoted, other := c.Primary, c.Standbys[0], c.Standbys[1]
	writer := connect(t, old)
	exec(t, writer, `CREATE TABLE before_failover AS SELECT 1`)
	kept := capture(t, writer)
	onOld := poll(t, other.DSN(), tracker.Config{})
	on := poll(t, promoted.DSN(), tracker.Config{Timeout: time.Minute})
	wait(t, on, kept)
	wait(t, onOld, kept)
	lost := kept
	lost.LSN += 100 << 20
	waiting := on.Request(lost)
	if err := promoted.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Await(t.Context()); !errors.Is(err, tracker.ErrDiverged) {
		t.Errorf("who waited for a lost write got %v", err)
	}
	if err := on.Wait(t.Context(), lost); !errors.Is(err, tracker.ErrDiverged) {
		t.Errorf("a lost write: %v", err)
	}
	wait(t, on, kept)
	fresh := capture(t, connect(t, promoted))
	if fresh.Timeline != 2 {
		t.Fatalf("got %v", fresh)
	}
	wait(t, on, fresh)
	// The other standby is still on the old timeline.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := onOld.Wait(ctx, tracker.Token{System: fresh.System, Timeline: 2, LSN: kept.LSN}); !errors.Is(err, tracker.ErrTimeout) {
		t.Errorf("a token of the new timeline on the old one: %v", err)
	}
}

func TestPollTellsAnotherCluster(t *testing.T) {
	c := cluster(t)
	tok := capture(t, connect(t, c.Primary))
	tok.System++
	tr := poll(t, c.Standbys[0].DSN(), tracker.Config{})
	<-tr.Ready()
	if err := tr.Wait(t.Context(), tok); !errors.Is(err, tracker.ErrWrongSystem) {
		t.Errorf("got %v", err)
	}
}

// A development machine often has no replica.
func TestPollOnAPrimaryEndsEachWaitForItsOwnHistory(t *testing.T) {
	c := cluster(t)
	writer := connect(t, c.Primary)
	tr := poll(t, c.Primary.DSN(), tracker.Config{})
	for range 100 {
		exec(t, writer, `INSERT INTO writes VALUES ($1)`, newID())
		wait(t, tr, capture(t, writer))
	}
	if o, _ := tr.LastReplay(); !o.Primary {
		t.Errorf("got %+v", o)
	}
}

func TestPollSaysWhatIsWrongWithTheServer(t *testing.T) {
	c := cluster(t)
	for name, tt := range map[string]struct{ dsn, want string }{
		"unreachable":    {"host=127.0.0.1 port=1 user=postgres password=geheim sslmode=disable", "connect"},
		"wrong password": {c.Standbys[0].DSNFor("postgres", "geheim", "postgres"), "password authentication failed"},
		"no such user":   {c.Standbys[0].DSNFor("nobody", "geheim", "postgres"), "authentication failed"},
		"no database":    {strings.Replace(c.Standbys[0].DSN(), "/postgres?", "/geheim_db?", 1), "does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			failed := make(chan struct{})
			var once sync.Once
			tr := poll(t, tt.dsn, tracker.Config{Observer: tracker.Observer{Failed: func(string, error) {
				once.Do(func() { close(failed) })
			}}})
			<-failed
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			err := tr.Wait(ctx, tracker.Token{LSN: 1})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "password=geheim") || strings.Contains(err.Error(), ":geheim@") {
				t.Errorf("got %v, want %q in it and no password", err, tt.want)
			}
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
