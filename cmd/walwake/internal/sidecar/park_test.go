package sidecar

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

// dial is a client that writes and reads what it wants.
func (k *kit) dial() (io.ReadWriteCloser, *bufio.Reader) {
	k.t.Helper()
	conn, err := k.pipes.dial(k.t.Context(), "", "")
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = conn.Close() })
	return conn, bufio.NewReader(conn)
}

func (k *kit) write(w io.Writer, text string) {
	k.t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		k.t.Fatal(err)
	}
}

// reads checks the next answer's status, and returns its headers.
func (k *kit) reads(r *bufio.Reader, want int) (header http.Header, last bool) {
	k.t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		k.t.Fatalf("got %s %s, %v", resp.Status, body, err)
	}
	return resp.Header, resp.Close
}

const (
	longWait = "GET /v1/wait?timeout=1m&token=0/C8 HTTP/1.1\r\nHost: localhost\r\n\r\n"
	health   = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
)

func TestAParkedConnectionIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		conn, answers := k.dial()
		for n := range 3 {
			k.write(conn, "GET /v1/wait?timeout=1m&token=0/"+string("7AD"[n])+"00 HTTP/1.1\r\nHost: localhost\r\n\r\n")
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if d := k.script.running().Demand(); d.Waiting != 1 || k.server.Stats().Waiting != 1 {
				t.Fatalf("%+v", d)
			}
			k.script.observe(on(1, []tracker.LSN{0x700, 0xA00, 0xD00}[n]))
			header, _ := k.reads(answers, http.StatusOK)
			if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Cache-Control") != "no-store" || header.Get("Content-Type") != "application/json" || header.Get("Date") == "" {
				t.Errorf("got %+v", header)
			}
			time.Sleep(idleTimeout - time.Second)
			k.write(conn, health)
			k.reads(answers, http.StatusOK)
			if open := k.server.open.Load(); open != 1 {
				t.Errorf("%d connections are open", open)
			}
		}
		k.write(conn, "GET /v1/wait?timeout=1s&token=0/FFFF HTTP/1.1\r\nHost: localhost\r\n\r\n")
		k.reads(answers, http.StatusGatewayTimeout)
		began := time.Now()
		if _, err := answers.ReadByte(); err != io.EOF || time.Since(began) != idleTimeout {
			t.Errorf("an idle connection is closed after %s: %v", time.Since(began), err)
		}
		synctest.Wait()
		if open := k.server.open.Load(); open != 0 {
			t.Errorf("%d connections are open", open)
		}
	})
}

// The next request may come before the answer of the one that waits.
func TestRequestsThatComeEarlyAreAnsweredInTurn(t *testing.T) {
	for _, together := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			k := start(t, nil)
			k.script.observe(on(1, 100))
			conn, answers := k.dial()
			if together {
				k.write(conn, longWait+health+longWait+health)
			} else {
				k.write(conn, longWait)
				time.Sleep(time.Second)
				go func() { _, _ = io.WriteString(conn, health+longWait+health) }()
			}
			time.Sleep(time.Second)
			k.script.observe(on(1, 200))
			for range 4 {
				k.reads(answers, http.StatusOK)
			}
		})
	}
}

func TestAParkedClientThatGoesAwayLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		conn, _ := k.dial()
		k.write(conn, longWait)
		time.Sleep(time.Second)
		_ = conn.Close()
		synctest.Wait()
		if d := k.script.running().Demand(); d.Waiting != 0 || k.server.open.Load() != 0 || k.server.Stats().Waiting != 0 {
			t.Errorf("%+v, %d connections", d, k.server.open.Load())
		}
	})
}

