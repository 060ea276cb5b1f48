package sidecar

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

func TestAWaitEndsAsItsReasonSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.get("/v1/wait?token=0/1&timeout=0").is(t, unknown)
		k.script.observe(tracker.Observation{LSN: 100, System: system, Timeline: 2, History: tracker.History{{Timeline: 1, End: 50}}})

		a := ok[WaitAnswer](t, k.get("/v1/wait?token="+token(2, 100).String()))
		if a.Result != "replayed" || a.Target != 100 || *a.Replayed != 100 || *a.Timeline != 2 || a.Source != "script" || a.Primary || a.WaitedUS != 0 {
			t.Errorf("got %+v", a)
		}
		ok[WaitAnswer](t, k.get("/v1/wait?token="+token(1, 50).String()))
		ok[WaitAnswer](t, k.get("/v1/wait?token=0/64"))

		p := k.get("/v1/wait?timeout=2s&token="+token(2, 150).String()).is(t, timedOut)
		if *p.Target != 150 || *p.Replayed != 100 || *p.Timeline != 2 || *p.Behind != 50 || p.WaitedUS != 2e6 || p.Source != "script" {
			t.Errorf("got %+v %+v", p, p.WaitDetail)
		}
		k.get("/v1/wait?timeout=0s&token="+token(2, 150).String()).is(t, timedOut)
		began := time.Now()
		k.get("/v1/wait?token=0/65").is(t, timedOut)
		if waited := time.Since(began); waited != tracker.DefaultTimeout {
			t.Errorf("without a timeout it took %s", waited)
		}
		if p := k.get("/v1/wait?token="+token(1, 51).String()).is(t, diverged); *p.Replayed != 100 || *p.Behind != 0 {
			t.Errorf("got %+v", p)
		}
		k.get("/v1/wait?token="+tracker.Token{System: system + 1, Timeline: 2, LSN: 1}.String()).is(t, wrongSystem)

		waits := k.asked("/v1/wait?timeout=1m&token=" + token(2, 200).String())
		synctest.Wait()
		time.Sleep(7 * time.Second)
		if s := k.server.Stats(); s.Waiting != 1 {
			t.Errorf("%+v", s)
		}
		k.script.observe(tracker.Observation{LSN: 200, System: system, Timeline: 2, History: tracker.History{{Timeline: 1, End: 50}}})
		if a := ok[WaitAnswer](t, <-waits); *a.Replayed != 200 || a.WaitedUS != 7e6 {
			t.Errorf("got %+v", a)
		}
		if s := k.server.Stats(); s.Waiting != 0 || s.Answers[http.StatusGatewayTimeout] != 3 || k.tr.Stats().Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAWaitGoesOnWhileThePositionIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		lost, found := k.asked("/v1/wait?timeout=2s&token=0/C8"), k.asked("/v1/wait?timeout=1m&token=0/C8")
		synctest.Wait()
		k.script.over()
		time.Sleep(3 * time.Second)
		if p := (<-lost).is(t, unknown); p.Replayed != nil || p.Behind != nil {
			t.Errorf("got %+v", p.WaitDetail)
		}
		k.script.observe(on(1, 90)) // lower: it has crashed
		synctest.Wait()
		k.script.observe(on(1, 200))
		ok[WaitAnswer](t, <-found)
	})
}

func TestWhatCannotBeUnderstoodIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		for query, want := range map[string]kind{
			"":                                badToken,
			"?token=":                         badToken,
			"?token=garbage":                  badToken,
			"?token=0/0":                      badToken,
			"?token=0/1FFFFFFFF":              badToken,
			"?token=v1.0.0.0-0":               badToken,
			"?token=v2.1kkqojsdcyw9u.1.0-17":  badToken,
			"?token=0/1&timeout=3":            badTimeout,
			"?token=0/1&timeout=-1s":          badTimeout,
			"?token=0/1&timeout=":             badTimeout,
			"?token=0/1&timeout=61s":          badTimeout,
			"?token=0/1&token=0/2":            badRequest,
			"?token=0/1&tiemout=3s":           badRequest,
			"?token=%zz":                      badRequest,
			"?token=0/1;timeout=3s":           badRequest,
			"?token=0/1&timeout=9999999999h":  badTimeout,
			"?token=0/1&timeout=1s&timeout=1": badRequest,
		} {
			k.get("/v1/wait"+query).is(t, want)
		}
		for path, want := range map[string]kind{
			"/v1/position?a=1": badRequest, "/v1/fleet?a": badRequest, "/healthz?x": badRequest, "/v1/openapi.yaml?x=1": badRequest,
			"/readyz?max_lag=lots": badRequest, "/readyz?max_lag=": badRequest, "/readyz?maxlag=1": badRequest, "/readyz?max_lag=1&max_lag=2": badRequest,
			"/v1/stream?keepalive=1ms": badRequest, "/v1/stream?keepalive=1h": badRequest, "/v1/stream?since=1": badRequest,
			"/v1/nothing": notFound, "/": notFound, "/favicon.ico": notFound,
		} {
			k.get(path).is(t, want)
		}
		for _, path := range []string{"/v1/wait?token=0/1", "/v1/position", "/healthz", "/readyz", "/v1/fleet"} {
			a := k.do(k.request(http.MethodPost, path))
			a.is(t, badMethod)
			if a.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: Allow: %s", path, a.header.Get("Allow"))
			}
		}
	})
}

func TestWaitsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.Waiters = 2 })
		k.script.observe(on(1, 100))
		one, two := k.asked("/v1/wait?token=0/C8"), k.asked("/v1/wait?token=0/C8")
		synctest.Wait()
		a := k.get("/v1/wait?token=0/C8")
		a.is(t, tooMany)
		if a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		k.script.observe(on(1, 200))
		ok[WaitAnswer](t, <-one)
		ok[WaitAnswer](t, <-two)
		ok[WaitAnswer](t, k.get("/v1/wait?token=0/C8"))
	})
}

func TestAClientThatGoesAwayLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		ctx, leave := context.WithCancel(t.Context())
		req := k.request(http.MethodGet, "/v1/wait?timeout=1m&token=0/C8").WithContext(ctx)
		left := make(chan answer, 1)
		go func() { left <- k.do(req) }()
		synctest.Wait()
		if n := k.tr.Stats().Waiting; n != 1 {
			t.Fatalf("%d wait", n)
		}
		leave()
		if a := <-left; a.err == nil {
			t.Fatalf("got %+v", a)
		}
		synctest.Wait()
		if n := k.tr.Stats().Waiting; n != 0 || k.server.Stats().Waiting != 0 {
			t.Errorf("%d still wait", n)
		}
	})
}

func TestShutdownAnswersEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		var waits []<-chan answer
		for range 100 {
			waits = append(waits, k.asked("/v1/wait?timeout=1m&token=0/C8"))
		}
		s := k.stream("")
		s.until("state")
		synctest.Wait()
		began := time.Now()
		k.stop()
		for _, w := range waits {
			if p := (<-w).is(t, shuttingDown); *p.Replayed != 100 || *p.Target != 200 {
				t.Errorf("got %+v", p.WaitDetail)
			}
		}
		if e := read[End](t, s.until("end")); e.Reason != "shutting_down" {
			t.Errorf("got %+v", e)
		}
		if _, more := s.next(); more {
			t.Error("the stream goes on after its end")
		}
		if err := <-k.ended; err != nil || time.Since(began) > time.Second {
			t.Errorf("it took %s: %v", time.Since(began), err)
		}
	})
}

// The wait's time is for asking where the record before a bare LSN ends as well, though the replica is silent.
func TestAWaitWhoseRecordEndHangsEndsInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan tracker.LSN)
		k := start(t, func(c *Config) {
			c.Waiters = 2
			c.RecordEnd = func(ctx context.Context, lsn tracker.LSN) (tracker.LSN, error) {
				select {
				case end := <-answers:
					if end == 0 {
						return lsn, errors.New("refused there")
					}
					return end, nil
				case <-ctx.Done():
					return lsn, ctx.Err()
				}
			}
		})
		const silent = "it has not said where the record before that ends"
		lasted := func(path string, want kind, text string) Problem {
			t.Helper()
			began := time.Now()
			p := k.get(path).is(t, want)
			if took := time.Since(began); took != 100*time.Millisecond || p.WaitedUS != 1e5 || !strings.Contains(p.Detail, "timeout after 100ms") || !strings.Contains(p.Detail, text) {
				t.Errorf("after %s: %+v %+v", took, p, p.WaitDetail)
			}
			return p
		}
		lasted("/v1/wait?timeout=100ms&token=0/418", unknown, silent)
		k.script.observe(on(1, 100))
		if p := lasted("/v1/wait?timeout=100ms&token=0/418", timedOut, silent); *p.Target != 0x418 || *p.Replayed != 100 {
			t.Errorf("got %+v", p.WaitDetail)
		}
		go func() {
			time.Sleep(60 * time.Millisecond)
			answers <- 0x400
		}()
		if p := lasted("/v1/wait?timeout=100ms&token=0/418", timedOut, "0/400"); *p.Target != 0x400 {
			t.Errorf("got %+v", p.WaitDetail)
		}
		for _, token := range []string{token(1, 100).String(), "0/64"} { // which need not be asked about
			ok[WaitAnswer](t, k.get("/v1/wait?token="+token))
		}

		found, failed := k.asked("/v1/wait?timeout=1m&token=0/418"), k.asked("/v1/wait?timeout=1m&token=0/418")
		time.Sleep(time.Second)
		answers <- 0
		var p Problem
		select {
		case a := <-failed:
			p = a.is(t, unknown)
			failed = found
		case a := <-found:
			p = a.is(t, unknown)
		}
		if p.Detail != "refused there" || p.WaitedUS != 1e6 || *p.Replayed != 100 {
			t.Errorf("got %+v %+v", p, p.WaitDetail)
		}
		answers <- 0x400
		k.script.observe(on(1, 0x400))
		ok[WaitAnswer](t, <-failed)

		lasts := k.asked("/v1/wait?timeout=1m&token=0/418")
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan answer, 1)
		go func() { left <- k.do(k.request(http.MethodGet, "/v1/wait?timeout=1m&token=0/418").WithContext(ctx)) }()
		synctest.Wait()
		leave()
		if a := <-left; a.err == nil {
			t.Errorf("got %+v", a)
		}
		synctest.Wait()
		if n := k.server.Stats().Waiting; n != 1 {
			t.Errorf("%d wait", n)
		}
		k.stop()
		(<-lasts).is(t, shuttingDown)
	})
}
