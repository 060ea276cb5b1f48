package stalecheck

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// trap is one known mistake, put back.
type trap struct {
	name   string
	kinds  []string // of the violation that it must lead to
	from   int      // the first PostgreSQL version that has it; 0: all
	change func(o *options)
	step   bool // one write at a time, each waited for, on an otherwise idle primary
}

// firstLogical is the first PostgreSQL whose standbys decode.
const firstLogical = 16

var traps = []trap{
	{name: "position before COMMIT", kinds: []string{stale}, change: func(o *options) {
		o.capture, o.faults = beforeCommit, faultsNamed("replay lags") // which holds commits back, and nothing else
	}},
	{name: "write position instead of insert position", kinds: []string{stale}, change: func(o *options) {
		o.async, o.capture = true, writePosition
	}},
	{name: "page header not taken off", kinds: []string{late}, step: true, change: func(o *options) { o.capture = rawPosition }},
	{name: "received position believed", kinds: []string{stale}, change: func(o *options) {
		o.faults = faultsNamed("replay paused")
		o.follow = twisted(func(*pollSource) {}, `SELECT pg_last_wal_receive_lsn()::text`)
	}},
	{name: "highest position of all connections", kinds: []string{stale, backwards}, change: func(o *options) {
		o.faults, o.timeout = faultsNamed("standby crashed, and kept behind"), 50*time.Millisecond
		o.anyAge, o.readers = true, 8
		o.follow = twisted(func(p *pollSource) { p.monotone = true }, replayedQuery)
	}},
	{name: "timeline ignored", kinds: []string{stale, hidden}, change: func(o *options) {
		o.standbys, o.faults = 2, faultsNamed("failover")
		o.capture = func(ctx context.Context, conn *pgx.Conn, id, writer int64) (tracker.Token, error) {
			tok, err := afterCommit(ctx, conn, id, writer)
			return tracker.Token{LSN: tok.LSN}, err
		}
	}},
	{name: "not looked again after registering", kinds: []string{late}, step: true, change: func(o *options) { o.follow = followRacy }},
	{name: "logical stream not pinged", kinds: []string{late}, from: firstLogical, step: true, change: func(o *options) { o.follow = followSilent }},
}

func faultsNamed(name string) []fault {
	for _, f := range allFaults() {
		if f.name == name {
			return []fault{f}
		}
	}
	panic("no fault is named " + name)
}

// Without any of these the checks would prove nothing.
func TestEachTrapIsFound(t *testing.T) {
	for _, trap := range traps {
		t.Run(trap.name, func(t *testing.T) {
			o := options{
				seed: chosenSeed(), reads: 1 << 40, within: time.Minute,
				writers: 2, readers: 4, pause: time.Millisecond, standbys: 1,
				timeout: 3 * time.Second, late: time.Second,
				capture: afterCommit, follow: pollOnly, until: trap.kinds,
			}
			trap.change(&o)
			s := newScene(t, o)
			if s.cluster.Version < trap.from {
				return // there is no such stream, and so no such trap
			}
			if trap.step {
				s.step(20_000)
			} else {
				s.run()
			}
			wrong := s.history.wrong()
			i := slices.IndexFunc(wrong, func(v violation) bool { return slices.Contains(trap.kinds, v.kind) })
			if i < 0 {
				t.Fatalf("it was not found in %d reads: %v", s.history.reads.Load(), wrong)
			}
			t.Logf("found after %s and %d reads: %s", time.Since(s.history.began).Round(time.Millisecond), s.history.reads.Load(), wrong[i])
		})
	}
}

// The same idle primary, with nothing broken.
func TestStepByStepNothingIsLost(t *testing.T) {
	s := newScene(t, options{
		seed: chosenSeed(), within: 5 * time.Minute, writers: 1, standbys: 1,
		timeout: 12 * time.Second, late: 2 * time.Second,
		capture: afterCommit, follow: walwake, until: []string{stale, late, wrongEnd},
	})
	s.step(2_000)
	if n := s.history.reads.Load(); n < 2_000 {
		t.Errorf("%d of 2000 reads", n)
	}
	s.report()
}

