package ryw_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

var ids atomic.Int64

// write adds a row in ctx's session, and returns it.
func write(ctx context.Context, r *ryw.Router) (id int64, err error) {
	id = ids.Add(1)
	_, err = r.Write(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rows VALUES ($1)`, id)
		return err
	})
	return id, err
}

func there(ctx context.Context, r *ryw.Router, id int64) (is bool, err error) {
	err = r.Read(ctx, func(q ryw.Queries) error {
		return q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rows WHERE id = $1)`, id).Scan(&is)
	})
	return is, err
}

func fresh(t *testing.T) context.Context {
	t.Helper()
	return ryw.NewContext(t.Context(), new(ryw.Session))
}

func TestASessionReadsItsWritesFromTheReplicas(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{Budget: 30 * time.Second, Fallback: ryw.Refuse})
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			ctx := fresh(t)
			for range 50 {
				id, err := write(ctx, r)
				if err != nil {
					t.Error(err)
					return
				}
				if is, err := there(ctx, r, id); err != nil || !is {
					t.Errorf("row %d: %v %v", id, is, err)
					return
				}
			}
		})
	}
	users.Wait()
	s := r.Stats()
	if s.Primary != 0 || s.Waited == 0 {
		t.Errorf("%+v", s)
	}
	for _, rep := range s.Replicas {
		if rep.Reads == 0 || rep.Reading != 0 || rep.Strange != 0 || !rep.Known {
			t.Errorf("%+v", rep)
		}
	}
}

func TestWhereAReadGoes(t *testing.T) {
	c := cluster(t)
	for _, tt := range []struct {
		name     string
		paused   []int // standbys that do not replay
		options  ryw.Options
		from     string // a standby's name, "primary", or empty
		err      error
		deadline time.Duration
	}{
		{name: "both have it", options: ryw.Options{Budget: time.Minute}, from: "standby"},
		{name: "one lags", paused: []int{0}, options: ryw.Options{Budget: time.Minute}, from: "standby2"},
		{name: "the other lags", paused: []int{1}, options: ryw.Options{Budget: time.Minute, Fallback: ryw.WaitOn}, from: "standby1"},
		{name: "both lag", paused: []int{0, 1}, from: "primary"},
		{name: "both lag, no budget", paused: []int{0, 1}, options: ryw.Options{Budget: -1}, from: "primary"},
		{name: "both lag, refused", paused: []int{0, 1}, options: ryw.Options{Fallback: ryw.Refuse}, err: ryw.ErrNoReplica},
		{name: "both lag, waits on", paused: []int{0, 1}, options: ryw.Options{Fallback: ryw.WaitOn}, err: context.DeadlineExceeded, deadline: 200 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := router(t, c, tt.options)
			ctx := fresh(t)
			for _, i := range tt.paused {
				if err := c.Standbys[i].Pause(ctx); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Standbys[i].Resume(context.Background()) })
			}
			id, err := write(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			if tt.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.deadline)
				defer cancel()
			}
			is, err := there(ctx, r, id)
			if !errors.Is(err, tt.err) || is != (tt.err == nil) {
				t.Fatalf("read %v, %v, want %v", is, err, tt.err)
			}
			from := ""
			s := r.Stats()
			if s.Primary > 0 {
				from = "primary"
			}
			for _, rep := range s.Replicas {
				if rep.Reads > 0 {
					from += rep.Name
				}
			}
			if !strings.HasPrefix(from, tt.from) || (from == "") != (tt.from == "") {
				t.Errorf("read from %q, want %q: %+v", from, tt.from, s)
			}
		})
	}
}

