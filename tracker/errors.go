package tracker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A wait that did not end with the token replayed ended with one of these, or
// with the caller's own context's error. ErrWrongSystem, which Merge returns
// too, stands beside Token.
var (
	// ErrTimeout says that the time allowed passed first. It comes inside a
	// *TimeoutError, which says how far the replica was.
	ErrTimeout = errors.New("tracker: timeout")

	// ErrFutureToken says that the primary has not written the token's position
	// either, as far as is known: it is beyond what PrimaryAt was told by the time
	// that a wait of at least 250 ms timed out. The token is made up, its writer does
	// not announce, or announcements do not come through; PrimaryAge says when the
	// last one did. It comes inside a *TimeoutError, beside ErrTimeout, and never ends
	// a wait by itself.
	ErrFutureToken = errors.New("tracker: token beyond what the primary has announced")

	// ErrDiverged says that the token's write is lost here: a failover left
	// its timeline before the token's position, so this server will never
	// replay it, whatever position it reaches. A token is the end of the WAL
	// when it was taken: where others had written since the commit, and their WAL
	// alone is lost, the write may be there all the same. It comes inside a
	// *DivergedError.
	ErrDiverged = errors.New("tracker: write lost in a failover")

	// ErrTooManyWaiters says that Config.MaxWaiters are waiting already.
	ErrTooManyWaiters = errors.New("tracker: too many waiters")

	// ErrClosed says that the Tracker was closed, or that its Run has ended.
	ErrClosed = errors.New("tracker: closed")

	// ErrCanceled says that (*Waiter).Cancel ended the wait.
	ErrCanceled = errors.New("tracker: wait canceled")
)

// TimeoutError tells how far the replica was when the time was up. It unwraps
// to ErrTimeout, to ErrFutureToken when Ahead is not 0, and to the context's
// error (context.DeadlineExceeded, and its cause) only when it was the caller's
// own deadline that passed.
type TimeoutError struct {
	Replica string        // Config.Name
	Target  Token         // what was waited for
	Last    Observation   // what was known last; zero when Known is false
	Known   bool          // whether the replica's position was known at all
	Behind  uint64        // bytes from Last.LSN to Target.LSN; 0 when they are replayed
	ETA     time.Duration // estimate of the time that Behind takes; 0 when there is none, as for a future token, or while something holds replay back
	Waited  time.Duration // how long Await waited
	Source  string        // name of the source in use; empty when Run is not running
	Reason  string        // what held it up, as far as is known; may be empty

	Primary    Token         // where the primary was, as PrimaryAt was told; zero when nothing is known
	PrimaryAge time.Duration // how long before the time was up PrimaryAt was told
	Ahead      uint64        // bytes from Primary.LSN to Target.LSN: see ErrFutureToken; 0 when there are none

	cause error // of the caller's context; nil when the time allowed was ours
}

func (e *TimeoutError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "tracker: timeout after %s: %s has not replayed %s", rounded(e.Waited), e.Replica, e.Target.LSN)
	switch {
	case !e.Known:
		b.WriteString(": its position is not known")
	case e.Behind > 0:
		fmt.Fprintf(&b, ": it is at %s, %d bytes behind", e.Last.LSN, e.Behind)
		if e.ETA > 0 {
			fmt.Fprintf(&b, ", about %s", rounded(e.ETA))
		}
	default:
		fmt.Fprintf(&b, " of timeline %d: it is at %s", e.Target.Timeline, e.Last.LSN)
		if e.Last.Timeline != 0 {
			fmt.Fprintf(&b, " of timeline %d", e.Last.Timeline)
		}
	}
	if e.Ahead > 0 {
		fmt.Fprintf(&b, ": the token is %d bytes beyond %s, which the primary announced %s ago", e.Ahead, e.Primary.LSN, rounded(e.PrimaryAge))
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	return b.String()
}

// rounded is d as exactly as it is worth reading: to a thousandth, or so.
func rounded(d time.Duration) time.Duration {
	switch {
	case d < 10*time.Second:
		return d.Round(time.Millisecond)
	case d < 10*time.Minute:
		return d.Round(time.Second)
	}
	return d.Round(time.Minute)
}

// Unwrap makes errors.Is and errors.As see ErrTimeout, ErrFutureToken and the
// caller's cause.
func (e *TimeoutError) Unwrap() []error {
	errs := []error{ErrTimeout}
	if e.Ahead > 0 {
		errs = append(errs, ErrFutureToken)
	}
	if e.cause != nil {
		errs = append(errs, e.cause)
	}
	return errs
}

// DivergedError says where the replica's history left the token's timeline.
// It unwraps to ErrDiverged.
type DivergedError struct {
	Replica  string // Config.Name
	Token    Token
	Timeline uint32 // the replica's
	Fork     LSN    // where its history left Token.Timeline; 0 when it never was on it
}

func (e *DivergedError) Error() string {
	if e.Fork == 0 {
		return fmt.Sprintf("%v: %s is on timeline %d, which does not come from timeline %d of token %s",
			ErrDiverged, e.Replica, e.Timeline, e.Token.Timeline, e.Token.LSN)
	}
	return fmt.Sprintf("%v: %s is on timeline %d, which left timeline %d at %s, before token %s",
		ErrDiverged, e.Replica, e.Timeline, e.Token.Timeline, e.Fork, e.Token.LSN)
}

// Unwrap returns ErrDiverged.
func (e *DivergedError) Unwrap() error { return ErrDiverged }

// contextError is ctx's error and, where the caller gave a cause of its own,
// the cause too.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
