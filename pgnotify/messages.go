package pgnotify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// MessagesConfig configures Messages. It is copied by NewMessages.
type MessagesConfig struct {
	// Channels are what to hear: a channel's Name is the prefix of its messages.
	// AtOnce is not possible: a message comes with its replay.
	Channels []Channel

	// BlockMost is how long a full buffer with Block may stop the stream from being
	// read before it is given up. For so long the server keeps WAL, and a fast
	// shutdown of it waits. 0 means DefaultBlockMost.
	BlockMost time.Duration

	// Logger gets the beginnings and ends of streams. nil: silence.
	Logger *slog.Logger
}

// Messages hands over what [Emit] sends, when the replica has replayed it, without
// a connection to the primary. It is the MessageHandler of a replication.Config,
// and hears over the one stream that the tracker of that replica has:
//
//	messages, err := pgnotify.NewMessages(pgnotify.MessagesConfig{Channels: …})
//	source, err := replication.New(replication.Config{Replica: …, Messages: messages})
//	replica, err := tracker.New(tracker.Config{Source: source})
//	go replica.Run(ctx)
//	err = messages.Run(ctx, replica)
//
// That needs PostgreSQL 16 and what replication.Logical needs. Where it is not
// possible, or not now, Stats says why, and it is tried again. A stream begins at
// once where replication.Config.Primary is set; the primary is asked for no more
// than that. Otherwise it begins when the primary next logs which transactions
// run: after up to 15 s, if anything is written there.
//
// When a stream has ended, messages are gone until another one has begun: all
// channels then get a [Resync]. After it, those of a standby that has crashed may
// come again. Each source has Messages of its own.
type Messages struct {
	cfg   MessagesConfig
	lines []*line

	ready     chan struct{}
	readyOnce sync.Once
	full      chan error // has room for one: why Run is to end

	running context.Context //nolint:containedctx // ends when Run has returned, for the source's calls
	over    context.CancelFunc

	mu    sync.Mutex
	stats Stats  // guarded by mu; without Channels
	gap   string // guarded by mu; why the last stream has ended
}

var _ replication.MessageHandler = (*Messages)(nil)

