package pgnotify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
)

// A sender says on a channel what there is to say when it comes to it, and not
// what there was to say since: an Announcer and a Publisher each have one. It
// uses one connection, made when there is something to say and kept, and made
// again when it fails.
type sender struct {
	dial    func(context.Context) (notifier, error)
	channel string

	// words returns what there is to say now, nothing where said would be called
	// with nothing new, and what to call once it is said. last: nothing is said
	// after it. Called by run alone.
	words func(last bool) (payloads []string, said func())

	gap                time.Duration // least time from the beginning of one NOTIFY to that of the next
	look               time.Duration // how often words is asked without a signal; 0: never
	retryMin, retryMax time.Duration
	farewell           time.Duration // how much longer than its context run may take
	log                *slog.Logger

	came    chan struct{} // has room for one: there is something to say
	stopped chan struct{} // closed when run has returned
	conn    notifier      // run's; nil while there is none

	mu     sync.Mutex
	ran    bool               // guarded by mu
	closed bool               // guarded by mu
	cancel context.CancelFunc // guarded by mu; ends run, nil before it
	stats  senderStats        // guarded by mu
}

type senderStats struct {
	notifies  uint64
	failures  uint64
	connected bool
	failure   error
}

// notifier is a connection to the primary.
type notifier interface {
	// notify says payloads in one transaction.
	notify(ctx context.Context, channel string, payloads []string) error
	close()
}

// senderConfig is what an Announcer and a Publisher have in common.
type senderConfig struct {
	of                           string // names the type in errors
	primary                      replication.Server
	channel, defaultChannel      string
	gap, defaultGap              time.Duration
	gapOf                        string // the field's name
	retryMin, retryMax, farewell time.Duration
	log                          *slog.Logger
}

// newSender fills defaults in. An error names the field that is wrong.
func newSender(cfg senderConfig) (*sender, error) {
	s := &sender{
		channel:  cmp.Or(cfg.channel, cfg.defaultChannel),
		gap:      cmp.Or(cfg.gap, cfg.defaultGap),
		retryMin: cmp.Or(cfg.retryMin, DefaultRetryMin),
		retryMax: cmp.Or(cfg.retryMax, max(DefaultRetryMax, cfg.retryMin)),
		farewell: cmp.Or(cfg.farewell, DefaultFarewell),
		log:      cmp.Or(cfg.log, slog.New(slog.DiscardHandler)),
		came:     make(chan struct{}, 1),
		stopped:  make(chan struct{}),
	}
	primary, err := cfg.primary.Checked()
	switch {
	case err != nil:
		return nil, fmt.Errorf("pgnotify: %s.Primary: %w", cfg.of, err)
	case len(s.channel) > maxChannel:
		return nil, fmt.Errorf("pgnotify: %s.Channel %q: want 1 to %d bytes", cfg.of, s.channel, maxChannel)
	case s.gap < 0 || s.farewell < 0:
		return nil, fmt.Errorf("pgnotify: %s.%s %s and Farewell %s: want neither below 0", cfg.of, cfg.gapOf, s.gap, s.farewell)
	case s.retryMin < 0 || s.retryMax < s.retryMin:
		return nil, fmt.Errorf("pgnotify: %s.RetryMin %s and RetryMax %s: want 0 < RetryMin <= RetryMax", cfg.of, s.retryMin, s.retryMax)
	}
	s.dial = func(ctx context.Context) (notifier, error) { return dial(ctx, primary) }
	return s, nil
}

// maxChannel is the longest name that a channel may have, in bytes (NAMEDATALEN
// in PostgreSQL's pg_config_manual.h).
const maxChannel = 63

var errRanBefore = errors.New("pgnotify: Run was called before: make a new one")

// run says what there is to say until ctx ends or close is called, and at last
// what is left. Nobody else calls it again.
func (s *sender) run(ctx context.Context) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if s.ran {
		s.mu.Unlock()
		return errRanBefore
	}
	s.ran, s.cancel = true, cancel
	closed := s.closed
	s.mu.Unlock()
	defer close(s.stopped)
	if !closed {
		s.talk(inner)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return context.Cause(ctx)
}

