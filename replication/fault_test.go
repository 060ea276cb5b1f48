package replication_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

const (
	tokens  = 20   // different positions that are waited for
	waiters = 1000 // for each kind
)

// watched is a tracker with one kind, by way of a proxy of its own, and what it
// said.
type watched struct {
	*tracker.Tracker
	kind replication.Kind
	net  *proxy

	mu      sync.Mutex
	changes []string
	failed  []error
	log     bytes.Buffer
}

func watch(t *testing.T, c *replicationtest.Cluster, n *replicationtest.Node, kind replication.Kind) *watched {
	t.Helper()
	w := &watched{kind: kind, net: through(t, n)}
	source, err := replication.New(replication.Config{
		Replica: replication.Server{DSN: w.net.dsn(), ConnectTimeout: 2 * time.Second, QueryTimeout: 2 * time.Second},
		Primary: replication.Server{DSN: c.Primary.DSN()},
		Use:     []replication.Kind{kind},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := tracker.Config{
		Source: source,
		Logger: slog.New(slog.NewTextHandler(w, nil)),
		Observer: tracker.Observer{
			Failed: func(_ string, err error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.failed = append(w.failed, err)
			},
			SourceChanged: func(from, to string) {
				w.Request(tracker.Token{LSN: 1 << 61}).Cancel() // it may use the Tracker
				w.mu.Lock()
				defer w.mu.Unlock()
				w.changes = append(w.changes, from+">"+to)
			},
		},
	}
	if w.Tracker, err = tracker.New(cfg); err != nil {
		t.Fatal(err)
	}
	go func() { _ = w.Run(context.Background()) }()
	t.Cleanup(w.Close)
	return w
}

// Write is for the log.
func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *watched) said() (changes []string, failed []error, log string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.changes), slices.Clone(w.failed), w.log.String()
}

// streams reports whether the kind is one that listens.
func (w *watched) streams() bool {
	return w.kind == replication.Physical || w.kind == replication.Logical
}

func (w *watched) up() bool { return w.State().Known && w.State().Source == string(w.kind) }

// woken is how one wait ended.
type woken struct {
	tok    tracker.Token
	at     time.Time
	err    error
	source string // in use then
	early  bool   // the server had not replayed it
}

// crowd is a thousand waiters.
type crowd struct {
	*watched
	all  sync.WaitGroup
	mu   sync.Mutex
	over []woken
}

func gather(w *watched, o *oracle, toks []tracker.Token) *crowd {
	c := &crowd{watched: w}
	for i := range waiters {
		r := w.Request(toks[i%len(toks)])
		c.all.Go(func() {
			<-r.Done()
			e := woken{tok: r.Token(), at: time.Now(), err: r.Err(), source: w.State().Source}
			if i < len(toks) && e.err == nil {
				e.early = !o.replayed(e.tok.LSN)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.over = append(c.over, e)
		})
	}
	return c
}

func (c *crowd) ended() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.over)
}

// oracle asks a server by itself, for what the trackers are judged by.
type oracle struct {
	ctx  context.Context //nolint:containedctx // the test's
	node *replicationtest.Node
	mu   sync.Mutex
	conn *pgx.Conn
}

// replayed reports whether the server has replayed lsn now.
func (o *oracle) replayed(lsn tracker.LSN) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for range 3 { // a connection that died with the server counts for nothing
		if o.conn == nil {
			conn, err := o.node.Connect(o.ctx)
			if err != nil {
				return false
			}
			o.conn = conn
		}
		var yes bool
		err := o.conn.QueryRow(o.ctx, `SELECT NOT pg_is_in_recovery() OR coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)`, lsn.String()).Scan(&yes)
		if err == nil {
			return yes
		}
		_ = o.conn.Close(o.ctx)
		o.conn = nil
	}
	return false
}

func (o *oracle) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn != nil {
		_ = o.conn.Close(o.ctx)
	}
}

// faults is a cluster and all kinds that look at its standby.
type faults struct {
	*testing.T
	cluster *replicationtest.Cluster
	standby *replicationtest.Node
	writer  *pgx.Conn
	oracle  *oracle
	watched []*watched
}

