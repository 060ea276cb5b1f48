package pgnotify_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// followAs runs a tracker with a name until the test ends.
func followAs(t *testing.T, name, dsn string) *tracker.Tracker {
	t.Helper()
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: dsn}})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(context.Background()) })
	t.Cleanup(func() { tr.Close(); running.Wait() })
	return tr
}

// publish runs a Publisher until the test ends.
func publish(t *testing.T, cfg pgnotify.PublisherConfig) *pgnotify.Publisher {
	t.Helper()
	p, err := pgnotify.NewPublisher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(context.Background()); err != nil {
			t.Errorf("Run: %v, want nil after Close", err)
		}
	})
	t.Cleanup(func() { p.Close(); running.Wait() })
	return p
}

// crowd is a Fleet that listens until the test ends.
type crowd struct {
	*pgnotify.Fleet
	events <-chan pgnotify.Event
}

func gather(t *testing.T, primary, channel string, cfg pgnotify.FleetConfig, others ...pgnotify.Channel) crowd {
	t.Helper()
	f, err := pgnotify.NewFleet(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c, events := followedBy(f.Channel())
	c.Name = channel
	listen(t, pgnotify.Config{
		Primary:  replication.Server{DSN: primary, QueryTimeout: 2 * time.Second},
		Channels: append(others, c),
	})
	return crowd{f, events}
}

// until returns when the members are as they shall be, of which an event tells.
func (c crowd) until(t *testing.T, what string, are func([]pgnotify.Member) bool) {
	t.Helper()
	for late := time.After(30 * time.Second); !are(c.Members()); {
		select {
		case <-c.events:
		case <-late:
			t.Fatalf("not in time: %s: %+v", what, c.Members())
		}
	}
}

// passes returns when time alone has made it so.
func (c crowd) passes(t *testing.T, what string, are func([]pgnotify.Member) bool) {
	t.Helper()
	for began := time.Now(); !are(c.Members()); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("not in time: %s: %+v", what, c.Members())
		}
	}
}

