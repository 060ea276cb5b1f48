package pgnotify_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// decodable skips where a standby cannot decode, and makes the publication.
func decodable(t testing.TB, c *replicationtest.Cluster) {
	t.Helper()
	if c.Version < 16 {
		t.Skipf("PostgreSQL %s: a standby decodes from 16 on", c.Release)
	}
	there, err := replicationtest.Value[bool](t.Context(), c.Primary, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'walwake')`)
	if err == nil && !there {
		err = c.Primary.Exec(t.Context(), `CREATE PUBLICATION walwake`)
	}
	if err == nil {
		err = c.WaitForReplay(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// receiver are Messages with the tracker that they come by.
type receiver struct {
	*pgnotify.Messages
	replica *tracker.Tracker
	ended   chan error // what Run returned
}

// receiving runs Messages of the server at dsn until the test ends. primary, where
// it is not nil, helps to make slots.
func receiving(t testing.TB, dsn string, primary *replicationtest.Node, cfg pgnotify.MessagesConfig) *receiver {
	t.Helper()
	m, err := pgnotify.NewMessages(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sc := replication.Config{Replica: replication.Server{DSN: dsn}, Messages: m}
	if primary != nil {
		sc.Primary = replication.Server{DSN: primary.DSN()}
	}
	source, err := replication.New(sc)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &receiver{Messages: m, replica: tr, ended: make(chan error, 1)}
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(ctx) })
	running.Go(func() { r.ended <- m.Run(ctx, tr) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return r
}

func (r *receiver) wait(t testing.TB) *receiver {
	t.Helper()
	select {
	case <-r.Ready():
	case err := <-r.ended:
		t.Fatalf("the messages have ended: %v", err)
	case <-time.After(60 * time.Second):
		t.Fatalf("not ready: %+v, %+v", r.Stats(), r.replica.State())
	}
	return r
}

// emit sends a message in a transaction that adds a row of that number.
func emit(t testing.TB, conn *pgx.Conn, prefix string, id int64) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `INSERT INTO rows VALUES ($1)`, id); err != nil {
			return err
		}
		return pgnotify.Emit(t.Context(), tx, prefix, fmt.Sprint(id))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// waitUntil asks a node until it says true.
func waitUntil(t testing.TB, n *replicationtest.Node, query string) {
	t.Helper()
	conn, err := n.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var there bool
		switch err := conn.QueryRow(t.Context(), query).Scan(&there); {
		case err != nil:
			t.Fatalf("%s: %v", query, err)
		case there:
			return
		case time.Now().After(deadline):
			t.Fatalf("not within 30 s: %s", query)
		}
	}
}

// heard is a message, and whether its row was there when it came.
type heard struct {
	pgnotify.Event
	there bool
}

// looking is a handler that looks for the row that a message names.
func looking(t testing.TB, n *replicationtest.Node, got chan<- heard) pgnotify.Handler {
	t.Helper()
	reader, err := n.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close(context.Background()) })
	return pgnotify.HandlerFunc(func(ctx context.Context, e pgnotify.Event) error {
		h := heard{Event: e}
		if n, is := e.(pgnotify.Notification); is {
			err := reader.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rows WHERE id = $1::bigint)`, pgx.QueryExecModeExec, n.Payload).Scan(&h.there)
			if err != nil {
				return err
			}
		}
		select {
		case got <- h:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func TestAMessageComesWhenTheReplicaShowsIt(t *testing.T) {
	c := cluster(t)
	decodable(t, c)
	standby := c.Standbys[0]
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	got := make(chan heard, 100)
	r := receiving(t, standby.DSN(), c.Primary, pgnotify.MessagesConfig{
		Channels: []pgnotify.Channel{{Name: "rows", Handler: looking(t, standby, got)}},
	}).wait(t)
	writer := connect(t, c.Primary)
	for i := range 10 {
		if err := standby.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := time.Now().UnixNano()
		emit(t, writer, "rows", id)
		tok, err := replication.Capture(t.Context(), writer)
		if err != nil {
			t.Fatal(err)
		}
		waitUntil(t, standby, fmt.Sprintf(`SELECT pg_last_wal_receive_lsn() >= '%s'`, tok.LSN))
		if len(got) > 0 {
			t.Errorf("%d: %+v while replay is paused", i, <-got)
		}
		if err := standby.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		h := <-got
		n := h.Event.(pgnotify.Notification)
		if n.Payload != fmt.Sprint(id) || n.Channel != "rows" || n.Token.System != tok.System || n.Token.Timeline != 1 || n.Token.LSN > tok.LSN {
			t.Errorf("%d: %+v, committed before %v", i, n, tok)
		}
		if !h.there {
			t.Errorf("%d: the replica does not show the row", i)
		}
	}
	if s := r.replica.State(); s.Source != "logical" {
		t.Errorf("%+v", s)
	}
}