// close ends run, and waits for it. It may be called several times.
func (s *sender) close() {
	s.mu.Lock()
	s.closed = true
	ran := s.ran
	if s.cancel != nil {
		s.cancel()
	}
	s.mu.Unlock()
	if ran {
		<-s.stopped
	}
}

func (s *sender) talk(ctx context.Context) {
	// What is under way when ctx ends, and what is said at last, has farewell.
	late, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(s.farewell, end) })
	defer stop()
	defer s.hangUp()
	var pause time.Duration // what has worked is tried again at once: servers end idle sessions
	var began time.Time
	for s.await(ctx, began) {
		began = time.Now()
		payloads, said := s.words(false)
		if len(payloads) == 0 {
			continue
		}
		rest := s.gap
		if err := s.say(late, payloads); err != nil {
			signal(s.came)
			rest = max(s.gap, time.Since(began)+pause/2+rand.N(pause/2+1))
			pause = min(max(2*pause, s.retryMin), s.retryMax)
			s.log.Warn("cannot notify", "channel", s.channel, "error", err, "again_in", rest)
		} else {
			said()
			pause = 0
		}
		if !sleep(ctx, rest-time.Since(began)) {
			break
		}
	}
	if payloads, said := s.words(true); len(payloads) > 0 {
		if err := s.say(late, payloads); err != nil {
			s.log.Warn("could not notify at the end", "channel", s.channel, "error", err)
			return
		}
		said()
	}
}

// await returns when words is to be asked, and false when ctx has ended.
func (s *sender) await(ctx context.Context, began time.Time) bool {
	var late <-chan time.Time
	if s.look > 0 {
		timer := time.NewTimer(s.look - time.Since(began))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-s.came:
	case <-late:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// sleep returns false when ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// say says payloads, over a new connection where there is none. The connection
// is given up with a failure: with several servers in its connection string the
// next one may lead to another, which is the primary now.
func (s *sender) say(ctx context.Context, payloads []string) error {
	err := s.connect(ctx)
	if err == nil {
		if err = s.conn.notify(ctx, s.channel, payloads); err != nil {
			s.hangUp()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.failure, s.stats.connected = err, err == nil
	if err == nil {
		s.stats.notifies += uint64(len(payloads))
		return nil
	}
	s.stats.failures++
	return err
}

func (s *sender) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	s.conn = conn
	s.log.Info("notifying", "channel", s.channel)
	return nil
}

func (s *sender) hangUp() {
	if s.conn == nil {
		return
	}
	s.conn.close()
	s.conn = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.connected = false
}

func (s *sender) snapshot() senderStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// pgNotifier is a notifier over a connection of pgx.
type pgNotifier struct {
	conn    *pgx.Conn
	timeout time.Duration
}

func dial(ctx context.Context, primary replication.Server) (notifier, error) {
	conn, err := primary.Connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	return pgNotifier{conn, primary.QueryTimeout}, nil
}

// notifyQuery commits with a flush and without waiting for standbys. The lock
// that NOTIFY holds until its commit is over is one for the whole cluster, and
// a commit that is not flushed would have every Capture wait for the flush.
const notifyQuery = `SELECT set_config('synchronous_commit', 'local', true), pg_notify($1, payload) FROM unnest($2::text[]) payload`

func (n pgNotifier) notify(ctx context.Context, channel string, payloads []string) error {
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	_, err := n.conn.Exec(ctx, notifyQuery, pgx.QueryExecModeExec, channel, payloads) // no prepared statement, for poolers
	if e, is := errors.AsType[*pgconn.PgError](err); is && e.Code == readOnlyTransaction {
		return fmt.Errorf("pgnotify: the server is a standby: connect to the primary (for failovers name all servers, with target_session_attrs=read-write): %w", err)
	}
	if err != nil {
		return fmt.Errorf("pgnotify: NOTIFY %s: %w", channel, err)
	}
	return nil
}

func (n pgNotifier) close() { disconnect(n.conn) }
