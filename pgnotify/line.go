package pgnotify

import (
	"context"
	"errors"
	"fmt"
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

	errBlocked = errors.New("the handler has blocked the connection for too long")
)

// line is a channel's events, from where they are read to its handler.
type line struct {
	channel Channel
	replica *tracker.Tracker

	mu    sync.Mutex
	queue []Event // guarded by mu; never two Resyncs after one another
	held  int     // guarded by mu; notifications in queue
	stats ChannelStats
	came  chan struct{} // has room for one: there is something in queue
	left  chan struct{} // has room for one: there is room in queue
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

// push adds a notification, as the policy says when there is no room.
func (l *line) push(ctx context.Context, n Notification, blockMost time.Duration) error {
	var late <-chan time.Time
	for {
		l.mu.Lock()
		if l.held < l.channel.Buffer || l.channel.Full == DropOldest {
			if l.held >= l.channel.Buffer {
				l.dropLocked()
			}
			l.queue = append(l.queue, n)
			l.held++
			l.stats.Received++
			l.mu.Unlock()
			signal(l.came)
			return nil
		}
		l.mu.Unlock()
		if l.channel.Full == Fail {
			return fmt.Errorf("%w: channel %q, %d notifications", ErrFull, l.channel.Name, l.channel.Buffer)
		}
		if late == nil {
			timer := time.NewTimer(blockMost)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-l.left:
		case <-late:
			return fmt.Errorf("%w: channel %q, %s", errBlocked, l.channel.Name, blockMost)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dropLocked takes the oldest notification out, and leaves word of it.
func (l *line) dropLocked() {
	l.held--
	l.stats.Dropped++
	first := 0
	dropped := Resync{Channel: l.channel.Name, Reason: "the buffer was full", Dropped: 1}
	if before, is := l.queue[0].(Resync); is {
		first, dropped = 1, merged(before, dropped)
	}
	if n, is := l.queue[first].(Notification); is {
		dropped.Token = n.Token
	}
	rest := l.queue[first+1:]
	if len(rest) > 0 {
		if after, is := rest[0].(Resync); is {
			dropped, rest = merged(dropped, after), rest[1:]
		}
	}
	l.queue = append([]Event{dropped}, rest...)
}

// resync adds word of a gap.
func (l *line) resync(r Resync) {
	r.Channel = l.channel.Name
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := len(l.queue) - 1; last >= 0 {
		if before, is := l.queue[last].(Resync); is {
			l.queue[last] = merged(before, r)
			return
		}
	}
	l.queue = append(l.queue, r)
	signal(l.came)
}

// merged is one gap for two that follow one another.
func merged(a, b Resync) Resync {
	reason := a.Reason
	if b.Reason != reason {
		reason += "; " + b.Reason
	}
	tok := b.Token
	if tok == (tracker.Token{}) {
		tok = a.Token
	}
	return Resync{Channel: b.Channel, Reason: reason, Dropped: a.Dropped + b.Dropped, Lost: a.Lost + b.Lost, Token: tok}
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
func (l *line) first() (Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, false
	}
	return l.queue[0], true
}

// take takes e out of the queue; false: it is not the first any more.
func (l *line) take(e Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || l.queue[0] != e {
		return false
	}
	l.queue[0] = nil
	l.queue = l.queue[1:]
	if _, is := e.(Notification); is {
		l.held--
		l.stats.Delivered++
	} else {
		l.stats.Resyncs++
	}
	signal(l.left)
	return true
}

// hand waits until e is replayed, and calls the handler.
func (l *line) hand(ctx context.Context, e Event) error {
	tok := tokenOf(e)
	if !l.channel.AtOnce {
		switch err := l.replayed(ctx, tok); {
		case errors.Is(err, tracker.ErrDiverged):
			l.lost(e, err)
			return nil
		case err != nil:
			return err
		}
	}
	if !l.take(e) {
		return nil // dropped meanwhile, or it is part of a longer gap now
	}
	if err := l.channel.Handler.Handle(ctx, e); err != nil {
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

// lost puts a gap in the place of an event whose write a failover has lost, and
// of those behind it on the same timeline, which are lost too: the replica will
// never show them. Nothing has to be replayed for that; when the connection to
// the new primary is there, another gap says so.
func (l *line) lost(e Event, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gap, rest := Resync{Channel: l.channel.Name, Reason: why.Error()}, l.queue
	for len(rest) > 0 && tokenOf(rest[0]).Timeline == tokenOf(e).Timeline {
		switch first := rest[0].(type) {
		case Notification:
			l.held--
			l.stats.Lost++
			gap.Lost++
		case Resync:
			gap = merged(gap, first)
		}
		rest = rest[1:]
	}
	gap.Token = tracker.Token{}
	if len(rest) > 0 {
		if after, is := rest[0].(Resync); is {
			gap, rest = merged(gap, after), rest[1:]
		}
	}
	l.queue = append([]Event{gap}, rest...)
	signal(l.left)
}

func (l *line) snapshot() ChannelStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Channel, s.Held = l.channel.Name, l.held
	return s
}
