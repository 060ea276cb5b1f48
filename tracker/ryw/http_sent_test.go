package ryw_test

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

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
