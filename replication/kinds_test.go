package replication_test

import (
	"slices"
	"testing"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// kinds are those that a server of major can be observed with.
func kinds(major int) []replication.Kind {
	from := map[replication.Kind]int{replication.WaitFor: 19, replication.Logical: 16}
	return slices.DeleteFunc(replication.Kinds(), func(k replication.Kind) bool { return major < from[k] })
}

// follow runs a tracker that observes n by kind alone, and returns it when kind
// is in use.
func follow(t *testing.T, c *replicationtest.Cluster, n *replicationtest.Node, kind replication.Kind, cfg tracker.Config) *tracker.Tracker {
	t.Helper()
	source, err := replication.New(replication.Config{
		Replica: replication.Server{DSN: n.DSN()},
		Primary: replication.Server{DSN: c.Primary.DSN()},
		Use:     []replication.Kind{kind},
	})
	if err != nil {
		t.Fatal(err)
	}
	tr := track(t, source, cfg)
	<-tr.Ready()
	w := tr.Request(tracker.Token{LSN: 1 << 60}) // somebody waits
	eventually(t, "in use: "+string(kind), func() bool { return tr.State().Source == string(kind) })
	w.Cancel()
	return tr
}

func publish(t *testing.T, c *replicationtest.Cluster) {
	t.Helper()
	conn := connect(t, c.Primary)
	if !value[bool](t, conn, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'walwake')`) {
		exec(t, conn, `CREATE PUBLICATION walwake`)
	}
}

func TestEachKindReadsYourWrites(t *testing.T) {
	c := cluster(t)
	publish(t, c)
	for _, kind := range kinds(c.Version) {
		t.Run(string(kind), func(t *testing.T) {
			tr := follow(t, c, c.Standbys[0], kind, tracker.Config{})
			writer, reader := connect(t, c.Primary), connect(t, c.Standbys[0])
			for n := range 500 {
				id := newID()
				exec(t, writer, `INSERT INTO writes VALUES ($1)`, id)
				wait(t, tr, capture(t, writer))
				if !value[bool](t, reader, `SELECT EXISTS (SELECT FROM writes WHERE id = $1)`, id) {
					t.Fatalf("write %d is stale", n)
				}
			}
			if s := tr.State(); s.Source != string(kind) || s.Note != "" {
				t.Errorf("ended with %+v", s)
			}
		})
	}
}
