package pgnotify_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

func TestANotificationComesWhenTheReplicaShowsIt(t *testing.T) {
	c := cluster(t)
	standby := c.Standbys[0]
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	reader := connect(t, standby)
	shows := func(id string) (there bool, err error) {
		err = reader.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM rows WHERE id = $1::bigint)`, pgx.QueryExecModeExec, id).Scan(&there)
		return there, err
	}
	type heard struct {
		pgnotify.Notification
		there bool
	}
	got := make(chan heard, 100)
	early := make(chan string, 100)
	listen(t, pgnotify.Config{
		Primary: replication.Server{DSN: c.Primary.DSN()},
		Replica: follow(t, standby.DSN()),
		Channels: []pgnotify.Channel{
			{Name: "rows", Handler: pgnotify.HandlerFunc(func(_ context.Context, e pgnotify.Event) error {
				n := e.(pgnotify.Notification)
				there, err := shows(n.Payload)
				got <- heard{n, there}
				return err
			})},
			{Name: "Early ones", AtOnce: true, Handler: pgnotify.HandlerFunc(func(_ context.Context, e pgnotify.Event) error {
				early <- e.(pgnotify.Notification).Payload
				return nil
			})},
		},
	})
	writer := connect(t, c.Primary)
	for i := range 10 {
		if err := standby.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint(time.Now().UnixNano())
		exec(t, writer, fmt.Sprintf(`BEGIN; INSERT INTO rows VALUES (%s); NOTIFY rows, '%[1]s'; NOTIFY "Early ones", '%[1]s'; COMMIT`, id))
		if at := <-early; at != id {
			t.Errorf("%d: at once came %s", i, at)
		}
		if len(got) > 0 {
			t.Errorf("%d: %+v while replay is paused", i, <-got)
		}
		if err := standby.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		n := <-got
		if n.Payload != id || n.Channel != "rows" || n.PID != writer.PgConn().PID() || n.Token.LSN == 0 || n.Token.System == 0 || n.Token.Timeline == 0 {
			t.Errorf("%d: %+v", i, n.Notification)
		}
		if !n.there {
			t.Errorf("%d: the replica does not show the row", i)
		}
	}
}

// A commit that is not flushed, and which nobody else will have flushed for
// 10 s, is flushed for who waits: the replica does not get it before.
func TestAnUnflushedPositionIsFlushed(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{PrimarySettings: map[string]string{"wal_writer_delay": "10s"}})
	book := newLedger(t, c.Primary, c.Standbys[0])
	l := listen(t, pgnotify.Config{
		Primary:  replication.Server{DSN: c.Primary.DSN()},
		Replica:  follow(t, c.Standbys[0].DSN()),
		Channels: []pgnotify.Channel{book.channel()},
	})
	writer := connect(t, c.Primary)
	exec(t, writer, `SET synchronous_commit = off`)
	began := time.Now()
	for id := range 10 {
		_, err := writer.Exec(t.Context(), book.writing(id+1, ""), pgx.QueryExecModeSimpleProtocol)
		must(t, err)
		book.heard(id + 1)
	}
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("10 notifications took %s", d)
	}
	if n := l.Stats().Positions; n != 10 {
		t.Errorf("%d position queries", n)
	}
}

// What is heard on a channel that is none of ours does no harm: the connection's
// own set-up may LISTEN.
func TestAnotherChannelIsPassedOver(t *testing.T) {
	c := cluster(t)
	config, err := pgx.ParseConfig(c.Primary.DSN())
	must(t, err)
	config.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		_, err := conn.Exec(ctx, `LISTEN other`).ReadAll()
		return err
	}
	book := newLedger(t, c.Primary, c.Standbys[0])
	cfg := quickly("", follow(t, c.Standbys[0].DSN()), book.channel())
	cfg.Primary.DSN, cfg.Primary.Config = "", config
	l := listen(t, cfg)
	must(t, c.Primary.Exec(t.Context(), `NOTIFY other`))
	book.write(c.Primary, 1)
	if got := told(book.heard(1)); got != "1" {
		t.Errorf("got %s", got)
	}
	if n := l.Stats().Positions; n != 1 {
		t.Errorf("%d position queries", n)
	}
}

// A thousand at once are a few dozen KB, which are read 8 KB at a time.
func TestABurstTakesFewPositionQueries(t *testing.T) {
	c := cluster(t)
	const many = 1000
	name, got := fmt.Sprintf("burst_%d", time.Now().UnixNano()), make(events, many)
	l := listen(t, quickly(c.Primary.DSN(), follow(t, c.Standbys[0].DSN()), pgnotify.Channel{Name: name, Handler: got}))
	writer := connect(t, c.Primary)
	exec(t, writer, `SELECT pg_notify($1, i::text) FROM generate_series(1, $2) i`, name, many)
	for i := range many {
		if n := got.next(t).(pgnotify.Notification); n.Payload != fmt.Sprint(i+1) {
			t.Fatalf("%s came after %d", n.Payload, i)
		}
	}
	n := l.Stats().Positions
	if n > many/20 {
		t.Errorf("%d position queries for %d notifications", n, many)
	}
	t.Logf("%d position queries for %d notifications", n, many)
}

// demands is a source that sees nothing new, and measures for how long somebody
// waits.
type demands struct {
	mu     sync.Mutex
	since  time.Time       // guarded by mu; zero while nobody waits
	lasted []time.Duration // guarded by mu
}

func (d *demands) Name() string { return "demands" }

func (d *demands) Observe(ctx context.Context, feed *tracker.Feed) error {
	epoch := feed.Begin()
	defer epoch.End()
	epoch.Observe(tracker.Observation{LSN: 1})
	feed.OnDemand(func() {
		waiting := feed.Demand().Waiting > 0
		d.mu.Lock()
		defer d.mu.Unlock()
		switch {
		case waiting && d.since.IsZero():
			d.since = time.Now()
		case !waiting && !d.since.IsZero():
			d.lasted = append(d.lasted, time.Since(d.since))
			d.since = time.Time{}
		}
	})
	<-ctx.Done()
	return ctx.Err()
}

// A wait that lasts has a stream opened on the replica: asking a primary that is
// far away is no reason for that.
func TestADistantPrimaryKeepsNobodyWaiting(t *testing.T) {
	const away = 200 * time.Millisecond
	c := cluster(t)
	proxy := through(t, c.Primary)
	source := &demands{}
	replica, err := tracker.New(tracker.Config{Source: source})
	must(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = replica.Run(context.Background()) })
	t.Cleanup(func() { replica.Close(); running.Wait() })
	listen(t, quickly(proxy.DSN(), replica, pgnotify.Channel{Name: "distant", Handler: make(events)}))
	proxy.Slow(away)
	var lasted []time.Duration
	eventually(t, "silence had the replica asked", func() bool {
		source.mu.Lock()
		defer source.mu.Unlock()
		lasted = slices.Clone(source.lasted)
		return len(lasted) >= 5
	})
	slices.Sort(lasted)
	if d := lasted[2]; d > away/2 {
		t.Errorf("somebody waited for %s", lasted)
	}
}
