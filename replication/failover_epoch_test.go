package replication_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// recorded is a tracker with one kind and all that its Observer was told.
type recorded struct {
	*tracker.Tracker
	kind replication.Kind

	mu     sync.Mutex
	seen   []tracker.Observation // guarded by mu
	failed int                   // guarded by mu
	stale  []tracker.Observation // guarded by mu; what was still known when the source had failed
}

// record runs trackers of the server at dsn, with each kind, and returns when
// their kinds are in use.
func record(t *testing.T, major int, dsn string, primary *replicationtest.Node) []*recorded {
	t.Helper()
	var all []*recorded
	for _, kind := range kinds(major) {
		source, err := replication.New(replication.Config{
			Replica: replication.Server{DSN: dsn}, Primary: replication.Server{DSN: primary.DSN()}, Use: []replication.Kind{kind},
		})
		if err != nil {
			t.Fatal(err)
		}
		r := &recorded{kind: kind}
		r.mu.Lock()
		r.Tracker = track(t, source, tracker.Config{Observer: tracker.Observer{
			Position: func(o tracker.Observation) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.seen = append(r.seen, o)
			},
			Failed: func(string, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.failed++
				if o, known := r.LastReplay(); known {
					r.stale = append(r.stale, o)
				}
			},
		}})
		r.mu.Unlock()
		w := r.Request(tracker.Token{LSN: 1 << 60})
		eventually(t, "in use: "+string(kind), func() bool { return r.State().Source == string(kind) })
		w.Cancel()
		all = append(all, r)
	}
	return all
}

// lost waits until the source has failed more often than before, and fails where
// anything was still known then.
func (r *recorded) lost(t *testing.T, before int) {
	t.Helper()
	eventually(t, string(r.kind)+" notices", func() bool { return r.failures() > before })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.stale) > 0 {
		t.Errorf("%s: the position outlived its connection: %+v", r.kind, r.stale)
	}
}

func (r *recorded) failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// after waits for the first observation of a connection that was made after
// epoch.
func (r *recorded) after(t *testing.T, epoch uint64) (first tracker.Observation) {
	t.Helper()
	eventually(t, string(r.kind)+" observes again", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, o := range r.seen {
			if o.Epoch > epoch {
				first = o
				return true
			}
		}
		return false
	})
	return first
}

// pending says that none of ws has ended, over a few more observations.
func (r *recorded) pending(t *testing.T, when string, ws ...*tracker.Waiter) {
	t.Helper()
	before := r.Stats().Observations
	eventually(t, string(r.kind)+" is asked", func() bool { return r.Stats().Observations > before+3 })
	for _, w := range ws {
		if r.Replayed(w.Token()) {
			t.Errorf("%s: %s counts as replayed %s", r.kind, w.Token(), when)
		}
		select {
		case <-w.Done():
			t.Errorf("%s: the wait for %s ended %s: %v", r.kind, w.Token(), when, w.Err())
		default:
		}
	}
}

// reading is one wait, and the row that a read on conn, which is older than the
// wait, must see after it.
type reading struct {
	*tracker.Waiter
	by   *recorded
	conn *pgx.Conn
	id   int
}

func read(t *testing.T, r *recorded, n *replicationtest.Node, tok tracker.Token, id int) reading {
	t.Helper()
	conn := connect(t, n)
	return reading{r.Request(tok), r, conn, id}
}

// fresh waits for all, and reads at the moment each is woken.
func fresh(t *testing.T, all []reading) {
	t.Helper()
	var readers sync.WaitGroup
	for _, r := range all {
		readers.Go(func() {
			err := r.Await(context.WithoutCancel(t.Context()))
			var n int
			if err == nil {
				err = r.conn.QueryRow(context.WithoutCancel(t.Context()), `SELECT count(*) FROM epochs WHERE id = $1`, r.id).Scan(&n)
			}
			if err != nil || n != 1 {
				t.Errorf("%s: woken for %s with %v, and saw %d rows", r.by.kind, r.Token(), err, n)
			}
		})
	}
	readers.Wait()
}

