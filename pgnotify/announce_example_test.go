package pgnotify_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// A writer's process announces, and one beside a replica knows how far behind that
// is, and where else a write can be read.
func Example_whereThePrimaryAndTheReplicasAre() {
	c, err := shared() // a primary and a standby, that other tests use too
	if err != nil {
		panic(err)
	}
	primary := replication.Server{DSN: c.Primary.DSN()}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	// In the process that writes.
	announcer, err := pgnotify.NewAnnouncer(pgnotify.AnnouncerConfig{Primary: primary, Channel: "example"})
	if err != nil {
		panic(err)
	}
	running.Go(func() { _ = announcer.Run(ctx) })

	// In the one beside the replica: follow it, publish where it is, and listen to
	// both.
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: c.Standbys[0].DSN()}})
	if err != nil {
		panic(err)
	}
	replica, err := tracker.New(tracker.Config{Source: source, Name: "replica-1"})
	if err != nil {
		panic(err)
	}
	running.Go(func() { _ = replica.Run(ctx) })
	publisher, err := pgnotify.NewPublisher(pgnotify.PublisherConfig{
		Primary: primary, Trackers: []*tracker.Tracker{replica}, Channel: "example", // one channel may serve for both
	})
	if err != nil {
		panic(err)
	}
	running.Go(func() { _ = publisher.Run(ctx) })
	fleet, err := pgnotify.NewFleet(pgnotify.FleetConfig{})
	if err != nil {
		panic(err)
	}
	channel, both := fleet.Channel(), pgnotify.Announcements(replica).Handler
	channel.Name = "example"
	channel.Handler = pgnotify.HandlerFunc(func(ctx context.Context, e pgnotify.Event) error {
		_ = fleet.Handle(ctx, e) // each skips what is the other's
		return both.Handle(ctx, e)
	})
	listener, err := pgnotify.New(pgnotify.Config{Primary: primary, Channels: []pgnotify.Channel{channel}})
	if err != nil {
		panic(err)
	}
	running.Go(func() { _ = listener.Run(ctx) })
	<-listener.Ready()

	// A write.
	conn, err := c.Primary.Connect(ctx)
	if err != nil {
		panic(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `INSERT INTO rows VALUES ($1)`, time.Now().UnixNano()); err != nil {
		panic(err)
	}
	token, err := replication.Capture(ctx, conn)
	if err != nil {
		panic(err)
	}
	announcer.Announce(token) // does not block

	for ctx.Err() == nil {
		if best, ok := fleet.Best(token); ok {
			state := replica.State()
			fmt.Println(best.Name, "has it;", state.Behind, "bytes behind", state.Primary == token)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	announcer.Close()
	publisher.Close()
	replica.Close()
	cancel() // the listener
	// Output: replica-1 has it; 0 bytes behind true
}
