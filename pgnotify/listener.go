package pgnotify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// Channel is one to LISTEN on.
type Channel struct {
	// Name is the channel's, as NOTIFY names it: case matters, no quotes.
	Name string

	// Handler gets its events.
	Handler Handler

	// AtOnce hands notifications over when they come, whatever the replica shows.
	AtOnce bool

	// Buffer is how many notifications are held at most: those that the replica has
	// not replayed and those that the handler has not come to. A payload has up to
	// 8,000 bytes. 0 means DefaultBuffer.
	Buffer int

	// Full says what happens when the buffer is full.
	Full Policy
}

// Config configures a Listener. It is copied by New.
type Config struct {
	// Primary is where to LISTEN: directly, or through a pooler in session mode. Two
	// connections are made, one that hears and one that asks for positions. For
	// failovers name all servers, with target_session_attrs=read-write: one that the
	// replica's timeline has left is passed over. The role needs nothing but LOGIN.
	Primary replication.Server

	// Replica follows the replica that handlers read. It may be nil when all
	// channels are AtOnce. Whoever made it runs it.
	Replica *tracker.Tracker

	// Channels are what to LISTEN on, each named once.
	Channels []Channel

	// Probe is how long the connection may be silent before the server is asked
	// whether it still listens for us: a link that is dead, and a primary that has
	// been superseded, is found out within this and Primary.QueryTimeout. 0 means
	// DefaultProbe.
	Probe time.Duration

	// BlockMost is how long a full buffer with Block may stop reading before the
	// connection is given up. 0 means DefaultBlockMost.
	BlockMost time.Duration

	// RetryMin and RetryMax bound the pause before connecting again: it doubles from
	// the one to the other, with jitter. 0 means DefaultRetryMin and DefaultRetryMax.
	RetryMin, RetryMax time.Duration

	// Logger gets lost connections and new ones. nil: silence.
	Logger *slog.Logger
}

// What a zero field means.
const (
	DefaultBuffer    = 4096
	DefaultProbe     = 2 * time.Second
	DefaultBlockMost = time.Minute
	DefaultRetryMin  = 50 * time.Millisecond
	DefaultRetryMax  = 5 * time.Second
)

// ErrCannotListen ends a Listener whose server cannot LISTEN: a standby, or
// a pooler that gives each transaction another server process. The error says which.
// Once it has listened, a standby is taken for a failover that is under way, and
// tried again.
var ErrCannotListen = errors.New("pgnotify: LISTEN is not possible here")

// Listener LISTENs on the primary and hands notifications over when the replica
// shows what they are about. Run drives it; all other methods may be called by
// any goroutine, before Run as well.
type Listener struct {
	cfg   Config
	lines []*line

	ran       atomic.Bool
	ready     chan struct{}
	readyOnce sync.Once

	mu    sync.Mutex
	stats Stats // guarded by mu; without Channels
}

// Stats is what a Listener has done so far.
type Stats struct {
	Connected  bool
	Reconnects int
	Failure    error // why the connection was lost, or could not be made; nil while there is one
	Positions  int   // how often the primary was asked for a position to wait for: once for a burst
	Channels   []ChannelStats
}

// ChannelStats is of one channel.
type ChannelStats struct {
	Channel   string
	Received  int // notifications
	Delivered int // to the handler
	Held      int // now: not delivered yet
	Dropped   int
	Lost      int // of writes that a failover has lost
	Resyncs   int // delivered
}

