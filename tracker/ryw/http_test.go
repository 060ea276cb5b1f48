package ryw_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

func keys(t testing.TB, first ...string) *ryw.Keys {
	t.Helper()
	var cfg ryw.KeysConfig
	for _, s := range first {
		cfg.Secrets = append(cfg.Secrets, ryw.Secret(strings.Repeat(s, 32)))
	}
	k, err := ryw.NewKeys(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func wrap(t testing.TB, cfg ryw.HTTPConfig, h http.HandlerFunc) http.Handler {
	t.Helper()
	mw, err := ryw.Middleware(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return mw(h)
}

// serve runs h on a server that speaks HTTP/1.1 or HTTP/2 over TLS. The client
// keeps cookies and follows no redirects.
func serve(t testing.TB, h http.Handler, http2 bool) (*httptest.Server, *http.Client) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = http2
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	client := srv.Client()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client.Jar = jar
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Timeout = 20 * time.Second
	return srv, client
}

// reply is a response that has been read.
type reply struct {
	status  int
	header  http.Header
	cookies []*http.Cookie
	body    string
}

func get(t testing.TB, client *http.Client, url string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, resp.Cookies(), string(body)}
}

func say(w io.Writer, v ...any) { _, _ = fmt.Fprint(w, v...) }

func session(r *http.Request) *ryw.Session { return ryw.FromContext(r.Context()) }

func bothProtocols(t *testing.T, f func(t *testing.T, http2 bool)) {
	t.Run("HTTP/1.1", func(t *testing.T) { f(t, false) })
	t.Run("HTTP/2", func(t *testing.T) { f(t, true) })
}

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

func TestOfSeveralTokensTheLastCounts(t *testing.T) {
	k := keys(t, "new", "old")
	old := keys(t, "old")
	sign := func(k *ryw.Keys, lsn tracker.LSN) string { return k.Sign(token(lsn), time.Now()) }
	for name, c := range map[string]struct {
		header []string
		want   tracker.Token
	}{
		"none":           {nil, tracker.Token{}},
		"cookie":         {[]string{"Cookie", "walwake=" + sign(k, 5)}, token(5)},
		"old key":        {[]string{"Cookie", "a=b; walwake=" + sign(old, 5) + "; c=d"}, token(5)},
		"cookie later":   {[]string{"Cookie", "walwake=" + sign(k, 5), "Walwake-Token", sign(k, 4)}, token(5)},
		"header later":   {[]string{"Cookie", "walwake=" + sign(k, 5), "walwake-token", sign(k, 6)}, token(6)},
		"two cookies":    {[]string{"Cookie", "walwake=" + sign(k, 5) + "; walwake=" + sign(k, 7)}, token(7)},
		"two lines":      {[]string{"Cookie", "walwake=" + sign(k, 7), "Cookie", "walwake=" + sign(k, 5)}, token(7)},
		"two headers":    {[]string{"Walwake-Token", sign(k, 7), "Walwake-Token", sign(k, 5)}, token(7)},
		"joined headers": {[]string{"Walwake-Token", sign(k, 5) + ", " + sign(k, 7)}, token(7)},
		"another name":   {[]string{"Cookie", "walwake2=x; xwalwake=y; Walwake=z"}, tracker.Token{}},
		"eight":          {[]string{"Cookie", strings.Repeat("walwake="+sign(k, 5)+"; ", 8)}, token(5)},
	} {
		t.Run(name, func(t *testing.T) {
			srv, client := serve(t, wrap(t, ryw.HTTPConfig{Keys: k, Reject: true}, func(w http.ResponseWriter, r *http.Request) {
				say(w, session(r).Token())
			}), false)
			if body := get(t, client, srv.URL, c.header...).body; body != c.want.String() {
				t.Fatalf("%s, want %s", body, c.want)
			}
		})
	}
}

var errAny = errors.New("any")

func TestBadTokensAreNeverTrusted(t *testing.T) {
	k := keys(t, "a")
	now := time.Now()
	good := k.Sign(token(5), now)
	for name, c := range map[string]struct {
		header []string
		want   error
		keeps  tracker.LSN // of a good token beside the bad one
	}{
		"forged":                   {[]string{"Cookie", "walwake=" + keys(t, "b").Sign(token(5), now)}, ryw.ErrForged, 0},
		"unsigned":                 {[]string{"Cookie", "walwake=" + token(5).String()}, ryw.ErrForged, 0},
		"unsigned header":          {[]string{"Walwake-Token", token(5).String()}, ryw.ErrForged, 0},
		"stale":                    {[]string{"Cookie", "walwake=" + k.Sign(token(5), now.Add(-25*time.Hour))}, ryw.ErrStale, 0},
		"of the future":            {[]string{"Cookie", "walwake=" + k.Sign(token(5), now.Add(time.Hour))}, ryw.ErrStale, 0},
		"another cluster":          {[]string{"Walwake-Token", k.Sign(tracker.Token{System: 8, Timeline: 1, LSN: 5}, now)}, tracker.ErrWrongSystem, 0},
		"empty cookie":             {[]string{"Cookie", "walwake="}, ryw.ErrForged, 0},
		"cookie without a value":   {[]string{"Cookie", "walwake"}, ryw.ErrForged, 0},
		"empty header":             {[]string{"Walwake-Token", ""}, ryw.ErrForged, 0},
		"empty among others":       {[]string{"Walwake-Token", good + ","}, ryw.ErrForged, 5},
		"quoted":                   {[]string{"Cookie", `walwake="` + good + `"`}, ryw.ErrForged, 0},
		"what net/http leaves out": {[]string{"Cookie", "walwake=a\"b"}, ryw.ErrForged, 0},
		"beside 3,000 others":      {[]string{"Cookie", strings.Repeat("a=b;", 3000) + "walwake=x"}, ryw.ErrForged, 0},
		"huge cookie":              {[]string{"Cookie", "walwake=" + strings.Repeat("s1.", 1<<17)}, ryw.ErrForged, 0},
		"huge header":              {[]string{"Walwake-Token", strings.Repeat(",", 1<<19)}, errAny, 0},
		"nine cookies":             {[]string{"Cookie", strings.Repeat("walwake="+good+"; ", 9)}, errAny, 5},
		"bad beside good":          {[]string{"Cookie", "walwake=" + good, "Walwake-Token", "made-up"}, ryw.ErrForged, 5},
		"good beside bad":          {[]string{"Cookie", "walwake=x", "Walwake-Token", good}, ryw.ErrForged, 5},
	} {
		t.Run(name, func(t *testing.T) {
			for _, reject := range []bool{false, true} {
				var refused []error
				called := false
				cfg := ryw.HTTPConfig{
					Keys: k, System: 7, Reject: reject,
					OnRefused: func(_ *http.Request, err error) { refused = append(refused, err) },
				}
				srv, client := serve(t, wrap(t, cfg, func(_ http.ResponseWriter, r *http.Request) {
					called = true
					if !session(r).OnPrimary() {
						t.Error("the session may read from a replica")
					}
					if got := session(r).Token(); got.LSN != c.keeps {
						t.Errorf("the session has %v", got)
					}
				}), false)
				resp := get(t, client, srv.URL, c.header...)
				if len(refused) != 1 || !errors.Is(c.want, errAny) && !errors.Is(refused[0], c.want) || len(refused[0].Error()) > 300 {
					t.Errorf("refused: %v", refused)
				}
				if called == reject || resp.status == http.StatusBadRequest != reject {
					t.Errorf("reject %t: called %t, %d", reject, called, resp.status)
				}
				if !reject {
					continue
				}
				if len(resp.body) > 100 || !strings.Contains(resp.body, "token") {
					t.Errorf("body %q", resp.body)
				}
				if c := resp.cookies; len(c) != 1 || c[0].MaxAge != -1 || c[0].Name != "walwake" || c[0].Value != "" {
					t.Errorf("the cookie stays: %v", resp.header)
				}
			}
		})
	}
}

func TestGoodTokensMayReadFromAReplica(t *testing.T) {
	k := keys(t, "a")
	h := wrap(t, ryw.HTTPConfig{Keys: k}, func(_ http.ResponseWriter, r *http.Request) {
		if session(r).OnPrimary() {
			t.Error("and must not")
		}
	})
	for _, text := range []string{"", k.Sign(token(5), time.Now())} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		if text != "" {
			r.Header.Set("Walwake-Token", text)
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}

// Who shows an unsigned token in the header must not get it back signed.
func TestWhatAClientMadeUpIsNotSigned(t *testing.T) {
	k := keys(t, "a")
	h := wrap(t, ryw.HTTPConfig{Keys: k, UnsignedHeader: true}, func(_ http.ResponseWriter, r *http.Request) {
		session(r).Advance(token(5)) // what a write on the primary does
	})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
	r.Header.Set("Walwake-Token", token(1<<60).String())
	r.Header.Set("Cookie", "walwake="+k.Sign(token(4), time.Now()))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if len(w.Header()) != 0 {
		t.Fatalf("given back: %v", w.Header())
	}
}

func TestNamesAndSigningAsConfigured(t *testing.T) {
	k := keys(t, "a")
	for name, c := range map[string]struct {
		cfg            ryw.HTTPConfig
		cookie, header string
	}{
		"unsigned":        {ryw.HTTPConfig{Unsigned: true, Insecure: true}, "walwake=v1.7.1.0-5; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax", "v1.7.1.0-5"},
		"unsigned header": {ryw.HTTPConfig{Keys: k, UnsignedHeader: true, Cookie: "-"}, "", "v1.7.1.0-5"},
		"no keys at all":  {ryw.HTTPConfig{UnsignedHeader: true, Cookie: "-"}, "", "v1.7.1.0-5"},
		"no header":       {ryw.HTTPConfig{Unsigned: true, Header: "-", Cookie: "__Host-seen"}, "__Host-seen=v1.7.1.0-5; Path=/; Max-Age=86400; HttpOnly; Secure; SameSite=Lax", ""},
		"another header":  {ryw.HTTPConfig{Unsigned: true, Header: "x-seen", Cookie: "-"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			wrap(t, c.cfg, func(_ http.ResponseWriter, r *http.Request) { session(r).Advance(token(5)) }).
				ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
			if got := w.Header().Get("Set-Cookie"); got != c.cookie {
				t.Errorf("cookie %s", got)
			}
			if got := w.Header().Get("Walwake-Token"); got != c.header {
				t.Errorf("header %s", got)
			}
			if c.cfg.Header == "x-seen" && w.Header().Get("X-Seen") != token(5).String() {
				t.Errorf("headers %v", w.Header())
			}
		})
	}
	t.Run("the cookie lives as long as its token", func(t *testing.T) {
		for age, want := range map[time.Duration]string{90 * time.Second: "; Max-Age=90;", -1: "Path=/; HttpOnly"} {
			k, err := ryw.NewKeys(ryw.KeysConfig{Secrets: []ryw.Secret{ryw.Secret(strings.Repeat("a", 32))}, MaxAge: age})
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			wrap(t, ryw.HTTPConfig{Keys: k}, func(_ http.ResponseWriter, r *http.Request) { session(r).Advance(token(5)) }).
				ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
			if got := w.Header().Get("Set-Cookie"); !strings.Contains(got, want) {
				t.Errorf("%s: %s", age, got)
			}
		}
	})
}

func TestMiddlewareRefusesAConfigThat(t *testing.T) {
	k := keys(t, "a")
	for want, cfg := range map[string]ryw.HTTPConfig{
		"Keys is missing":                 {},
		"Keys is missing, and":            {Keys: new(ryw.Keys)},
		"HTTPConfig.Keys is missing":      {Cookie: "-"},
		"exclude each other":              {Keys: k, Unsigned: true},
		"both off":                        {Keys: k, Cookie: "-", Header: "-"},
		`HTTPConfig.Cookie is "a b"`:      {Keys: k, Cookie: "a b"},
		`HTTPConfig.Header is "a\r\nb:c"`: {Keys: k, Header: "a\r\nb:c"},
	} {
		if mw, err := ryw.Middleware(cfg); err == nil || mw != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
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

func TestInformationalResponsesAreNotTheHeader(t *testing.T) {
	bothProtocols(t, func(t *testing.T, http2 bool) {
		srv, client := serve(t, wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, r *http.Request) {
			session(r).Advance(token(5))
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusProcessing)
			session(r).Advance(token(6))
			w.WriteHeader(http.StatusAccepted)
		}), http2)
		var early []textproto.MIMEHeader
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			early = append(early, h)
			return nil
		}})
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if len(early) != 2 || early[0].Get("Walwake-Token") != "" || early[1].Get("Set-Cookie") != "" {
			t.Errorf("informational: %v", early)
		}
		if resp.StatusCode != http.StatusAccepted || resp.Header.Get("Walwake-Token") != token(6).String() || len(resp.Cookies()) != 1 {
			t.Errorf("%d, %v", resp.StatusCode, resp.Header)
		}
	})
}

