package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// A way to wait for a token.
type way struct {
	name  string
	since int  // the PostgreSQL version from which it is possible
	alone bool // it does not wait: there is nothing to see with more than one waiter
	idles bool // there is something to see with none

	// period is that of a loop which goes on whether or not somebody waits: writes
	// must come at any time within it, or it is met at the same point each time.
	period time.Duration

	open func(ctx context.Context, l *line) (*opened, error)
}

// opened is a way that is ready. wait may be called by many at once.
type opened struct {
	wait  func(context.Context, tracker.Token) error
	close func()
	told  func(tracker.Token) // called once a token is written; nil: not needed
}

const (
	floorWay  = "floor"
	tripWay   = "round-trip"
	tightWay  = "tight-loop"
	nativeWay = "wait-for-lsn"
)

// all ways, the slowest first.
var all = []way{
	{name: "poll-100ms", open: loop(100*time.Millisecond, positionQuery)},
	{name: "server-loop-50ms", idles: true, period: 50 * time.Millisecond, open: serverLoop},
	{name: "poll-10ms", open: loop(10*time.Millisecond, positionQuery)},
	{name: "poll-1ms", open: loop(time.Millisecond, positionQuery)},
	{name: tightWay, open: loop(0, positionQuery)},
	{name: "tight-loop-timeline", open: loop(0, timelineQuery)},
	{name: nativeWay, since: 19, open: native},
	{name: "walwake", idles: true, open: follow()},
	{name: "walwake-physical", idles: true, open: follow(replication.Physical)},
	{name: "walwake-logical", idles: true, since: 16, open: follow(replication.Logical)},
	{name: "walwake-waitfor", idles: true, since: 19, open: follow(replication.WaitFor)},
	{name: "walwake-poll", idles: true, open: follow(replication.Poll)},
	{name: tripWay, alone: true, open: roundTrip},
	{name: floorWay, idles: true, open: floor},
}

// Ways returns the names of all ways.
func Ways() []string {
	var names []string
	for _, w := range all {
		names = append(names, w.name)
	}
	return names
}

// chosen returns the ways that names names, all without any, which a server of
// version major has.
func chosen(names []string, major int) ([]way, error) {
	var ways []way
	for _, w := range all {
		named := slices.Contains(names, w.name)
		switch {
		case len(names) > 0 && !named:
		case w.since <= major:
			ways = append(ways, w)
		case named:
			return nil, fmt.Errorf("%s needs PostgreSQL %d, and the replica is %d", w.name, w.since, major)
		}
	}
	return ways, nil
}

// floor waits for a word from whoever has written: what is left is the time that
// measuring takes, and the Go scheduler for waking all who wait.
func floor(context.Context, *line) (*opened, error) {
	known := newBroadcast()
	return &opened{wait: known.wait, close: func() {}, told: func(tok tracker.Token) { known.set(tok.LSN) }}, nil
}

// roundTrip asks the replica once, whatever it says: no way that asks after the
// write can be quicker, even if replay took no time.
func roundTrip(ctx context.Context, l *line) (*opened, error) {
	s, err := l.sessions(ctx)
	if err != nil {
		return nil, err
	}
	return &opened{close: s.close, wait: func(ctx context.Context, tok tracker.Token) error {
		var there bool
		return s.with(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, positionQuery, tok.LSN).Scan(&there) })
	}}, nil
}

const (
	positionQuery = `SELECT pg_last_wal_replay_lsn() >= $1`
	// The timeline is read after the position; without it a failover makes the
	// answer wrong.
	timelineQuery = `SELECT pg_last_wal_replay_lsn() >= $1 AND (SELECT received_tli FROM pg_stat_wal_receiver) = $2`
)

// loop asks, over a session that is taken for each question, until the token is
// replayed, with a pause between questions.
func loop(pause time.Duration, query string) func(context.Context, *line) (*opened, error) {
	return func(ctx context.Context, l *line) (*opened, error) {
		s, err := l.sessions(ctx)
		if err != nil {
			return nil, err
		}
		ask := func(ctx context.Context, tok tracker.Token) (there bool, err error) {
			args := []any{tok.LSN, tok.Timeline}
			if query == positionQuery {
				args = args[:1]
			}
			err = s.with(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, query, args...).Scan(&there) })
			return there, err
		}
		return &opened{close: s.close, wait: func(ctx context.Context, tok tracker.Token) error {
			for {
				if there, err := ask(ctx, tok); err != nil || there {
					return err
				}
				if pause == 0 {
					continue
				}
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}}, nil
	}
}