// Fact R6: what a standby had replayed since its last restartpoint it replays
// again after a crash, and it lets readers in before. recovery_min_apply_delay
// keeps it where it comes back to.
func TestAStandbyThatCrashedComesBackLower(t *testing.T) {
	settings := map[string]string{"checkpoint_timeout": "1h", "max_wal_size": "8GB", "bgwriter_lru_maxpages": "0"}
	c := replicationtest.Start(t, replicationtest.Options{Settings: settings})
	publish(t, c)
	standby, writer := c.Standbys[0], connect(t, c.Primary)
	exec(t, writer, `CREATE TABLE epochs (id bigint)`)
	all := record(t, c.Version, standby.DSN(), c.Primary)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	exec(t, writer, `CHECKPOINT`)
	must(c.WaitForReplay(t.Context()))
	must(standby.Exec(t.Context(), `CHECKPOINT`)) // it comes back to here, where the table is
	id := 0
	write := func() (int, tracker.Token) {
		t.Helper()
		id--
		exec(t, writer, `INSERT INTO epochs VALUES ($1)`, id)
		return id, capture(t, writer)
	}
	for name, crash := range map[string]func(){
		"killed": func() { must(standby.Kill(t.Context())) },
		"one backend killed": func() {
			backend, err := os.FindProcess(value[int](t, connect(t, standby), `SELECT pg_backend_pid()`)) // nobody's that is observed
			must(err)
			must(backend.Kill())
		},
	} {
		for range 20 {
			exec(t, writer, `INSERT INTO epochs SELECT generate_series(1, 10000)`)
		}
		seen, tok := write()
		for _, r := range all {
			wait(t, r.Tracker, tok)
		}
		must(standby.Lag(t.Context(), 24*time.Hour))
		next, far := write()
		before := map[*recorded]tracker.Observation{}
		failures := map[*recorded]int{}
		waiting := map[*recorded]*tracker.Waiter{}
		for _, r := range all {
			waiting[r] = r.Request(far)
			before[r], _ = r.LastReplay()
			failures[r] = r.failures()
			if !r.Replayed(tok) {
				t.Fatalf("%s: %s is not replayed: %+v", r.kind, tok, before[r])
			}
		}
		crash()
		for _, r := range all {
			r.lost(t, failures[r])
		}
		must(standby.Start(t.Context()))
		var readings []reading
		for _, r := range all {
			first := r.after(t, before[r].Epoch)
			if first.LSN >= tok.LSN || first.LSN >= before[r].LSN {
				t.Fatalf("%s, %s: it came back at %s, and was at %s", name, r.kind, first.LSN, before[r].LSN)
			}
			t.Logf("%s, %s: from %s to %s, %d bytes back", name, r.kind, before[r].LSN, first.LSN, before[r].LSN-first.LSN)
			again := read(t, r, standby, tok, seen)
			if n := value[int](t, again.conn, `SELECT count(*) FROM epochs WHERE id = $1`, seen); n != 0 {
				t.Fatalf("%s: the row is there: the test shows nothing", name)
			}
			r.pending(t, "while the standby is lower than it was", again.Waiter, waiting[r])
			readings = append(readings, again, reading{waiting[r], r, connect(t, standby), next})
		}
		must(standby.Lag(t.Context(), 0))
		fresh(t, readings)
	}
}

// A standby that is rebuilt, a load balancer, a name that leads elsewhere: what
// was known is of the server before.
func TestAnotherServerBehindTheSameAddressIsAskedAnew(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	publish(t, c)
	ahead, behind, writer := c.Standbys[0], c.Standbys[1], connect(t, c.Primary)
	exec(t, writer, `CREATE TABLE epochs (id bigint)`)
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	net := through(t, ahead)
	all := record(t, c.Version, net.DSN(), c.Primary)
	if err := behind.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, writer, `INSERT INTO epochs VALUES (1)`)
	tok := capture(t, writer)
	if err := ahead.WaitForReplay(t.Context(), tok.LSN.String()); err != nil {
		t.Fatal(err)
	}
	if err := ahead.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, writer, `INSERT INTO epochs VALUES (2)`)
	far := capture(t, writer)
	waiting, before, failures := map[*recorded]*tracker.Waiter{}, map[*recorded]uint64{}, map[*recorded]int{}
	for _, r := range all {
		wait(t, r.Tracker, tok)
		waiting[r] = r.Request(far)
		o, _ := r.LastReplay()
		before[r], failures[r] = o.Epoch, r.failures()
	}
	net.LeadTo(behind)
	net.Drop()
	var readings []reading
	for _, r := range all {
		r.lost(t, failures[r])
		if first := r.after(t, before[r]); first.LSN >= tok.LSN {
			t.Errorf("%s: the other server is at %s", r.kind, first.LSN)
		}
		again := read(t, r, behind, tok, 1)
		r.pending(t, "on a server that is behind", again.Waiter, waiting[r])
		readings = append(readings, again, reading{waiting[r], r, connect(t, behind), 2})
	}
	if err := behind.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh(t, readings)
}

// The same address, and a cluster that was made anew: what the tokens are of is
// gone.
func TestAnotherClusterBehindTheSameAddressIsTold(t *testing.T) {
	c, other := replicationtest.Start(t, replicationtest.Options{}), replicationtest.Start(t, replicationtest.Options{})
	const name, password = "same", "wachtwoord"
	for _, c := range []*replicationtest.Cluster{c, other} {
		publish(t, c)
		conn := connect(t, c.Primary)
		exec(t, conn, fmt.Sprintf(`CREATE ROLE %s LOGIN REPLICATION PASSWORD '%s'`, name, password))
		exec(t, conn, `GRANT pg_read_all_stats TO `+name)
		if err := c.WaitForReplay(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	standby := c.Standbys[0]
	net := through(t, standby)
	all := record(t, c.Version, net.DSNFor(name, password, "postgres"), c.Primary)
	tok := capture(t, connect(t, c.Primary))
	for _, r := range all {
		wait(t, r.Tracker, tok)
		far := tok
		far.LSN += 1 << 30
		waiting := r.Request(far)
		net.LeadTo(other.Standbys[0])
		net.Drop()
		if err := waiting.Await(t.Context()); !errors.Is(err, tracker.ErrWrongSystem) {
			t.Errorf("%s: who waited got %v", r.kind, err)
		}
		for _, tok := range []tracker.Token{tok, far, {System: tok.System, Timeline: 1, LSN: 1}, {System: tok.System, LSN: 1}} {
			if err := r.Wait(t.Context(), tok); !errors.Is(err, tracker.ErrWrongSystem) || r.Replayed(tok) {
				t.Errorf("%s: %s: got %v", r.kind, tok, err)
			}
		}
		theirs := capture(t, connect(t, other.Primary))
		wait(t, r.Tracker, theirs)
		o, _ := r.LastReplay()
		net.LeadTo(standby)
		net.Drop()
		r.after(t, o.Epoch)
		wait(t, r.Tracker, tok)
		if err := r.Wait(t.Context(), theirs); !errors.Is(err, tracker.ErrWrongSystem) {
			t.Errorf("%s: the other cluster's token: %v", r.kind, err)
		}
	}
}