func TestATokenThatComesTooLateIsTold(t *testing.T) {
	for name, send := range map[string]func(http.ResponseWriter){
		"WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
		"Write":       func(w http.ResponseWriter) { say(w, "x") },
		"Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"Hijack": func(w http.ResponseWriter) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			say(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nWalwake-Token: ", w.Header().Get("Walwake-Token"), "\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			var late []tracker.Token
			var log bytes.Buffer
			done := make(chan struct{})
			mux := http.NewServeMux()
			mux.HandleFunc("GET /{any...}", func(w http.ResponseWriter, r *http.Request) {
				session(r).Advance(token(5))
				send(w)
				session(r).Advance(token(6))
			})
			h := wrap(t, ryw.HTTPConfig{
				Unsigned: true, Logger: slog.New(slog.NewTextHandler(&log, nil)),
				OnLate: func(_ *http.Request, tok tracker.Token) { late = append(late, tok) },
			}, mux.ServeHTTP)
			srv, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(done)
				h.ServeHTTP(w, r)
			}), false)
			resp := get(t, client, srv.URL)
			<-done
			if got := resp.header.Get("Walwake-Token"); got != token(5).String() {
				t.Errorf("given: %s", got)
			}
			if len(late) != 1 || late[0] != token(6) || !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "GET /{any...}") {
				t.Errorf("late: %v, log %s", late, &log)
			}
		})
	}
}

