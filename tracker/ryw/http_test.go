package ryw_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

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

var errAny = errors.New("any")
