package ryw_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker/ryw"
)

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
