package sidecar_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/sidecar"
)

// A worker follows the replica through the sidecar beside it. While there is none, its waits end with their time, and it
// reads from the primary.
func Example() {
	client, err := sidecar.New(sidecar.Config{URL: "unix:/run/walwake/none.sock"})
	if err != nil {
		fmt.Println(err)
		return
	}
	replica, err := tracker.New(tracker.Config{Source: client, Name: "db2"})
	if err != nil {
		fmt.Println(err)
		return
	}
	run, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- replica.Run(run) }()

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	switch err := replica.Wait(ctx, tracker.Token{LSN: 0x174FFB0}); {
	case err == nil:
		fmt.Println("read from the replica")
	case errors.Is(err, tracker.ErrTimeout):
		fmt.Println("read from the primary")
	default:
		fmt.Println(err)
	}
	stop()
	fmt.Println(<-ended)
	// Output:
	// read from the primary
	// context canceled
}
