package ryw

import (
	"context"
	"sync"

	"github.com/walwake/walwake/tracker"
)

// Session is what a user, or a request, has written and may have read: the token
// that a replica must have replayed to be read by it. It may be used by several
// goroutines; the zero Session has seen nothing.
type Session struct {
	mu    sync.Mutex
	token tracker.Token // guarded by mu
	moved bool          // guarded by mu; whether Advance has raised token
	alone int           // guarded by mu; how often RequirePrimary was called
	known int           // guarded by mu; how many of these a token from the primary has covered
}

// NewSession returns a Session that has seen tok, which came from an earlier one.
func NewSession(tok tracker.Token) *Session { return &Session{token: tok} }

// Token returns what the Session has seen; the zero Token: nothing.
func (s *Session) Token() tracker.Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// Advance notes that the Session has seen tok: it only ever goes on. See
// tracker.Token.Merge for timelines, and for parts that tok does not name. Of two
// clusters the one that was seen last counts: the other cannot be waited for any
// more.
func (s *Session) Advance(tok tracker.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advanceLocked(tok)
}

func (s *Session) advanceLocked(tok tracker.Token) {
	next, err := s.token.Merge(tok)
	if err != nil {
		next = tok
	}
	if next != s.token {
		s.token, s.moved = next, true
	}
}

// Wrote notes that tok was captured on the primary, after all that has made the
// Session RequirePrimary: it covers that.
func (s *Session) Wrote(tok tracker.Token) { s.covered(tok, s.unknown()) }

// unknown is for covered, which takes it from before the token was captured: what
// another goroutine's write has made unknown meanwhile is not covered.
func (s *Session) unknown() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alone
}

func (s *Session) covered(tok tracker.Token, unknown int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = max(s.known, unknown)
	s.advanceLocked(tok)
}

// Moved returns the token, and whether it is another one than the Session began
// with: whoever keeps it for the user then has to keep the new one.
func (s *Session) Moved() (tracker.Token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, s.moved
}

// RequirePrimary has the Session's reads go to the primary until it has Wrote, or a
// read from there has told how far that is: what it has seen is not known, or not to
// be believed.
func (s *Session) RequirePrimary() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone++
}

// OnPrimary reports whether only the primary will do.
func (s *Session) OnPrimary() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alone > s.known
}

// Merge notes all that o has seen.
func (s *Session) Merge(o *Session) {
	// In this order: o's last write may get its token between the two.
	if o.OnPrimary() {
		s.RequirePrimary()
	}
	s.Advance(o.Token())
}

type contextKey struct{}

// NewContext returns a context that carries s.
func NewContext(ctx context.Context, s *Session) context.Context {
	return context.WithValue(ctx, contextKey{}, s)
}

// FromContext returns the Session that ctx carries; nil: none.
func FromContext(ctx context.Context) *Session {
	s, _ := ctx.Value(contextKey{}).(*Session)
	return s
}
