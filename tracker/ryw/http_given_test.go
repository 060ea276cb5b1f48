package ryw_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

func TestTheTokenIsGivenBackOnEveryPath(t *testing.T) {
	k := keys(t, "a")
	moved := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			session(r).Advance(token(5))
			h(w, r)
			session(r).Advance(token(4)) // no later
		}
	}
	paths := map[string]struct {
		status int
		body   string
		h      http.HandlerFunc
	}{
		"nothing written": {200, "", func(http.ResponseWriter, *http.Request) {}},
		"Write":           {200, "x", func(w http.ResponseWriter, _ *http.Request) { say(w, "x") }},
		"empty Write":     {200, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(nil) }},
		"WriteString":     {200, "x", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") }},
		"ReadFrom": {200, "xy", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.Copy(w, io.LimitReader(strings.NewReader("xyz"), 2))
		}},
		"Flush":            {200, "", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() }},
		"controlled Flush": {200, "", func(w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() }},
		"large body":       {200, strings.Repeat("x", 1<<17), func(w http.ResponseWriter, _ *http.Request) { say(w, strings.Repeat("x", 1<<17)) }},
		"no content":       {204, "", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }},
		"not modified":     {304, "", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }},
		"Redirect":         {303, "<a href=\"/\">See Other</a>.\n\n", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusSeeOther) }},
		"Error":            {500, "no\n", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }},
		"NotFound":         {404, "404 page not found\n", http.NotFound},
		"ServeContent": {200, "xyz", func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "a.txt", time.Time{}, strings.NewReader("xyz"))
		}},
		"TimeoutHandler": {503, "late", func(w http.ResponseWriter, r *http.Request) {
			http.TimeoutHandler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), time.Millisecond, "late").ServeHTTP(w, r)
		}},
		"headers twice": {201, "", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			w.WriteHeader(http.StatusInternalServerError)
		}},
		"early hints, then no more": {200, "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
		}},
	}
	for name, p := range paths {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(t *testing.T, http2 bool) {
				srv, client := serve(t, wrap(t, ryw.HTTPConfig{Keys: k, OnLate: func(*http.Request, tracker.Token) { t.Error("late") }}, moved(p.h)), http2)
				resp := get(t, client, srv.URL)
				if resp.status != p.status || resp.body != p.body {
					t.Fatalf("%d, %.100q", resp.status, resp.body)
				}
				if tok, err := k.Open(resp.header.Get("Walwake-Token"), time.Now()); err != nil || tok != token(5) {
					t.Errorf("header: %v, %v", tok, err)
				}
				cookies := resp.cookies
				if len(cookies) != 1 {
					t.Fatalf("cookies: %v", cookies)
				}
				if tok, err := k.Open(cookies[0].Value, time.Now()); err != nil || tok != token(5) {
					t.Errorf("cookie: %v, %v", tok, err)
				}
				if want := "walwake=" + cookies[0].Value + "; Path=/; Max-Age=86400; HttpOnly; Secure; SameSite=Lax"; cookies[0].Raw != want {
					t.Errorf("cookie is %s", cookies[0].Raw)
				}
				if cc := resp.header.Values("Cache-Control"); len(cc) != 1 || cc[0] != "private" {
					t.Errorf("Cache-Control: %q", cc)
				}
			})
		})
	}
}

func TestNothingIsGivenBackWhenTheSessionHasNotMoved(t *testing.T) {
	k := keys(t, "a")
	srv, client := serve(t, wrap(t, ryw.HTTPConfig{Keys: k}, func(w http.ResponseWriter, r *http.Request) {
		say(w, session(r).Token())
	}), false)
	shown := k.Sign(token(5), time.Now())
	for _, h := range [][]string{{}, {"Walwake-Token", shown}, {"Cookie", "walwake=" + shown}} {
		resp := get(t, client, srv.URL, h...)
		for _, name := range []string{"Set-Cookie", "Walwake-Token", "Cache-Control"} {
			if v := resp.header.Values(name); v != nil {
				t.Errorf("%q: %s is %q", h, name, v)
			}
		}
	}
}

