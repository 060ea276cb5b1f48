package pgnotify_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication/replicationtest"
)

// full makes a channel whose buffer is too small for what is notified of while
// its replica is paused: from 1 to 10, of which 5 have room.
func full(t *testing.T, policy pgnotify.Policy, blockMost time.Duration) (*ledger, *pgnotify.Listener, <-chan error, *replicationtest.Node) {
	t.Helper()
	c := cluster(t)
	standby := c.Standbys[0]
	book := newLedger(t, c.Primary, standby)
	channel := book.channel()
	channel.Buffer, channel.Full = 5, policy
	cfg := quickly(c.Primary.DSN(), follow(t, standby.DSN()), channel)
	cfg.BlockMost = blockMost
	l, ended := start(t, cfg)
	<-l.Ready()
	must(t, c.WaitForReplay(t.Context()))
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	must(t, standby.Pause(t.Context()))
	book.write(c.Primary, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	return book, l, ended, standby
}

func TestBlockLosesNothing(t *testing.T) {
	book, l, _, standby := full(t, pgnotify.Block, time.Hour)
	eventually(t, "it is full", func() bool { return l.Stats().Channels[0].Held == 5 })
	must(t, standby.Resume(t.Context()))
	if got := told(book.heard(10)); got != "1 2 3 4 5 6 7 8 9 10" {
		t.Errorf("got %s", got)
	}
	if s := l.Stats().Channels[0]; s.Received != 10 || s.Delivered != 10 || s.Held != 0 || s.Resyncs != 0 {
		t.Errorf("got %+v", s)
	}
}

func TestBlockForTooLongIsAGap(t *testing.T) {
	c := cluster(t)
	book, l, _, standby := full(t, pgnotify.Block, 100*time.Millisecond)
	eventually(t, "the connection is given up and made again", func() bool { s := l.Stats(); return s.Reconnects == 1 && s.Connected })
	must(t, standby.Resume(t.Context()))
	book.resynced(1)
	book.write(c.Primary, 11)
	book.gap(5, 11)
}

func TestDropOldestCountsWhatItDrops(t *testing.T) {
	book, l, _, standby := full(t, pgnotify.DropOldest, time.Hour)
	eventually(t, "all have come", func() bool { return l.Stats().Channels[0].Received == 10 })
	if s := l.Stats().Channels[0]; s.Held != 5 || s.Dropped != 5 {
		t.Errorf("got %+v", s)
	}
	must(t, standby.Resume(t.Context()))
	events := book.heard(10)
	book.complete(10)
	dropped := 0
	for i, r := range resyncs(events) {
		dropped += r.Dropped
		if _, is := events[i].(pgnotify.Resync); !is {
			t.Errorf("the gap is not in its place: %s", told(events))
		}
	}
	if s := l.Stats(); dropped != 5 || s.Reconnects != 0 || s.Channels[0].Delivered != 5 {
		t.Errorf("%+v: %s", s, told(events))
	}
}

func TestFailEndsTheListener(t *testing.T) {
	_, l, ended, _ := full(t, pgnotify.Fail, time.Hour)
	if err := ends(t, l, ended); !errors.Is(err, pgnotify.ErrFull) {
		t.Errorf("got %v", err)
	}
}

// While a handler with Block is slow, what is notified of waits on the server: 16
// MB here.
func TestWhatThereIsNoRoomForIsNotRead(t *testing.T) {
	c := cluster(t)
	const many, large, room = 2000, 7900, 4
	name := fmt.Sprintf("slow_%d", time.Now().UnixNano())
	turn, came := make(chan struct{}), make(chan string)
	l := listen(t, quickly(c.Primary.DSN(), follow(t, c.Standbys[0].DSN()), pgnotify.Channel{
		Name: name, Buffer: room,
		Handler: pgnotify.HandlerFunc(func(ctx context.Context, e pgnotify.Event) error {
			select {
			case <-turn:
			case <-ctx.Done():
				return ctx.Err()
			}
			id, _, _ := strings.Cut(e.(pgnotify.Notification).Payload, " ")
			came <- id
			return nil
		}),
	}))
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	writer := connect(t, c.Primary)
	exec(t, writer, `SELECT pg_notify($1, i || ' ' || repeat('x', $2)) FROM generate_series(1, $3) i`, name, large, many)
	for i := range 20 { // each makes room, in which the position is asked for
		turn <- struct{}{}
		if id := <-came; id != fmt.Sprint(i+1) {
			t.Fatalf("%s came after %d", id, i)
		}
		eventually(t, "it is full again", func() bool { return l.Stats().Channels[0].Held == room })
	}
	if grown := int64(heap()) - int64(before); grown > many*large/4 {
		t.Errorf("%d bytes are held, with room for %d notifications", grown, room)
	}
}
