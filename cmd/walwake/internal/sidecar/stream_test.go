package sidecar

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

func TestAStreamBeginsWithThePresentState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		s := k.stream("")
		if p := read[Position](t, s.until("state")); p.Known || p.Position != nil || p.Epoch != nil || p.Boot == "" {
			t.Errorf("got %+v", p)
		}
		k.script.observe(tracker.Observation{LSN: 100, System: system, Timeline: 2, History: tracker.History{{Timeline: 1, End: 50}}})
		p := read[Position](t, s.until("state"))
		if !p.Known || *p.Position != 100 || *p.Timeline != 2 || *p.System != "7301234567890123456" || *p.Epoch != 1 || len(p.History) != 1 || p.History[0] != (Fork{1, 50}) || *p.Token != token(2, 100) {
			t.Errorf("got %+v", p)
		}
		late := k.stream("")
		if p := read[Position](t, late.until("state")); *p.Position != 100 || *p.Epoch != 1 {
			t.Errorf("who comes later: got %+v", p)
		}
	})
}

// A client may come before the hub has made its first frame.
func TestAStreamThatComesFirstBeginsWithTheStateToo(t *testing.T) {
	hub := NewHub()
	tr, err := tracker.New(tracker.Config{Source: newScript()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Tracker: tr, Hub: hub})
	if err != nil {
		t.Fatal(err)
	}
	l := httptest.NewServer(s.Handler()) // without Serve, the hub does not run
	t.Cleanup(l.Close)                   // after the stream
	k := &kit{t: t, client: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Listener.Addr().String())
	}}}}
	if p := read[Position](t, k.stream("").until("state")); p.Known || p.Boot == "" {
		t.Errorf("got %+v", p)
	}
}

func TestPositionsCoalesceAndTheLatestWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		s := k.stream("")
		s.until("state")
		time.Sleep(time.Second)
		const moves, last = 5000, 100 + 5000
		go func() {
			for i := range moves {
				k.script.observe(on(1, tracker.LSN(101+i)))
				time.Sleep(200 * time.Microsecond)
			}
		}()
		began, events := time.Now(), 0
		for {
			e := s.until("position")
			events++
			if m := read[Moved](t, e); m.LSN == last {
				break
			}
		}
		if took := time.Since(began); events < 5 || events > int(took/DefaultInterval)+2 {
			t.Errorf("%d events for %d moves in %s: want about one in %s", events, moves, took, DefaultInterval)
		}
	})
}

func TestAnEpochThatEndsIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		synctest.Wait() // or the state may be told of twice: as it is, and when the hub has seen it
		s := k.stream("")
		s.until("state")
		time.Sleep(time.Second)

		// The source fails.
		began := time.Now()
		k.script.fails <- errors.New("the standby has crashed")
		if p := read[Position](t, s.until("state")); p.Known || p.Position != nil || p.Epoch != nil || !strings.Contains(p.Failure, "crashed") || time.Since(began) != 0 {
			t.Errorf("after %s: got %+v", time.Since(began), p)
		}
		<-k.script.feeds
		k.script.observe(on(1, 60)) // lower
		if p := read[Position](t, s.until("state")); !p.Known || *p.Position != 60 || *p.Epoch != 2 {
			t.Errorf("got %+v", p)
		}
		time.Sleep(time.Second)

		// The epoch ends, and the source goes on: the tracker has no call for that.
		began = time.Now()
		k.script.over()
		if p := read[Position](t, s.until("state")); p.Known || time.Since(began) > lookEvery {
			t.Errorf("after %s: got %+v", time.Since(began), p)
		}
		k.script.observe(on(2, 50))
		if p := read[Position](t, s.until("state")); !p.Known || *p.Position != 50 || *p.Epoch != 3 || *p.Timeline != 2 {
			t.Errorf("got %+v", p)
		}
	})
}

func TestWhatAClientWaitsForIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		s, other := k.demanding(""), k.stream("")
		s.until("state")
		other.until("state")
		time.Sleep(time.Second)
		began := time.Now()
		k.script.observe(on(1, 101))
		other.until("position")
		if s.until("position"); time.Since(began) != defaultKeepalive-time.Second {
			t.Errorf("a position that nobody waits for comes in place of a keepalive, not after %s", time.Since(began))
		}

		s.say(150)
		synctest.Wait()
		if d := k.script.running().Demand(); d.Lowest != 150 || d.Waiting != 1 {
			t.Fatalf("%+v", d)
		}
		began = time.Now()
		k.script.observe(on(1, 160))
		if m := read[Moved](t, s.until("position")); m.LSN != 160 || time.Since(began) != 0 {
			t.Errorf("after %s: got %+v", time.Since(began), m)
		}
		if m := read[Moved](t, other.until("position")); m.LSN != 160 || time.Since(began) > DefaultInterval {
			t.Errorf("who waits for nothing, after %s: got %+v", time.Since(began), m)
		}

		s.say(120) // which is there: it may not have heard
		if m := read[Moved](t, s.until("position")); m.LSN != 160 {
			t.Errorf("got %+v", m)
		}
		s.say(300)
		synctest.Wait()
		s.say(200)
		synctest.Wait()
		if d := k.script.running().Demand(); d.Lowest != 200 || d.Waiting != 1 {
			t.Errorf("the latest counts: %+v", d)
		}
		s.say(0)
		synctest.Wait()
		if d := k.script.running().Demand(); d.Waiting != 0 {
			t.Errorf("nobody waits: %+v", d)
		}
		s.say(200)
		synctest.Wait()
		time.Sleep(demandFor)
		synctest.Wait()
		if d := k.script.running().Demand(); d.Waiting != 0 {
			t.Errorf("a demand that is not repeated counts for ever: %+v", d)
		}
		s.say(200)
		synctest.Wait()
		s.close()
		synctest.Wait()
		if d := k.script.running().Demand(); d.Waiting != 0 || k.server.Stats().Streaming != 1 {
			t.Errorf("a client that is gone waits on: %+v", d)
		}
	})
}

// A position that came over an epoch that is over by the time it is looked at must not use up the demand.
func TestADemandOutlivesTheEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		s := k.demanding("")
		s.until("state")
		s.say(150)
		synctest.Wait()
		k.script.observe(on(1, 150))
		k.script.over() // perhaps before the stream has looked
		k.script.observe(on(1, 120))
		synctest.Wait()
		k.script.observe(on(1, 170))
		began := time.Now()
		for {
			e, more := s.next()
			if !more || time.Since(began) > time.Second {
				t.Fatal("170 is not told of")
			}
			if e.name == "position" && read[Moved](t, e).LSN >= 150 || e.name == "state" && strings.Contains(e.data, `"position":"0/AA"`) {
				break
			}
		}
	})
}

func TestABadDemandEndsTheStream(t *testing.T) {
	for _, line := range []string{"garbage\n", "0/1FFFFFFFF\n", strings.Repeat("0", 100) + "\n", "\n", "-1\n"} {
		synctest.Test(t, func(t *testing.T) {
			k := start(t, nil)
			s := k.demanding("")
			s.until("state")
			_, _ = s.body.Write([]byte(line))
			if e := read[End](t, s.until("end")); e.Reason != "bad_request" {
				t.Errorf("%q: got %+v", line, e)
			}
			if _, more := s.next(); more {
				t.Error("it goes on")
			}
		})
	}
}

func TestASilentStreamIsKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		s := k.stream("?keepalive=250ms")
		s.until("event")
		s.until("state")
		began := time.Now()
		for range 4 {
			if e, more := s.next(); !more || e.name != ":" {
				t.Fatalf("got %+v", e)
			}
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("4 keepalives took %s", took)
		}
	})
}

func TestAReaderThatDoesNotReadIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		quick := k.stream("?keepalive=30s")
		resp, err := k.client.Do(k.request(http.MethodGet, "/v1/stream?keepalive=30s"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 200 { // a pipe holds nothing, and the client's buffer 4 KiB
			k.script.observe(on(1, tracker.LSN(101+i)))
			time.Sleep(DefaultInterval)
		}
		for read[Moved](t, quick.until("position")).LSN != 300 {
		}
		if s := k.server.Stats(); s.DroppedReaders != 1 || s.Streaming != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestStreamsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.Streams = 1 })
		s := k.stream("")
		s.until("state")
		k.get("/v1/stream").is(t, tooMany)
		s.close()
		synctest.Wait()
		k.stream("").until("state")
	})
}

func TestEventsAreRememberedForWhoComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		synctest.Wait()
		feed := k.script.running()
		feed.Ladder([]tracker.Rung{{Source: "physical", Up: true}, {Source: "poll", Up: true}})
		synctest.Wait()
		s := k.stream("")
		var texts []string
		var last sent
		for len(texts) < 2 {
			last = s.until("event")
			e := read[Event](t, last)
			texts = append(texts, e.Kind+": "+e.Text)
		}
		if want := "epoch: the position is known, 0/64 of timeline 1|source: physical is in use, it was script"; strings.Join(texts, "|") != want {
			t.Errorf("got %q, want %q", texts, want)
		}
		if p := read[Position](t, s.until("state")); p.Source != "physical" || len(p.Ladder) != 2 || !p.Ladder[0].Up {
			t.Errorf("got %+v", p)
		}
		feed.Ladder([]tracker.Rung{{Source: "physical", Reason: "the stream was cut"}, {Source: "poll", Up: true}})
		if e := read[Event](t, s.until("event")); e.Text != "poll is in use, it was physical" {
			t.Errorf("got %+v", e)
		}
		if p := read[Position](t, s.until("state")); p.Source != "poll" || p.Ladder[0].Reason != "the stream was cut" {
			t.Errorf("got %+v", p)
		}
		back := k.stream("", "Last-Event-ID", last.id)
		if e, _ := back.next(); read[Event](t, e).Text != "poll is in use, it was physical" {
			t.Errorf("what it has had comes again: %+v", e)
		}
		if e, _ := back.next(); e.name != "state" {
			t.Errorf("got %+v", e)
		}
		stranger := k.stream("", "Last-Event-ID", "anotherrun-999999")
		if e, _ := stranger.next(); read[Event](t, e).Kind != "epoch" {
			t.Errorf("an id of another run counts: %+v", e)
		}
		for i := range 3 * maxEvents {
			k.server.cfg.Hub.Tell("source", strings.Repeat("x", i))
		}
		if _, events, _ := k.server.cfg.Hub.since(0); len(events) != maxEvents || len(events[maxEvents-1].Text) != 3*maxEvents-1 {
			t.Errorf("%d are remembered", len(events))
		}
	})
}

// Over HTTP/2 without TLS, as clients with prior knowledge speak it.
func TestH2C(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		transport := &http.Transport{DialContext: k.pipes.dial, Protocols: protocols}
		defer transport.CloseIdleConnections()
		k.client = &http.Client{Transport: transport}
		k.script.observe(on(1, 100))
		s := k.demanding("?keepalive=30s")
		s.until("state")
		s.say(150)
		waits := k.asked("/v1/wait?timeout=30s&token=0/96")
		time.Sleep(20 * time.Second) // longer than any write may take
		if d := k.script.running().Demand(); d.Waiting != 2 {
			t.Fatalf("%+v", d)
		}
		k.script.observe(on(1, 150))
		for read[Moved](t, s.until("position")).LSN != 150 {
		}
		if s.resp.ProtoMajor != 2 {
			t.Errorf("it came over %s", s.resp.Proto)
		}
		ok[WaitAnswer](t, <-waits)
	})
}