// New returns a Listener that does nothing until Run is called. It does no I/O;
// an error names the field that is wrong.
func New(cfg Config) (*Listener, error) {
	if len(cfg.Channels) == 0 {
		return nil, errors.New("pgnotify: Config.Channels is empty: name what to LISTEN on")
	}
	cfg.Channels = slices.Clone(cfg.Channels)
	l := &Listener{ready: make(chan struct{})}
	for i := range cfg.Channels {
		c := &cfg.Channels[i]
		switch {
		case c.Name == "" || len(c.Name) > 63 || strings.ContainsRune(c.Name, 0):
			return nil, fmt.Errorf("pgnotify: Config.Channels[%d].Name %q: want 1 to 63 bytes, none of them 0", i, c.Name)
		case slices.ContainsFunc(cfg.Channels[:i], func(o Channel) bool { return o.Name == c.Name }):
			return nil, fmt.Errorf("pgnotify: Config.Channels: %q twice", c.Name)
		case c.Handler == nil:
			return nil, fmt.Errorf("pgnotify: Config.Channels[%d].Handler of %q is nil", i, c.Name)
		case c.Buffer < 0:
			return nil, fmt.Errorf("pgnotify: Config.Channels[%d].Buffer %d: want 0 or more", i, c.Buffer)
		case c.Full < Block || c.Full > Fail:
			return nil, fmt.Errorf("pgnotify: Config.Channels[%d].Full %d: want Block, DropOldest or Fail", i, c.Full)
		case !c.AtOnce && cfg.Replica == nil:
			return nil, fmt.Errorf("pgnotify: Config.Replica is nil: channel %q waits for it, or make it AtOnce", c.Name)
		}
		c.Buffer = cmp.Or(c.Buffer, DefaultBuffer)
		l.lines = append(l.lines, newLine(*c, cfg.Replica))
	}
	cfg.Probe = cmp.Or(cfg.Probe, DefaultProbe)
	cfg.BlockMost = cmp.Or(cfg.BlockMost, DefaultBlockMost)
	cfg.RetryMin = cmp.Or(cfg.RetryMin, DefaultRetryMin)
	cfg.RetryMax = cmp.Or(cfg.RetryMax, max(DefaultRetryMax, cfg.RetryMin))
	if cfg.Probe < 0 || cfg.BlockMost < 0 || cfg.RetryMin < 0 || cfg.RetryMax < cfg.RetryMin {
		return nil, fmt.Errorf("pgnotify: Config.Probe %s, BlockMost %s, RetryMin %s, RetryMax %s: want none below 0, and RetryMin <= RetryMax",
			cfg.Probe, cfg.BlockMost, cfg.RetryMin, cfg.RetryMax)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if cfg.Primary, err = cfg.Primary.Checked(); err != nil {
		return nil, fmt.Errorf("pgnotify: Config.Primary: %w", err)
	}
	l.cfg = cfg
	return l, nil
}

// Ready is closed when all channels are listened on for the first time: what is
// notified from then on comes, or a Resync does.
func (l *Listener) Ready() <-chan struct{} { return l.ready }

// Stats returns what was done so far. It does not block.
func (l *Listener) Stats() Stats {
	l.mu.Lock()
	s := l.stats
	l.mu.Unlock()
	for _, line := range l.lines {
		s.Channels = append(s.Channels, line.snapshot())
	}
	return s
}

func (l *Listener) count(f func(*Stats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.stats)
}

// Run listens until ctx ends, a handler returns an error, a buffer with Fail is
// full (ErrFull), it turns out that LISTEN is not possible (ErrCannotListen), that
// the replica is of another cluster (tracker.ErrWrongSystem), or that its tracker
// has ended (tracker.ErrClosed, when there is something to wait for), and returns
// why: ctx's cause, or one of these. It never returns nil. A connection that is lost,
// or cannot be made, is made again, also the first. All handlers have returned when
// it does, and nothing of it is left. It is called once.
func (l *Listener) Run(ctx context.Context) error {
	if !l.ran.CompareAndSwap(false, true) {
		return errors.New("pgnotify: Run was called before: make a new Listener")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for _, line := range l.lines {
		all.Go(func() {
			if err := line.run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	err := l.keep(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(err)
	all.Wait()
	return err
}

// keep listens over one link after the other.
func (l *Listener) keep(ctx context.Context) error {
	pause := l.cfg.RetryMin
	var gap error // why there may be a gap; nil before the first connection
	for {
		listened, err := l.listen(ctx, gap)
		l.count(func(s *Stats) { s.Connected, s.Failure = false, err })
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrFull), errors.Is(err, tracker.ErrWrongSystem):
			return err
		case errors.Is(err, ErrCannotListen) && (gap == nil || listened):
			return err // later it may be a failover that is under way
		}
		if listened {
			gap, pause = err, l.cfg.RetryMin
			l.count(func(s *Stats) { s.Reconnects++ })
		}
		l.cfg.Logger.Warn("not listening", "error", err, "again_in", pause)
		select {
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, l.cfg.RetryMax)
	}
}

// listen listens over one link until it ends. listened reports whether it ever
// did. gap is why the one before has ended.
func (l *Listener) listen(ctx context.Context, gap error) (listened bool, err error) {
	k, err := l.connect(ctx)
	if err != nil {
		return false, err
	}
	defer k.close()
	if gap != nil {
		for _, line := range l.lines {
			line.resync(Resync{Reason: gap.Error(), Token: k.at})
		}
	}
	l.count(func(s *Stats) { s.Connected, s.Failure = true, nil })
	l.readyOnce.Do(func() { close(l.ready) })
	l.cfg.Logger.Info("listening", "channels", len(l.lines))
	for {
		if err := l.next(ctx, k); err != nil {
			return true, err
		}
		if err := l.pass(ctx, k); err != nil {
			return true, err
		}
	}
}

// settleAfter is how long nothing is heard before the flush of the latest
// position is seen to.
const settleAfter = time.Millisecond

// next returns when something has been heard, with what has come with it.
func (l *Listener) next(ctx context.Context, k *link) error {
	for len(k.heard) == 0 {
		if err := k.finish(ctx); err != nil {
			return err
		}
		patience := l.cfg.Probe
		switch {
		case k.probing:
			patience = l.cfg.Primary.QueryTimeout
		case k.owed:
			patience = min(settleAfter, patience)
		}
		silent, err := k.receive(ctx, patience)
		switch {
		case err != nil:
			return err
		case silent && k.probing:
			return errSilent
		case silent && k.owed:
			err = k.settle(ctx)
		case silent:
			err = l.look(ctx, k)
		}
		if err != nil {
			return err
		}
	}
	return k.more(ctx)
}

// look is what silence calls for: both connections answer, and are to the primary
// that the replica follows, which is asked too.
func (l *Listener) look(ctx context.Context, k *link) error {
	if l.cfg.Replica != nil {
		known := l.hurry()
		defer known()
	}
	if err := k.probe(ctx); err != nil {
		return err
	}
	if k.mouth != nil {
		if _, err := k.position(ctx); err != nil {
			return err
		}
		if err := k.finish(ctx); err != nil {
			return err
		}
		k.owed = false // nobody waits for it
	}
	return l.superseded(k.at)
}

// hurryAhead is how far ahead of the replica a position is that nobody means.
// hurryFor is how long it is waited for at most, where the primary is far away:
// waits that last have a stream opened, see package replication.
const (
	hurryAhead = 1 << 20
	hurryFor   = 5 * time.Millisecond
)

// hurry has the replica asked where it is already while the primary is, so that
// the two answers come side by side. What it returns is to be called when the
// position to wait for is known.
func (l *Listener) hurry() (known func()) {
	o, is := l.cfg.Replica.LastReplay()
	if !is {
		return func() {}
	}
	w := l.cfg.Replica.Request(tracker.Token{LSN: o.LSN + hurryAhead})
	most := time.AfterFunc(hurryFor, w.Cancel)
	return func() { most.Stop(); w.Cancel() }
}

// pass gives what was heard to the lines. The position is asked for after it was
// heard, once for all of it: the sender's own is before its commit.
func (l *Listener) pass(ctx context.Context, k *link) error {
	var tok tracker.Token
	if slices.ContainsFunc(k.heard, func(n *pgconn.Notification) bool { return l.waitsFor(n.Channel) }) {
		known := l.hurry()
		var err error
		tok, err = k.position(ctx)
		known()
		l.count(func(s *Stats) { s.Positions++ })
		if err == nil {
			err = l.superseded(tok)
		}
		if err != nil {
			return err
		}
	}
	for i, n := range k.heard {
		k.heard[i] = nil
		line := l.line(n.Channel)
		if line == nil {
			continue
		}
		e := Notification{Channel: n.Channel, Payload: n.Payload, PID: n.PID}
		if !line.channel.AtOnce {
			e.Token = tok
		}
		if err := line.push(ctx, e, l.cfg.BlockMost); err != nil {
			return err
		}
	}
	k.heard, k.bytes = k.heard[:0], 0
	return nil
}

// line returns the channel's; nil: it is none of ours.
func (l *Listener) line(channel string) *line {
	i := slices.IndexFunc(l.lines, func(line *line) bool { return line.channel.Name == channel })
	if i < 0 {
		return nil
	}
	return l.lines[i]
}

// waitsFor reports whether the channel's notifications wait for the replica.
func (l *Listener) waitsFor(channel string) bool {
	line := l.line(channel)
	return line != nil && !line.channel.AtOnce
}

// waits reports whether any do.
func (l *Listener) waits() bool {
	return slices.ContainsFunc(l.lines, func(line *line) bool { return !line.channel.AtOnce })
}
