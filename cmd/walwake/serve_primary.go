package main

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// primaryWatch tells a tracker once in a while where the primary is, over one connection.
type primaryWatch struct {
	*app
	server  *server
	tracker *tracker.Tracker
	tell    func(text string, failing bool)
	every   time.Duration

	failure string // what was told last; empty: it works
}

// run goes on until ctx ends.
func (p *primaryWatch) run(ctx context.Context) {
	server := *p.server
	if server.config = server.config.Copy(); server.config.ConnectTimeout == 0 {
		server.config.ConnectTimeout = connectTimeout
	}
	for ctx.Err() == nil {
		err := server.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error { return p.ask(ctx, conn) })
		if ctx.Err() != nil {
			return
		}
		p.report(oneLine(server.advise(err)))
		select {
		case <-time.After(max(p.every, time.Second)):
		case <-ctx.Done():
		}
	}
}

// ask returns when the connection fails.
func (p *primaryWatch) ask(ctx context.Context, conn *pgx.Conn) error {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		at, err := p.capture(ctx, conn)
		if err != nil {
			return err
		}
		if o, known := p.tracker.LastReplay(); known && o.System != 0 && o.System != at.System {
			p.report("it is of another cluster than the replica")
		} else {
			p.report("")
		}
		p.tracker.PrimaryAt(at)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *primaryWatch) capture(ctx context.Context, conn *pgx.Conn) (tracker.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return replication.Capture(ctx, conn)
}

// report says how it goes, when that has changed.
func (p *primaryWatch) report(failure string) {
	if failure == p.failure {
		return
	}
	p.failure = failure
	if failure == "" {
		p.log.Info("primary answers", "primary", p.server.address)
		p.tell("the primary answers", false)
		return
	}
	p.log.Warn("primary cannot be asked: the lag is not known", "primary", p.server.address, "err", failure)
	p.tell("the primary cannot be asked: "+failure, true)
}

// joinFleet publishes the replica, and hears of the others, until ctx ends. What runs is done when the group is.
func (v *served) joinFleet(ctx context.Context, running *sync.WaitGroup, t *tracker.Tracker) (func() []pgnotify.Member, error) {
	primary := replication.Server{Config: v.primary.config}
	fleet, err := pgnotify.NewFleet(pgnotify.FleetConfig{})
	if err != nil {
		return nil, err
	}
	listener, err := pgnotify.New(pgnotify.Config{
		Primary: primary, Logger: v.library(),
		Channels: []pgnotify.Channel{fleet.Channel(), pgnotify.Announcements(t)},
	})
	if err != nil {
		return nil, err
	}
	publisher, err := pgnotify.NewPublisher(pgnotify.PublisherConfig{
		Primary: primary, Logger: v.library(), Trackers: []*tracker.Tracker{t},
	})
	if err != nil {
		return nil, err
	}
	for what, run := range map[string]func(context.Context) error{"hearing of the fleet": listener.Run, "telling the fleet": publisher.Run} {
		running.Go(func() {
			if err := run(ctx); ctx.Err() == nil {
				v.log.Error("fleet has ended: start again", "what", what, "err", oneLine(v.primary.advise(err)))
			}
		})
	}
	return fleet.Members, nil
}