func TestAPanicLeavesTheTokenToWhoRecovers(t *testing.T) {
	inner := wrap(t, ryw.HTTPConfig{Unsigned: true}, func(_ http.ResponseWriter, r *http.Request) {
		session(r).Advance(token(5))
		panic("after the commit")
	})
	srv, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			_ = recover()
			http.Error(w, "sorry", http.StatusInternalServerError)
		}()
		inner.ServeHTTP(w, r)
	}), false)
	if resp := get(t, client, srv.URL); resp.status != 500 || resp.header.Get("Walwake-Token") != token(5).String() {
		t.Fatalf("%d, %v", resp.status, resp.header)
	}
}

func TestAWebSocketLikeUpgrade(t *testing.T) {
	srv, _ := serve(t, wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, r *http.Request) {
		session(r).Advance(token(5))
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "echo")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		line, _ := rw.ReadString('\n')
		say(conn, line)
	}), false)
	client := srv.Client()
	client.Timeout = 0 // with one the body cannot be written to
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, http.NoBody)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Walwake-Token") != token(5).String() {
		t.Fatalf("%d, %v", resp.StatusCode, resp.Header)
	}
	body := resp.Body.(io.ReadWriter)
	say(body, "hello\n")
	if line, err := bufio.NewReader(body).ReadString('\n'); line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