// step writes and reads in turns, with nothing else going on.
func (s *scene) step(limit int) {
	s.t.Helper()
	s.t.Logf("PostgreSQL %s, seed %d", s.cluster.Release, s.o.seed)
	ctx, cancel := context.WithTimeout(context.Background(), s.o.within)
	defer cancel()
	conn, err := s.leader().Connect(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	defer disconnect(conn)
	r := s.newReader(0)
	defer r.close()
	st := s.stations[1]
	for n := 0; n < limit && !s.history.has(s.o.until) && ctx.Err() == nil; n++ {
		w := write{id: ids.Add(1)}
		if w.token, err = s.o.capture(ctx, conn, w.id, 0); err != nil {
			s.t.Fatal(err)
		}
		s.history.acknowledged(w)
		r.check(ctx, st, st.followers[n%len(st.followers)], w)
	}
}

// pollOnly follows a standby rightly, and a primary not at all.
func pollOnly(s *scene, n *station) []follower {
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: n.DSN()}, Use: []replication.Kind{replication.Poll}})
	if err != nil {
		s.t.Fatal(err)
	}
	return []follower{s.track(n, source, "poll")}
}

// Wrong ways to take a token.

func beforeCommit(ctx context.Context, conn *pgx.Conn, id, writer int64) (tok tracker.Token, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return tok, err
	}
	if _, err = tx.Exec(ctx, insert, id, writer); err == nil {
		tok, err = position(ctx, tx, `pg_current_wal_insert_lsn()`)
	}
	if err != nil {
		return tok, err
	}
	return tok, tx.Commit(ctx)
}

func writePosition(ctx context.Context, conn *pgx.Conn, id, writer int64) (tracker.Token, error) {
	if _, err := conn.Exec(ctx, insert, id, writer); err != nil {
		return tracker.Token{}, err
	}
	return position(ctx, conn, `pg_current_wal_lsn()`)
}

// rawPosition takes it where the next record begins on a page of its own, as
// happens by itself to one record in some hundred.
func rawPosition(ctx context.Context, conn *pgx.Conn, id, writer int64) (tracker.Token, error) {
	if _, err := conn.Exec(ctx, insert, id, writer); err != nil {
		return tracker.Token{}, err
	}
	if _, err := conn.Exec(ctx, `SELECT pg_switch_wal()`); err != nil {
		return tracker.Token{}, err
	}
	return position(ctx, conn, `pg_current_wal_insert_lsn()`)
}

func position(ctx context.Context, conn replication.Querier, of string) (tok tracker.Token, err error) {
	var lsn string
	if err := conn.QueryRow(ctx, `SELECT `+of+`::text`).Scan(&lsn); err != nil {
		return tok, err
	}
	tok.LSN, err = tracker.ParseLSN(lsn)
	return tok, err
}

// Wrong sources.

const replayedQuery = `SELECT pg_last_wal_replay_lsn()::text`

// pollSource asks a standby for a position of some kind each millisecond.
type pollSource struct {
	dsn, query string
	monotone   bool // a position that was once reached stays so
	highest    tracker.LSN
}

func (p *pollSource) Name() string { return "broken" }

func (p *pollSource) Observe(ctx context.Context, feed *tracker.Feed) error {
	conn, err := pgx.Connect(ctx, p.dsn)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	epoch := feed.Begin()
	defer epoch.End()
	var system int64
	if err := conn.QueryRow(ctx, `SELECT system_identifier FROM pg_control_system()`).Scan(&system); err != nil {
		return err
	}
	for ctx.Err() == nil {
		var lsn string
		if err := conn.QueryRow(ctx, p.query).Scan(&lsn); err != nil {
			return err
		}
		at, err := tracker.ParseLSN(lsn)
		if err != nil {
			return err
		}
		p.highest = max(p.highest, at)
		if p.monotone {
			at = p.highest
		}
		epoch.Observe(tracker.Observation{LSN: at, System: uint64(system), Timeline: 1, History: tracker.History{}})
		rest(ctx, time.Millisecond)
	}
	return ctx.Err()
}

