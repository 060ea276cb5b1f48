package ryw_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

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
