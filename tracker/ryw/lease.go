package ryw

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
)

// lease is a connection that may be read over for a session. Whoever has it
// releases it.
type lease struct {
	link
	core    *core
	from    *replica // nil: the primary
	session *Session
	token   tracker.Token // that it was shown to have
	missing bool          // the session's token is of writes that are lost
	unknown int           // see Session.unknown
}

// lease returns a connection to a server that has all that s has seen. tried are
// those not to be tried, and get those that could not be read from.
func (c *core) lease(ctx context.Context, s *Session, tried *[]*replica) (lease, error) {
	if s != nil && s.OnPrimary() {
		return c.leasePrimary(ctx, s, false)
	}
	tok := needed(s)
	for {
		r, lost, err := c.pick(ctx, tok, *tried)
		switch {
		case errors.Is(err, ErrNoReplica) && c.Fallback == WaitOn:
			*tried = (*tried)[:0]
			select {
			case <-time.After(waitOnPause):
				continue
			case <-ctx.Done():
				return lease{}, fmt.Errorf("ryw: wait for a replica: %w", context.Cause(ctx))
			}
		case err != nil:
			return lease{}, err
		case r == nil:
			return c.leasePrimary(ctx, s, lost)
		}
		l, err := r.lease(ctx, c, s, tok)
		if l.link != nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return lease{}, errors.Join(fmt.Errorf("ryw: read from replica %s: %w", r.name, context.Cause(ctx)), err)
		}
		*tried = append(*tried, r)
	}
}

// needed is the token that a replica must have to be read by s: where that has seen
// nothing, or is nil, it is only to be known where the replica is.
func needed(s *Session) tracker.Token {
	if s != nil {
		if tok := s.Token(); tok != (tracker.Token{}) {
			return tok
		}
	}
	return tracker.Token{LSN: 1}
}

// waitOnPause is between two looks at the replicas, when none of those that have
// the token could be read from.
const waitOnPause = 10 * time.Millisecond

// lease returns a connection to r that has been shown to have tok; one without a
// link, perhaps with the reason, where none can be had.
func (r *replica) lease(ctx context.Context, c *core, s *Session, tok tracker.Token) (lease, error) {
	r.reading.Add(1)
	l, err := r.take(ctx)
	if err == nil {
		var ok bool
		if ok, err = r.vouched(ctx, l, tok); ok && err == nil {
			r.reads.Add(1)
			return lease{link: l, core: c, from: r, session: s, token: tok}, nil
		}
		l.release()
	}
	r.reading.Add(-1)
	r.failed.Add(1)
	return lease{}, err
}

func (c *core) leasePrimary(ctx context.Context, s *Session, lost bool) (lease, error) {
	c.totals.primary.Add(1)
	l, err := c.primary(ctx)
	if err != nil {
		return lease{}, err
	}
	if s == nil {
		return lease{link: l, core: c}, nil
	}
	if err := isPrimary(ctx, l); err != nil {
		l.release()
		return lease{}, err
	}
	if lost {
		c.lost.Add(1)
	}
	return lease{link: l, core: c, session: s, missing: lost, unknown: s.unknown()}, nil
}

// run calls f, and reports whether it may succeed elsewhere.
func (l *lease) run(ctx context.Context, f func(link) error) (again bool, err error) {
	defer l.release()
	if err := f(l.link); err != nil {
		if l.core.Monotonic { // it may have seen something before
			l.note(ctx)
		}
		return l.from != nil && (l.lost() || repeatable(err)), err
	}
	l.note(ctx)
	return false, nil
}

// note has the session go on to what was read.
func (l *lease) note(ctx context.Context) {
	s := l.session
	covers := s != nil && l.from == nil && (l.missing || s.OnPrimary())
	if s == nil || !covers && !l.core.Monotonic {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askFor) // what was read was read, also when ctx has ended
	defer cancel()
	tok, err := l.seen(ctx)
	switch {
	case err == nil && covers: // what the primary shows now is all that the session can have seen
		s.covered(tok, l.unknown)
	case err == nil:
		s.Advance(tok)
	case l.core.Monotonic:
		s.RequirePrimary() // it is safe there
	}
}

func (l *lease) release() {
	l.link.release()
	if l.from != nil {
		l.from.reading.Add(-1)
	}
}
