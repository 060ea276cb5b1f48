package ryw_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// A replica cancels a query that replay has waited for long enough.
func TestAConflictWithRecoveryIsRepeatedElsewhere(t *testing.T) {
	c := ownCluster(t, replicationtest.Options{Settings: map[string]string{
		"max_standby_streaming_delay": "0", "autovacuum": "off", "hot_standby_feedback": "off",
	}})
	churn := func() {
		t.Helper()
		err := errors.Join(c.Primary.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS churn (id int); INSERT INTO churn SELECT generate_series(1, 1000)`), c.WaitForReplay(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, repeat := range []bool{false, true} {
		churn()
		r := router(t, c, ryw.Options{Repeat: repeat})
		ctx := fresh(t)
		calls := 0
		err := r.Read(ctx, func(q ryw.Queries) error {
			if calls++; calls > 1 {
				_, err := q.Exec(ctx, `SELECT count(*) FROM churn`)
				return err
			}
			if _, err := q.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM churn`); err != nil {
				return err
			}
			if err := errors.Join(c.Primary.Exec(ctx, `DELETE FROM churn`), c.Primary.Exec(ctx, `VACUUM churn`)); err != nil {
				t.Error(err)
			}
			_, err := q.Exec(ctx, `SELECT pg_sleep(60)`) // with a snapshot that replay may not wait for
			return err
		})
		s := r.Stats()
		if repeat {
			if err != nil || calls != 2 || s.Primary != 1 || s.Replicas[0].Reads != 1 {
				t.Errorf("called %d times: %v, %+v", calls, err, s)
			}
			continue
		}
		if e, is := errors.AsType[*pgconn.PgError](err); !is || e.Code != "40001" || calls != 1 {
			t.Errorf("called %d times: %v", calls, err)
		}
	}
}

// What fails everywhere, or is the caller's own error, is not repeated for ever.
func TestWhatIsNotAConflictIsNotRepeated(t *testing.T) {
	r := router(t, cluster(t), ryw.Options{Repeat: true})
	for name, tt := range map[string]struct {
		err   error
		calls int
	}{
		"the caller's own": {errors.New("own"), 1},
		"a syntax error":   {&pgconn.PgError{Code: "42601"}, 1},
		"a deadlock":       {&pgconn.PgError{Code: "40P01"}, 2},
		"a conflict":       {&pgconn.PgError{Code: "40001"}, 2},
	} {
		calls := 0
		err := r.Read(fresh(t), func(ryw.Queries) error { calls++; return tt.err })
		if !errors.Is(err, tt.err) || calls != tt.calls {
			t.Errorf("%s: called %d times, want %d: %v", name, calls, tt.calls, err)
		}
	}
}