func TestABrowserReadsWhatItWrote(t *testing.T) {
	bothProtocols(t, func(t *testing.T, http2 bool) {
		var lsn tracker.LSN
		srv, client := serve(t, wrap(t, ryw.HTTPConfig{Keys: keys(t, "a")}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/write" {
				lsn += 10
				session(r).Advance(token(lsn))
				http.Redirect(w, r, "/", http.StatusSeeOther)
				return
			}
			say(w, session(r).Token())
		}), http2)
		client.CheckRedirect = nil
		for range 3 {
			if body := get(t, client, srv.URL+"/write").body; body != token(lsn).String() {
				t.Fatalf("after writing %v the session is %s", token(lsn), body)
			}
		}
	})
}

// A write whose token could not be had leaves a Session that must read from the
// primary: the client's next request must too, until a later write replaces that.
func TestThatAClientMustReadFromThePrimaryIsGivenBack(t *testing.T) {
	k := keys(t, "a")
	for name, cfg := range map[string]ryw.HTTPConfig{
		"signed":          {Keys: k, Reject: true},
		"unsigned":        {Unsigned: true, Reject: true},
		"unsigned header": {Keys: k, UnsignedHeader: true, Reject: true},
		"one cluster":     {Keys: k, System: 7, Reject: true},
	} {
		t.Run(name, func(t *testing.T) {
			srv, client := serve(t, wrap(t, cfg, func(w http.ResponseWriter, r *http.Request) {
				s := session(r)
				was := s.OnPrimary()
				switch r.URL.Path {
				case "/unknown":
					s.RequirePrimary()
				case "/write":
					s.Wrote(token(s.Token().LSN + 5))
				case "/both":
					s.Wrote(token(s.Token().LSN + 5))
					s.RequirePrimary()
				}
				say(w, was)
			}), false)
			var header []string
			bare := &http.Client{Transport: client.Transport}
			for i, step := range []struct{ path, want string }{
				{"/write", "false"},
				{"/unknown", "false"},
				{"/", "true"},
				{"/write", "true"},
				{"/", "false"},
				{"/both", "false"},
				{"/", "true"},
				{"/", "true"},
			} {
				for j, resp := range []reply{get(t, client, srv.URL+step.path), get(t, bare, srv.URL+step.path, header...)} {
					if resp.body != step.want {
						t.Errorf("step %d, client %d, %s: %s", i, j, step.path, resp.body)
					}
					if text := resp.header.Get("Walwake-Token"); text != "" && j == 1 {
						header = []string{"Walwake-Token", text}
					}
				}
			}
		})
	}
	t.Run("too late", func(t *testing.T) {
		var late []tracker.Token
		cfg := ryw.HTTPConfig{Keys: k, OnLate: func(_ *http.Request, tok tracker.Token) { late = append(late, tok) }}
		wrap(t, cfg, func(w http.ResponseWriter, r *http.Request) {
			session(r).Advance(token(5))
			say(w, "x")
			session(r).RequirePrimary()
		}).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
		if len(late) != 1 || !late[0].IsZero() {
			t.Errorf("late: %v", late)
		}
	})
}

func TestSharedCachesDoNotKeepTheToken(t *testing.T) {
	for _, c := range []struct{ set, want []string }{
		{nil, []string{"private"}},
		{[]string{"max-age=60"}, []string{"max-age=60", "private"}},
		{[]string{"public, s-maxage=60"}, []string{"public, s-maxage=60", "private"}},
		{[]string{`private="X-A"`}, []string{`private="X-A"`, "private"}},
		{[]string{"max-age=60, Private"}, []string{"max-age=60, Private"}},
		{[]string{"no-cache", "No-Store"}, []string{"no-cache", "No-Store"}},
	} {
		w := httptest.NewRecorder()
		wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, r *http.Request) {
			for _, v := range c.set {
				w.Header().Add("Cache-Control", v)
			}
			session(r).Advance(token(5))
		}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
		if got := w.Header().Values("Cache-Control"); strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%q became %q", c.set, got)
		}
	}
}
