package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
)

// demoNotifications is how many are sent, each with the row that it is about, while replay is held back.
const demoNotifications = 10

// demoNotified is what who heard of a row found on the standby.
type demoNotified struct {
	DelayMS       int64 `json:"replay_delay_ms"`
	Notifications int   `json:"notifications"`
	StaleBare     int   `json:"stale_bare"` // of those who LISTEN on the primary and read at once
	StaleHeld     int   `json:"stale_held"` // of those who are told once the standby has replayed the sender
}

// notify sends notifications, and reads what they are about: as a bare LISTEN would have one do, and as a Listener does.
func (s *show) notify(ctx context.Context) (n demoNotified, err error) {
	n = demoNotified{DelayMS: demoHold.Milliseconds(), Notifications: demoNotifications}
	bare, err := pgx.ConnectConfig(ctx, s.writer.Config())
	if err != nil {
		return n, err
	}
	defer bare.Close(context.WithoutCancel(ctx))
	if _, err := bare.Exec(ctx, `listen walwake_demo`); err != nil {
		return n, err
	}
	heard := make(chan struct{})
	listener, err := pgnotify.New(pgnotify.Config{
		Primary: replication.Server{Config: s.writer.Config()}, Replica: s.replica.Tracker, Logger: s.library(),
		Channels: []pgnotify.Channel{{Name: "walwake_demo", Handler: pgnotify.HandlerFunc(func(ctx context.Context, _ pgnotify.Event) error {
			select {
			case heard <- struct{}{}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})}},
	})
	if err != nil {
		return n, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var listening sync.WaitGroup
	listening.Go(func() { cancel(fmt.Errorf("listen: %w", listener.Run(ctx))) })
	defer listening.Wait()
	defer cancel(nil)
	select {
	case <-listener.Ready():
	case <-ctx.Done():
		return n, context.Cause(ctx)
	}
	for range demoNotifications {
		s.last++
		_, err := s.writer.Exec(ctx, fmt.Sprintf(`insert into walwake_demo values (%d); notify walwake_demo, '%[1]d'`, s.last), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return n, fmt.Errorf("write to the primary: %w", err)
		}
		if _, err := bare.WaitForNotification(ctx); err != nil {
			return n, errors.Join(err, context.Cause(ctx))
		}
		if err := s.countStale(ctx, &n.StaleBare); err != nil {
			return n, err
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return n, context.Cause(ctx)
		}
		if err := s.countStale(ctx, &n.StaleHeld); err != nil {
			return n, err
		}
	}
	s.tell(fmt.Sprintf("replay held back by %d ms, %d notifications: %d rows were not there yet for who heard them from the primary, %d for who was told once they are replayed",
		n.DelayMS, n.Notifications, n.StaleBare, n.StaleHeld))
	return n, s.settle(ctx)
}

func (s *show) countStale(ctx context.Context, n *int) error {
	stale, err := s.stale(ctx)
	if stale {
		*n++
	}
	return err
}
