package ryw_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// A plain ResponseWriter, and the four optional interfaces one at a time.
type (
	plain struct{ h http.Header }
	push  struct{}
	flush struct{}
	hjack struct{}
	readF struct{}
)

func (p plain) Header() http.Header                        { return p.h }
func (plain) Write(b []byte) (int, error)                  { return len(b), nil }
func (plain) WriteHeader(int)                              {}
func (push) Push(string, *http.PushOptions) error          { return nil }
func (flush) Flush()                                       {}
func (hjack) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errHijack }
func (readF) ReadFrom(r io.Reader) (int64, error)          { return io.Copy(io.Discard, r) }

var errHijack = errors.New("not this time")

func interfaces(w http.ResponseWriter) string {
	var has []string
	for i, ok := range []bool{is[http.Flusher](w), is[http.Hijacker](w), is[io.ReaderFrom](w), is[http.Pusher](w)} {
		if ok {
			has = append(has, [...]string{"Flusher", "Hijacker", "ReaderFrom", "Pusher"}[i])
		}
	}
	return strings.Join(has, " ")
}

func is[T any](v any) bool {
	_, ok := v.(T)
	return ok
}

func TestHandlersFindTheOptionalInterfacesThatThereAre(t *testing.T) {
	p := plain{http.Header{}}
	for want, w := range map[string]http.ResponseWriter{
		"": struct {
			plain
		}{plain: p},
		"Flusher": struct {
			plain
			flush
		}{plain: p},
		"Hijacker": struct {
			plain
			hjack
		}{plain: p},
		"Flusher Hijacker": struct {
			plain
			flush
			hjack
		}{plain: p},
		"ReaderFrom": struct {
			plain
			readF
		}{plain: p},
		"Flusher ReaderFrom": struct {
			plain
			flush
			readF
		}{plain: p},
		"Hijacker ReaderFrom": struct {
			plain
			hjack
			readF
		}{plain: p},
		"Flusher Hijacker ReaderFrom": struct {
			plain
			flush
			hjack
			readF
		}{plain: p},
		"Pusher": struct {
			plain
			push
		}{plain: p},
		"Flusher Pusher": struct {
			plain
			flush
			push
		}{plain: p},
		"Hijacker Pusher": struct {
			plain
			hjack
			push
		}{plain: p},
		"Flusher Hijacker Pusher": struct {
			plain
			flush
			hjack
			push
		}{plain: p},
		"ReaderFrom Pusher": struct {
			plain
			readF
			push
		}{plain: p},
		"Flusher ReaderFrom Pusher": struct {
			plain
			flush
			readF
			push
		}{plain: p},
		"Hijacker ReaderFrom Pusher": struct {
			plain
			hjack
			readF
			push
		}{plain: p},
		"Flusher Hijacker ReaderFrom Pusher": struct {
			plain
			flush
			hjack
			readF
			push
		}{plain: p},
	} {
		wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, _ *http.Request) {
			if got := interfaces(w); got != want {
				t.Errorf("%q instead of %q", got, want)
			}
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			if h, ok := w.(http.Hijacker); ok {
				if _, _, err := h.Hijack(); !errors.Is(err, errHijack) {
					t.Errorf("%s: Hijack: %v", want, err)
				}
			}
			if r, ok := w.(io.ReaderFrom); ok {
				if n, err := r.ReadFrom(strings.NewReader("abc")); n != 3 || err != nil {
					t.Errorf("%s: ReadFrom: %d, %v", want, n, err)
				}
			}
			if p, ok := w.(http.Pusher); ok {
				if err := p.Push("/", nil); err != nil {
					t.Errorf("%s: Push: %v", want, err)
				}
			}
		}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
	}
	bothProtocols(t, func(t *testing.T, http2 bool) {
		var bare, wrapped string
		inner := wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, _ *http.Request) { wrapped = interfaces(w) })
		srv, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			bare = interfaces(w)
			inner.ServeHTTP(w, r)
		}), http2)
		get(t, client, srv.URL)
		if bare != wrapped || bare == "" {
			t.Errorf("%q, wrapped %q", bare, wrapped)
		}
	})
}

func TestAResponseControllerWorks(t *testing.T) {
	bothProtocols(t, func(t *testing.T, http2 bool) {
		srv, client := serve(t, wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(w)
			deadline := time.Now().Add(time.Minute)
			if err := errors.Join(c.SetReadDeadline(deadline), c.SetWriteDeadline(deadline), c.EnableFullDuplex()); err != nil {
				t.Error(err)
			}
			conn, _, err := c.Hijack()
			if http2 != errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Hijack: %v", err)
			}
			if err == nil {
				conn.Close()
				return
			}
			// What could not be hijacked is an ordinary response still.
			session(r).Advance(token(5))
			say(w, "x")
		}), http2)
		if http2 {
			if resp := get(t, client, srv.URL); resp.header.Get("Walwake-Token") != token(5).String() {
				t.Errorf("headers %v", resp.header)
			}
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			t.Error("a response")
		}
	})
}

// onlyUnwraps hides every optional interface from all but a ResponseController.
type onlyUnwraps struct{ w http.ResponseWriter }

func (o onlyUnwraps) Header() http.Header         { return o.w.Header() }
func (o onlyUnwraps) Write(b []byte) (int, error) { return o.w.Write(b) }
func (o onlyUnwraps) WriteHeader(status int)      { o.w.WriteHeader(status) }
func (o onlyUnwraps) Unwrap() http.ResponseWriter { return o.w }

func TestAFlushDeeperDownDoesNotPassTheTokenBy(t *testing.T) {
	inner := wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, r *http.Request) {
		session(r).Advance(token(5))
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	})
	srv, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner.ServeHTTP(onlyUnwraps{w}, r) }), false)
	if resp := get(t, client, srv.URL); resp.header.Get("Walwake-Token") != token(5).String() {
		t.Fatalf("headers %v", resp.header)
	}
}

// Where there is no Flush the headers are not sent by it, and what was put in is
// replaced when the session moves on.
func TestAFlushThatThereIsNotSendsNothing(t *testing.T) {
	p := plain{http.Header{}}
	wrap(t, ryw.HTTPConfig{Unsigned: true, OnLate: func(*http.Request, tracker.Token) { t.Error("late") }}, func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "theirs", Value: "a"})
		session(r).Advance(token(5))
		if err := http.NewResponseController(w).Flush(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Flush: %v", err)
		}
		session(r).Advance(token(6))
	}).ServeHTTP(p, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
	lines := p.h.Values("Set-Cookie")
	if len(lines) != 2 || lines[0] != "theirs=a" || !strings.HasPrefix(lines[1], "walwake="+token(6).String()+";") {
		t.Errorf("cookies %q", lines)
	}
	if v := p.h.Values("Walwake-Token"); len(v) != 1 || v[0] != token(6).String() {
		t.Errorf("header %q", v)
	}
	if v := p.h.Values("Cache-Control"); len(v) != 1 {
		t.Errorf("Cache-Control %q", v)
	}
}

func TestAHijackThatFailsSendsNothing(t *testing.T) {
	w := struct {
		plain
		hjack
	}{plain: plain{http.Header{}}}
	wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, r *http.Request) {
		if _, _, err := w.(http.Hijacker).Hijack(); !errors.Is(err, errHijack) {
			t.Errorf("Hijack: %v", err)
		}
		session(r).Advance(token(5))
	}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
	if got := w.h.Get("Walwake-Token"); got != token(5).String() {
		t.Fatalf("given: %q", got)
	}
}
