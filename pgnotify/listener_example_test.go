package pgnotify_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// A worker beside a replica hears of orders when the replica shows them.
func ExampleListener() {
	cluster, err := replicationtest.New(context.Background(), replicationtest.Options{}) // a real primary and standby
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cluster.Close()
	if err := work(context.Background(), cluster.Primary.DSN(), cluster.Standbys[0].DSN()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// order 42 of 7 books
	// order 43 of 1 lamp
}

func work(ctx context.Context, primaryDSN, replicaDSN string) error {
	reader, err := pgx.Connect(ctx, replicaDSN)
	if err != nil {
		return err
	}
	defer reader.Close(ctx)
	writer, err := pgx.Connect(ctx, primaryDSN)
	if err != nil {
		return err
	}
	defer writer.Close(ctx)
	if _, err := writer.Exec(ctx, `CREATE TABLE orders (id bigint PRIMARY KEY, what text)`); err != nil {
		return err
	}

	// Once, at start-up: follow the replica, and listen to the primary.
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: replicaDSN}})
	if err != nil {
		return err
	}
	replica, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		return err
	}
	go func() { slog.Debug("replica", "ended", replica.Run(ctx)) }()
	defer replica.Close()

	done := make(chan struct{})
	listener, err := pgnotify.New(pgnotify.Config{
		Primary: replication.Server{DSN: primaryDSN},
		Replica: replica,
		Channels: []pgnotify.Channel{{
			Name: "orders",
			Handler: pgnotify.HandlerFunc(func(ctx context.Context, e pgnotify.Event) error {
				switch e := e.(type) {
				case pgnotify.Notification: // its order is there
					var what string
					if err := reader.QueryRow(ctx, `SELECT what FROM orders WHERE id = $1::bigint`, pgx.QueryExecModeExec, e.Payload).Scan(&what); err != nil {
						return err
					}
					fmt.Println("order", e.Payload, "of", what)
					if e.Payload == "43" {
						close(done)
					}
				case pgnotify.Resync: // some may have been missed: look at all orders that are not done
				}
				return nil
			}),
		}},
	})
	if err != nil {
		return err
	}
	listening, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- listener.Run(listening) }()
	select {
	case <-listener.Ready():
	case err := <-ended:
		stop()
		return err
	}

	// Somebody else, who knows nothing of replicas.
	_, err = writer.Exec(ctx, `
		BEGIN; INSERT INTO orders VALUES (42, '7 books'); NOTIFY orders, '42'; COMMIT;
		BEGIN; INSERT INTO orders VALUES (43, '1 lamp'); NOTIFY orders, '43'; COMMIT`, pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		<-done
	}
	stop()
	slog.Debug("listener", "ended", <-ended)
	return err
}
