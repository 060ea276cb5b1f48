package tracker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
)

// standby stands for a source of package replication: a server of system 7
// that has replayed 0/3000000 on timeline 2, which left timeline 1 at 0/2000000.
type standby struct{}

func (standby) Name() string { return "example" }

func (standby) Observe(ctx context.Context, feed *tracker.Feed) error {
	epoch := feed.Begin()
	defer epoch.End()
	epoch.Observe(tracker.Observation{
		System: 7, Timeline: 2, LSN: 0x3000000,
		History: tracker.History{{Timeline: 1, End: 0x2000000}},
	})
	<-ctx.Done()
	return ctx.Err()
}

func running() *tracker.Tracker {
	t, err := tracker.New(tracker.Config{Source: standby{}, Name: "replica-1"})
	if err != nil {
		panic(err)
	}
	go func() { _ = t.Run(context.Background()) }()
	<-t.Ready()
	return t
}

func ExampleTracker_Wait() {
	t := running()
	defer t.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()

	fmt.Println(t.Wait(ctx, tracker.Token{System: 7, Timeline: 2, LSN: 0x2FFFFFF}))

	err := t.Wait(ctx, tracker.Token{System: 7, Timeline: 2, LSN: 0x3000040})
	if te, ok := errors.AsType[*tracker.TimeoutError](err); ok {
		fmt.Println(errors.Is(err, tracker.ErrTimeout), te.Behind)
	}

	fmt.Println(t.Wait(ctx, tracker.Token{System: 7, Timeline: 1, LSN: 0x2000060}))
	// Output:
	// <nil>
	// true 64
	// tracker: write lost in a failover: replica-1 is on timeline 2, which left timeline 1 at 0/2000000, before token 0/2000060
}

func ExampleTracker_Request() {
	t := running()
	defer t.Close()
	w := t.Request(tracker.Token{LSN: 0x4000000})
	select {
	case <-w.Done():
		fmt.Println("ended:", w.Err())
	default:
		fmt.Println("goes on")
	}
	w.Cancel()
	<-w.Done()
	fmt.Println(w.Err())
	// Output:
	// goes on
	// tracker: wait canceled
}
