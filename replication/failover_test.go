package replication_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// failover is a cluster whose primary changes, and the trackers that look at it.
type failover struct {
	*testing.T
	cluster *replicationtest.Cluster
	// running are the trackers that have been there since before it, with each kind.
	running map[*replicationtest.Node][]*observer
}

// observer is a tracker with one kind.
type observer struct {
	*tracker.Tracker
	kind replication.Kind
	node *replicationtest.Node
}

func (o *observer) String() string { return o.node.Name() + ", " + string(o.kind) }

func newFailover(t *testing.T, standbys int) *failover {
	t.Helper()
	c := replicationtest.Start(t, replicationtest.Options{Standbys: standbys})
	publish(t, c)
	exec(t, connect(t, c.Primary), `CREATE TABLE moves (v text)`)
	f := &failover{T: t, cluster: c, running: map[*replicationtest.Node][]*observer{}}
	f.replayed(c.Primary, c.Standbys...)
	return f
}

func (f *failover) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// cascade adds a standby of from.
func (f *failover) cascade(from *replicationtest.Node) *replicationtest.Node {
	f.Helper()
	n, err := f.cluster.AddStandby(f.Context(), from)
	f.must(err)
	return n
}

// write commits on n, and returns the token.
func (f *failover) write(n *replicationtest.Node) tracker.Token {
	f.Helper()
	conn, err := n.Connect(f.Context())
	f.must(err)
	defer conn.Close(f.Context())
	exec(f.T, conn, `INSERT INTO moves VALUES ('written')`)
	return capture(f.T, conn)
}

// replayed waits until nodes have all that is committed on from.
func (f *failover) replayed(from *replicationtest.Node, nodes ...*replicationtest.Node) {
	f.Helper()
	lsn, err := from.Position(f.Context())
	f.must(err)
	for _, n := range nodes {
		f.must(n.WaitForReplay(f.Context(), lsn))
	}
}

// watch has trackers run on nodes, standbys of primary or of its standbys, until
// the test ends.
func (f *failover) watch(nodes ...*replicationtest.Node) {
	f.Helper()
	for _, n := range nodes {
		for _, kind := range kinds(f.cluster.Version) {
			f.running[n] = append(f.running[n], &observer{follow(f.T, f.cluster, n, kind, tracker.Config{}), kind, n})
		}
	}
}

// observers are those that run on n, and with each kind one that was started
// just now, and so knows nothing of what was before; done ends these.
func (f *failover) observers(n *replicationtest.Node) (all []*observer, done func()) {
	f.Helper()
	all = slices.Clone(f.running[n])
	for _, kind := range kinds(f.cluster.Version) {
		source, err := replication.New(replication.Config{Replica: replication.Server{DSN: n.DSN()}, Use: []replication.Kind{kind}})
		f.must(err)
		all = append(all, &observer{track(f.T, source, tracker.Config{}), "new " + kind, n})
	}
	return all, func() {
		for _, o := range all[len(f.running[n]):] {
			o.Close()
		}
	}
}

// waiting requests tok on all trackers of nodes.
func (f *failover) waiting(tok tracker.Token, nodes ...*replicationtest.Node) (all []waiter) {
	for _, n := range nodes {
		for _, o := range f.running[n] {
			all = append(all, waiter{o.Request(tok), o})
		}
	}
	return all
}

// waiter is somebody who waits.
type waiter struct {
	*tracker.Waiter
	by *observer
}

// end waits until all have ended as they should.
func (f *failover) end(all []waiter, want error) {
	f.Helper()
	for _, w := range all {
		if err := w.Await(f.Context()); !errors.Is(err, want) {
			f.Errorf("%s: who waited for %s got %v, want %v", w.by, w.Token(), err, want)
		}
	}
}

// pending says that all wait yet, over a few more observations.
func (f *failover) pending(when string, all []waiter) {
	f.Helper()
	for _, w := range all {
		before := w.by.Stats().Observations
		eventually(f.T, w.by.String()+" is asked", func() bool { return w.by.Stats().Observations > before+3 })
		select {
		case <-w.Done():
			f.Errorf("%s: the wait for %s ended %s: %v", w.by, w.Token(), when, w.Err())
		default:
		}
		w.Cancel()
	}
}

