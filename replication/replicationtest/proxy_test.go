//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication/replicationtest"
)

func TestProxyHasTheFaultsOfANetwork(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	p, err := replicationtest.NewProxy(t.Context(), c.Primary)
	must(t, err)
	defer p.Close()
	connect := func() *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), p.DSN())
		must(t, err)
		return conn
	}
	recovering := func(conn *pgx.Conn) (yes bool) {
		t.Helper()
		must(t, conn.QueryRow(t.Context(), `select pg_is_in_recovery()`).Scan(&yes))
		return yes
	}
	conn := connect()
	if recovering(conn) {
		t.Error("it leads to a standby")
	}
	p.LeadTo(c.Standbys[0])
	if recovering(conn) {
		t.Error("a connection has moved")
	}
	if !recovering(connect()) {
		t.Error("a new connection does not reach the standby")
	}
	p.Slow(20 * time.Millisecond)
	if began := time.Now(); !recovering(connect()) || time.Since(began) < 20*time.Millisecond {
		t.Error("it is not slow")
	}
	p.Slow(0)
	p.Drop()
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a dropped connection lives")
	}

	// Cut off without a FIN: the client can write, and hears nothing.
	conn = connect()
	p.Cut()
	socket := conn.PgConn().Conn()
	must(t, socket.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if _, err := socket.Write([]byte("S\x00\x00\x00\x04")); err != nil { // Sync
		t.Errorf("the client's side is not open: %v", err)
	}
	if n, err := socket.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || n > 0 {
		t.Errorf("got %d bytes, %v; want silence", n, err)
	}
	p.Heal()
	if !recovering(connect()) {
		t.Error("a connection after Heal does not reach the standby")
	}
}
