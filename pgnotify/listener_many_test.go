package pgnotify_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication/replicationtest"
)

var notifications = flag.Int("notifications", 8_000, "how many TestManyNotificationsAreNeitherEarlyNorLost sends")

// many is a handler that checks, for each notification, that the replica shows
// its row. Each writer commits its rows in order, so a row is shown when a higher
// one of its writer was seen.
type many struct {
	t        *testing.T
	reader   *pgx.Conn
	listener func() *pgnotify.Listener
	writers  int

	came  []int // from each writer, the highest
	shown []int // of each writer, the highest that the replica was seen to show
	left  int
	all   chan struct{} // closed when all have come

	looked, held int // how often the replica was asked, and the most that was held
}

const manyQuery = `SELECT coalesce((SELECT max(id) FROM many WHERE writer = w), 0) FROM generate_series(0, $1::int - 1) AS w ORDER BY w`

func (m *many) Handle(ctx context.Context, e pgnotify.Event) error {
	n, is := e.(pgnotify.Notification)
	if !is {
		return fmt.Errorf("got %+v", e)
	}
	var w, id int
	if _, err := fmt.Sscanf(n.Payload, "%d %d", &w, &id); err != nil {
		return err
	}
	if id != m.came[w]+1 {
		return fmt.Errorf("%d of writer %d after %d", id, w, m.came[w])
	}
	m.came[w] = id
	if id > m.shown[w] {
		m.looked++
		rows, err := m.reader.Query(ctx, manyQuery, m.writers)
		if err != nil {
			return err
		}
		if m.shown, err = pgx.CollectRows(rows, pgx.RowTo[int]); err != nil {
			return err
		}
		if id > m.shown[w] {
			return fmt.Errorf("early: %d of writer %d, of which the replica shows %d", id, w, m.shown[w])
		}
	}
	s := m.listener().Stats().Channels[0]
	if m.held = max(m.held, s.Held); s.Held > manyBuffer {
		return fmt.Errorf("%d are held", s.Held)
	}
	if m.left--; m.left == 0 {
		close(m.all)
	}
	return nil
}

const manyBuffer = 500

// A replica that lags in all ways, and 8 who write as fast as they can.
func TestManyNotificationsAreNeitherEarlyNorLost(t *testing.T) {
	const writers = 8
	each := *notifications / writers
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	must(t, c.Primary.Exec(t.Context(), `CREATE TABLE many (writer int, id int, PRIMARY KEY (writer, id))`))
	must(t, c.WaitForReplay(t.Context()))
	var l *pgnotify.Listener
	set := make(chan struct{})
	m := &many{
		t: t, reader: connect(t, standby), writers: writers, listener: func() *pgnotify.Listener { <-set; return l },
		came: make([]int, writers), shown: make([]int, writers), left: each * writers, all: make(chan struct{}),
	}
	cfg := quickly(c.Primary.DSN(), follow(t, standby.DSN()), pgnotify.Channel{Name: "many", Handler: m, Buffer: manyBuffer})
	cfg.Primary.QueryTimeout = patience // it is a busy machine
	l, ended := start(t, cfg)
	close(set)
	<-l.Ready()
	began := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	var lagging, writing sync.WaitGroup
	lagging.Go(func() { lag(ctx, t, standby) })
	for w := range writers {
		conn := connect(t, c.Primary)
		writing.Go(func() {
			for id := range each {
				sql := fmt.Sprintf(`BEGIN; INSERT INTO many VALUES (%d, %d); NOTIFY many, '%[1]d %[2]d'; COMMIT`, w, id+1)
				if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	select {
	case <-m.all:
	case err := <-ended:
		t.Error(err)
	case <-time.After(time.Minute + time.Duration(*notifications)*2*time.Millisecond):
		t.Errorf("not in time: %+v", l.Stats())
	}
	took := time.Since(began)
	stop()
	writing.Wait()
	lagging.Wait()
	s := l.Stats()
	if got := s.Channels[0]; got.Delivered != each*writers || got.Received != got.Delivered || got.Dropped+got.Lost+got.Resyncs+s.Reconnects != 0 {
		t.Errorf("got %+v", s)
	}
	if s.Positions > each*writers/2 {
		t.Errorf("%d position queries for %d notifications: want one a burst", s.Positions, each*writers)
	}
	t.Logf("%d notifications in %s: %d position queries; the replica was looked at %d times; at most %d held",
		each*writers, took.Round(time.Millisecond), s.Positions, m.looked, m.held)
}

// lag holds the standby's replay back in one way after the other.
func lag(ctx context.Context, t *testing.T, standby *replicationtest.Node) {
	step := func(err error) bool {
		if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "context canceled") {
			t.Error(err)
		}
		return err == nil
	}
	rest := func() {
		select {
		case <-time.After(rand.N(40 * time.Millisecond)):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		switch rand.N(3) {
		case 0:
			if step(standby.Pause(ctx)) {
				rest()
			}
			step(standby.Resume(context.WithoutCancel(ctx)))
		case 1:
			if step(standby.Lag(ctx, time.Duration(1+rand.N(30))*time.Millisecond)) {
				rest()
			}
			step(standby.Lag(context.WithoutCancel(ctx), 0))
		case 2:
			rest()
		}
	}
}
