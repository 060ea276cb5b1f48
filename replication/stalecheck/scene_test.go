package stalecheck

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// waiter is what a reader needs of a tracker.
type waiter interface {
	Wait(ctx context.Context, tok tracker.Token) error
	Close()
}

// follower is a tracker of one node.
type follower struct {
	waiter
	name string
}

// options say what a run is made of.
type options struct {
	seed             uint64
	reads            int64         // after so many checked reads the run is over
	within           time.Duration // or after that time
	writers, readers int
	pause            time.Duration // between two writes of a writer: 0 for none
	async            bool          // synchronous_commit = off
	anyAge           bool          // writes are read whatever their age, and not most often the latest
	faults           []fault
	timeout          time.Duration // of each wait
	late             time.Duration // a wait may last so much longer than until the row could be read: see watchFor
	standbys         int
	capture          commitAndCapture
	follow           func(s *scene, n *station) []follower
	until            []string // it is over with the first violation of these kinds
}

// station is a node, the proxy to it that trackers use, and its trackers.
type station struct {
	*replicationtest.Node
	proxy     *replicationtest.Proxy
	followers []follower
}

// scene is a cluster while everything happens to it.
type scene struct {
	t        *testing.T
	o        options
	cluster  *replicationtest.Cluster
	stations []*station
	history  *history
	log      io.Writer

	goroutines int // that there were before the first tracker

	mu      sync.Mutex
	primary *station // guarded by mu
}

func newScene(t *testing.T, o options) *scene {
	t.Helper()
	if o.standbys == 0 {
		o.standbys = 2
	}
	// What makes a standby that crashes come back far behind: nothing has it write
	// its buffers, nor keep a restartpoint (fact R6).
	c := replicationtest.Start(t, replicationtest.Options{Standbys: o.standbys, Settings: map[string]string{
		"bgwriter_lru_maxpages": "0", "shared_buffers": "128MB", "checkpoint_timeout": "1h", "max_wal_size": "4GB",
		"wal_keep_size": "512MB", "max_connections": "300",
	}})
	s := &scene{t: t, o: o, cluster: c, history: newHistory(), log: t.Output()}
	if err := c.Primary.Exec(t.Context(), `CREATE TABLE writes (id bigint PRIMARY KEY, writer bigint); CREATE INDEX ON writes (writer, id); CREATE PUBLICATION walwake`); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.goroutines = runtime.NumGoroutine()
	for _, n := range append([]*replicationtest.Node{c.Primary}, c.Standbys...) {
		proxy, err := replicationtest.NewProxy(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		st := &station{Node: n, proxy: proxy}
		s.stations = append(s.stations, st)
		t.Cleanup(proxy.Close)
	}
	s.primary = s.stations[0]
	for _, st := range s.stations {
		st.followers = o.follow(s, st)
	}
	return s
}

// leader is the primary now.
func (s *scene) leader() *station {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.primary
}

func (s *scene) setLeader(st *station) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.primary = st
}

func (s *scene) logf(format string, args ...any) {
	_, _ = fmt.Fprintf(s.log, "%8s %s\n", time.Since(s.history.began).Round(time.Millisecond), fmt.Sprintf(format, args...))
}

// patience is a tracker's with one connection, and with one question.
const patience = 2 * time.Second

// walwake follows a node as users do, and with each kind that it can have.
func walwake(s *scene, n *station) []follower {
	var all []follower
	uses := map[string][]replication.Kind{"": nil, "poll": {replication.Poll}, "physical": {replication.Physical}}
	if s.cluster.Version >= firstLogical {
		uses["logical"] = []replication.Kind{replication.Logical}
	}
	if s.cluster.Version >= 19 {
		uses["waitfor"] = []replication.Kind{replication.WaitFor}
	}
	for name, use := range uses {
		source, err := replication.New(replication.Config{
			Replica: replication.Server{DSN: n.proxy.DSN(), ConnectTimeout: patience, QueryTimeout: patience},
			Use:     use,
		})
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, s.track(n, source, name))
	}
	return all
}

// track runs a tracker until the scene ends.
func (s *scene) track(n *station, source tracker.Source, name string) follower {
	name = n.Name() + " " + name
	tr, err := tracker.New(tracker.Config{
		Source: source, Name: name, Timeout: s.o.timeout,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	s.t.Cleanup(tr.Close)
	return follower{tr, name}
}
