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
	alone bool          // guarded by mu; whether only the primary will do
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

// Wrote notes that tok was captured on the primary now: it covers all that the
// Session has seen, whatever made it RequirePrimary before.
func (s *Session) Wrote(tok tracker.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = false
	s.advanceLocked(tok)
}

// Moved returns the token, and whether it is another one than the Session began
// with: whoever keeps it for the user then has to keep the new one.
func (s *Session) Moved() (tracker.Token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, s.moved
}

// RequirePrimary has the Session's reads go to the primary until it has Wrote: what
// it has seen is not known, or not to be believed.
func (s *Session) RequirePrimary() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = true
}

// OnPrimary reports whether only the primary will do.
func (s *Session) OnPrimary() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alone
}

// Merge notes all that o has seen.
func (s *Session) Merge(o *Session) {
	s.Advance(o.Token())
	if o.OnPrimary() {
		s.RequirePrimary()
	}
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
