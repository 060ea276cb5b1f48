package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
)

// What the demo does, and for how long.
const (
	demoReads     = 200                    // at full speed
	demoHeldReads = 40                     // while replay is held back
	demoHold      = 50 * time.Millisecond  // by which it is held back
	demoTimeout   = 300 * time.Millisecond // of the wait while replay is paused
	demoRawWait   = time.Second            // for the position that nobody writes up to
	demoWait      = 10 * time.Second       // of any other wait, for which it is far too long
	demoPageTries = 3                      // in case the server itself writes meanwhile
	demoSettle    = 3 * time.Second        // for the best source to come up
	demoBack      = 8 * time.Second        // for the stream to come back
	demoSome      = 50                     // reads before the stream is killed, and after it is back
)

// show is a demo whose servers run.
type show struct {
	*demoCommand
	standby *replicationtest.Node
	writer  *pgx.Conn // to the primary
	reader  *pgx.Conn // to the standby
	replica *replica
	last    int // the latest row

	changes chan sourceChange
}

// show writes, reads, and returns what it saw.
func (d *demoCommand) show(ctx context.Context, cluster *replicationtest.Cluster) (answer *demoAnswer, err error) {
	s := &show{demoCommand: d, standby: cluster.Standbys[0], changes: make(chan sourceChange, 100)}
	defer s.close()
	if err := s.open(ctx, cluster); err != nil {
		return nil, err
	}
	answer = &demoAnswer{Postgres: cluster.Release, Source: s.replica.settle(ctx, demoSettle).Source}
	d.tell("source in use: " + answer.Source)
	for _, hold := range []time.Duration{0, demoHold} {
		if err := s.hold(ctx, hold); err != nil {
			return nil, err
		}
		for _, waiting := range []bool{false, true} {
			step, err := s.step(ctx, hold, waiting)
			if err != nil {
				return nil, err
			}
			answer.Steps = append(answer.Steps, step)
		}
	}
	if answer.Notified, err = s.notify(ctx); err != nil {
		return nil, err
	}
	if err := s.hold(ctx, 0); err != nil {
		return nil, err
	}
	if answer.Paused, err = s.pause(ctx); err != nil {
		return nil, err
	}
	if answer.PageEnd, err = s.pageEnd(ctx); err != nil {
		return nil, err
	}
	if answer.Killed, err = s.kill(ctx); err != nil {
		return nil, err
	}
	answer.StaleWithout = answer.Notified.StaleBare
	answer.StaleWith = answer.Killed.Stale + answer.Notified.StaleHeld
	for _, step := range answer.Steps {
		if step.Waiting {
			answer.StaleWith += step.Stale
		} else {
			answer.StaleWithout += step.Stale
		}
	}
	if answer.Paused.Stale {
		answer.StaleWith++
	}
	return answer, nil
}

func (s *show) open(ctx context.Context, cluster *replicationtest.Cluster) (err error) {
	if s.writer, err = cluster.Primary.Connect(ctx); err != nil {
		return err
	}
	if s.reader, err = s.standby.Connect(ctx); err != nil {
		return err
	}
	config, err := pgx.ParseConfig(s.standby.DSN())
	if err != nil {
		return err
	}
	// As for a user, with the source that "auto" stands for.
	standby := &server{role: "replica", from: "the demo", address: address(config), config: config}
	failed := make(chan error, 1)
	s.replica, err = s.follow(following{server: standby, source: "auto", timeout: demoWait, changed: s.changed, failed: func(err error, _ bool) {
		select {
		case failed <- explain(standby, err):
		default:
		}
	}})
	if err != nil {
		return err
	}
	select {
	case <-s.replica.Ready():
	case err := <-failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, err = s.writer.Exec(ctx, `create table walwake_demo (id int primary key)`); err != nil {
		return fmt.Errorf("create the demo's table: %w", err)
	}
	return s.settle(ctx)
}

func (s *show) close() {
	if s.replica != nil {
		s.replica.stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, conn := range []*pgx.Conn{s.reader, s.writer} {
		if conn != nil {
			_ = conn.Close(ctx) // the servers are about to go
		}
	}
}

// write adds a row, in a transaction of its own.
func (s *show) write(ctx context.Context) error {
	s.last++
	if _, err := s.writer.Exec(ctx, `insert into walwake_demo values ($1)`, s.last); err != nil {
		return fmt.Errorf("write to the primary: %w", err)
	}
	return nil
}

// stale reports whether the standby does not show the latest row.
func (s *show) stale(ctx context.Context) (bool, error) {
	var there bool
	err := s.reader.QueryRow(ctx, `select exists (select from walwake_demo where id = $1)`, s.last).Scan(&there)
	if err != nil {
		return false, fmt.Errorf("read from the standby: %w", err)
	}
	return !there, nil
}

// wait waits until the standby has replayed all that is committed.
func (s *show) wait(ctx context.Context) error {
	token, err := replication.Capture(ctx, s.writer)
	if err != nil {
		return err
	}
	return s.replica.Wait(ctx, token)
}

// settle lets the standby catch up, so that one step does not see another's lag, and both connections prepare what they
// ask.
func (s *show) settle(ctx context.Context) error {
	if err := s.write(ctx); err != nil {
		return err
	}
	if err := s.wait(ctx); err != nil {
		return err
	}
	_, err := s.stale(ctx)
	return err
}

// hold makes replay lag by d, on purpose.
func (s *show) hold(ctx context.Context, d time.Duration) error {
	if err := s.standby.Lag(ctx, d); err != nil {
		return err
	}
	return s.settle(ctx)
}