func newFaults(t *testing.T) *faults {
	t.Helper()
	c := replicationtest.Start(t, replicationtest.Options{})
	publish(t, c)
	f := &faults{T: t, cluster: c, standby: c.Standbys[0], writer: connect(t, c.Primary)}
	f.oracle = &oracle{ctx: context.WithoutCancel(t.Context()), node: f.standby}
	t.Cleanup(f.oracle.close)
	exec(t, f.writer, `CREATE TABLE writes (id bigint)`)
	for _, k := range kinds(c.Version) {
		f.watched = append(f.watched, watch(t, c, f.standby, k))
	}
	return f
}

func (f *faults) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// write commits, and returns a token for each commit.
func (f *faults) write() []tracker.Token {
	f.Helper()
	toks := make([]tracker.Token, tokens)
	for i := range toks {
		exec(f.T, f.writer, `INSERT INTO writes VALUES ($1)`, i)
		toks[i] = capture(f.T, f.writer)
	}
	return toks
}

// hold pauses replay and has a thousand wait with each kind, all of them in use.
func (f *faults) hold() []*crowd {
	f.Helper()
	release := f.inUse() // until the thousand are there: a stream that nobody needs ends
	defer release()
	f.must(f.standby.Pause(f.Context()))
	return f.crowds(f.write())
}

// inUse waits until each kind is what its tracker uses, and keeps it so until
// done is called.
func (f *faults) inUse() (done func()) {
	f.Helper()
	var all []*tracker.Waiter
	for _, w := range f.watched {
		all = append(all, w.Request(tracker.Token{LSN: 1 << 60}))
		eventually(f.T, string(w.kind)+" is in use", w.up)
	}
	return func() {
		for _, somebody := range all {
			somebody.Cancel()
		}
	}
}

// again waits, with replay paused, until w's kind is in use again, unless it
// cannot come back: a slot is made from what is replayed.
func (f *faults) again(w *watched, when string) {
	f.Helper()
	eventually(f.T, fmt.Sprintf("%s: %s", w.kind, when), func() bool {
		s := w.State()
		return w.up() || w.kind == replication.Logical && s.Known && s.Ladder[0].Reason == "the slot is being made"
	})
}

func (f *faults) crowds(toks []tracker.Token) []*crowd {
	f.Helper()
	var all []*crowd
	for _, w := range f.watched {
		all = append(all, gather(w, f.oracle, toks))
	}
	return all
}

// none says that nobody has been woken.
func (f *faults) none(when string, all []*crowd) {
	f.Helper()
	for _, c := range all {
		if n, s := c.ended(), c.Stats(); n != 0 || s.Waiting != waiters {
			f.Errorf("%s, %s: %d woken, %d wait", when, c.kind, n, s.Waiting)
		}
	}
}

// since returns when the server has replayed what all wait for.
func (f *faults) since(toks ...tracker.Token) time.Time {
	f.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		done := true
		for _, tok := range toks {
			done = done && f.oracle.replayed(tok.LSN)
		}
		if done {
			return time.Now()
		}
		if time.Now().After(deadline) {
			f.Fatal("the standby does not replay")
		}
	}
}

// all says that everybody is woken, none early, none later than within after
// replay was there; source is what wakes them, "" for any.
func (f *faults) all(what string, crowds []*crowd, replayed time.Time, within time.Duration, source func(*crowd) string) {
	f.Helper()
	for _, c := range crowds {
		eventually(f.T, fmt.Sprintf("%s, %s: all are woken", what, c.kind), func() bool { return c.ended() == waiters })
		c.all.Wait()
		var slowest time.Duration
		sources := map[string]int{}
		for _, e := range c.over {
			if e.err != nil {
				f.Fatalf("%s, %s: %s: %v", what, c.kind, e.tok, e.err)
			}
			if e.early {
				f.Errorf("%s, %s: woken early for %s", what, c.kind, e.tok)
			}
			slowest = max(slowest, e.at.Sub(replayed))
			sources[e.source]++
		}
		if slowest > within {
			f.Errorf("%s, %s: woken %s after replay, want at most %s", what, c.kind, slowest, within)
		}
		if want := source(c); want != "" && sources[want] != waiters {
			f.Errorf("%s, %s: woken by %v, want %s", what, c.kind, sources, want)
		}
		if n, note := c.Stats().Waiting, c.State().Note; n != 0 || note != "" {
			f.Errorf("%s, %s: %d are left, note %q", what, c.kind, n, note)
		}
		f.Logf("%s, %s: slowest %s, by %v", what, c.kind, slowest.Round(10*time.Microsecond), sources)
	}
}

