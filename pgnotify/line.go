package pgnotify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/walwake/walwake/tracker"
)

// Policy says what happens when a channel's buffer is full, because its handler
// is slower than notifications come, or the replica lags.
type Policy int

const (
	// Block stops reading, for all channels, until there is room. The server keeps
	// what is not read in a queue that all listeners share, and that makes NOTIFY
	// fail for everybody once it is full: so a connection that was blocked for
	// Config.BlockMost is given up, with a Resync later.
	Block Policy = iota
	// DropOldest makes room; a Resync in its place says how many were dropped.
	DropOldest
	// Fail ends the Listener with ErrFull.
	Fail
)

var (
	// ErrFull ends a Listener one of whose channels, with Fail, has a full buffer.
	ErrFull = errors.New("pgnotify: the buffer is full: the handler is slower than notifications come, or the replica lags")

	errBlocked = errors.New("pgnotify: the handler has blocked the connection for too long")
)

// line is a channel's events, from where they are read to its handler. One
// goroutine pushes, another runs.
type line struct {
	channel Channel
	replica *tracker.Tracker

	mu    sync.Mutex
	queue []entry // guarded by mu; never two Resyncs after one another
	last  uint64  // guarded by mu; the id of the latest entry
	held  int     // guarded by mu; notifications in queue
	stats ChannelStats
	came  chan struct{} // has room for one: there is something in queue
	left  chan struct{} // has room for one: there is room in queue
}

// entry is an event in the queue. A Resync may grow while it is there, and keeps
// its id.
type entry struct {
	id    uint64
	event Event
}

func newLine(c Channel, replica *tracker.Tracker) *line {
	return &line{channel: c, replica: replica, came: make(chan struct{}, 1), left: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is signalled already
	}
}

func (l *line) entryLocked(e Event) entry {
	l.last++
	return entry{l.last, e}
}

