package stalecheck

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

// fault is one thing that happens to a scene. It returns when the scene can go
// on: what it began is over, or goes on by itself. The end of the run does not
// end it half-way, or a node would stay paused.
type fault struct {
	name   string
	weight int
	do     func(ctx context.Context, d *driver) error
}

// allFaults are those of a run.
func allFaults() []fault {
	return []fault{
		{"replay paused", 6, pauseReplay},
		{"replay lags", 3, lagReplay},
		{"standby crashed", 5, crashStandby},
		{"standby crashed, and kept behind", 4, comeBackBehind},
		{"backend of a standby killed", 4, killBackend},
		{"sessions ended", 4, terminateSessions},
		{"walsenders ended", 4, terminateWalsenders},
		{"connections dropped", 4, func(_ context.Context, d *driver) error { d.any().proxy.Drop(); return nil }},
		{"network cut", 3, cutNetwork},
		{"streams cut", 3, func(_ context.Context, d *driver) error { d.any().proxy.CutStreams(); return nil }},
		{"network slow", 3, slowNetwork},
		{"streams slow", 3, slowStreams},
		{"primary crashed", 3, crashPrimary},
		{"failover", 4, failOver},
	}
}

// driver breaks things, one after the other.
type driver struct {
	*scene
	rng  *rand.Rand
	over context.Context //nolint:containedctx // the run's: when it ends there is no more waiting
}

// between returns a time from a to b.
func (d *driver) between(a, b time.Duration) time.Duration {
	return a + time.Duration(d.rng.Int64N(int64(b-a)))
}

// rest lets a time from a to b pass, or less when the run ends.
func (d *driver) rest(a, b time.Duration) { rest(d.over, d.between(a, b)) }

func (d *driver) any() *station { return d.stations[d.rng.IntN(len(d.stations))] }

// standby returns one that is one.
func (d *driver) standby() *station {
	leader := d.leader()
	for {
		if st := d.any(); st != leader {
			return st
		}
	}
}

// breakThings does what happens until ctx ends.
func (s *scene) breakThings(ctx context.Context) error {
	d := &driver{s, rand.New(rand.NewPCG(s.o.seed, 1)), ctx}
	var weights int
	for _, f := range s.o.faults {
		weights += f.weight
	}
	for n := 1; ctx.Err() == nil && weights > 0; n++ {
		d.rest(20*time.Millisecond, 300*time.Millisecond)
		pick := d.rng.IntN(weights)
		for _, f := range s.o.faults {
			if pick -= f.weight; pick >= 0 {
				continue
			}
			began := time.Now()
			err := f.do(context.WithoutCancel(ctx), d)
			s.logf("fault %d: %s, for %s", n, f.name, time.Since(began).Round(time.Millisecond))
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("fault %d, %s: %w", n, f.name, err)
			}
			break
		}
	}
	return nil
}

func pauseReplay(ctx context.Context, d *driver) error {
	st := d.standby()
	if err := st.Pause(ctx); err != nil {
		return err
	}
	d.rest(10*time.Millisecond, 300*time.Millisecond)
	return st.Resume(ctx)
}

func lagReplay(ctx context.Context, d *driver) error {
	st := d.standby()
	if err := st.Lag(ctx, d.between(5*time.Millisecond, 200*time.Millisecond)); err != nil {
		return err
	}
	d.rest(100*time.Millisecond, 500*time.Millisecond)
	return st.Lag(ctx, 0)
}

// crashStandby brings it back where its last restartpoint was, or a bit later.
func crashStandby(ctx context.Context, d *driver) error {
	st := d.standby()
	end := st.Crash
	if d.rng.IntN(2) == 0 {
		end = st.Kill
	}
	if err := end(ctx); err != nil {
		return err
	}
	return st.Start(ctx)
}

