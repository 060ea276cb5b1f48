package ryw_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// shared is a primary with two standbys for the tests that break nothing for good.
var shared = sync.OnceValues(func() (*replicationtest.Cluster, error) {
	c, err := replicationtest.New(context.Background(), replicationtest.Options{Standbys: 2})
	if err != nil {
		return nil, err
	}
	toClose = c
	return c, c.Primary.Exec(context.Background(), `CREATE TABLE rows (id bigint PRIMARY KEY); CREATE ROLE reader LOGIN PASSWORD 'reads'; GRANT SELECT, INSERT ON rows TO reader`)
})

var toClose *replicationtest.Cluster

func TestMain(m *testing.M) {
	code := m.Run()
	if toClose != nil {
		if err := toClose.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func cluster(t testing.TB) *replicationtest.Cluster {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, n := range c.Standbys {
			_ = n.Resume(context.Background())
		}
	})
	return c
}

// ownCluster is for a test that breaks it.
func ownCluster(t testing.TB, o replicationtest.Options) *replicationtest.Cluster {
	t.Helper()
	c := replicationtest.Start(t, o)
	if err := errors.Join(c.Primary.Exec(t.Context(), `CREATE TABLE rows (id bigint PRIMARY KEY)`), c.WaitForReplay(t.Context())); err != nil {
		t.Fatal(err)
	}
	return c
}

func pool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// follow runs a tracker of the server that followed leads to, for a replica that is
// read by read.
func follow(t testing.TB, name, followed, read string) ryw.Replica {
	t.Helper()
	return followFor(t, 0, name, followed, read)
}

// followFor is follow with a tracker whose waits time out.
func followFor(t testing.TB, timeout time.Duration, name, followed, read string) ryw.Replica {
	t.Helper()
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: followed}})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source, Name: name, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(context.Background()) })
	t.Cleanup(func() { tr.Close(); running.Wait() })
	<-tr.Ready()
	return ryw.Replica{Name: name, Pool: pool(t, read), Tracker: tr}
}

// router routes to a cluster's servers.
func router(t testing.TB, c *replicationtest.Cluster, o ryw.Options) *ryw.Router {
	t.Helper()
	cfg := ryw.Config{Options: o, Primary: pool(t, c.Primary.DSN())}
	for _, n := range c.Standbys {
		cfg.Replicas = append(cfg.Replicas, follow(t, n.Name(), n.DSN(), n.DSN()))
	}
	return newRouter(t, cfg)
}

func newRouter(t testing.TB, cfg ryw.Config) *ryw.Router {
	t.Helper()
	r, err := ryw.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
