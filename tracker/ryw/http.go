package ryw

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/walwake/walwake/tracker"
)

// HTTPConfig configures [Middleware]. What it has no field for: the cookie is
// HttpOnly, SameSite=Lax, for all paths of the host, and kept for as long as its
// token is taken.
type HTTPConfig struct {
	// Keys sign the tokens that go out, and open those that come in; [Keys.SetSecrets]
	// changes them while the Middleware runs. They are required unless Unsigned, or the
	// cookie is off and UnsignedHeader.
	Keys *Keys

	// Unsigned leaves the cookie and the header unsigned, Keys must then be nil, and
	// UnsignedHeader the header only: for clients that are trusted, and for other
	// programs that read the text of a [tracker.Token]. A client can then make its
	// own reads wait for what was never written, for as long as they may wait; what
	// it made up is not signed and given back.
	Unsigned       bool
	UnsignedHeader bool

	// Cookie and Header are the names under which a token comes and goes: "walwake"
	// and "Walwake-Token" when empty, and "-" switches one of them off.
	Cookie string
	Header string

	// Insecure leaves out the cookie's attribute Secure, for development without TLS:
	// browsers keep a Secure cookie only where there is TLS, or on localhost.
	Insecure bool

	// System is the database's system identifier. When it is not 0, a token of
	// another cluster is refused with [tracker.ErrWrongSystem].
	System uint64

	// Reject answers a request that shows a bad token with status 400. The client must
	// then drop its token; a browser does, for the response removes the cookie.
	// Otherwise such a request goes on with a Session that must read from the primary:
	// each does, until one writes, or reads, and its response replaces the token.
	Reject bool

	// OnRefused, when not nil, is called for each request that shows a bad token,
	// whatever Reject says, and OnLate for each token that could not be given back
	// because the response's headers were sent already: see [Middleware]; the zero
	// token is that the client must read from the primary. They are called by the
	// goroutine of the request, by several at once.
	OnRefused func(r *http.Request, err error)
	OnLate    func(r *http.Request, tok tracker.Token)

	// Logger gets a warning of each late token, and each refusal at level Debug, as
	// anybody can cause those. Nil: silence.
	Logger *slog.Logger
}

// Middleware returns what wraps the handlers of a service so that each request
// carries the [Session] of its client: [FromContext] returns it. The error says
// which field of cfg is wrong.
//
// The token that a request shows comes in a cookie, for browsers, or in a header,
// for other clients and other services; of several, up to 8, the last counts. A bad
// one, which is forged, stale, empty, too long, not a token, or of another cluster, is
// never trusted, and never means that there was none: the request is rejected, or
// reads from the primary, as [HTTPConfig] says.
//
// When the Session has moved, its token is given back in both. When it must read
// from the primary since this request, because what it has written is not known, that
// is given back in place of a token, and holds until a later request moves it.
//
// That is done at the last moment before the response's headers go out, whoever sends
// them: WriteHeader with any status, the first Write, Flush, ReadFrom, or the server
// when the handler returns; not by informational (1xx) responses. When the handler
// panics the token is in the headers that a recovering handler around this one sends.
// After Hijack the handler writes its own response, and finds the token in the
// ResponseWriter's Header.
//
// A token that moves after that comes too late, for HTTP has no way left to give it
// back that clients heed (no trailers are sent): the client's next request may not
// see the write. So write to the database first, and to the response then; OnLate and
// Logger tell who does not. [http.TimeoutHandler] belongs inside of what Middleware
// wraps: around it, it drops the token together with the response that came too late.
//
// A browser keeps the cookie of the response that comes last. Of two writes at the
// same time that may be the earlier one; a page that needs both uses the header,
// shows the tokens of all responses that it has had, and may join them with commas.
//
// A response that gives a token back is for one client: a shared cache that hands it
// to others would set them back to an old token. Unless the handler's Cache-Control
// has private or no-store, "Cache-Control: private" is added, beside whatever is there.
// Caches that are told otherwise by headers of their own (CDN-Cache-Control,
// Surrogate-Control) must be told not to keep Set-Cookie. There is no Vary: who asks
// with a token gets the same page, only no older one.
//
// The ResponseWriter that handlers get is an [http.Flusher], [http.Hijacker],
// [http.Pusher] and [io.ReaderFrom] when the one it wraps is, and
// [http.ResponseController] works.
func Middleware(cfg HTTPConfig) (func(http.Handler) http.Handler, error) {
	m, err := newMiddleware(cfg)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(next, w, r) })
	}, nil
}

type middleware struct {
	HTTPConfig           // with names in place of defaults; empty: off
	cookie, header *Keys // nil: unsigned
	maxAge         int   // of the cookie in seconds; 0: while the browser runs
}

