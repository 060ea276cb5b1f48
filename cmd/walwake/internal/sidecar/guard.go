package sidecar

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// guard is what stands before every handler.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		commonHeaders(h)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // that of the connection's last answer
		if p := s.refused(r); p != nil {
			if p.Status == http.StatusUnauthorized {
				h.Set("WWW-Authenticate", `Bearer realm="walwake"`)
			}
			s.dismiss(w, r)
			s.fail(w, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// commonHeaders are those of all answers.
func commonHeaders(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// dismiss keeps the server from reading a body that nobody wants.
func (s *Server) dismiss(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now())
	}
}

func (s *Server) refused(r *http.Request) *Problem {
	switch {
	case s.closing():
		if r.URL.Path != "/healthz" {
			return shuttingDown.problem("ask again: another sidecar may have taken over")
		}
	case !s.knownHost(r) && !s.authorized(r): // no browser shows the bearer token of another site
		return misdirected.problem("the Host header names neither an address nor localhost: call the sidecar by its address, or name the host in --hosts")
	case foreign(r):
		return crossSite.problem("a page of another site may not ask here: ask from a program, or from the sidecar's own page")
	case s.cfg.Bearer != nil && needsBearer(r.URL.Path) && !s.authorized(r):
		return unauthorized.problem("send the header Authorization: Bearer, with the token that the sidecar was started with")
	case r.ContentLength != 0 && (r.Method != http.MethodPost || r.URL.Path != "/v1/stream"):
		return tooLarge.problem("send no body: parameters go into the query")
	}
	return nil
}

// needsBearer leaves out what probes ask, and the page's own files, in which nothing is secret.
func needsBearer(path string) bool {
	return path == "/metrics" || strings.HasPrefix(path, "/v1/")
}

// mayLearn reports whether r, of a path that needs no bearer, may be answered as one that does.
func (s *Server) mayLearn(r *http.Request) bool { return s.cfg.Bearer == nil || s.authorized(r) }

func (s *Server) authorized(r *http.Request) bool {
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if s.cfg.Bearer == nil || !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	want, have := sha256.Sum256([]byte(s.cfg.Bearer())), sha256.Sum256([]byte(strings.TrimSpace(got)))
	return subtle.ConstantTimeCompare(want[:], have[:]) == 1
}

// foreign reports whether a browser says that another site's page asks. Following a link
// to the sidecar is allowed.
func foreign(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site":
		return r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.Method != http.MethodGet
	case "":
		origin := r.Header.Get("Origin")
		_, host, _ := strings.Cut(origin, "://")
		return origin != "" && host != r.Host
	}
	return false
}

// knownHost reports whether the Host is one that no foreign page can have: an address, which
// leads where it says, or a name that is ours.
func (s *Server) knownHost(r *http.Request) bool {
	if isSocket(r.Context()) {
		return true // no browser gets there
	}
	host := r.Host
	if host == "" && !r.ProtoAtLeast(1, 1) {
		return true // a probe, such as HAProxy's: a browser speaks HTTP/1.1 or later, and always names the host
	}
	if _, err := netip.ParseAddrPort(host); err == nil {
		return true
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	if name, _, ok := strings.Cut(host, ":"); ok {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || slices.Contains(s.cfg.Hosts, host) || slices.Contains(s.cfg.Hosts, "*")
}

type socketKey struct{}

func isSocket(ctx context.Context) bool { return ctx.Value(socketKey{}) != nil }
