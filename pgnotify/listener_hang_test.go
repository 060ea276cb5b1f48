//go:build unix

package pgnotify_test

import (
	"syscall"
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

// The process is there, and its connection, and nothing answers.
func TestAServerThatHangsIsAGap(t *testing.T) {
	c := cluster(t)
	book := newLedger(t, c.Primary, c.Standbys[0])
	l := listen(t, quickly(c.Primary.DSN("application_name="+book.table), follow(t, c.Standbys[0].DSN()), book.channel()))
	book.write(c.Primary, 1, 2)
	book.heard(2)
	pid, err := replicationtest.Value[int](t.Context(), c.Primary,
		`SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND (query LIKE '%LISTEN%' OR query LIKE '%pg_listening_channels%')`, book.table)
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	book.write(c.Primary, 3)
	book.resynced(1)
	book.write(c.Primary, 4)
	book.gap(2, 4)
	if s := l.Stats(); s.Reconnects != 1 {
		t.Errorf("got %+v", s)
	}
}
