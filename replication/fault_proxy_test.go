package replication_test

import (
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

// through makes a proxy to n for as long as the test lasts.
func through(t *testing.T, n *replicationtest.Node) *replicationtest.Proxy {
	t.Helper()
	p, err := replicationtest.NewProxy(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}
