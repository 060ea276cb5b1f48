package replication

import (
	"context"
	"fmt"

	"github.com/walwake/walwake/tracker"
)

// MaxMessage is how large a payload may be that a MessageHandler gets.
const MaxMessage = 1 << 20

// Message is what a transaction sent through the WAL, with
// pg_logical_emit_message(true, prefix, payload).
type Message struct {
	Prefix  string
	Payload string // empty where Size is above MaxMessage
	Size    int    // of the payload, in bytes

	// Token is just past the beginning of the transaction's commit record: replay
	// stops at the ends of records, so who has replayed it has replayed the commit.
	// The replica has.
	Token tracker.Token
}

// MessageHandler gets the messages that come through the WAL of the replica, each
// when the replica has replayed the transaction that sent it: see Config.Messages.
type MessageHandler interface {
	// Wants reports whether messages with a prefix are wanted; the others are read
	// and forgotten. It must not block.
	Wants(prefix string) bool

	// Began is called when a stream has begun. Messages of what was committed before
	// tok, and after the end of the stream before, are gone; from there on none is
	// missed until the stream ends. It may block, and fail, as Message may.
	Began(ctx context.Context, tok tracker.Token) error

	// Message is called with each message, in the order of commits, and within
	// a transaction in that of sending. While it blocks the stream is not read: the
	// server keeps WAL and is not shut down before it is, the tracker polls. An error
	// ends the stream, and another one begins. ctx ends when the stream does.
	Message(ctx context.Context, m Message) error

	// Missing is called with the reason whenever there is no stream, until Began is
	// called. It must not block.
	Missing(reason string)
}

// inbox holds what a stream has brought until the session, over which the tracker
// learns of positions, has said that it is replayed, and on which timeline: no
// message outlives its epoch.
type inbox struct {
	l     *listener
	items chan item
	seen  snapshots
}

// item is a message, or the beginning of the stream.
type item struct {
	began bool
	xid   uint32
	m     Message // its Token without a timeline
}

// inboxRoom is how many messages are held here; a burst costs one question.
const inboxRoom = 64

// streamed runs s, and hands on what it brings; from is where it begins.
func (in *inbox) streamed(ctx context.Context, s *walStream, from tracker.LSN) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := decoder{wants: in.l.messages.Wants}
	in.items <- item{began: true, m: Message{Token: tracker.Token{System: in.l.system, LSN: from}}}
	s.decode = func(data []byte) error {
		it, ok, err := d.take(data)
		if err != nil || !ok {
			return err
		}
		it.m.Token.System = in.l.system
		select {
		case in.items <- it:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	handed := make(chan struct{})
	go func() {
		defer close(handed)
		cancel(in.hand(ctx))
	}()
	err := s.run(ctx)
	cancel(err)
	<-handed
	in.seen.close()
	return err
}

// hand gives items to the handler until ctx ends or it fails.
func (in *inbox) hand(ctx context.Context) error {
	for {
		var it item
		select {
		case it = <-in.items:
		case <-ctx.Done():
			return ctx.Err()
		}
		timeline, err := in.l.run.vouch(ctx, it.m.Token.LSN)
		if err != nil {
			return err
		}
		it.m.Token.Timeline = timeline
		if !in.l.run.s.standby && !it.began {
			if err := in.seen.wait(ctx, in.l, it.xid); err != nil {
				return err
			}
		}
		if it.began {
			err = in.l.messages.Began(ctx, it.m.Token)
		} else {
			err = in.l.messages.Message(ctx, it.m)
		}
		if err != nil {
			return fmt.Errorf("a message was not taken: %w", err)
		}
	}
}

// vouch blocks until the server has said that lsn is replayed, and returns the
// timeline that it said after it.
func (r *run) vouch(ctx context.Context, lsn tracker.LSN) (uint32, error) {
	defer r.vouching.Store(0)
	for {
		r.vouching.Store(uint64(lsn))
		r.mu.Lock()
		last := r.last
		r.mu.Unlock()
		if last.known && last.lsn >= lsn && last.timeline != 0 {
			return last.timeline, nil
		}
		r.event(true)
		select {
		case <-r.said:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// demand is the tracker's, and the inbox's.
func (r *run) demand() tracker.Demand {
	d := r.feed.Demand()
	if lsn := tracker.LSN(r.vouching.Load()); lsn != 0 {
		if d.Waiting++; d.Lowest == 0 || lsn < d.Lowest {
			d.Lowest = lsn
		}
	}
	return d
}
