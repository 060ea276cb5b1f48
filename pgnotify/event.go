package pgnotify

import (
	"context"

	"github.com/walwake/walwake/tracker"
)

// An Event is a Notification or a Resync.
type Event interface{ event() }

// Notification is a NOTIFY that was heard.
type Notification struct {
	Channel string
	Payload string
	PID     uint32 // the server process that sent it, on the primary

	// Token covers the transaction that sent it: it is replayed on the replica
	// when the handler is called, unless the channel is AtOnce. Another reader may
	// wait for it too. It is zero with AtOnce. All of a burst have the same, which
	// is that of the latest or somewhat later.
	Token tracker.Token
}

// Resync says that notifications may have been missed between the event before it
// and the one after it. The handler looks for itself at what they would have told:
// the replica shows all that was committed before the gap ended. Gaps that follow
// one another while they are held become one; one that grows while the replica is
// waited for may come in parts.
type Resync struct {
	Channel string
	Reason  string // for a person; without passwords, and not more than some 500 bytes

	// Dropped is how many were dropped here, because the buffer was full.
	Dropped int

	// Lost is how many were of transactions that a failover has lost, or may have: a
	// token that is lost covers more than the transaction. See tracker.ErrDiverged.
	Lost int

	// Token covers all that was committed when the gap ended, and is replayed, unless
	// the channel is AtOnce. With Lost it may be where the replica stands on its new
	// timeline: another Resync comes when the new primary is listened to.
	Token tracker.Token
}

func (Notification) event() {}
func (Resync) event()       {}

// A Handler is called with a channel's events, one after the other, in the order
// in which they came: notifications of one channel are in the order of their
// commits. Those of different channels are handled at the same time, each channel
// by a goroutine of its own. It may take as long as it likes: see Policy for what
// comes meanwhile. An error ends the Listener. ctx ends when the Listener does,
// which waits for the call to return.
type Handler interface {
	Handle(ctx context.Context, e Event) error
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(ctx context.Context, e Event) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, e Event) error { return f(ctx, e) }
