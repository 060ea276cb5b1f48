package ryw_test

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

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

// The secret is changed in the steps of KeysConfig.Secrets under a middleware that
// runs, and nobody who comes within MaxAge is refused.
func TestTheSecretIsChangedWhileUsersComeAndGo(t *testing.T) {
	k := keys(t, "o")
	secret := func(s string) ryw.Secret { return ryw.Secret(strings.Repeat(s, 32)) }
	srv, client := serve(t, wrap(t, ryw.HTTPConfig{Keys: k, Reject: true}, func(w http.ResponseWriter, r *http.Request) {
		session(r).Advance(token(session(r).Token().LSN + 1))
		say(w, session(r).Token().LSN)
	}), true)
	client.Jar = nil // each user shows the header
	var end atomic.Bool
	var answers atomic.Int64
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			var shown []string
			for n := tracker.LSN(1); !end.Load(); n++ {
				resp := get(t, client, srv.URL, shown...)
				if resp.status != http.StatusOK || resp.body != n.String() {
					t.Errorf("request %d: %d %q", n, resp.status, resp.body)
					return
				}
				shown = []string{"Walwake-Token", resp.header.Get("Walwake-Token")}
				answers.Add(1)
			}
		})
	}
	old := k.Sign(token(9), time.Now())
	for _, secrets := range [][]ryw.Secret{{secret("o"), secret("n")}, {secret("n"), secret("o")}} {
		if err := k.SetSecrets(secrets...); err != nil {
			t.Error(err)
		}
		for before := answers.Load(); answers.Load() < before+50 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		if resp := get(t, client, srv.URL, "Walwake-Token", old); resp.body != "0/A" {
			t.Errorf("who was away meanwhile: %d %q", resp.status, resp.body)
		}
	}
	end.Store(true)
	users.Wait()
	if err := k.SetSecrets(secret("n")); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]int{old: http.StatusBadRequest, keys(t, "n").Sign(token(9), time.Now()): http.StatusOK} {
		if resp := get(t, client, srv.URL, "Walwake-Token", text); resp.status != want {
			t.Errorf("after the old one was dropped: %d, want %d", resp.status, want)
		}
	}
}
