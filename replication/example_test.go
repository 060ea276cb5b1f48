package replication_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// A service writes to the primary and reads its own write from the replica.
func Example() {
	ctx := context.Background()
	cluster, err := replicationtest.New(ctx, replicationtest.Options{}) // a real primary and standby
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	primaryDSN, replicaDSN := cluster.Primary.DSN(), cluster.Standbys[0].DSN()
	primary, _ := pgx.Connect(ctx, primaryDSN)
	defer primary.Close(ctx)

	// Once, at start-up: follow the replica.
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: replicaDSN}})
	if err != nil {
		log.Fatal(err)
	}
	replica, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		log.Fatal(err)
	}
	go replica.Run(ctx)
	defer replica.Close()

	// The writer: a token after COMMIT. It is short text, for a cookie, a header or a message.
	_, err = primary.Exec(ctx, "CREATE TABLE orders AS SELECT 42 AS id")
	if err != nil {
		log.Fatal(err)
	}
	token, err := replication.Capture(ctx, primary)
	if err != nil {
		log.Fatal(err)
	}

	// The reader, beside the replica: continues when the replica shows the write.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err = replica.Wait(ctx, token)
	switch {
	case err == nil: // read from the replica
	case errors.Is(err, tracker.ErrTimeout): // read from the primary, or tell the user to try again
	case errors.Is(err, tracker.ErrDiverged): // a failover lost the write
	}

	reader, _ := pgx.Connect(ctx, replicaDSN)
	defer reader.Close(ctx)
	var id int
	_ = reader.QueryRow(ctx, "SELECT id FROM orders").Scan(&id)
	fmt.Println(id, err)
	// Output: 42 <nil>
}
