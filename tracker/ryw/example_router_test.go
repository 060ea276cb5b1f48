package ryw_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// A service writes an order and lists it: the list is read from the replica, and
// has the order.
func ExampleRouter() {
	cluster, err := replicationtest.New(context.Background(), replicationtest.Options{}) // a real primary and standby
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cluster.Close()
	orders, err := orderAndList(context.Background(), cluster.Primary.DSN(), cluster.Standbys[0].DSN())
	fmt.Println(orders, err)
	// Output: 1 <nil>
}

func orderAndList(ctx context.Context, primaryDSN, replicaDSN string) (orders int, err error) {
	primaryPool, err := pgxpool.New(ctx, primaryDSN)
	if err != nil {
		return 0, err
	}
	defer primaryPool.Close()
	replicaPool, err := pgxpool.New(ctx, replicaDSN)
	if err != nil {
		return 0, err
	}
	defer replicaPool.Close()
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: replicaDSN}})
	if err != nil {
		return 0, err
	}
	replica, err := tracker.New(tracker.Config{Source: source, Name: "eu-1"})
	if err != nil {
		return 0, err
	}
	go func() { slog.Debug("replica", "ended", replica.Run(ctx)) }()
	defer replica.Close()

	router, err := ryw.New(ryw.Config{
		Primary:  primaryPool,
		Replicas: []ryw.Replica{{Name: "eu-1", Pool: replicaPool, Tracker: replica}},
	})
	if err != nil {
		return 0, err
	}
	request := ryw.NewContext(ctx, new(ryw.Session)) // ryw.Middleware does it for each HTTP request

	_, err = router.Write(request, func(tx pgx.Tx) error { // on the primary; the session goes on to its token
		_, err := tx.Exec(request, "CREATE TABLE orders AS SELECT 42 AS id")
		return err
	})
	if err != nil {
		return 0, err
	}
	err = router.Read(request, func(q ryw.Queries) error { // where the session's writes are replayed
		return q.QueryRow(request, "SELECT count(*) FROM orders").Scan(&orders)
	})
	if err != nil {
		return 0, err
	}

	db := router.ReadDB() // each statement reads where its context's session can be read
	defer db.Close()
	err = db.QueryRowContext(request, "SELECT count(*) FROM orders").Scan(&orders)
	return orders, err
}
