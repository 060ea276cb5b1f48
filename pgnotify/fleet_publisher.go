package pgnotify

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// PublisherConfig configures a Publisher. It is copied by NewPublisher.
type PublisherConfig struct {
	// Primary is where to NOTIFY, directly or through a pooler. For failovers name
	// all servers, with target_session_attrs=read-write. Required.
	Primary replication.Server

	// Trackers follow the replicas to publish, each under its tracker.Config.Name,
	// which is printable, has 1 to 100 bytes and is named once. Whoever made them
	// runs them.
	Trackers []*tracker.Tracker

	// Instance tells this process from others that publish the same replicas:
	// printable, at most 100 bytes. Empty means the process id and something random.
	Instance string

	// Channel is what to NOTIFY. Empty means DefaultFleet.
	Channel string

	// Interval is how often each replica is published when nothing has changed. It
	// must be well below FleetConfig.Silent. 0 means DefaultHeartbeat.
	Interval time.Duration

	// Soonest is the least time from one transaction with NOTIFYs to the next, and
	// how often the trackers are looked at. 0 means DefaultSoonest.
	Soonest time.Duration

	// RetryMin, RetryMax, Farewell and Logger are as in AnnouncerConfig.
	RetryMin, RetryMax time.Duration
	Farewell           time.Duration
	Logger             *slog.Logger
}

// What a zero field of PublisherConfig means.
const (
	DefaultFleet     = "walwake_fleet" // the channel
	DefaultHeartbeat = time.Second
	DefaultSoonest   = 100 * time.Millisecond
)

// A Publisher tells every Fleet where the replicas of this process's trackers
// are: each of them once in Interval, and within twice Soonest when
//
//   - its position has become known or unknown, or its timeline or source is
//     another;
//   - it has replayed what was announced, see Announcer and Announcements: readers
//     of what is being written then know where to go.
//
// That its position has moved is no reason, because each NOTIFY moves it: an idle
// cluster would never come to rest. The replica is asked for its position once for
// each NOTIFY, and once in Soonest while it has not replayed what was announced:
// see (*tracker.Tracker).Refresh.
//
// Run drives it; all other methods may be called by any number of goroutines,
// before Run as well.
type Publisher struct {
	s        *sender
	interval time.Duration
	instance string
	lines    []*published // the sender's
}

// published is what was said last of a tracker.
type published struct {
	t    *tracker.Tracker
	said member
	at   time.Time // when; zero before the first
}

// PublisherStats is what a Publisher has done so far.
type PublisherStats struct {
	Instance  string // as published
	Notifies  uint64 // NOTIFYs that the primary has acknowledged: one for each replica
	Failures  uint64 // transactions that failed, and connections that could not be made
	Connected bool   // whether the last of them worked, and the connection is kept
	Failure   error  // why it did not; nil when it did
}

// NewPublisher returns a Publisher that says nothing until Run is called. It does
// no I/O; an error names the field that is wrong.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	s, err := newSender(senderConfig{
		of:      "PublisherConfig",
		primary: cfg.Primary,
		channel: cfg.Channel, defaultChannel: DefaultFleet,
		gap: cfg.Soonest, defaultGap: DefaultSoonest, gapOf: "Soonest",
		retryMin: cfg.RetryMin, retryMax: cfg.RetryMax, farewell: cfg.Farewell,
		log: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	p := &Publisher{
		s:        s,
		interval: cmp.Or(cfg.Interval, DefaultHeartbeat),
		instance: cmp.Or(cfg.Instance, fmt.Sprintf("%d-%.6s", os.Getpid(), rand.Text())),
	}
	s.words, s.look = p.words, s.gap
	switch {
	case len(cfg.Trackers) == 0:
		return nil, errors.New("pgnotify: PublisherConfig.Trackers is empty: name whose replicas to publish")
	case p.interval < s.gap:
		return nil, fmt.Errorf("pgnotify: PublisherConfig.Interval %s: want at least Soonest, %s", p.interval, s.gap)
	case !presentable(p.instance):
		return nil, fmt.Errorf("pgnotify: PublisherConfig.Instance %q: want 1 to %d printable bytes", p.instance, maxName)
	}
	for i, t := range cfg.Trackers {
		if t == nil {
			return nil, fmt.Errorf("pgnotify: PublisherConfig.Trackers[%d] is nil", i)
		}
		name := t.State().Name
		switch {
		case !presentable(name):
			return nil, fmt.Errorf("pgnotify: PublisherConfig.Trackers[%d]: its name %q: want 1 to %d printable bytes", i, name, maxName)
		case slices.ContainsFunc(p.lines, func(l *published) bool { return l.t.State().Name == name }):
			return nil, fmt.Errorf("pgnotify: PublisherConfig.Trackers: two are named %q: see tracker.Config.Name", name)
		}
		p.lines = append(p.lines, &published{t: t})
	}
	return p, nil
}

// words returns what is due.
func (p *Publisher) words(last bool) (payloads []string, said func()) {
	now := time.Now()
	var due []func()
	for _, l := range p.lines {
		m, behind, changed := l.look(p.instance, last)
		if m.Left && (l.at.IsZero() || l.said.Left) {
			continue // nobody knows of it, or everybody that it has left
		}
		age := now.Sub(l.at)
		inTime := age >= p.interval
		if behind || !inTime && age >= p.interval-p.s.gap {
			l.t.Refresh() // for the next time
		}
		if !inTime && !changed {
			continue
		}
		payloads = append(payloads, m.payload())
		due = append(due, func() { l.said, l.at = m, now })
	}
	return payloads, func() {
		for _, f := range due {
			f()
		}
	}
}

// look returns what there is to say of a tracker, whether the replica has not
// replayed what was announced, and whether all this is to be said before its time.
func (l *published) look(instance string, last bool) (m member, behind, changed bool) {
	s := l.t.State()
	m = member{Name: s.Name, Instance: instance, Known: s.Known, Source: cut(s.Source), Waiting: s.Demand.Waiting, Left: last || s.Closed}
	if s.Known {
		m.At = tracker.Token{System: s.Position.System, Timeline: s.Position.Timeline, LSN: s.Position.LSN}
	}
	before, announced := l.said, whole(s.Primary)
	behind = announced && !has(m.At, s.Primary)
	changed = m.Left != before.Left || m.Known != before.Known || m.Source != before.Source ||
		m.At.System != before.At.System || m.At.Timeline != before.At.Timeline ||
		announced && !behind && !has(before.At, s.Primary)
	return m, behind, changed
}

// Run publishes until ctx ends or Close is called; at last it says that the
// replicas are not published any more, for at most Farewell. What fails it tries
// again. It blocks, is called once, and belongs to the caller's goroutine. It
// returns nil after Close, and ctx's cause otherwise.
func (p *Publisher) Run(ctx context.Context) error { return p.s.run(ctx) }

// Close ends Run and waits for it. It may be called several times, and without
// Run.
func (p *Publisher) Close() { p.s.close() }

// Stats returns what was done so far. It does not block.
func (p *Publisher) Stats() PublisherStats {
	s := p.s.snapshot()
	return PublisherStats{Instance: p.instance, Notifies: s.notifies, Failures: s.failures, Connected: s.connected, Failure: s.failure}
}