// judged sees that on nodes tokens are honoured, and others are lost.
func (f *failover) judged(when string, honoured, lost []tracker.Token, nodes ...*replicationtest.Node) {
	f.Helper()
	for _, n := range nodes {
		all, done := f.observers(n)
		for _, o := range all {
			for _, tok := range honoured {
				if err := o.Wait(f.Context(), tok); err != nil {
					f.Errorf("%s, %s: %s: %v", when, o, tok, err)
				}
			}
			for _, tok := range lost {
				if err := o.Wait(f.Context(), tok); !errors.Is(err, tracker.ErrDiverged) || o.Replayed(tok) {
					f.Errorf("%s, %s: %s: got %v, want that it is lost", when, o, tok, err)
				}
			}
		}
		done()
	}
}

// fork is the last position of timeline tli that n's history has, and the first
// that it has not.
func (f *failover) fork(n *replicationtest.Node, tli uint32) (last, first tracker.Token) {
	f.Helper()
	conn := connect(f.T, n)
	now := capture(f.T, conn)
	h, err := tracker.ParseHistory([]byte(value[string](f.T, conn, fmt.Sprintf(`SELECT pg_read_file('pg_wal/%08X.history')`, now.Timeline))))
	f.must(err)
	end, is := h.End(tli)
	if !is {
		f.Fatalf("%s does not come from timeline %d: %v", n.Name(), tli, h)
	}
	last = tracker.Token{System: now.System, Timeline: tli, LSN: end}
	first = last
	first.LSN++
	return last, first
}

// past is a token of tok's timeline that lies so far behind tok that no fork is
// behind it.
func past(tok tracker.Token) tracker.Token {
	tok.LSN += 1 << 30
	return tok
}

func TestAFailoverIsJudgedAlikeOnAllThatFollowIt(t *testing.T) {
	f := newFailover(t, 3)
	ctx, old := t.Context(), f.cluster.Primary
	promoted, follower, left := f.cluster.Standbys[0], f.cluster.Standbys[1], f.cluster.Standbys[2]
	cascaded := f.cascade(promoted)
	f.watch(promoted, follower, left, cascaded)
	follow := []*replicationtest.Node{promoted, follower, cascaded}

	kept := f.write(old)
	f.replayed(old, promoted, follower, left, cascaded)
	lost := f.waiting(past(kept), follow...)
	stay := f.waiting(past(kept), left)
	f.must(old.Stop(ctx)) // so that what all have received is the same
	f.must(promoted.Promote(ctx))
	f.must(follower.Follow(ctx, promoted))
	f.must(cascaded.WaitStreaming(ctx))
	f.end(lost, tracker.ErrDiverged)
	now := f.write(promoted)
	if now.Timeline != 2 {
		t.Fatalf("promoted, it gives %s", now)
	}
	last, first := f.fork(promoted, 1)
	f.judged("after the failover", []tracker.Token{kept, last, now}, []tracker.Token{first, past(kept)}, follow...)

	// The old primary comes back, and what it writes is lost to the others.
	f.must(old.Start(ctx))
	f.must(left.WaitStreaming(ctx))
	if behind := f.write(old); behind.Timeline != 1 || behind.LSN < first.LSN {
		t.Fatalf("the old primary gives %s, the fork is at %s", behind, last)
	}
	f.must(old.Exec(ctx, `SELECT pg_logical_emit_message(false, 'walwake', repeat('x', 1000000))`))
	apart := f.write(old)
	if apart.LSN < now.LSN {
		t.Fatalf("the old timeline is at %s, the new one at %s", apart, now)
	}
	f.judged("when the old primary is back", []tracker.Token{kept, last, now}, []tracker.Token{first, apart}, follow...)
	f.judged("on the old timeline", []tracker.Token{kept, last, first, apart}, nil, left)
	f.pending("on the old timeline, for what it may still write", stay)
	// Its position is higher than that of the new timeline's token.
	all, done := f.observers(left)
	defer done()
	for _, o := range all {
		wait(t, o.Tracker, apart)
		f.pending("on the old timeline, for the new one", []waiter{{o.Request(now), o}, {o.Request(tracker.Token{System: now.System, Timeline: 2, LSN: 1}), o}})
		e := outOfTime(t, o.Tracker, now)
		if e.Behind != 0 || e.Last.Timeline != 1 || e.Last.LSN < now.LSN {
			t.Errorf("%s: %v", o, e)
		}
	}
}

