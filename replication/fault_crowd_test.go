package replication_test

import (
	"bytes"
	"context"
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
	net  *replicationtest.Proxy

	mu      sync.Mutex
	changes []string
	failed  []error
	log     bytes.Buffer
}

func watch(t *testing.T, c *replicationtest.Cluster, n *replicationtest.Node, kind replication.Kind) *watched {
	t.Helper()
	w := &watched{kind: kind, net: through(t, n)}
	source, err := replication.New(replication.Config{
		Replica: replication.Server{DSN: w.net.DSN(), ConnectTimeout: 2 * time.Second, QueryTimeout: 2 * time.Second},
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
		if n, note := c.Stats().Waiting, c.State().Note; n != 0 || note != "" && !strings.Contains(note, "the standby receives no WAL") { // its primary may be down
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