func TestProcessesSeeEachOthersReplicas(t *testing.T) {
	c := cluster(t)
	const channel = "each other's"
	net, err := replicationtest.NewProxy(t.Context(), c.Primary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(net.Close)
	const silent = 2 * time.Second
	fleets := []crowd{
		gather(t, c.Primary.DSN(), channel, pgnotify.FleetConfig{Silent: silent, Forget: 2 * silent}),
		gather(t, c.Primary.DSN(), channel, pgnotify.FleetConfig{}),
	}
	cfg := pgnotify.PublisherConfig{
		Primary:  replication.Server{DSN: c.Primary.DSN(), ConnectTimeout: time.Second, QueryTimeout: time.Second},
		Trackers: []*tracker.Tracker{followAs(t, "r1", c.Standbys[0].DSN())},
		Channel:  channel, Interval: 200 * time.Millisecond, RetryMax: 200 * time.Millisecond,
	}
	one := publish(t, cfg)
	cfg.Primary.DSN = net.DSN()
	cfg.Trackers = []*tracker.Tracker{followAs(t, "r1", c.Standbys[0].DSN()), followAs(t, "r2", c.Primary.DSN())}
	two := publish(t, cfg)
	want := []string{"r1/" + one.Stats().Instance, "r1/" + two.Stats().Instance, "r2/" + two.Stats().Instance}
	slices.Sort(want)
	for _, f := range fleets {
		f.until(t, "all are there", func(ms []pgnotify.Member) bool {
			var are []string
			for _, m := range ms {
				if m.Known && m.Position.System != 0 && m.Position.Timeline == 1 && m.Source != "" && !m.Silent {
					are = append(are, m.Name+"/"+m.Instance)
				}
			}
			return slices.Equal(are, want)
		})
	}
	net.Cut() // as if that process had gone without a word
	isSilent := func(m pgnotify.Member) bool { return m.Silent && m.Age >= silent && m.Instance == two.Stats().Instance }
	fleets[0].passes(t, "the two of a process are silent", func(ms []pgnotify.Member) bool {
		return len(ms) == 3 && len(slices.DeleteFunc(ms, isSilent)) == 1
	})
	for _, m := range fleets[0].Having(tracker.Token{}) {
		if m.Instance != one.Stats().Instance {
			t.Errorf("who is silent can be chosen: %+v", m)
		}
	}
	fleets[0].passes(t, "the two are forgotten", func(ms []pgnotify.Member) bool { return len(ms) == 1 })
	if ms := fleets[1].Members(); len(ms) != 3 {
		t.Errorf("where silence is longer: %+v", ms)
	}
	net.Heal()
	fleets[0].until(t, "they are back", func(ms []pgnotify.Member) bool {
		return two.Stats().Connected && len(ms) == 3 && len(slices.DeleteFunc(ms, isSilent)) == 3
	})
	one.Close()
	fleets[0].until(t, "who is closed leaves", func(ms []pgnotify.Member) bool { return len(ms) == 2 })
	if f := two.Stats(); f.Failures == 0 || f.Failure != nil {
		t.Errorf("%+v", f)
	}
}

func TestTheBestReplicaForAToken(t *testing.T) {
	c := cluster(t)
	standby := c.Standbys[0]
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	const channel, announced = "the best", "the best: announced"
	late, level := followAs(t, "late", standby.DSN()), followAs(t, "level", c.Primary.DSN())
	announcements := pgnotify.Announcements(late, level)
	announcements.Name = announced
	f := gather(t, c.Primary.DSN(), channel, pgnotify.FleetConfig{}, announcements)
	publish(t, pgnotify.PublisherConfig{
		Primary: replication.Server{DSN: c.Primary.DSN()}, Channel: channel,
		Trackers: []*tracker.Tracker{late, level}, Interval: 5 * time.Second,
	})
	f.until(t, "both are there", func(ms []pgnotify.Member) bool {
		return len(ms) == 2 && ms[0].Known && ms[1].Known
	})
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	writer := connect(t, c.Primary)
	exec(t, writer, `INSERT INTO rows VALUES ($1)`, time.Now().UnixNano())
	tok, err := replication.Capture(t.Context(), writer)
	if err != nil {
		t.Fatal(err)
	}
	a := announce(t, pgnotify.AnnouncerConfig{Primary: replication.Server{DSN: c.Primary.DSN()}, Channel: announced})
	began := time.Now()
	a.Announce(tok)
	f.until(t, "the one that has it is known to", func([]pgnotify.Member) bool { return len(f.Having(tok)) > 0 })
	took := time.Since(began)
	if m, ok := f.Best(tok); !ok || m.Name != "level" || len(f.Having(tok)) != 1 {
		t.Errorf("the best is %+v, of %+v", m, f.Having(tok))
	}
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	f.until(t, "the other has it too", func([]pgnotify.Member) bool { return len(f.Having(tok)) == 2 })
	t.Logf("known everywhere %s after it was announced, and %s after it was replayed", took, time.Since(began))
}

// Each NOTIFY is WAL that moves all replicas.
func TestPublishersOfAnIdleClusterDoNotKeepEachOtherBusy(t *testing.T) {
	c := cluster(t)
	var all []*pgnotify.Publisher
	for i := range 3 {
		all = append(all, publish(t, pgnotify.PublisherConfig{
			Primary: replication.Server{DSN: c.Primary.DSN()}, Channel: "idle",
			Trackers: []*tracker.Tracker{followAs(t, fmt.Sprintf("r%d", i), c.Standbys[0].DSN())},
		}))
	}
	f := gather(t, c.Primary.DSN(), "idle", pgnotify.FleetConfig{})
	f.until(t, "all are there", func(ms []pgnotify.Member) bool {
		return len(ms) == 3 && !slices.ContainsFunc(ms, func(m pgnotify.Member) bool { return !m.Known || m.Source == "" })
	})
	before := f.Stats().Heard
	moved := f.Members()[0].Position
	began := time.Now()
	f.passes(t, "four seconds pass", func([]pgnotify.Member) bool { return time.Since(began) > 4*time.Second })
	if n := f.Stats().Heard - before; n < 9 || n > 18 {
		t.Errorf("%d NOTIFYs of three in 4 s, want one a second each", n)
	}
	f.until(t, "the position has moved", func(ms []pgnotify.Member) bool { return ms[0].Position.LSN > moved.LSN })
	for _, p := range all {
		if s := p.Stats(); s.Failures != 0 {
			t.Errorf("%+v", s)
		}
	}
}

func TestAllGoesOnAfterARestartAndAFailover(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	old, next := c.Primary, c.Standbys[0]
	// As one writes it for failovers.
	both := strings.Replace(old.DSN("target_session_attrs=read-write"), fmt.Sprintf("127.0.0.1:%d", old.Port()),
		fmt.Sprintf("127.0.0.1:%d,127.0.0.1:%d", old.Port(), next.Port()), 1)
	t.Run("servers", func(t *testing.T) {
		tr := followAs(t, "r1", next.DSN())
		f := gather(t, both, pgnotify.DefaultFleet, pgnotify.FleetConfig{}, pgnotify.Announcements(tr))
		primary := replication.Server{DSN: both, QueryTimeout: 2 * time.Second}
		a := announce(t, pgnotify.AnnouncerConfig{Primary: primary})
		p := publish(t, pgnotify.PublisherConfig{Primary: primary, Trackers: []*tracker.Tracker{tr}, Interval: 200 * time.Millisecond})
		works := func(when string, n *replicationtest.Node, timeline uint32) {
			t.Helper()
			conn := connect(t, n)
			exec(t, conn, `SELECT pg_logical_emit_message(true, 'test', $1)`, when)
			tok, err := replication.Capture(t.Context(), conn)
			if err != nil || tok.Timeline != timeline {
				t.Fatalf("%s: %v, %v", when, tok, err)
			}
			before := a.Stats().Notifies
			a.Announce(tok)
			// A Resync may tell of the primary before the announcement does.
			f.until(t, when+": the replica is where the primary is, and all are told", func(ms []pgnotify.Member) bool {
				return a.Stats().Notifies > before && tr.State().Primary.Compare(tok) >= 0 && len(f.Having(tok)) == 1 && !ms[0].Unsure && ms[0].Position.Timeline == timeline
			})
		}
		works("at first", old, 1)
		if err := old.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		works("after a restart", old, 1)
		if s := f.Stats(); s.Resyncs == 0 {
			t.Errorf("no Resync: %+v", s)
		}
		if err := old.Crash(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := next.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		works("after a failover", next, 2)
		if s := a.Stats(); s.Failures < 2 || s.Failure != nil || !s.Connected {
			t.Errorf("the announcer: %+v", s)
		}
		if s := p.Stats(); s.Failures < 2 {
			t.Errorf("the publisher: %+v", s)
		}
	})
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		left := ours()
		if len(left) == 0 {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("left running:\n%s", strings.Join(left, "\n\n"))
		}
	}
}

// ours are the goroutines of this module that no test is.
func ours() []string {
	stacks := make([]byte, 1<<20)
	all := strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n")
	return slices.DeleteFunc(all, func(s string) bool {
		for _, pkg := range []string{"pgnotify", "tracker", "replication"} {
			if strings.Contains(s, "walwake/walwake/"+pkg+".") {
				return false
			}
		}
		return true
	})
}
