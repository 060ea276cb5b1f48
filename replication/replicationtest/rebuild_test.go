//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest_test

import (
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

// After a failover the old primary has what the new one never had.
func TestRebuildMakesAStandbyOfWhatHasParted(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	ctx := t.Context()
	old, next := c.Primary, c.Standbys[0]
	must(t, old.Exec(ctx, `create table t (n int)`))
	must(t, c.WaitForReplay(ctx))
	must(t, next.Promote(ctx))
	must(t, old.Exec(ctx, `insert into t values (1)`))
	must(t, next.Exec(ctx, `insert into t values (2)`))
	port := old.Port()
	must(t, old.Rebuild(ctx, next))
	if n := value[int](t, old, `select n from t`); n != 2 || old.Port() != port {
		t.Errorf("the rebuilt node has %d, on port %d", n, old.Port())
	}
	must(t, next.Exec(ctx, `insert into t values (3)`))
	lsn, err := next.Position(ctx)
	must(t, err)
	must(t, old.WaitForReplay(ctx, lsn))
	must(t, old.Restart(ctx))
	must(t, old.WaitStreaming(ctx))
	if err := old.Rebuild(ctx, old); err == nil {
		t.Error("a node was rebuilt from itself")
	}
}
