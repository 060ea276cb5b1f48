package replicationtest

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// opDeadline ends an operation whose caller's context has no deadline.
const opDeadline = time.Minute

// bounded gives ctx a deadline where it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, opDeadline, fmt.Errorf("not done within %s, and the context has no deadline", opDeadline))
}

// poll asks until the answer is yes, an error, or ctx is done.
func poll(ctx context.Context, every time.Duration, what string, ask func(context.Context) (bool, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case <-timer.C:
		}
		yes, err := ask(ctx)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		if yes {
			return nil
		}
		timer.Reset(every)
	}
}

// lastLines gives the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