func TestAParkedClientThatWantsNoMoreIsLeft(t *testing.T) {
	for _, request := range []string{
		"GET /v1/wait?timeout=1m&token=0/C8 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
		"GET /v1/wait?timeout=1m&token=0/C8 HTTP/1.0\r\nHost: localhost\r\n\r\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			k := start(t, nil)
			k.script.observe(on(1, 100))
			conn, answers := k.dial()
			k.write(conn, request)
			time.Sleep(time.Second)
			k.script.observe(on(1, 200))
			if header, last := k.reads(answers, http.StatusOK); !last {
				t.Errorf("got %+v", header)
			}
			if _, err := answers.ReadByte(); err != io.EOF {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Few waits stay with net/http.
func TestFewWaitsAreNotParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.server.parkAbove = 1
		k.script.observe(on(1, 100))
		one := k.asked("/v1/wait?timeout=1m&token=0/C8")
		time.Sleep(time.Second)
		two := k.asked("/v1/wait?timeout=1m&token=0/C8")
		time.Sleep(time.Second)
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if n := bytes.Count(stacks, []byte(".(*parked).listen(")); n != 1 {
			t.Errorf("%d are parked", n)
		}
		k.script.observe(on(1, 200))
		ok[WaitAnswer](t, <-one)
		ok[WaitAnswer](t, <-two)
	})
}

func TestAHeadThatIsParkedHasNoBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		conn, answers := k.dial()
		k.write(conn, "HEAD"+longWait[3:])
		time.Sleep(time.Second)
		k.script.observe(on(1, 200))
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = answers.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		go func() { _, _ = io.WriteString(conn, health) }()
		k.reads(answers, http.StatusOK)
	})
}

func TestShutdownAnswersAndLeavesWhatIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		waits, waiting := k.dial()
		idle, idling := k.dial()
		k.write(waits, longWait)
		k.write(idle, "GET /v1/wait?timeout=1s&token=0/C8 HTTP/1.1\r\nHost: localhost\r\n\r\n")
		k.reads(idling, http.StatusGatewayTimeout)
		deaf, _ := k.dial() // which does not read its answer
		k.write(deaf, longWait)
		time.Sleep(time.Second)
		began := time.Now()
		k.stop()
		k.reads(waiting, http.StatusServiceUnavailable)
		if _, err := idling.ReadByte(); err != io.EOF {
			t.Errorf("got %v", err)
		}
		if err := <-k.ended; err != nil || time.Since(began) > DefaultWriteTimeout {
			t.Errorf("it took %s: %v", time.Since(began), err)
		}
	})
}

// Who opens connections without end does not fill the disk with lines about them.
func TestRefusedConnectionsAreOneLineASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer // is read while nothing else runs
		k := start(t, func(c *Config) {
			c.Conns, c.Logger = 1, slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		})
		k.script.observe(on(1, 100))
		k.asked("/v1/wait?timeout=1m&token=0/C8") // the one that may be open
		synctest.Wait()
		refused := func(n int) {
			for range n {
				conn, _ := k.dial()
				if _, err := io.ReadAll(conn); err != nil {
					t.Fatal(err)
				}
			}
		}
		said := func() (refused []int) {
			synctest.Wait()
			for line := range bytes.Lines(log.Bytes()) {
				var got struct{ Refused, Limit int }
				if err := json.Unmarshal(line, &got); err != nil || got.Limit != 1 || got.Refused == 0 {
					t.Fatalf("got %s, %v", line, err)
				}
				refused = append(refused, got.Refused)
			}
			return refused
		}
		for range 10 {
			refused(100)
			time.Sleep(refusedEvery * 3 / 10)
		}
		refused(1)
		time.Sleep(10 * refusedEvery)
		if got := said(); !slices.Equal(got, []int{400, 400, 201}) {
			t.Errorf("1001 connections in 3 s are told of as %v", got)
		}
		refused(3)
		k.stop()
		if err := <-k.ended; err != nil {
			t.Error(err)
		}
		if got := said(); got[len(got)-1] != 3 {
			t.Errorf("what was refused just before the end is not told of: %v", got)
		}
	})
}
