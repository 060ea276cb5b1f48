package sidecar

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

func TestAPageOfAnotherSiteLearnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.Hosts = []string{"sidecar.internal"} })
		k.script.observe(on(1, 100))
		for host, allowed := range map[string]bool{
			"127.0.0.1:7432": true, "[::1]:7432": true, "10.1.2.3": true, "[fe80::1]": true, "localhost": true, "LOCALHOST:7432": true, "localhost.:80": true,
			"sidecar.internal": true, "Sidecar.Internal:7432": true,
			"evil.example": false, "evil.example:7432": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "xlocalhost": false, "internal": false,
		} {
			req := k.request(http.MethodGet, "/v1/position")
			req.Host = host
			a := k.do(req)
			if allowed {
				ok[Position](t, a)
			} else {
				a.is(t, misdirected)
			}
			for name := range a.header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("%s is sent", name)
				}
			}
		}
		for _, c := range []struct {
			site, mode, origin, method string
			allowed                    bool
		}{
			{"", "", "", http.MethodGet, true},
			{"none", "navigate", "", http.MethodGet, true},
			{"same-origin", "cors", "http://127.0.0.1:7432", http.MethodGet, true},
			{"cross-site", "navigate", "", http.MethodGet, true}, // a link
			{"cross-site", "no-cors", "", http.MethodGet, false},
			{"cross-site", "cors", "https://evil.example", http.MethodGet, false},
			{"same-site", "no-cors", "", http.MethodGet, false},
			{"", "", "https://evil.example", http.MethodGet, false},
			{"", "", "null", http.MethodGet, false},
			{"", "", "http://127.0.0.1:7432", http.MethodGet, true},
		} {
			req := k.request(c.method, "/v1/position")
			for name, value := range map[string]string{"Sec-Fetch-Site": c.site, "Sec-Fetch-Mode": c.mode, "Origin": c.origin} {
				if value != "" {
					req.Header.Set(name, value)
				}
			}
			if a := k.do(req); c.allowed {
				ok[Position](t, a)
			} else {
				a.is(t, crossSite)
			}
		}
		post := k.request(http.MethodPost, "/v1/stream")
		post.Header.Set("Sec-Fetch-Site", "cross-site")
		post.Header.Set("Sec-Fetch-Mode", "navigate") // a form
		k.do(post).is(t, crossSite)
	})
}

// Probes in HTTP/1.0, as HAProxy's option httpchk sends them, name no host. Browsers do, and speak no HTTP/1.0.
func TestAProbeWithoutAHostIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		for request, want := range map[string]int{
			"GET /readyz HTTP/1.0\r\n\r\n":                                 http.StatusOK,
			"OPTIONS / HTTP/1.0\r\n\r\n":                                   http.StatusNotFound,
			"GET /readyz HTTP/1.0\r\nHost: evil.example\r\n\r\n":           http.StatusMisdirectedRequest,
			"GET http://evil.example/readyz HTTP/1.0\r\n\r\n":              http.StatusMisdirectedRequest,
			"GET /readyz HTTP/1.0\r\nOrigin: https://evil.example\r\n\r\n": http.StatusForbidden,
			"GET /readyz HTTP/1.1\r\nHost:\r\n\r\n":                        http.StatusMisdirectedRequest,
			"GET /readyz HTTP/1.1\r\n\r\n":                                 http.StatusBadRequest,
		} {
			conn, answers := k.dial()
			k.write(conn, request)
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != want {
				t.Errorf("%q: got %s %s, %v", request, resp.Status, body, err)
			}
		}
	})
}

func TestTheBearerTokenIsWanted(t *testing.T) {
	const secret = "0123456789abcdef"
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) {
			c.Bearer = func() string { return secret }
			c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1") })
			c.Page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "page") })
		})
		k.script.observe(on(1, 100))
		paths := []string{"/v1/position", "/v1/wait?token=0/1", "/v1/stream", "/v1/fleet", "/v1/openapi.yaml", "/v1/", "/metrics"}
		for _, path := range paths {
			for _, header := range []string{"", "Bearer", "Bearer ", "Bearer wrong", "Bearer " + secret + "x", "Bearer " + secret[1:], "Basic " + secret, secret} {
				req := k.request(http.MethodGet, path)
				if header != "" {
					req.Header.Set("Authorization", header)
				}
				a := k.do(req)
				a.is(t, unauthorized)
				if !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") || bytes.Contains(a.body, []byte(secret)) {
					t.Errorf("%s: %+v %s", path, a.header, a.body)
				}
			}
		}
		for _, path := range []string{"/v1/position", "/v1/wait?token=0/1", "/v1/fleet", "/v1/openapi.yaml", "/metrics"} {
			for _, scheme := range []string{"Bearer ", "bearer ", "BEARER  "} {
				req := k.request(http.MethodGet, path)
				req.Header.Set("Authorization", scheme+secret)
				req.Host = "by.any.name" // no foreign page knows the token
				if a := k.do(req); a.status != http.StatusOK {
					t.Errorf("%s: got %d %s", path, a.status, a.body)
				}
			}
		}
		for _, path := range []string{"/healthz", "/readyz", "/", "/app.js"} {
			if a := k.get(path); a.status != http.StatusOK {
				t.Errorf("%s: got %d %s", path, a.status, a.body)
			}
		}
	})
}

func TestABodyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		k.script.observe(on(1, 100))
		req := k.request(http.MethodGet, "/v1/position")
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader("x")), 1
		k.do(req).is(t, tooLarge)

		// A body that does not come holds nobody up.
		in, out := io.Pipe()
		defer out.Close()
		req = k.request(http.MethodPost, "/v1/wait?token=0/1")
		req.Body, req.ContentLength = in, -1
		began := time.Now()
		k.do(req).is(t, tooLarge)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestSlowAndLargeRequestsAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		conn, err := k.pipes.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: lo"); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(conn)
		if took := time.Since(began); took > headerTimeout+time.Second {
			t.Errorf("a header that does not end is waited for %s", took)
		}
		req := k.request(http.MethodGet, "/healthz")
		req.Header.Set("X", strings.Repeat("x", 2*maxHeader))
		resp, err := k.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("got %s", resp.Status)
		}
	})
}

func TestConnectionsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.Conns = 2 })
		k.script.observe(on(1, 100))
		one, two := k.asked("/v1/wait?token=0/C8"), k.asked("/v1/wait?token=0/C8")
		synctest.Wait()
		if a := k.get("/healthz"); a.err == nil {
			t.Errorf("a third connection is answered: %+v", a)
		}
		k.script.observe(on(1, 200))
		ok[WaitAnswer](t, <-one)
		ok[WaitAnswer](t, <-two)
		k.client.CloseIdleConnections()
		synctest.Wait()
		if a := k.get("/healthz"); a.status != http.StatusOK {
			t.Errorf("got %+v", a)
		}
	})
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.PrimaryNamed = true })
		k.get("/readyz").is(t, unknown)
		k.script.observe(on(1, 1000))
		ok[ReadyAnswer](t, k.get("/readyz"))
		k.get("/readyz?max_lag=1GB").is(t, lagUnknown)
		k.tr.PrimaryAt(token(1, 1000))
		if a := ok[ReadyAnswer](t, k.get("/readyz?max_lag=0")); *a.Lag.Bytes != 0 || *a.Lag.US != 0 || *a.Lag.Primary != token(1, 1000) {
			t.Errorf("got %+v", a)
		}
		k.tr.PrimaryAt(token(1, 3000))
		time.Sleep(3 * time.Second)
		k.tr.PrimaryAt(token(1, 5000))
		if a := ok[ReadyAnswer](t, k.get("/readyz?max_lag=4kB")); *a.Lag.Bytes != 4000 || *a.Lag.US < 3e6 || *a.Lag.US > 3.2e6 {
			t.Errorf("got %+v %d", a, *a.Lag.US)
		}
		k.get("/readyz?max_lag=3999").is(t, lagging)
		time.Sleep(1234 * time.Microsecond)
		if p := k.get("/readyz?max_lag=3s").is(t, lagging); !regexp.MustCompile(`^at least 3\.[0-9]{1,3}s behind, more than 3s$`).MatchString(p.Detail) {
			t.Errorf("got %q", p.Detail)
		}
		ok[ReadyAnswer](t, k.get("/readyz?max_lag=4s"))
		time.Sleep(heardWithin)
		k.get("/readyz?max_lag=1h").is(t, lagUnknown) // the primary may have gone on
		k.script.over()
		k.get("/readyz").is(t, unknown)
		k.script.observe(tracker.Observation{LSN: 1, System: system, Timeline: 1, Primary: true})
		ok[ReadyAnswer](t, k.get("/readyz?max_lag=0"))
	})
}

// However seldom the primary is asked, the lag is known from one answer to the next, and when two are missing.
func TestAPrimaryThatIsAskedSeldomIsNoUnknownLag(t *testing.T) {
	for interval, within := range map[time.Duration]time.Duration{time.Second: heardWithin, 30 * time.Second: 90 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			k := start(t, func(c *Config) { c.PrimaryNamed, c.PrimaryInterval = true, interval })
			k.script.observe(on(1, 1000))
			k.tr.PrimaryAt(token(1, 1000))
			time.Sleep(within)
			ok[ReadyAnswer](t, k.get("/readyz?max_lag=0"))
			time.Sleep(time.Nanosecond)
			if p := k.get("/readyz?max_lag=1GB").is(t, lagUnknown); !strings.Contains(p.Detail, within.String()) {
				t.Errorf("asked every %s: %s", interval, p.Detail)
			}
		})
	}
}

// While nobody waits the source looks seldom: an answer has it look once more.
func TestAPositionIsAskedForOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		feed := k.script.running()
		k.script.observe(on(1, 100))
		feed.OnDemand(func() {
			if feed.Demand().Waiting > 0 {
				go func() {
					time.Sleep(time.Millisecond)
					k.script.observe(on(1, 500))
				}()
			}
		})
		time.Sleep(time.Minute)
		p := ok[Position](t, k.get("/v1/position"))
		if *p.Position != 500 || *p.AgeUS > 1000 {
			t.Errorf("got %s of %d µs ago", p.Position, *p.AgeUS)
		}
		feed.OnDemand(func() {}) // it does not answer
		time.Sleep(time.Minute)
		began := time.Now()
		if p := ok[Position](t, k.get("/v1/position")); *p.Position != 500 || *p.AgeUS < 6e7 || time.Since(began) != freshWithin {
			t.Errorf("after %s got %s of %d µs ago", time.Since(began), p.Position, *p.AgeUS)
		}
		k.script.over()
		k.get("/v1/position").is(t, unknown)
	})
}

// As SECURITY.md says.
func TestHeadersMayHave12KiB(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, nil)
		for size, want := range map[int]int{11 << 10: http.StatusOK, 13 << 10: http.StatusRequestHeaderFieldsTooLarge} {
			conn, answers := k.dial()
			go func() {
				_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("x", size)+"\r\n\r\n")
			}()
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _ = resp.Body.Close(); resp.StatusCode != want {
				t.Errorf("%d bytes: %s", size, resp.Status)
			}
			_ = conn.Close()
		}
	})
}