// twisted follows the standby with a pollSource.
func twisted(change func(*pollSource), query string) func(*scene, *station) []follower {
	return func(s *scene, n *station) []follower {
		if n == s.stations[0] {
			return nil
		}
		p := &pollSource{dsn: n.DSN(), query: query}
		change(p)
		return []follower{s.track(n, p, "broken")}
	}
}

// silentSource listens to a logical stream and never pings.
type silentSource struct{ dsn string }

func (p *silentSource) Name() string { return "silent" }

func followSilent(s *scene, n *station) []follower {
	if n == s.stations[0] || s.cluster.Version < firstLogical {
		return nil
	}
	f := s.track(n, &silentSource{n.DSN("replication=database")}, "silent")
	select {
	case <-f.waiter.(*tracker.Tracker).Ready():
	case <-time.After(time.Minute): // an idle primary logs what the slot needs within 15 s
		s.t.Fatal("the logical stream does not begin")
	}
	return []follower{f}
}

func (p *silentSource) Observe(ctx context.Context, feed *tracker.Feed) error {
	conn, err := pgconn.Connect(ctx, p.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	id, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Conn().SetDeadline(time.Unix(1, 0)) })
	defer stop()
	help, helped := context.WithCancel(ctx)
	defer helped()
	slot := fmt.Sprintf("silent_%d", conn.PID())
	if _, err := pglogrepl.CreateReplicationSlot(help, conn, slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Temporary: true, SnapshotAction: "NOEXPORT_SNAPSHOT"}); err != nil {
		return err
	}
	err = pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'walwake'"}})
	if err != nil {
		return err
	}
	var system uint64
	if _, err := fmt.Sscan(id.SystemID, &system); err != nil {
		return err
	}
	epoch := feed.Begin()
	defer epoch.End()
	for {
		msg, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		data, is := msg.(*pgproto3.CopyData)
		if !is || data.Data[0] != pglogrepl.PrimaryKeepaliveMessageByteID {
			continue
		}
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data.Data[1:])
		if err != nil {
			return err
		}
		epoch.Observe(tracker.Observation{LSN: tracker.LSN(k.ServerWALEnd), System: system, Timeline: 1, History: tracker.History{}})
		if k.ReplyRequested {
			if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: 1}); err != nil {
				return err
			}
		}
	}
}

// A wrong tracker.

// racy looks whether a position is replayed, then registers, and is woken by
// news: what comes in between is lost.
type racy struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	at      tracker.LSN
	waiting map[chan struct{}]tracker.LSN
}

func followRacy(s *scene, n *station) []follower {
	if n == s.stations[0] {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &racy{cancel: cancel, waiting: map[chan struct{}]tracker.LSN{}}
	conn, err := n.Connect(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	r.done.Go(func() { r.listen(ctx, conn) })
	s.t.Cleanup(r.Close)
	return []follower{{r, "racy"}}
}

func (r *racy) listen(ctx context.Context, conn *pgx.Conn) {
	defer disconnect(conn)
	for ctx.Err() == nil {
		tok, err := position(ctx, conn, `pg_last_wal_replay_lsn()`)
		if err != nil {
			return
		}
		r.mu.Lock()
		if tok.LSN > r.at {
			r.at = tok.LSN
			for c, lsn := range r.waiting {
				if lsn <= r.at {
					close(c)
					delete(r.waiting, c)
				}
			}
		}
		r.mu.Unlock()
	}
}

func (r *racy) Close() {
	r.cancel()
	r.done.Wait()
}

func (r *racy) Wait(ctx context.Context, tok tracker.Token) error {
	r.mu.Lock()
	there := r.at >= tok.LSN
	r.mu.Unlock()
	if there {
		return nil
	}
	_, _ = fmt.Fprintln(io.Discard, "waiting for", tok) // what is between the two is time enough
	c := make(chan struct{})
	r.mu.Lock()
	r.waiting[c] = tok.LSN
	r.mu.Unlock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
