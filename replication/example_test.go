package replication_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// A service writes to the primary and reads its own write from the replica.
func Example() {
	cluster, err := replicationtest.New(context.Background(), replicationtest.Options{}) // a real primary and standby
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cluster.Close()
	id, err := writeThenRead(context.Background(), cluster.Primary.DSN(), cluster.Standbys[0].DSN())
	fmt.Println(id, err)
	// Output: 42 <nil>
}

func writeThenRead(ctx context.Context, primaryDSN, replicaDSN string) (id int, err error) {
	primary, err := pgx.Connect(ctx, primaryDSN)
	if err != nil {
		return 0, err
	}
	defer primary.Close(ctx)
	reader, err := pgx.Connect(ctx, replicaDSN)
	if err != nil {
		return 0, err
	}
	defer reader.Close(ctx)

	// Once, at start-up: follow the replica.
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: replicaDSN}})
	if err != nil {
		return 0, err
	}
	replica, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		return 0, err
	}
	go func() { slog.Info("replica", "ended", replica.Run(ctx)) }()
	defer replica.Close()

	// The writer: a token after COMMIT. It is short text, for a cookie, a header or a message.
	if _, err := primary.Exec(ctx, "CREATE TABLE orders AS SELECT 42 AS id"); err != nil {
		return 0, err
	}
	token, err := replication.Capture(ctx, primary)
	if err != nil {
		return 0, err
	}

	// The reader, beside the replica: continues when the replica shows the write.
	wait, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err = replica.Wait(wait, token)
	switch {
	case err == nil: // read from the replica
	case errors.Is(err, tracker.ErrTimeout): // read from the primary, or tell the user to try again
	case errors.Is(err, tracker.ErrDiverged): // a failover lost the write
	}
	if err != nil {
		return 0, err
	}
	err = reader.QueryRow(ctx, "SELECT id FROM orders").Scan(&id)
	return id, err
}
