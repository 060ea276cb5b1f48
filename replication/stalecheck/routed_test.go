package stalecheck

import (
	"context"
	"flag"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

var routedReads = flag.Int64("routed", 5_000, "checked reads of TestRoutedReadsAreNotStale")

const (
	routedUsers = 48
	readsEach   = 25 // reads of one write
)

// routed are users who read what they have written, wherever a router leads them.
type routed struct {
	*scene
	routers  []*ryw.Router // with different options
	sessions bool          // whether the users have one
	reads    atomic.Int64
	failed   atomic.Int64 // reads and writes that ended with an error
	writes   atomic.Int64

	mu     sync.Mutex
	absent map[int64]int // by write: reads that did not show it; guarded by mu
}

// newRouted makes every node a replica, the primary too.
func newRouted(t *testing.T, o options) *routed {
	t.Helper()
	var replicas []ryw.Replica
	o.follow = func(s *scene, n *station) []follower {
		source, err := replication.New(replication.Config{Replica: replication.Server{DSN: n.proxy.DSN(), ConnectTimeout: patience, QueryTimeout: patience}})
		if err != nil {
			t.Fatal(err)
		}
		f := s.track(n, source, "")
		tr := f.waiter.(*tracker.Tracker)
		replicas = append(replicas, ryw.Replica{Name: n.Name(), Pool: poolOf(t, n), Tracker: tr})
		return []follower{f}
	}
	u := &routed{scene: newScene(t, o), sessions: true, absent: map[int64]int{}}
	primary := poolOf(t, u.stations...)
	for _, options := range []ryw.Options{
		{Repeat: true},
		{Repeat: true, Monotonic: true, Nearest: true},
		{Fallback: ryw.Refuse, Budget: time.Second},
	} {
		r, err := ryw.New(ryw.Config{Options: options, Primary: primary, Replicas: replicas})
		if err != nil {
			t.Fatal(err)
		}
		u.routers = append(u.routers, r)
	}
	return u
}

// poolOf is of connections to a node, or to that of several which may be written to.
func poolOf(t *testing.T, nodes ...*station) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(nodes[0].proxy.DSN())
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 16
	cfg.ConnConfig.ConnectTimeout = patience
	for _, n := range nodes[1:] {
		other, err := pgconn.ParseConfig(n.proxy.DSN())
		if err != nil {
			t.Fatal(err)
		}
		cfg.ConnConfig.Fallbacks = append(cfg.ConnConfig.Fallbacks, &pgconn.FallbackConfig{Host: other.Host, Port: other.Port})
		cfg.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	p, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// run lets users write and read while things break, until enough was read.
func (u *routed) run(enough func() bool) {
	ctx, cancel := context.WithTimeout(context.Background(), u.o.within)
	defer cancel()
	using, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	for n := range routedUsers {
		all.Go(func() {
			for using.Err() == nil {
				u.use(using, u.routers[n%len(u.routers)])
			}
		})
	}
	all.Go(func() {
		if err := u.breakThings(using); err != nil {
			u.t.Error(err)
			cancel()
		}
	})
	for !enough() && ctx.Err() == nil {
		rest(ctx, 10*time.Millisecond)
	}
	stop()
	all.Wait()
}

// use is a user who writes once and reads that again and again.
func (u *routed) use(ctx context.Context, r *ryw.Router) {
	if u.sessions {
		ctx = ryw.NewContext(ctx, new(ryw.Session))
	}
	id := ids.Add(1)
	if _, err := r.Write(ctx, func(tx pgx.Tx) error { return insertRow(ctx, tx, id) }); err != nil {
		u.failed.Add(1)
		rest(ctx, 10*time.Millisecond)
		return
	}
	u.writes.Add(1)
	for range readsEach {
		is, err := u.read(ctx, r, id)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			u.failed.Add(1)
			rest(ctx, 10*time.Millisecond)
			continue
		case !is: // which may be so when a failover has lost it: see stale
			u.mu.Lock()
			u.absent[id]++
			u.mu.Unlock()
		}
		u.reads.Add(1)
	}
}

func insertRow(ctx context.Context, tx pgx.Tx, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, operation)
	defer cancel()
	_, err := tx.Exec(ctx, insert, id, 0)
	return err
}

func (u *routed) read(ctx context.Context, r *ryw.Router, id int64) (is bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, operation)
	defer cancel()
	err = r.Read(ctx, func(q ryw.Queries) error {
		return q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM writes WHERE id = $1)`, id).Scan(&is)
	})
	return is, err
}

// stale returns how many reads did not show a write that is there in the end.
func (u *routed) stale(ctx context.Context) (n int) {
	conn, err := u.leader().Connect(ctx)
	if err != nil {
		u.t.Fatal(err)
	}
	defer disconnect(conn)
	there, err := kept(ctx, conn)
	if err != nil {
		u.t.Fatal(err)
	}
	for id, reads := range u.absent {
		if there[id] {
			n += reads
		}
	}
	return n
}

func (u *routed) log() {
	u.t.Helper()
	var primary, waited, lost, failed, strange int64
	replicas := make([]int64, len(u.stations))
	for _, r := range u.routers {
		s := r.Stats()
		primary, waited, lost = primary+s.Primary, waited+s.Waited, lost+s.Lost
		for i, rep := range s.Replicas {
			replicas[i] += rep.Reads
			failed, strange = failed+rep.Failed, strange+rep.Strange
		}
	}
	u.t.Logf("%d checked reads of %d writes in %s: %d from the nodes as replicas, %d from the primary as such, %d waited; %d lost sessions, %d connections refused, %d strange; %d ended with an error; %d writes were lost",
		u.reads.Load(), u.writes.Load(), time.Since(u.history.began).Round(time.Millisecond), replicas, primary, waited, lost, failed, strange, u.failed.Load(), len(u.absent))
}

func TestRoutedReadsAreNotStale(t *testing.T) {
	u := newRouted(t, options{seed: chosenSeed(), within: *within, faults: allFaults(), timeout: 12 * time.Second})
	t.Logf("PostgreSQL %s, seed %d", u.cluster.Release, u.o.seed)
	u.run(func() bool { return u.reads.Load() >= *routedReads })
	u.log()
	if n := u.reads.Load(); n < *routedReads {
		t.Errorf("%d checked reads within %s, want %d", n, *within, *routedReads)
	}
	if n := u.stale(t.Context()); n > 0 {
		t.Errorf("%d stale reads", n)
	}
}

// Without a session the same users read what is stale, and the check finds it.
func TestRoutedReadsWithoutASessionAreStale(t *testing.T) {
	u := newRouted(t, options{seed: chosenSeed(), within: *within, timeout: 12 * time.Second})
	u.sessions = false
	for _, st := range u.stations[1:] {
		if err := st.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	u.run(func() bool { return u.reads.Load() >= 1_000 })
	u.log()
	if u.stale(t.Context()) == 0 {
		t.Error("it was not found")
	}
}
