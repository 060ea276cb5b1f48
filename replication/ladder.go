package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/tracker"
)

// Kind is a way to learn that a replica has replayed more.
type Kind string

// The kinds, best first where all are possible.
const (
	// Physical listens to the WAL that the standby passes on. It needs
	// REPLICATION.
	Physical Kind = "physical"
	// Logical listens to the keepalives of a temporary logical slot on the
	// standby, from PostgreSQL 16. It needs REPLICATION, wal_level = logical
	// and a publication, which may be empty.
	Logical Kind = "logical"
	// WaitFor has the server itself tell: WAIT FOR LSN, from PostgreSQL 19.
	WaitFor Kind = "waitfor"
	// Poll asks, ever less often. It is always possible.
	Poll Kind = "poll"
)

// Kinds returns all kinds, best first.
//
// The order is that of the measured latency; where two are alike, the one that
// asks less of the server comes first. The README has the figures.
func Kinds() []Kind { return []Kind{Physical, Logical, WaitFor, Poll} }

// Config configures a Ladder. It is copied by New.
type Config struct {
	// Replica is the server to observe. A role with LOGIN will do for Poll and
	// WaitFor: see the package's Timelines.
	Replica Server

	// Primary, if it is set, is used by Logical alone, to have its slot made at
	// once: pg_log_standby_snapshot().
	Primary Server

	// Use names the kinds that may be used, best first. Poll is always the last,
	// named or not. nil means Kinds().
	Use []Kind

	// Publication is what Logical subscribes to. Empty means DefaultPublication.
	Publication string

	// MinInterval and MaxInterval bound the pause before the server is asked
	// again while somebody waits and nothing has come: an eighth of the time
	// that the lowest position has been waited for. With a stream they are the
	// safety net for what it lost.
	// 0 means DefaultMinInterval and DefaultMaxInterval.
	MinInterval, MaxInterval time.Duration

	// IdleInterval is the pause while nobody waits, when a query only shows that
	// the server still answers. 0 means DefaultIdleInterval.
	IdleInterval time.Duration

	// Linger is how long a stream goes on after the last wait that lasted for
	// 10 ms, before it is closed. 0 means DefaultLinger.
	Linger time.Duration

	// Messages, if it is set, gets the messages that come through the replica's WAL.
	// They come over the stream of Logical, which then comes first, named in Use or
	// not, is open all the time, and serves the tracker as well. That needs what
	// Logical needs, and works on a primary too.
	Messages MessageHandler
}

// What a zero field of Config means.
const (
	DefaultPublication  = "walwake"
	DefaultMinInterval  = 100 * time.Microsecond
	DefaultMaxInterval  = 25 * time.Millisecond
	DefaultIdleInterval = 10 * time.Second
	DefaultLinger       = 10 * time.Second
)

// Ladder is the tracker.Source for one PostgreSQL server, standby or primary.
//
// Every position that it reports is the server's own answer over one session,
// which is the epoch; the kinds differ in when the server is asked. So a stream
// that drops, repeats itself or loses something costs time and never
// correctness, and another one may take its place at any moment.
type Ladder struct {
	cfg  Config
	peer atomic.Pointer[Peer]
}

var _ tracker.Source = (*Ladder)(nil)

// New returns a Ladder. It does no I/O; an error names the field that is wrong.
func New(cfg Config) (*Ladder, error) {
	var err error
	if cfg.Replica, err = cfg.Replica.Checked(); err != nil {
		return nil, fmt.Errorf("replication: Config.Replica: %w", err)
	}
	if !cfg.Primary.isZero() {
		if cfg.Primary, err = cfg.Primary.Checked(); err != nil {
			return nil, fmt.Errorf("replication: Config.Primary: %w", err)
		}
	}
	if cfg.Use == nil {
		cfg.Use = Kinds()
	}
	cfg.Use = slices.Clone(cfg.Use)
	for i, k := range cfg.Use {
		if !slices.Contains(Kinds(), k) {
			return nil, fmt.Errorf("replication: Config.Use: kind %q: want one of %q", k, Kinds())
		}
		if slices.Contains(cfg.Use[:i], k) {
			return nil, fmt.Errorf("replication: Config.Use: kind %q twice", k)
		}
	}
	if i := slices.Index(cfg.Use, Poll); i >= 0 {
		cfg.Use = cfg.Use[:i] // what is behind it would never be used
	}
	cfg.Use = append(cfg.Use, Poll)
	if cfg.Messages != nil { // one stream is enough, and it has to be that one
		cfg.Use = append([]Kind{Logical}, slices.DeleteFunc(cfg.Use, func(k Kind) bool { return k == Logical })...)
	}
	setDefault(&cfg.Publication, DefaultPublication)
	setDefault(&cfg.MinInterval, DefaultMinInterval)
	setDefault(&cfg.MaxInterval, max(DefaultMaxInterval, cfg.MinInterval))
	setDefault(&cfg.IdleInterval, max(DefaultIdleInterval, cfg.MaxInterval))
	setDefault(&cfg.Linger, DefaultLinger)
	if cfg.MinInterval < 0 || cfg.MaxInterval < cfg.MinInterval || cfg.IdleInterval < cfg.MaxInterval {
		return nil, fmt.Errorf("replication: Config.MinInterval %s, MaxInterval %s, IdleInterval %s: want 0 < Min <= Max <= Idle",
			cfg.MinInterval, cfg.MaxInterval, cfg.IdleInterval)
	}
	if cfg.Linger < 0 {
		return nil, fmt.Errorf("replication: Config.Linger %s: want 0 or more", cfg.Linger)
	}
	return &Ladder{cfg: cfg}, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Name returns "poll" until another kind is in use: see tracker.State.
func (l *Ladder) Name() string { return string(Poll) }

// Observe connects and reports until ctx ends or the connection fails. Where a
// plain connection does not tell the timeline, it goes on over a replication
// connection, if the role may have one.
func (l *Ladder) Observe(ctx context.Context, feed *tracker.Feed) error {
	run := &run{cfg: l.cfg, feed: feed, peer: &l.peer, histories: &histories{server: l.cfg.Replica}, upgrade: &upgrade{server: l.cfg.Replica}, board: newBoard(l.cfg.Use, feed)}
	for {
		err := run.observe(ctx)
		run = run.next()
		switch {
		case errors.Is(err, errUpgraded):
		case run.s != nil:
			run.s.close(false) // it came too late
			run.s = nil
		}
		if !errors.Is(err, errUpgraded) && !errors.Is(err, errPromoted) {
			return err
		}
	}
}