// NewMessages returns Messages that hand nothing over until Run is called. It does
// no I/O; an error names the field that is wrong.
func NewMessages(cfg MessagesConfig) (*Messages, error) {
	if len(cfg.Channels) == 0 {
		return nil, errors.New("pgnotify: MessagesConfig.Channels is empty: name the prefixes to hear")
	}
	m := &Messages{ready: make(chan struct{}), full: make(chan error, 1), stats: Stats{Failure: errNoStream}}
	m.running, m.over = context.WithCancel(context.Background())
	cfg.Channels = slices.Clone(cfg.Channels)
	for i := range cfg.Channels {
		c := &cfg.Channels[i]
		switch err := checkPrefix(c.Name); {
		case err != nil:
			return nil, fmt.Errorf("pgnotify: MessagesConfig.Channels[%d].Name %.70q: %w", i, c.Name, err)
		case slices.ContainsFunc(cfg.Channels[:i], func(o Channel) bool { return o.Name == c.Name }):
			return nil, fmt.Errorf("pgnotify: MessagesConfig.Channels: %q twice", c.Name)
		case c.Handler == nil:
			return nil, fmt.Errorf("pgnotify: MessagesConfig.Channels[%d].Handler of %q is nil", i, c.Name)
		case c.AtOnce:
			return nil, fmt.Errorf("pgnotify: MessagesConfig.Channels[%d].AtOnce of %q: a message comes with its replay", i, c.Name)
		case c.Buffer < 0:
			return nil, fmt.Errorf("pgnotify: MessagesConfig.Channels[%d].Buffer %d: want 0 or more", i, c.Buffer)
		case c.Full < Block || c.Full > Fail:
			return nil, fmt.Errorf("pgnotify: MessagesConfig.Channels[%d].Full %d: want Block, DropOldest or Fail", i, c.Full)
		}
		c.Buffer = cmp.Or(c.Buffer, DefaultBuffer)
		m.lines = append(m.lines, newLine(*c, nil))
	}
	if cfg.BlockMost = cmp.Or(cfg.BlockMost, DefaultBlockMost); cfg.BlockMost < 0 {
		return nil, fmt.Errorf("pgnotify: MessagesConfig.BlockMost %s: want 0 or more", cfg.BlockMost)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m.cfg = cfg
	return m, nil
}

// errNoStream is Stats.Failure before any stream was tried.
var errNoStream = errors.New("pgnotify: no stream has begun: give the Messages to a replication.Config, and run the tracker of that source")

// Run hands events over until ctx ends, a handler returns an error, or a buffer
// with Fail is full, and returns why; it returns tracker.ErrClosed when replica is
// closed while something waits for it. replica is the tracker of the source that
// has m: whoever made it runs it. All handlers have returned when Run does; what
// comes later is forgotten. It is called once.
func (m *Messages) Run(ctx context.Context, replica *tracker.Tracker) error {
	if replica == nil {
		return errors.New("pgnotify: Messages.Run: the tracker is nil: hand over that of the source that has the Messages")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer m.over()
	var all sync.WaitGroup
	for _, line := range m.lines {
		line.replica = replica
		all.Go(func() {
			if err := line.run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	select {
	case err := <-m.full:
		cancel(err)
	case <-ctx.Done():
	}
	all.Wait()
	return context.Cause(ctx)
}

// Ready is closed when a stream has begun for the first time: what is emitted from
// then on comes, or a Resync does.
func (m *Messages) Ready() <-chan struct{} { return m.ready }

// Stats returns what was done so far: Failure is why there is no stream, Positions
// is always 0.
func (m *Messages) Stats() Stats {
	m.mu.Lock()
	s := m.stats
	m.mu.Unlock()
	for _, line := range m.lines {
		s.Channels = append(s.Channels, line.snapshot())
	}
	return s
}

// Wants is for the source.
func (m *Messages) Wants(prefix string) bool { return m.line(prefix) != nil && m.running.Err() == nil }

func (m *Messages) line(prefix string) *line {
	for _, line := range m.lines {
		if line.channel.Name == prefix {
			return line
		}
	}
	return nil
}

// Began is for the source.
func (m *Messages) Began(_ context.Context, tok tracker.Token) error {
	m.mu.Lock()
	again := m.gap != ""
	gap := Resync{Reason: m.gap, Token: tok}
	if again {
		m.stats.Reconnects++
	}
	m.gap = ""
	m.stats.Connected, m.stats.Failure = true, nil
	m.mu.Unlock()
	if again {
		for _, line := range m.lines {
			line.resync(gap)
		}
	}
	m.readyOnce.Do(func() { close(m.ready) })
	m.cfg.Logger.Info("messages come", "from", tok)
	return nil
}

// Message is for the source.
func (m *Messages) Message(ctx context.Context, msg replication.Message) error {
	line := m.line(msg.Prefix)
	if msg.Size > MaxPayload {
		line.resync(Resync{Reason: fmt.Sprintf("a message of %d bytes was too large", msg.Size), Dropped: 1, Token: msg.Token})
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(m.running, cancel)
	defer stop()
	err := line.push(ctx, Notification{Channel: msg.Prefix, Payload: msg.Payload, Token: msg.Token}, m.cfg.BlockMost)
	if errors.Is(err, ErrFull) {
		select {
		case m.full <- err:
		default: // it is to end already
		}
	}
	if m.running.Err() != nil {
		return nil // forgotten
	}
	return err
}

// Missing is for the source.
func (m *Messages) Missing(reason string) {
	m.mu.Lock()
	ended := m.stats.Connected
	if ended {
		m.gap = reason
	}
	m.stats.Connected, m.stats.Failure = false, errors.New("pgnotify: no messages: "+reason)
	m.mu.Unlock()
	if ended {
		m.cfg.Logger.Warn("no messages", "reason", reason)
	}
}
