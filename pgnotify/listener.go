package pgnotify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
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
	// Primary is where to LISTEN: directly, or through a pooler in session mode. For
	// failovers name all servers, with target_session_attrs=read-write.
	Primary replication.Server

	// Replica follows the replica that handlers read. It may be nil when all
	// channels are AtOnce. Whoever made it runs it.
	Replica *tracker.Tracker

	// Channels are what to LISTEN on, each named once.
	Channels []Channel

	// Probe is how long the connection may be silent before the server is asked
	// whether it still listens for us: a link that is dead is found out within this
	// and Primary.QueryTimeout. 0 means DefaultProbe.
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
// a pooler that gives each transaction another server process.
var ErrCannotListen = errors.New("pgnotify: LISTEN is not possible here")

// Listener LISTENs on the primary and hands notifications over when the replica
// shows what they are about. Run drives it; all other methods may be called by
// any goroutine, before Run as well.
type Listener struct {
	cfg   Config
	lines []*line

	ready     chan struct{}
	readyOnce sync.Once

	heard []*pgconn.Notification // by the connection, and not pushed yet; Run's

	mu    sync.Mutex
	stats Stats // guarded by mu; without Channels
}

// Stats is what a Listener has done so far.
type Stats struct {
	Connected  bool
	Reconnects int
	Failure    error // why the connection was lost, or could not be made; nil while there is one
	Positions  int   // how often the primary was asked for its position: once for a burst
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
		case c.Name == "" || len(c.Name) > 63:
			return nil, fmt.Errorf("pgnotify: Config.Channels[%d].Name %q: want 1 to 63 bytes", i, c.Name)
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

// Stats returns what was done so far.
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
// full, or it turns out that LISTEN is not possible, and returns why. A lost
// connection is made again. All handlers have returned when it does. It is called
// once.
func (l *Listener) Run(ctx context.Context) error {
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

// keep listens over one connection after the other.
func (l *Listener) keep(ctx context.Context) error {
	pause := l.cfg.RetryMin
	var gap error // why there may be a gap; nil before the first connection
	for {
		listened, err := l.listen(ctx, gap)
		l.count(func(s *Stats) { s.Connected, s.Failure = false, err })
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrFull):
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

// listen listens over one connection until it ends. listened reports whether it
// ever did. gap is why the one before has ended.
func (l *Listener) listen(ctx context.Context, gap error) (listened bool, err error) {
	l.heard = nil
	conn, err := l.cfg.Primary.Connect(ctx, func(cfg *pgx.ConnConfig) {
		cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { l.heard = append(l.heard, n) }
	})
	if err != nil {
		return false, err
	}
	defer disconnect(conn)
	if err := l.subscribe(ctx, conn); err != nil {
		return false, err
	}
	if gap != nil {
		tok, err := l.position(ctx, conn)
		if err != nil {
			return false, err
		}
		for _, line := range l.lines {
			line.resync(Resync{Reason: gap.Error(), Token: tok})
		}
	}
	l.count(func(s *Stats) { s.Connected, s.Failure = true, nil })
	l.readyOnce.Do(func() { close(l.ready) })
	l.cfg.Logger.Info("listening", "channels", len(l.lines))
	for {
		if err := l.next(ctx, conn); err != nil {
			return true, err
		}
		if err := l.pass(ctx, conn); err != nil {
			return true, err
		}
	}
}

// subscribe LISTENs, and looks whether that has worked.
func (l *Listener) subscribe(ctx context.Context, conn *pgx.Conn) error {
	for _, line := range l.lines {
		err := l.bounded(ctx, func(ctx context.Context) error {
			_, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{line.channel.Name}.Sanitize(), pgx.QueryExecModeSimpleProtocol)
			return err
		})
		if e, is := errors.AsType[*pgconn.PgError](err); is && e.Code == readOnlyTransaction {
			return fmt.Errorf("%w: the server is a standby: connect to the primary (for failovers name all servers, with target_session_attrs=read-write): %w", ErrCannotListen, err)
		}
		if err != nil {
			return fmt.Errorf("pgnotify: LISTEN %s: %w", line.channel.Name, err)
		}
	}
	return l.probe(ctx, conn)
}

// readOnlyTransaction is the SQLSTATE of LISTEN during recovery.
const readOnlyTransaction = "25006"

// probe asks whether the server process still listens for us. Behind a pooler in
// transaction mode another one answers, sooner or later, which does not.
func (l *Listener) probe(ctx context.Context, conn *pgx.Conn) error {
	var listening int
	err := l.bounded(ctx, func(ctx context.Context) error {
		return conn.QueryRow(ctx, `SELECT count(*) FROM pg_listening_channels() c WHERE c = ANY ($1)`, pgx.QueryExecModeExec, l.names()).Scan(&listening)
	})
	switch {
	case err != nil:
		return fmt.Errorf("pgnotify: the server does not answer: %w", err)
	case listening < len(l.lines):
		return fmt.Errorf("%w: the server process that answers listens on %d of %d channels: connect directly, or through a pooler in session mode",
			ErrCannotListen, listening, len(l.lines))
	}
	return nil
}

func (l *Listener) names() []string {
	var names []string
	for _, line := range l.lines {
		names = append(names, line.channel.Name)
	}
	return names
}

// bounded gives f QueryTimeout.
func (l *Listener) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Primary.QueryTimeout)
	defer cancel()
	return f(ctx)
}

// next returns when something has been heard.
func (l *Listener) next(ctx context.Context, conn *pgx.Conn) error {
	for len(l.heard) == 0 {
		silent, cancel := context.WithTimeout(ctx, l.cfg.Probe)
		err := conn.PgConn().WaitForNotification(silent)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case conn.IsClosed() || silent.Err() == nil:
			return fmt.Errorf("pgnotify: the connection has ended: %w", err)
		default:
			if err := l.probe(ctx, conn); err != nil {
				return err
			}
		}
	}
	return nil
}

// pass gives what was heard to the lines. The position is asked for after it was
// heard, once for all of it: the sender's own is before its commit, and what is
// heard while the answer comes is of the next burst.
func (l *Listener) pass(ctx context.Context, conn *pgx.Conn) error {
	n := len(l.heard)
	var tok tracker.Token
	if slices.ContainsFunc(l.heard, func(n *pgconn.Notification) bool { return !l.line(n.Channel).channel.AtOnce }) {
		var err error
		if tok, err = l.position(ctx, conn); err != nil {
			return err
		}
	}
	burst := l.heard[:n]
	l.heard = slices.Clone(l.heard[n:])
	for _, n := range burst {
		line := l.line(n.Channel)
		e := Notification{Channel: n.Channel, Payload: n.Payload, PID: n.PID}
		if !line.channel.AtOnce {
			e.Token = tok
		}
		if err := line.push(ctx, e, l.cfg.BlockMost); err != nil {
			return err
		}
	}
	return nil
}

// line returns the channel's. The server notifies of no other.
func (l *Listener) line(channel string) *line {
	i := slices.IndexFunc(l.lines, func(line *line) bool { return line.channel.Name == channel })
	return l.lines[i]
}

func (l *Listener) position(ctx context.Context, conn *pgx.Conn) (tok tracker.Token, err error) {
	err = l.bounded(ctx, func(ctx context.Context) error {
		tok, err = replication.Capture(ctx, conn)
		return err
	})
	l.count(func(s *Stats) { s.Positions++ })
	if err != nil {
		return tok, fmt.Errorf("pgnotify: ask the primary for its position: %w", err)
	}
	return tok, nil
}

func disconnect(conn *pgx.Conn) {
	const goodbye = 250 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	_ = conn.Close(ctx)
}