// comeBackBehind crashes a standby and holds its replay where it is when it
// accepts connections again, which is lower than it was (fact R6).
func comeBackBehind(ctx context.Context, d *driver) error {
	st := d.standby()
	if err := st.Exec(ctx, `ALTER SYSTEM SET recovery_min_apply_delay = '1h'`); err != nil { // from its next start on
		return err
	}
	if err := st.Crash(ctx); err != nil {
		return err
	}
	if err := st.Start(ctx); err != nil {
		return err
	}
	d.rest(50*time.Millisecond, 500*time.Millisecond)
	return st.Lag(ctx, 0)
}

// killBackend has the postmaster end all sessions and recover, and live on.
func killBackend(ctx context.Context, d *driver) error {
	st := d.standby()
	conn, err := st.Connect(ctx)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	backend, err := os.FindProcess(int(conn.PgConn().PID()))
	if err == nil {
		err = backend.Kill()
	}
	if err != nil {
		return err
	}
	return st.back(ctx)
}

// back waits until the node accepts connections.
func (st *station) back(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		conn, err := st.Connect(ctx)
		if err == nil {
			disconnect(conn)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		rest(ctx, 10*time.Millisecond)
	}
}

func terminateSessions(ctx context.Context, d *driver) error {
	return d.any().Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walwake'`)
}

func terminateWalsenders(ctx context.Context, d *driver) error {
	return d.any().Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walwake' AND backend_type = 'walsender'`)
}

func cutNetwork(ctx context.Context, d *driver) error {
	st := d.any()
	st.proxy.Cut()
	d.rest(50*time.Millisecond, 500*time.Millisecond)
	st.proxy.Heal()
	return nil
}

func slowNetwork(ctx context.Context, d *driver) error {
	st := d.any()
	st.proxy.Slow(d.between(time.Millisecond, 20*time.Millisecond))
	d.rest(100*time.Millisecond, 500*time.Millisecond)
	st.proxy.Slow(0)
	return nil
}

// slowStreams has the hints come late, and what they are of be replayed before.
func slowStreams(_ context.Context, d *driver) error {
	st := d.any()
	st.proxy.SlowStreams(d.between(5*time.Millisecond, 100*time.Millisecond))
	d.rest(100*time.Millisecond, 500*time.Millisecond)
	st.proxy.SlowStreams(0)
	return nil
}

func crashPrimary(ctx context.Context, d *driver) error {
	st := d.leader()
	if err := st.Crash(ctx); err != nil {
		return err
	}
	return st.Start(ctx)
}

// failOver promotes a standby. In half of the cases it did not get what was
// written last, and those writes are lost.
func failOver(ctx context.Context, d *driver) error {
	old, next := d.leader(), d.standby()
	lossy := d.rng.IntN(2) == 0
	if lossy {
		if err := next.setConninfo(ctx, `ALTER SYSTEM SET primary_conninfo = ''`); err != nil {
			return err
		}
		d.rest(50*time.Millisecond, 400*time.Millisecond)
	}
	if err := old.Crash(ctx); err != nil {
		return err
	}
	if err := next.Promote(ctx); err != nil {
		return err
	}
	if lossy {
		if err := next.setConninfo(ctx, `ALTER SYSTEM RESET primary_conninfo`); err != nil {
			return err
		}
	}
	d.setLeader(next)
	d.rest(0, 200*time.Millisecond) // with a standby that is still on the old timeline
	for _, st := range d.stations {
		if st == next {
			continue
		}
		// A standby that has not gone further than the new primary's beginning could
		// follow it; to be rebuilt is what is always right.
		if st != old && !lossy && d.rng.IntN(2) == 0 {
			follow, cancel := context.WithTimeout(ctx, operation)
			err := st.Follow(follow, next.Node)
			cancel()
			if err == nil {
				continue
			} // the new primary may lack WAL from before it was itself rebuilt
		}
		if err := st.Rebuild(ctx, next.Node); err != nil {
			return err
		}
	}
	d.logf("%s is the primary, %s", next.Name(), map[bool]string{true: "without the last writes", false: "with all that was sent to it"}[lossy])
	return nil
}

func (st *station) setConninfo(ctx context.Context, sql string) error {
	conn, err := st.Connect(ctx)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `SELECT pg_reload_conf()`)
	return err
}