// Many goroutines of one request move its session while the response goes out.
func TestConcurrentUse(t *testing.T) {
	k := keys(t, "a")
	srv, client := serve(t, wrap(t, ryw.HTTPConfig{Keys: k}, func(w http.ResponseWriter, r *http.Request) {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() { session(r).Advance(token(session(r).Token().LSN + tracker.LSN(i) + 1)) })
		}
		say(w, "x")
		wg.Wait()
	}), true)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				get(t, client, srv.URL)
			}
		})
	}
	wg.Wait()
	u, _ := url.Parse(srv.URL)
	for _, c := range client.Jar.Cookies(u) {
		if tok, err := k.Open(c.Value, time.Now()); err != nil || tok.LSN == 0 {
			t.Fatal(tok, err)
		}
	}
}

func ExampleMiddleware() {
	secret := bytes.Repeat([]byte("k"), ryw.MinSecretLen) // yours: 32 bytes of crypto/rand, the same in every process
	keys, err := ryw.NewKeys(ryw.KeysConfig{Secrets: []ryw.Secret{secret}})
	if err != nil {
		fmt.Println(err)
		return
	}
	middleware, err := ryw.Middleware(ryw.HTTPConfig{Keys: keys})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		// A write moves the session to the token of its commit.
		ryw.FromContext(r.Context()).Advance(tracker.Token{System: 7, Timeline: 1, LSN: 0x174FFB0})
		http.Redirect(w, r, "/orders", http.StatusSeeOther)
	})
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(w, "read from who has replayed", ryw.FromContext(r.Context()).Token())
	})
	server := httptest.NewTLSServer(middleware(mux))
	defer server.Close()

	client := server.Client()
	client.Jar, _ = cookiejar.New(nil)
	req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, server.URL+"/orders", http.NoBody)
	resp, err := client.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	page, _ := io.ReadAll(resp.Body)
	fmt.Print(string(page))
	// Output: read from who has replayed v1.7.1.0-174FFB0
}
