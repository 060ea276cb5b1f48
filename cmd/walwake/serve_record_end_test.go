package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/walwake/walwake/replication"
)

// A replica that is silent is asked once for all who want to know where a record ends, and holds up nobody whose time is
// up. One that has failed is asked again.
func TestASilentReplicaIsAskedOnceWhereARecordEnds(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan net.Conn, 100)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			asked <- conn
		}
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	config, err := replication.ParseDSN("host=127.0.0.1 user=app dbname=app sslmode=disable port=" + port)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ends := &recordEnds{server: &server{role: "replica", from: "--replica", config: config, address: address(config)}, ctx: ctx, running: &running}
	const lsn = 0x418
	over := make(chan error)
	ask := func() {
		running.Go(func() {
			_, err := ends.of(t.Context(), lsn)
			over <- err
		})
	}
	ask()
	first := <-asked
	ask()
	for range 10 {
		late, cancel := context.WithTimeout(t.Context(), 1)
		if _, err := ends.of(late, lsn); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		cancel()
	}
	select {
	case err := <-over:
		t.Errorf("who had the time was answered: %v", err)
	default:
	}
	if end, err := ends.of(t.Context(), lsn+1); end != lsn+1 || err != nil { // for which no size matters
		t.Errorf("got %s, %v", end, err)
	}
	if len(asked) > 0 {
		t.Errorf("it was asked %d times more", len(asked))
	}

	_ = first.Close()
	if err := <-over; err == nil {
		t.Error("a connection that is closed is an answer")
	}
	ask()
	again := <-asked
	stop()
	for range 2 { // the second may have come before the close, or after it
		if err := <-over; err == nil {
			t.Error("the end is an answer")
		}
	}
	_ = again.Close()
	_ = l.Close()
	running.Wait()
}
