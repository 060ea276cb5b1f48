//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest_test

import (
	"context"
	"fmt"
	"os"

	"github.com/walwake/walwake/replication/replicationtest"
)

// A program that is no test shows what a read from a standby misses.
func ExampleNew() {
	if err := staleRead(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	// Output:
	// while replay is paused: 0 rows
	// after replay: 1 rows
}

func staleRead(ctx context.Context) error {
	c, err := replicationtest.New(ctx, replicationtest.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	standby := c.Standbys[0]
	if err := c.Primary.Exec(ctx, `create table orders (id int)`); err != nil {
		return err
	}
	if err := c.WaitForReplay(ctx); err != nil {
		return err
	}
	if err := standby.Pause(ctx); err != nil {
		return err
	}
	if err := c.Primary.Exec(ctx, `insert into orders values (1)`); err != nil {
		return err
	}
	n, err := replicationtest.Value[int](ctx, standby, `select count(*) from orders`)
	if err != nil {
		return err
	}
	fmt.Println("while replay is paused:", n, "rows")
	if err := standby.Resume(ctx); err != nil {
		return err
	}
	if err := c.WaitForReplay(ctx); err != nil {
		return err
	}
	n, err = replicationtest.Value[int](ctx, standby, `select count(*) from orders`)
	if err != nil {
		return err
	}
	fmt.Println("after replay:", n, "rows")
	return nil
}