// native is PostgreSQL's own: a session for each wait.
func native(ctx context.Context, l *line) (*opened, error) {
	s, err := l.sessions(ctx)
	if err != nil {
		return nil, err
	}
	return &opened{close: s.close, wait: func(ctx context.Context, tok tracker.Token) error {
		return s.with(ctx, func(conn *pgx.Conn) error {
			var said string
			err := conn.QueryRow(ctx, fmt.Sprintf(`WAIT FOR LSN '%s' WITH (TIMEOUT '%dms')`, tok.LSN, waitMost.Milliseconds()),
				pgx.QueryExecModeSimpleProtocol).Scan(&said)
			if err == nil && said != "success" {
				err = fmt.Errorf("WAIT FOR LSN said %q", said)
			}
			return err
		})
	}}, nil
}

// serverLoop is the ancestor's way: over one session the server looks every
// 50 ms until replay has moved, and all wait for what it says.
func serverLoop(ctx context.Context, l *line) (*opened, error) {
	conn, err := pgx.ConnectConfig(ctx, l.config())
	if err != nil {
		return nil, err
	}
	known := newBroadcast()
	watching, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for at := tracker.LSN(0); ; known.set(at) {
			// A DO block is a PL/pgSQL function that needs not be created; both
			// statements go in one round trip.
			results, err := conn.PgConn().Exec(watching, fmt.Sprintf(`DO $$ BEGIN
				WHILE pg_last_wal_replay_lsn() <= '%s' LOOP PERFORM pg_sleep(0.05); END LOOP;
			END $$; SELECT pg_last_wal_replay_lsn()`, at)).ReadAll()
			if err == nil {
				at, err = tracker.ParseLSN(string(results[len(results)-1].Rows[0][0]))
			}
			if err != nil {
				known.fail(err)
				return
			}
		}
	}()
	return &opened{wait: known.wait, close: func() {
		stop()
		<-ended
		disconnect(conn)
	}}, nil
}

// follow is a tracker as users make it; with a kind, with that one up.
func follow(kinds ...replication.Kind) func(context.Context, *line) (*opened, error) {
	return func(ctx context.Context, l *line) (*opened, error) {
		source, err := replication.New(replication.Config{
			Replica: replication.Server{Config: l.config()},
			Primary: replication.Server{Config: l.primary},
			Use:     kinds,
		})
		if err != nil {
			return nil, err
		}
		failed := make(chan error, 1)
		tr, err := tracker.New(tracker.Config{Source: source, Observer: tracker.Observer{Failed: func(_ string, err error) {
			select {
			case failed <- err:
			default: // the first says why
			}
		}}})
		if err != nil {
			return nil, err
		}
		running := make(chan struct{})
		go func() { defer close(running); _ = tr.Run(context.Background()) }()
		stop := func() { tr.Close(); <-running }
		select {
		case <-tr.Ready():
		case err = <-failed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == nil && len(kinds) > 0 {
			err = comeUp(ctx, tr, kinds[0])
		}
		if err != nil {
			stop()
			return nil, err
		}
		return &opened{wait: tr.Wait, close: stop}, nil
	}
}

// errNotUp says that a kind is not possible on these servers.
var errNotUp = errors.New("is not possible here")

// comeUp has somebody wait, since streams start for nobody else, until the kind
// is in use.
func comeUp(ctx context.Context, tr *tracker.Tracker, kind replication.Kind) error {
	w := tr.Request(tracker.Token{LSN: 1 << 62})
	defer w.Cancel()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	within := time.After(upWithin)
	for {
		s := tr.State()
		if s.Source == string(kind) {
			return nil
		}
		select {
		case <-look.C:
		case <-within:
			for _, r := range s.Ladder {
				if r.Source == string(kind) {
					return fmt.Errorf("%s %w: %s", kind, errNotUp, r.Reason)
				}
			}
			return fmt.Errorf("%s %w", kind, errNotUp)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