// The tracker's own timeout is not the read's.
func TestWaitOnOutlastsTheTrackersTimeout(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	r := newRouter(t, ryw.Config{
		Options: ryw.Options{Fallback: ryw.WaitOn}, Primary: pool(t, c.Primary.DSN()),
		Replicas: []ryw.Replica{followFor(t, 20*time.Millisecond, "impatient", n.DSN(), n.DSN())},
	})
	ctx := fresh(t)
	if err := n.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	id, err := write(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	var resuming sync.WaitGroup
	resuming.Go(func() {
		for r.Stats().Waited < 3 && !t.Failed() {
			runtime.Gosched()
		}
		if err := n.Resume(ctx); err != nil {
			t.Error(err)
		}
	})
	is, err := there(ctx, r, id)
	if err != nil || !is {
		t.Errorf("%v %v", is, err)
	}
	resuming.Wait()
}

func TestAReplicaRefusesToWrite(t *testing.T) {
	c := cluster(t)
	// On a development machine the replica is a primary.
	r := newRouter(t, ryw.Config{Options: ryw.Options{Budget: time.Minute}, Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{follow(t, "dev", c.Primary.DSN(), c.Primary.DSN())}})
	ctx := fresh(t)
	id, err := write(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if is, err := there(ctx, r, id); err != nil || !is {
		t.Errorf("%v %v", is, err)
	}
	err = r.Read(ctx, func(q ryw.Queries) error {
		_, err := q.Exec(ctx, `INSERT INTO rows VALUES (-1)`)
		return err
	})
	if e, is := errors.AsType[*pgconn.PgError](err); !is || e.Code != "25006" {
		t.Errorf("a write in Read: %v", err)
	}
	if s := r.Stats(); s.Primary != 0 || s.Replicas[0].Reads != 2 {
		t.Errorf("%+v", s)
	}
}

func TestAWriteThatFailsIsRolledBackAndHasNoToken(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{})
	s := new(ryw.Session)
	ctx := ryw.NewContext(t.Context(), s)
	broken := errors.New("broken")
	tok, err := r.Write(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rows VALUES (-2)`)
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) || tok != (tracker.Token{}) || s.Token() != tok {
		t.Errorf("%v %v, the session has %v", tok, err, s.Token())
	}
	if is, err := there(ctx, r, -2); err != nil || is {
		t.Errorf("%v %v", is, err)
	}
}

// The pool leads to another server than the tracker: what the tracker knows says
// nothing about it, and it must be asked.
func TestTwoServersBehindOneAddress(t *testing.T) {
	c := cluster(t)
	one, two := c.Standbys[0], c.Standbys[1]
	r := newRouter(t, ryw.Config{Options: ryw.Options{Budget: time.Minute}, Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{follow(t, "mixed", one.DSN(), two.DSN())}})
	ctx := fresh(t)
	read := func(want int64) {
		t.Helper()
		id, err := write(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if is, err := there(ctx, r, id); err != nil || !is {
			t.Fatalf("%v %v", is, err)
		}
		if s := r.Stats(); s.Replicas[0].Strange < want {
			t.Errorf("want %d strange ones, got %+v", want, s)
		}
	}
	read(1)
	if err := two.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range int64(20) {
		read(2 + i)
	}
	if s := r.Stats(); s.Primary < 20 {
		t.Errorf("%+v", s)
	}
}

// A role that may not see the tracker's process: each read asks the connection.
func TestAReaderOfAnotherRole(t *testing.T) {
	c := cluster(t)
	n := c.Standbys[0]
	r := newRouter(t, ryw.Config{Options: ryw.Options{Budget: time.Minute}, Primary: pool(t, c.Primary.DSN()), Replicas: []ryw.Replica{follow(t, "other role", n.DSN(), n.DSNFor("reader", "reads", "postgres"))}})
	ctx := fresh(t)
	for range 20 {
		id, err := write(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if is, err := there(ctx, r, id); err != nil || !is {
			t.Fatalf("%v %v", is, err)
		}
	}
	if s := r.Stats(); s.Replicas[0].Strange < 20 {
		t.Errorf("%+v", s)
	}
}

// A standby that crashes comes back lower. Whatever is read from it then must show
// what the session has written.
func TestAStandbyThatCrashesIsNotReadTooEarly(t *testing.T) {
	c := ownCluster(t, replicationtest.Options{Settings: map[string]string{"checkpoint_timeout": "1h"}})
	r := router(t, c, ryw.Options{Repeat: true})
	end, stop := context.WithCancel(t.Context())
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			ctx := ryw.NewContext(t.Context(), new(ryw.Session))
			for end.Err() == nil {
				id, err := write(ctx, r)
				if err != nil {
					t.Error(err)
					return
				}
				for range 3 {
					if is, err := there(ctx, r, id); err != nil || !is {
						t.Errorf("row %d: %v %v", id, is, err)
						return
					}
				}
			}
		})
	}
	standby := c.Standbys[0]
	for range 3 {
		reads := func() int64 { return r.Stats().Replicas[0].Reads }
		for before := reads(); reads() < before+50 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		if err := standby.Crash(t.Context()); err != nil {
			t.Error(err)
			break
		}
		if err := standby.Start(t.Context()); err != nil {
			t.Error(err)
			break
		}
	}
	stop()
	users.Wait()
	if s := r.Stats(); s.Primary == 0 || s.Replicas[0].Reads == 0 {
		t.Errorf("%+v", s)
	}
}

const lastRow = `SELECT coalesce(max(id), 0) FROM rows`

// Reads of one session from several replicas never go back.
func TestMonotonicReadsDoNotGoBack(t *testing.T) {
	c := cluster(t)
	r := router(t, c, ryw.Options{Monotonic: true})
	doNotGoBack(t, c, r, func(ctx context.Context) (last int64, err error) {
		return last, r.Read(ctx, func(q ryw.Queries) error { return q.QueryRow(ctx, lastRow).Scan(&last) })
	})
}

// doNotGoBack reads the last row in one session while r writes for others and one
// standby lags.
func doNotGoBack(t *testing.T, c *replicationtest.Cluster, r *ryw.Router, read func(context.Context) (int64, error)) {
	t.Helper()
	if err := c.Standbys[1].Lag(t.Context(), 30*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Standbys[1].Lag(context.Background(), 0) })
	end, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer stop()
	writing.Go(func() {
		for end.Err() == nil {
			if _, err := write(t.Context(), r); err != nil {
				t.Error(err)
				return
			}
		}
	})
	ctx := fresh(t)
	last := int64(0)
	for range 300 {
		now, err := read(ctx)
		if err != nil || now < last {
			t.Fatalf("read %d after %d, %v", now, last, err)
		}
		last = now
	}
	if ryw.FromContext(ctx).Token() == (tracker.Token{}) {
		t.Error("the session has seen nothing")
	}
}