func newMiddleware(cfg HTTPConfig) (*middleware, error) {
	m := &middleware{HTTPConfig: cfg, cookie: cfg.Keys, header: cfg.Keys, maxAge: int(defaultMaxAge / time.Second)}
	if cfg.UnsignedHeader {
		m.header = nil
	}
	var err error
	if m.Cookie, err = headerName("Cookie", cfg.Cookie, "walwake"); err != nil {
		return nil, err
	}
	if m.Header, err = headerName("Header", cfg.Header, http.CanonicalHeaderKey(TokenKey)); err != nil {
		return nil, err
	}
	signs := m.Cookie != "" || m.Header != "" && !cfg.UnsignedHeader
	switch {
	case m.Cookie == "" && m.Header == "":
		return nil, errors.New("ryw: HTTPConfig.Cookie and HTTPConfig.Header are both off")
	case cfg.Unsigned && cfg.Keys != nil:
		return nil, errors.New("ryw: HTTPConfig.Keys and HTTPConfig.Unsigned exclude each other")
	case !cfg.Unsigned && signs && (cfg.Keys == nil || len(cfg.Keys.keys()) == 0):
		return nil, errors.New("ryw: HTTPConfig.Keys is missing, and HTTPConfig.Unsigned not set")
	}
	if cfg.Keys != nil {
		m.maxAge = int(cfg.Keys.maxAge / time.Second)
	}
	if m.Logger == nil {
		m.Logger = slog.New(slog.DiscardHandler)
	}
	return m, nil
}

// headerName is name or its default, and empty for "-".
func headerName(field, name, otherwise string) (string, error) {
	switch name {
	case "":
		return otherwise, nil
	case "-":
		return "", nil
	}
	// The names of cookies and of headers are both an RFC 9110 token.
	if err := (&http.Cookie{Name: name, Value: "v"}).Valid(); err != nil {
		return "", fmt.Errorf("ryw: HTTPConfig.%s is %.64q, want a name of letters, digits and hyphens", field, name)
	}
	return name, nil
}

func (m *middleware) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	s, err := m.session(r, time.Now())
	if err != nil {
		m.Logger.DebugContext(r.Context(), "walwake: token refused", "error", err)
		if m.OnRefused != nil {
			m.OnRefused(r, err)
		}
		if m.Reject {
			m.reject(w)
			return
		}
		s.RequirePrimary()
	}
	r = r.WithContext(NewContext(r.Context(), s))
	rw := &response{ResponseWriter: w, request: r, session: s, alone: s.OnPrimary(), unknown: s.unknown(), m: m}
	defer rw.finish()
	next.ServeHTTP(rw.wrap(), r)
}

// session returns the Session of r's tokens. The error is that of a token that is
// bad; the Session is then of those that are not.
func (m *middleware) session(r *http.Request, now time.Time) (*Session, error) {
	var (
		seen Session
		bad  error
		n    int
	)
	take := func(keys *Keys, texts iter.Seq[string]) {
		for text := range texts {
			if n++; n > maxTexts {
				bad = errTooManyTexts
				return
			}
			tok, alone, err := m.open(keys, text, now)
			if err == nil && keys == nil && m.cookie != nil && !complete(tok) {
				err = errIncomplete
			}
			if err != nil {
				bad = err
				continue
			}
			if seen.Advance(tok); alone {
				seen.RequirePrimary()
			}
		}
	}
	if m.Cookie != "" {
		take(m.cookie, cookies(r.Header["Cookie"], m.Cookie))
	}
	if m.Header != "" {
		take(m.header, listed(r.Header.Values(m.Header)))
	}
	// It has not moved: what a client has shown it has already, and where the header is
	// not signed, to give it back in the cookie would sign it.
	s := NewSession(seen.Token())
	if seen.OnPrimary() {
		s.RequirePrimary()
	}
	return s, bad
}

// errIncomplete is of a token that a write of ours would complete, and the cookie's
// key then sign.
var errIncomplete = errors.New("ryw: an unsigned token that does not name its system and timeline")

// complete reports whether a write's token cannot add to tok without moving past it.
func complete(tok tracker.Token) bool {
	return tok == (tracker.Token{}) || tok.System != 0 && tok.Timeline != 0
}

// open is decode, of tokens of the cluster.
func (m *middleware) open(keys *Keys, text string, now time.Time) (tracker.Token, bool, error) {
	tok, alone, err := decode(keys, text, now)
	if err == nil && m.System != 0 && tok.System != 0 && tok.System != m.System {
		return tracker.Token{}, false, fmt.Errorf("%w: %d, want %d", tracker.ErrWrongSystem, tok.System, m.System)
	}
	return tok, alone, err
}

// cookies yields the values of that name in the lines of a Cookie header. It
// leaves none out, as net/http does without a word with those that it cannot parse.
func cookies(lines []string, name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range lines {
			for pair := range strings.SplitSeq(line, ";") {
				n, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
				if strings.TrimSpace(n) == name && !yield(value) {
					return
				}
			}
		}
	}
}

// reject answers 400, and has the browser drop its cookie, or it would be rejected
// until that has expired.
func (m *middleware) reject(w http.ResponseWriter) {
	if m.Cookie != "" {
		c := m.newCookie("")
		c.MaxAge = -1
		http.SetCookie(w, c)
	}
	onlyForOne(w.Header())
	http.Error(w, "walwake: the token of this request is not valid here, or no longer", http.StatusBadRequest)
}

func (m *middleware) newCookie(value string) *http.Cookie {
	return &http.Cookie{
		Name: m.Cookie, Value: value, Path: "/", MaxAge: m.maxAge,
		Secure: !m.Insecure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// onlyForOne keeps a response out of shared caches. Of directives that contradict
// each other the most restrictive is to be honoured (RFC 9111, section 4.2.1).
func onlyForOne(h http.Header) {
	for directive := range listed(h["Cache-Control"]) {
		if strings.EqualFold(directive, "private") || strings.EqualFold(directive, "no-store") {
			return
		}
	}
	h.Add("Cache-Control", "private")
}
