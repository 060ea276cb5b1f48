package replication

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/walwake/walwake/tracker"
)

// sourceFunc is a tracker.Source.
type sourceFunc func(context.Context, *tracker.Feed) error

func (sourceFunc) Name() string                                            { return "test" }
func (f sourceFunc) Observe(ctx context.Context, feed *tracker.Feed) error { return f(ctx, feed) }

// Kinds come up and fail at the same time; what the tracker was told last is how
// they are.
func TestBoardTellsChangesInTheirOrder(t *testing.T) {
	feeds := make(chan *tracker.Feed)
	tr := tracking(t, tracker.Config{Source: sourceFunc(func(ctx context.Context, feed *tracker.Feed) error {
		feeds <- feed
		<-ctx.Done()
		return ctx.Err()
	})})
	b := newBoard(Kinds(), <-feeds)
	b.reset()
	for round := range 8_000 {
		st := []state{up, failing}[round%2]
		var all sync.WaitGroup
		for _, k := range []Kind{Physical, Logical, WaitFor} {
			all.Go(func() { b.set(k, st, fmt.Sprint(round)) })
		}
		all.Wait()
		if got := tr.State(); !slices.Equal(got.Ladder, b.rungs) || (got.Source == string(Physical)) != (st == up) {
			t.Fatalf("round %d: the tracker has %+v, source %s, the board %+v", round, got.Ladder, got.Source, b.rungs)
		}
	}
}