func TestTwoFailoversInARow(t *testing.T) {
	f := newFailover(t, 2)
	ctx, second, third := t.Context(), f.cluster.Standbys[0], f.cluster.Standbys[1]
	cascaded := f.cascade(third)
	f.watch(third, cascaded)
	one := f.write(f.cluster.Primary)
	f.replayed(f.cluster.Primary, second, third, cascaded)
	lostOne := f.waiting(past(one), third, cascaded)
	f.must(f.cluster.Primary.Stop(ctx))
	f.must(second.Promote(ctx))
	f.must(third.Follow(ctx, second))
	f.must(cascaded.WaitStreaming(ctx))
	f.end(lostOne, tracker.ErrDiverged)
	two := f.write(second)
	f.replayed(second, third, cascaded)
	lostTwo := f.waiting(past(two), third, cascaded)
	three := two
	three.Timeline = 3
	yet := f.waiting(three, third, cascaded)
	f.must(second.Stop(ctx))
	f.must(third.Promote(ctx))
	f.must(cascaded.WaitStreaming(ctx))
	f.end(lostTwo, tracker.ErrDiverged)
	f.end(yet, nil)
	f.must(second.Start(ctx))
	f.must(f.cluster.Primary.Start(ctx))
	lost := []tracker.Token{past(one), past(two), f.write(second), f.write(f.cluster.Primary)}
	honoured := []tracker.Token{one, two, f.write(third)}
	for i, tok := range honoured {
		if tok.Timeline != uint32(i+1) {
			t.Fatalf("%v", honoured)
		}
	}
	for tli := range uint32(2) {
		last, first := f.fork(third, tli+1)
		honoured, lost = append(honoured, last), append(lost, first)
	}
	f.judged("after two failovers", honoured, lost, third, cascaded)
}

// Each promotion adds a line to the history.
func TestAHistoryOfManyTimelines(t *testing.T) {
	f := newFailover(t, 1)
	ctx, n := t.Context(), f.cluster.Standbys[0]
	cascaded := f.cascade(n)
	f.watch(n, cascaded)
	honoured := []tracker.Token{f.write(f.cluster.Primary)}
	f.replayed(f.cluster.Primary, n, cascaded)
	f.must(f.cluster.Primary.Stop(ctx))
	var lost []tracker.Token
	for {
		waiting := f.waiting(past(honoured[len(honoured)-1]), n, cascaded)
		f.must(n.Promote(ctx))
		f.must(cascaded.WaitStreaming(ctx))
		f.end(waiting, tracker.ErrDiverged)
		honoured = append(honoured, f.write(n))
		last, first := f.fork(n, uint32(len(honoured)-1))
		honoured[len(honoured)-2].LSN = last.LSN
		lost = append(lost, first)
		if len(honoured) == 10 {
			break
		}
		// A standby of nobody, which will be promoted again.
		f.replayed(n, cascaded)
		f.must(n.Exec(ctx, fmt.Sprintf(`COPY (SELECT) TO '%s/standby.signal'`, n.Dir())))
		f.must(n.Restart(ctx))
		f.must(cascaded.WaitStreaming(ctx))
	}
	if last := honoured[9]; last.Timeline != 10 {
		t.Fatalf("got %v", honoured)
	}
	f.judged("after nine promotions", honoured, lost, n, cascaded)
}

func TestAStandbyOfAStandbyReadsYourWrites(t *testing.T) {
	f := newFailover(t, 1)
	cascaded := f.cascade(f.cluster.Standbys[0])
	f.watch(cascaded)
	writer, reader := connect(t, f.cluster.Primary), connect(t, cascaded)
	for _, o := range f.running[cascaded] {
		for i := range 200 {
			row := fmt.Sprint(o.kind, " ", i)
			exec(t, writer, `INSERT INTO moves VALUES ($1)`, row)
			wait(t, o.Tracker, capture(t, writer))
			if !value[bool](t, reader, `SELECT EXISTS (SELECT FROM moves WHERE v = $1)`, row) {
				t.Fatalf("%s: write %d is stale", o, i)
			}
		}
	}
}
