package sidecar

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
)

// Observe ends when the connection does, or Stall is over, also where no answer has come yet: a sidecar that has as many
// connections as it takes closes the next one without a word, one that is killed closes them all, and one that is
// stopped, or a proxy that keeps the request back, says nothing.
func TestAStreamWithoutAnAnswerEnds(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"closed at once":           func(c net.Conn) { _ = c.Close() },
		"closed after the request": func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)); _ = c.Close() },
		"never answered":           func(c net.Conn) { _, _ = io.Copy(io.Discard, c); _ = c.Close() },
		"an answer that is no HTTP": func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "hello\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			accepted := make(chan struct{}, 100)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					accepted <- struct{}{}
					go serve(c)
				}
			}()
			c, err := New(Config{URL: "http://" + l.Addr().String(), Stall: minStall})
			if err != nil {
				t.Fatal(err)
			}
			tr, err := tracker.New(tracker.Config{Source: c, RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			var running sync.WaitGroup
			running.Go(func() { _ = tr.Run(context.Background()) })
			late := time.After(minStall + 3*time.Second)
			for range 2 { // it comes again
				select {
				case <-accepted:
				case <-late:
					t.Fatalf("%s after the first attempt there is no other: %+v", minStall+3*time.Second, tr.Stats())
				}
			}
			tr.Close()
			running.Wait()
		})
	}
}
