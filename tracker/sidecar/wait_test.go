package sidecar

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

func TestAWaitOverHTTPEndsAsATrackersDoes(t *testing.T) {
	problem := func(status int, body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			d, err := time.ParseDuration(r.URL.Query().Get("timeout"))
			if err != nil || d < 0 || d > askFor {
				status = http.StatusTeapot
			}
			if status == http.StatusGatewayTimeout {
				time.Sleep(d)
			}
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s, c := connect(t, Config{})
		s.wait = func(w http.ResponseWriter, r *http.Request) {
			if got := r.URL.Query().Get("token"); got != at(2, 100).String() {
				t.Errorf("it asks for %s", got)
			}
			_, _ = io.WriteString(w, `{"result":"replayed","target":"0/64"}`)
		}
		if err := c.Wait(t.Context(), at(2, 100)); err != nil {
			t.Error(err)
		}
		if err := c.Wait(t.Context(), tracker.Token{}); err != nil {
			t.Error(err)
		}
		for _, e := range []struct {
			status int
			body   string
			is     error
		}{
			{409, `{"title":"Lost","detail":"write again","reason":"diverged"}`, tracker.ErrDiverged},
			{409, `{"reason":"wrong_system"}`, tracker.ErrWrongSystem},
			{429, `{"reason":"too_many"}`, tracker.ErrTooManyWaiters},
			{503, `{"reason":"shutting_down"}`, tracker.ErrClosed},
		} {
			s.wait = problem(e.status, e.body)
			if err := c.Wait(t.Context(), at(2, 100)); !errors.Is(err, e.is) || errors.Is(err, tracker.ErrTimeout) {
				t.Errorf("%d %s: got %v", e.status, e.body, err)
			}
		}
		s.wait = problem(401, `{"title":"No token","detail":"send it","reason":"unauthorized"}`)
		if err := c.Wait(t.Context(), at(2, 100)); err == nil || err.Error() != "sidecar: No token: send it" {
			t.Errorf("got %v", err)
		}

		s.wait = problem(504, `{"reason":"timeout","detail":"late","replayed":"0/50","timeline":2,"behind_bytes":20,"eta_us":1000,"source":"poll"}`)
		began := time.Now()
		late, is := errors.AsType[*tracker.TimeoutError](c.Wait(t.Context(), at(2, 100)))
		if !is || !late.Known || late.Last.LSN != 80 || late.Behind != 20 || late.ETA != time.Millisecond || late.Source != "poll" ||
			late.Waited != time.Since(began) || late.Waited < tracker.DefaultTimeout-20*time.Millisecond || late.Waited > tracker.DefaultTimeout {
			t.Errorf("after %s: got %+v", time.Since(began), late)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 95*time.Second) // several requests
		defer cancel()
		began = time.Now()
		if err := c.Wait(ctx, at(2, 100)); !errors.Is(err, tracker.ErrTimeout) || time.Since(began) < 94*time.Second {
			t.Errorf("after %s: got %v", time.Since(began), err)
		}

		// A sidecar that does not answer.
		s.wait = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Wait(short, at(2, 100)); !errors.Is(err, tracker.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		gone, leave := context.WithCancelCause(t.Context())
		left := errors.New("left")
		time.AfterFunc(time.Second, func() { leave(left) })
		if err := c.Wait(gone, at(2, 100)); !errors.Is(err, left) {
			t.Errorf("got %v", err)
		}
	})
}

// A success that is not a sidecar's (another server on the port, a portal, a proxy's page) is no "replayed".
func TestASuccessOfSomebodyElseIsNoReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := connect(t, Config{})
		for _, body := range []string{"", "<h1>Welcome</h1>", `{}`, `{"result":"waiting","target":"0/64"}`, `{"result":"replayed"}`, `{"result":"replayed","target":"0/63"}`} {
			s.wait = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
			if err := c.Wait(t.Context(), at(2, 100)); err == nil || !strings.Contains(err.Error(), "http://sidecar") {
				t.Errorf("%q: %v", body, err)
			}
		}
		s.wait = func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"result":"replayed","target":"0/2000000"}`)
		}
		if err := c.Wait(t.Context(), tracker.Token{LSN: 0x2000028}); err != nil {
			t.Errorf("a bare LSN behind a page's header: %v", err)
		}
	})
}

// A caller who leaves long before its deadline is let go at once. In real time: in a bubble, whose clock stands still
// while somebody runs, one that asks on end never ends.
func TestAWaitEndsWithItsCaller(t *testing.T) {
	s, c := connect(t, Config{})
	asked := make(chan struct{}, 100)
	s.wait = func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	go func() {
		<-asked
		cancel()
	}()
	if err := c.Wait(ctx, at(2, 100)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := len(asked); n > 0 {
		t.Errorf("asked %d times more", n)
	}
}

// A sidecar that answers at once that it cannot tell yet is asked again, not without a pause, until the time is up.
func TestASidecarThatCannotTellYetIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := connect(t, Config{})
		var asked atomic.Int64
		s.wait = func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"reason":"unknown_position","detail":"the replica is starting"}`)
		}
		for _, timeout := range []time.Duration{time.Second, time.Minute} {
			asked.Store(0)
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			began := time.Now()
			err := c.Wait(ctx, at(2, 100))
			cancel()
			n, most := asked.Load(), int64(timeout/askAgain)+3
			if took := time.Since(began); !errors.Is(err, tracker.ErrTimeout) || took < timeout-20*time.Millisecond || n < most/2 || n > most {
				t.Errorf("%s: after %s and %d questions: %v", timeout, took, n, err)
			}
		}
	})
}

func TestASidecarBehindASocketIsNamedByIt(t *testing.T) {
	c, err := New(Config{URL: "unix:/run/nobody.sock"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if err := c.Wait(ctx, at(2, 100)); !errors.Is(err, tracker.ErrTimeout) || !strings.Contains(err.Error(), "unix:/run/nobody.sock has not replayed") {
		t.Error(err)
	}
}