// push adds a notification, as the policy says when there is no room.
func (l *line) push(ctx context.Context, n Notification, blockMost time.Duration) error {
	if l.offer(n) {
		return nil
	}
	if l.channel.Full == Fail {
		return fmt.Errorf("%w: channel %q, %d notifications", ErrFull, l.channel.Name, l.channel.Buffer)
	}
	late := time.NewTimer(blockMost)
	defer late.Stop()
	for !l.offer(n) {
		select {
		case <-l.left:
		case <-late.C:
			return fmt.Errorf("%w: channel %q, %s", errBlocked, l.channel.Name, blockMost)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// offer adds a notification if there is room, or with DropOldest makes some.
func (l *line) offer(n Notification) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held >= l.channel.Buffer {
		if l.channel.Full != DropOldest {
			return false
		}
		l.dropLocked()
	}
	l.queue = append(l.queue, l.entryLocked(n))
	l.held++
	l.stats.Received++
	signal(l.came)
	return true
}

// dropLocked takes the oldest notification out, and leaves word of it in its
// place, in what Resync there is before and after it.
func (l *line) dropLocked() {
	gap := l.entryLocked(Resync{Channel: l.channel.Name, Reason: "the buffer was full", Dropped: 1, Token: tokenOf(l.queue[0].event)})
	at := 0
	if before, is := l.queue[0].event.(Resync); is {
		at = 1
		gap = entry{l.queue[0].id, merged(before, Resync{Reason: "the buffer was full", Dropped: 1, Token: tokenOf(l.queue[1].event)})}
	}
	if at+1 < len(l.queue) {
		if after, is := l.queue[at+1].event.(Resync); is {
			at++
			gap.event = merged(gap.event.(Resync), after) //nolint:forcetypeassert // made above
		}
	}
	clear(l.queue[:at])
	l.queue = l.queue[at:]
	l.queue[0] = gap
	l.held--
	l.stats.Dropped++
}

// resync adds word of a gap.
func (l *line) resync(r Resync) {
	r.Channel = l.channel.Name
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := len(l.queue) - 1; last >= 0 {
		if before, is := l.queue[last].event.(Resync); is {
			l.queue[last].event = merged(before, r)
			return
		}
	}
	l.queue = append(l.queue, l.entryLocked(r))
	signal(l.came)
}

// merged is one gap for two that follow one another.
func merged(a, b Resync) Resync {
	a.Reason = reasons(a.Reason, b.Reason)
	a.Dropped += b.Dropped
	a.Lost += b.Lost
	if b.Token != (tracker.Token{}) {
		a.Token = b.Token
	}
	return a
}

// reasons names both, for a person: not the same twice, and not without end.
func reasons(a, b string) string {
	const most = 500
	if strings.Contains(a, b) || len(a)+len(b) > most {
		return a
	}
	return a + "; " + b
}

// run hands events over until ctx ends or the handler fails.
func (l *line) run(ctx context.Context) error {
	for {
		e, ok := l.first()
		if !ok {
			select {
			case <-l.came:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := l.hand(ctx, e); err != nil {
			return err
		}
	}
}

// first is the oldest event, which stays in the queue while it is waited for, so
// that it counts and can be dropped.
func (l *line) first() (entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return entry{}, false
	}
	return l.queue[0], true
}

// take takes e out of the queue; false: it is not there any more. Of a gap that
// has grown since, what has come to it stays: the replica may lag so much that
// its end is never replayed.
func (l *line) take(e entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || l.queue[0].id != e.id {
		return false
	}
	gap, is := e.event.(Resync)
	if !is {
		l.held--
		l.stats.Delivered++
		l.popLocked()
		return true
	}
	l.stats.Resyncs++
	grown, is := l.queue[0].event.(Resync)
	if !is || grown == gap {
		l.popLocked()
		return true
	}
	grown.Dropped -= gap.Dropped
	grown.Lost -= gap.Lost
	l.queue[0] = l.entryLocked(grown)
	return true
}

func (l *line) popLocked() {
	l.queue[0] = entry{}
	l.queue = l.queue[1:]
	signal(l.left)
}

// hand waits until e is replayed, and calls the handler.
func (l *line) hand(ctx context.Context, e entry) error {
	if !l.channel.AtOnce {
		switch err := l.replayed(ctx, tokenOf(e.event)); {
		case errors.Is(err, tracker.ErrDiverged):
			l.lost(e, err)
			return nil
		case err != nil:
			return fmt.Errorf("pgnotify: channel %q: wait for the replica: %w", l.channel.Name, err)
		}
	}
	if !l.take(e) {
		return nil // dropped meanwhile, or it is part of a longer gap now
	}
	if err := l.channel.Handler.Handle(ctx, e.event); err != nil {
		return fmt.Errorf("pgnotify: the handler of channel %q: %w", l.channel.Name, err)
	}
	return nil
}

func tokenOf(e Event) tracker.Token {
	switch e := e.(type) {
	case Notification:
		return e.Token
	case Resync:
		return e.Token
	}
	return tracker.Token{}
}

// replayed blocks until tok is replayed, however long that takes.
func (l *line) replayed(ctx context.Context, tok tracker.Token) error {
	const crowded = 10 * time.Millisecond
	for {
		if l.replica.Replayed(tok) {
			return nil
		}
		w := l.replica.Request(tok)
		select {
		case <-w.Done():
		case <-ctx.Done():
			w.Cancel()
			return ctx.Err()
		}
		err := w.Err()
		if !errors.Is(err, tracker.ErrTooManyWaiters) {
			return err
		}
		select {
		case <-time.After(crowded): // others' waits end by themselves
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lost puts a gap in the place of e, whose write a failover has lost, and of what
// is behind it on the same timeline, which is lost too: the replica will never
// show it. The gap's token is where the replica is now, on its own timeline; when
// the connection to the new primary is there, another gap follows.
func (l *line) lost(e entry, why error) {
	var now tracker.Token
	if o, known := l.replica.LastReplay(); known {
		now = tracker.Token{System: o.System, Timeline: o.Timeline, LSN: o.LSN}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	gap, rest := Resync{Channel: l.channel.Name, Reason: why.Error()}, l.queue
	for len(rest) > 0 && tokenOf(rest[0].event).Timeline == tokenOf(e.event).Timeline {
		switch first := rest[0].event.(type) {
		case Notification:
			l.held--
			l.stats.Lost++
			gap.Lost++
		case Resync:
			gap = merged(gap, first)
		}
		rest = rest[1:]
	}
	if len(rest) == len(l.queue) {
		return // it was dropped meanwhile, and so was all of its timeline
	}
	gap.Token = now
	if len(rest) > 0 {
		if after, is := rest[0].event.(Resync); is {
			gap, rest = merged(gap, after), rest[1:]
		}
	}
	l.queue = append([]entry{l.entryLocked(gap)}, rest...)
	signal(l.left)
}

func (l *line) snapshot() ChannelStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Channel, s.Held = l.channel.Name, l.held
	return s
}
