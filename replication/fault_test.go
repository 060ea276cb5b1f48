package replication_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

const (
	// What is lost for good does not come within them, however busy the machine.
	soon  = 10 * time.Second // where the kind or the safety net wakes
	later = 30 * time.Second // where a connection has to be made anew
)

// One cluster goes through all that can happen to it, a thousand waiters with
// each kind every time.
func TestFaultsWakeAThousandWaitersOfEachKind(t *testing.T) {
	f := newFaults(t)
	ctx := t.Context()

	step := func(name string, do func(f *faults)) {
		if !t.Failed() {
			started := time.Now()
			do(f)
			t.Logf("%s took %s", name, time.Since(started).Round(time.Millisecond))
		}
	}
	step("paused", func(f *faults) {
		crowds := f.hold()
		for _, w := range f.watched {
			eventually(t, string(w.kind)+" says that replay is paused", func() bool { return strings.Contains(w.State().Note, "replay is paused") })
		}
		f.release("replay paused", crowds, soon, itself)
	})
	step("walsender killed", walsenderKilled)
	step("session killed", func(f *faults) {
		crowds := f.hold()
		before := f.watched[0].Stats().Epochs
		terminate(t, f.standby, `application_name = 'walwake'`)
		for _, w := range f.watched {
			eventually(t, string(w.kind)+" has a new session", func() bool { return w.Stats().Epochs > before || w.Stats().Failures > 0 && w.State().Known })
			_, failed, log := w.said()
			if len(failed) == 0 || !strings.Contains(log, "source failed") || !strings.Contains(log, failed[0].Error()[:20]) {
				t.Errorf("%s: failures %v, log %s", w.kind, failed, log)
			}
			f.again(w, "in use again")
		}
		f.release("all sessions killed", crowds, soon, f.unlessPaused)
	})
	step("network closed and slow", func(f *faults) {
		crowds := f.hold()
		for _, w := range f.watched {
			w.net.Drop()
			w.net.Slow(20 * time.Millisecond)
			f.again(w, "in use over a slow network")
		}
		f.release("a slow network", crowds, soon, byAny)
		for _, w := range f.watched {
			w.net.Slow(0)
		}
	})
	step("network cut", networkCut)
	step("streams cut", func(f *faults) {
		crowds := f.hold()
		for _, w := range f.watched {
			if n := w.net.CutStreams(); w.streams() != (n > 0) {
				t.Errorf("%s: %d streams cut", w.kind, n)
			}
		}
		f.release("the stream cut without a FIN", crowds, soon, byAny) // the safety net
		for _, w := range f.watched {
			w.net.Drop()
		}
	})
	step("primary stopped", func(f *faults) {
		crowds := f.hold()
		f.must(f.cluster.Primary.Stop(ctx))
		f.none("the primary stopped", crowds)
		resumed := time.Now()
		f.must(f.standby.Resume(ctx))
		f.all("the primary stopped", crowds, resumed, later, byAny)
		f.must(f.cluster.Primary.Start(ctx))
		f.must(f.standby.WaitStreaming(ctx))
		f.writer = connect(t, f.cluster.Primary)
		started := time.Now()
		f.inUse()()
		if d := time.Since(started); d > later { // an idle primary by itself brings logical's slot after 15 s
			t.Errorf("in use again %s after the primary", d)
		}
	})
	for name, end := range map[string]func(context.Context) error{"stopped": f.standby.Stop, "crashed": f.standby.Crash} {
		step("standby "+name, func(f *faults) {
			crowds := f.hold()
			last := f.last()
			started := time.Now()
			f.must(end(ctx))
			if d := time.Since(started); d > soon {
				t.Errorf("our connections held up the standby's end: %s", d)
			}
			for _, w := range f.watched {
				eventually(t, string(w.kind)+" forgets the position", func() bool { _, known := w.LastReplay(); return !known })
				eventually(t, string(w.kind)+" says why", func() bool { return w.State().Failure != nil })
			}
			f.none("the standby "+name, crowds)
			f.must(f.standby.Start(ctx))
			f.all("the standby "+name, crowds, f.since(last), later, byAny)
		})
	}
	step("promoted", promoted)
}