func itself(c *crowd) string { return string(c.kind) }
func byAny(*crowd) string    { return "" }

// unlessPaused is for a fault that takes logical's slot while replay is paused.
func (f *faults) unlessPaused(c *crowd) string {
	if c.kind == replication.Logical {
		return ""
	}
	return string(c.kind)
}

// release lets replay go on.
func (f *faults) release(what string, crowds []*crowd, within time.Duration, source func(*crowd) string) {
	f.Helper()
	f.none(what, crowds)
	resumed := time.Now()
	f.must(f.standby.Resume(f.Context()))
	f.all(what, crowds, resumed, within, source)
}

func (f *faults) last() tracker.Token { return capture(f.T, f.writer) }

const (
	// Generous, since the machine may be busy: what is lost for good does not come
	// within them.
	soon  = 30 * time.Second // where the kind or the safety net wakes
	later = 45 * time.Second // where a connection has to be made anew
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
			w.net.drop()
			w.net.slow(20 * time.Millisecond)
			f.again(w, "in use over a slow network")
		}
		f.release("a slow network", crowds, soon, byAny)
		for _, w := range f.watched {
			w.net.slow(0)
		}
	})
	step("network cut", networkCut)
	step("streams cut", func(f *faults) {
		crowds := f.hold()
		for _, w := range f.watched {
			if n := w.net.cutStreams(); w.streams() != (n > 0) {
				t.Errorf("%s: %d streams cut", w.kind, n)
			}
		}
		f.release("the stream cut without a FIN", crowds, soon, byAny) // the safety net
		for _, w := range f.watched {
			w.net.drop()
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
			if d := time.Since(started); d > 20*time.Second {
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
		w.net.cut()
	}
	for _, w := range f.watched {
		eventually(f.T, string(w.kind)+" notices", func() bool { _, known := w.LastReplay(); return !known })
		if d := time.Since(cut); d > 30*time.Second { // a query may take two seconds here
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
		w.net.heal()
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

var idleWaits = flag.Int("idlewaits", 300, "TestNoWakeUpIsLostOnAnIdlePrimary: waits with each kind")

// tooLong is what a wait on an idle primary does not take.
const tooLong = 5 * time.Millisecond

func TestNoWakeUpIsLostOnAnIdlePrimary(t *testing.T) {
	c := cluster(t)
	publish(t, c)
	for _, kind := range kinds(c.Version) {
		t.Run(string(kind), func(t *testing.T) {
			tr := follow(t, c, c.Standbys[0], kind, tracker.Config{Timeout: time.Minute})
			writer := connect(t, c.Primary)
			o := &oracle{ctx: context.WithoutCancel(t.Context()), node: c.Standbys[0]}
			defer o.close()
			var slowest, latest, all time.Duration
			slow, late := 0, 0
			for range *idleWaits {
				exec(t, writer, `INSERT INTO writes SELECT coalesce(max(id), 0) + 1 FROM writes`)
				tok := capture(t, writer)
				// Where it takes long, the server is asked whether it was the one.
				var replayed time.Time
				asked := make(chan struct{})
				asking := time.AfterFunc(tooLong, func() {
					defer close(asked)
					for deadline := time.Now().Add(60 * time.Second); !o.replayed(tok.LSN) && time.Now().Before(deadline); {
						continue
					}
					replayed = time.Now()
				})
				started := time.Now()
				wait(t, tr, tok)
				took := time.Since(started)
				slowest, all = max(slowest, took), all+took
				if asking.Stop() {
					continue
				}
				<-asked
				slow++
				after := started.Add(took).Sub(replayed)
				latest = max(latest, after)
				if after > tooLong {
					late++
				}
			}
			t.Logf("PostgreSQL %s, %s: %d waits, mean %s, slowest %s; %d over 5 ms, %d of them more than 5 ms after the server's replay, the latest %s after it",
				c.Release, kind, *idleWaits, all/time.Duration(*idleWaits), slowest, slow, late, latest)
			if latest > soon {
				t.Errorf("a wake-up was lost for %s", latest)
			}
		})
	}
}
