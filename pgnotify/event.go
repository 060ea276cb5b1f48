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
	// wait for it too. It is zero with AtOnce.
	Token tracker.Token
}

// Resync says that notifications may have been missed between the event before it
// and the one after it. The handler looks for itself at what they would have told:
// the replica shows all that was committed before the gap ended.
type Resync struct {
	Channel string
	Reason  string // for a person
	Dropped int    // how many were dropped here, because the buffer was full
	Lost    int    // how many were of writes that a failover has lost

	// Token covers all that was committed when the gap ended, and is replayed; see
	// Notification.
	Token tracker.Token
}

func (Notification) event() {}
func (Resync) event()       {}

// A Handler is called with a channel's events, one after the other, in the order
// in which they came: notifications of one channel are in the order of their
// commits. An error ends the Listener. ctx ends when the Listener does.
type Handler interface {
	Handle(ctx context.Context, e Event) error
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(ctx context.Context, e Event) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, e Event) error { return f(ctx, e) }