// terminate ends the server processes that match.
func terminate(t *testing.T, n *replicationtest.Node, where string) {
	t.Helper()
	if got, err := replicationtest.Value[int](t.Context(), n, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE `+where); err != nil || got == 0 {
		t.Fatalf("%d terminated: %v", got, err)
	}
}

// With the walsender gone, the position is polled at once, in the same epoch,
// and the stream comes back by itself.
func walsenderKilled(f *faults) {
	const walsenders = `backend_type = 'walsender' AND application_name = 'walwake'`
	for _, back := range []bool{false, true} {
		crowds := f.hold()
		epochs := map[*watched]uint64{}
		told := map[*watched]int{}
		for _, w := range f.watched {
			epochs[w] = w.Stats().Epochs
			changes, _, _ := w.said()
			told[w] = len(changes)
		}
		killed := time.Now()
		terminate(f.T, f.standby, walsenders)
		for _, w := range f.watched {
			if !w.streams() {
				continue
			}
			eventually(f.T, string(w.kind)+" says that it is polling", func() bool { changes, _, _ := w.said(); return len(changes) > told[w] })
			if d := time.Since(killed); d > soon {
				f.Errorf("%s: polling only after %s", w.kind, d)
			}
			changes, _, log := w.said()
			if changes[told[w]] != string(w.kind)+">poll" {
				f.Errorf("%s: changes %q", w.kind, changes[told[w]:])
			}
			if last := log[strings.LastIndex(log, "to=poll"):]; !strings.Contains(last, "terminating connection due to administrator command") {
				f.Errorf("%s: no reason in the log: %s", w.kind, last)
			}
			if !back {
				if s := w.State(); s.Source != "poll" || !strings.Contains(s.Ladder[0].Reason, "administrator command") || s.Ladder[0].Up {
					f.Errorf("%s: state %+v", w.kind, s)
				}
			}
		}
		source := byAny // by polling, unless the stream came back meanwhile
		if back {
			for _, w := range f.watched {
				f.again(w, "in use again")
			}
			source = f.unlessPaused
		}
		f.release("the walsender killed", crowds, soon, source)
		for _, w := range f.watched {
			if n := w.Stats().Epochs; n != epochs[w] {
				f.Errorf("%s: the session did not outlive its stream: %d epochs, %d before", w.kind, n, epochs[w])
			}
		}
	}
}

// Nothing comes any more, and nothing says so.
func networkCut(f *faults) {
	crowds := f.hold()
	last := f.last()
	cut := time.Now()
	for _, w := range f.watched {
		w.net.Cut()
	}
	for _, w := range f.watched {
		eventually(f.T, string(w.kind)+" notices", func() bool { _, known := w.LastReplay(); return !known })
		if d := time.Since(cut); d > soon { // a query may take two seconds here
			f.Errorf("%s: noticed after %s", w.kind, d)
		}
		eventually(f.T, string(w.kind)+" says why", func() bool { return w.State().Failure != nil })
		eventually(f.T, string(w.kind)+" tells its Observer why", func() bool {
			_, failed, _ := w.said()
			return slices.ContainsFunc(failed, func(err error) bool { return strings.Contains(err.Error(), "did not answer within 2s") })
		})
	}
	f.must(f.standby.Resume(f.Context()))
	f.since(last)
	f.none("the network cut", crowds) // it is replayed, and nobody can know
	healed := time.Now()
	for _, w := range f.watched {
		w.net.Heal()
	}
	f.all("the network cut", crowds, healed, later, byAny)
}

// What was received is replayed and found; what was not is lost, and said to be.
func promoted(f *faults) {
	f.must(f.standby.Pause(f.Context()))
	kept := f.write()
	last := kept[len(kept)-1]
	f.must(f.standby.Exec(f.Context(), `SELECT 1`))
	eventually(f.T, "all is received", func() bool {
		got, err := replicationtest.Value[bool](f.Context(), f.standby, `SELECT pg_last_wal_receive_lsn() >= $1::text::pg_lsn`, last.LSN.String())
		return err == nil && got
	})
	toks := slices.Clone(kept)
	for _, tok := range kept {
		tok.LSN += 1 << 30
		toks = append(toks, tok)
	}
	crowds := f.crowds(toks)
	f.none("before the promotion", crowds)
	f.must(f.standby.Promote(f.Context()))
	over := time.Now()
	for _, c := range crowds {
		eventually(f.T, string(c.kind)+" wakes all", func() bool { return c.ended() == waiters })
		c.all.Wait()
		var slowest time.Duration
		lost := 0
		for _, e := range c.over {
			slowest = max(slowest, e.at.Sub(over))
			diverged := errors.Is(e.err, tracker.ErrDiverged)
			if diverged {
				lost++
			}
			if e.err != nil && !diverged || diverged != (e.tok.LSN > last.LSN) || e.early {
				f.Fatalf("%s: %s: %v, early %t", c.kind, e.tok, e.err, e.early)
			}
		}
		if lost != waiters/2 || slowest > later {
			f.Errorf("%s: %d lost, slowest %s", c.kind, lost, slowest)
		}
		s := c.State()
		if !s.Position.Primary || s.Position.Timeline != 2 || s.Source != "poll" || s.Note != "" {
			f.Errorf("%s: %+v", c.kind, s)
		}
		if c.kind != replication.Poll && s.Ladder[0].Reason != "the server is a primary" {
			f.Errorf("%s: %+v", c.kind, s.Ladder)
		}
		f.Logf("promoted, %s: slowest %s", c.kind, slowest.Round(10*time.Microsecond))
	}
}