// Of two replicas the nearer one is read from, for as long as it has the writes.
func TestTheNearestIsReadFrom(t *testing.T) {
	c := cluster(t)
	cfg := ryw.Config{Options: ryw.Options{Nearest: true, Budget: time.Minute}, Primary: pool(t, c.Primary.DSN())}
	for i, n := range c.Standbys {
		proxy, err := replicationtest.NewProxy(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(proxy.Close)
		if i == 0 {
			proxy.Slow(20 * time.Millisecond)
		}
		cfg.Replicas = append(cfg.Replicas, follow(t, n.Name(), n.DSN(), proxy.DSN()))
	}
	r := newRouter(t, cfg)
	ctx := fresh(t)
	id := mustWrite(ctx, t, r)
	read := func() {
		t.Helper()
		if is, err := there(ctx, r, id); err != nil || !is {
			t.Fatalf("%v %v", is, err)
		}
	}
	if err := c.WaitForReplay(ctx); err != nil {
		t.Fatal(err)
	}
	for s := r.Stats(); s.Replicas[0].RoundTrip == 0 || s.Replicas[1].RoundTrip == 0; s = r.Stats() {
		read()
	}
	before := r.Stats()
	for range 50 {
		read()
	}
	s := r.Stats()
	if far := s.Replicas[0].Reads - before.Replicas[0].Reads; far != 0 || s.Replicas[0].RoundTrip < 20*time.Millisecond {
		t.Errorf("%d of 50 reads went to the far one: %+v", far, s)
	}
	pause(t, c.Standbys[1])
	id = mustWrite(ctx, t, r)
	read()
	if s := r.Stats(); s.Replicas[0].Reads == before.Replicas[0].Reads {
		t.Errorf("the far one has the write: %+v", s)
	}
}

// A failover loses what the session has written.
func TestLostWrites(t *testing.T) {
	c := ownCluster(t, replicationtest.Options{Standbys: 2})
	ctx := t.Context()
	proxy, err := replicationtest.NewProxy(ctx, c.Primary)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	old, next, other := c.Primary, c.Standbys[0], c.Standbys[1]
	cfg := ryw.Config{Primary: pool(t, proxy.DSN()), Replicas: []ryw.Replica{follow(t, "other", other.DSN(), other.DSN())}}
	routers := map[ryw.Fallback]*ryw.Router{}
	for _, f := range []ryw.Fallback{ryw.ToPrimary, ryw.WaitOn, ryw.Refuse} {
		cfg.Options = ryw.Options{Fallback: f, Budget: time.Minute}
		routers[f] = newRouter(t, cfg)
	}
	r := routers[ryw.ToPrimary]
	kept := mustWrite(t.Context(), t, r)
	if err := c.WaitForReplay(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*replicationtest.Node{next, other} { // what is written from now on is lost
		if err := errors.Join(n.Exec(ctx, `ALTER SYSTEM SET primary_conninfo = ''`), n.Exec(ctx, `SELECT pg_reload_conf()`)); err != nil {
			t.Fatal(err)
		}
	}
	lost := fresh(t)
	id := mustWrite(lost, t, r)
	if err := errors.Join(old.Crash(ctx), next.Promote(ctx), other.Rebuild(ctx, next)); err != nil {
		t.Fatal(err)
	}
	proxy.LeadTo(next)
	cfg.Primary.Reset() // of connections that have ended with the old one
	token := ryw.FromContext(lost).Token()
	for _, f := range []ryw.Fallback{ryw.WaitOn, ryw.Refuse} {
		if _, err := there(ryw.NewContext(ctx, ryw.NewSession(token)), routers[f], id); !errors.Is(err, tracker.ErrDiverged) {
			t.Errorf("fallback %d: %v", f, err)
		}
	}
	if is, err := there(lost, r, id); err != nil || is {
		t.Errorf("the lost row: %v %v", is, err)
	}
	if s := r.Stats(); s.Lost != 1 || s.Primary != 1 {
		t.Errorf("%+v", s)
	}
	if now := ryw.FromContext(lost).Token(); now.Timeline <= token.Timeline {
		t.Errorf("the session had %v and goes on from %v", token, now)
	}
	for range 2 { // from the replica again
		if is, err := there(lost, r, kept); err != nil || !is {
			t.Errorf("the row that was kept: %v %v", is, err)
		}
	}
	if s := r.Stats(); s.Lost != 1 || s.Primary != 1 || s.Replicas[0].Reads != 2 {
		t.Errorf("%+v", s)
	}
	// A new write goes on where the session is now.
	id = mustWrite(lost, t, r)
	if is, err := there(lost, r, id); err != nil || !is {
		t.Errorf("%v %v", is, err)
	}
}

// What is read from where while servers are down.
func TestWhereAReadGoesWhileServersAreDown(t *testing.T) {
	c := ownCluster(t, replicationtest.Options{Standbys: 2})
	ctx := t.Context()
	cfg := ryw.Config{Primary: pool(t, c.Primary.DSN()), Options: ryw.Options{Budget: time.Second}}
	for _, n := range c.Standbys {
		cfg.Replicas = append(cfg.Replicas, follow(t, n.Name(), n.DSN(), n.DSN()))
	}
	patient := newRouter(t, ryw.Config{Primary: cfg.Primary, Replicas: cfg.Replicas, Options: ryw.Options{Fallback: ryw.WaitOn}})
	refusing := newRouter(t, ryw.Config{Primary: cfg.Primary, Replicas: cfg.Replicas, Options: ryw.Options{Fallback: ryw.Refuse, Budget: -1}})
	session := fresh(t)
	id := mustWrite(session, t, newRouter(t, cfg))
	if err := c.WaitForReplay(ctx); err != nil {
		t.Fatal(err)
	}
	// from reads once, and tells from where.
	from := func(r *ryw.Router) (string, error) {
		t.Helper()
		before := r.Stats()
		is, err := there(session, r, id)
		if err == nil && !is {
			t.Error("a stale read")
		}
		after := r.Stats()
		if after.Primary > before.Primary {
			return "primary", err
		}
		for i, rep := range after.Replicas {
			if rep.Reads > before.Replicas[i].Reads {
				return rep.Name, err
			}
		}
		return "", err
	}
	known := func(i int, want bool) {
		t.Helper()
		for _, is := cfg.Replicas[i].Tracker.LastReplay(); is != want && ctx.Err() == nil; _, is = cfg.Replicas[i].Tracker.LastReplay() {
			time.Sleep(time.Millisecond)
		}
	}
	one, two := c.Standbys[0], c.Standbys[1]
	if err := one.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	for range 10 { // also in the moment before its end is noticed
		if is, err := from(newRouter(t, cfg)); is != "standby2" || err != nil {
			t.Errorf("one down: read from %q, %v", is, err)
		}
	}
	if err := two.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	if is, err := from(newRouter(t, cfg)); is != "primary" || err != nil {
		t.Errorf("both down: read from %q, %v", is, err)
	}
	if is, err := from(refusing); is != "" || !errors.Is(err, ryw.ErrNoReplica) {
		t.Errorf("both down, refused: read from %q, %v", is, err)
	}
	if err := c.Primary.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if is, err := from(newRouter(t, cfg)); err == nil {
		t.Errorf("all down: read from %q", is)
	}
	known(0, false)
	if err := one.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if is, err := from(patient); is != "standby1" || err != nil {
		t.Errorf("one up again, the primary down: read from %q, %v", is, err)
	}
	if _, err := write(session, patient); err == nil || errors.Is(err, ryw.ErrNoToken) {
		t.Errorf("a write with the primary down: %v", err)
	}
	if is, err := from(patient); is != "standby1" || err != nil {
		t.Errorf("after a write that failed: read from %q, %v", is, err)
	}
	ryw.FromContext(session).RequirePrimary()
	if is, err := from(patient); err == nil {
		t.Errorf("a session whose last write is not known was read from %q", is)
	}
}
