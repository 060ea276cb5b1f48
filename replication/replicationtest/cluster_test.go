package replicationtest_test

import (
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

func TestARowReachesTheStandby(t *testing.T) {
	began := time.Now()
	c := replicationtest.Start(t, replicationtest.Options{})
	t.Logf("PostgreSQL %s with %d standby: %s", c.Release, len(c.Standbys), time.Since(began))
	if err := c.Primary.Exec(t.Context(), `create table t (n int); insert into t values (42)`); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := replicationtest.Value[int](t.Context(), c.Standbys[0], `select n from t`)
	if n != 42 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
}
