package ryw_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

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

// Who has seen nothing and says so is as good as who says nothing.
func TestTheTextOfNothingSeenMayReadFromAReplica(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
	text, err := new(ryw.Session).MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Walwake-Token", string(text))
	wrap(t, ryw.HTTPConfig{Unsigned: true, Reject: true, System: 7}, func(_ http.ResponseWriter, r *http.Request) {
		if s := session(r); s.OnPrimary() || !s.Token().IsZero() {
			t.Errorf("%t, %v", s.OnPrimary(), s.Token())
		}
	}).ServeHTTP(httptest.NewRecorder(), r)
}
