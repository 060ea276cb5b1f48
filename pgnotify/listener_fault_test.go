package pgnotify_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication/replicationtest"
)

// gap checks what came: all before the fault, one Resync, all after it.
func (l *ledger) gap(before, after int) {
	l.t.Helper()
	events := l.heard(after)
	l.complete(after)
	first, is := events[0].(pgnotify.Notification)
	if !is || number(first) != 1 {
		l.t.Errorf("1 is not first: %s", told(events))
	}
	for i, e := range events {
		if _, is := e.(pgnotify.Resync); is {
			if n, is := events[i-1].(pgnotify.Notification); !is || number(n) != before {
				l.t.Errorf("%d is not before the gap: %s", before, told(events))
			}
			break
		}
	}
	if n := len(resyncs(events)); n != 1 {
		l.t.Errorf("%d resyncs: %s", n, told(events))
	}
	r := resyncs(events)[0]
	if r.Dropped != 0 || r.Lost != 0 || r.Token.LSN == 0 || r.Token.Timeline == 0 || r.Channel != l.table {
		l.t.Errorf("got %+v", r)
	}
	if strings.Contains(r.Reason, password(l.t, l.replica)) {
		l.t.Errorf("the reason holds the password: %s", r.Reason)
	}
}

// Each of the two server processes.
func TestAKilledBackendIsAGap(t *testing.T) {
	c := cluster(t)
	for name, which := range map[string]string{
		"listening": `query LIKE '%LISTEN%' OR query LIKE '%pg_listening_channels%'`,
		"asking":    `NOT (query LIKE '%LISTEN%' OR query LIKE '%pg_listening_channels%')`,
		"both":      `true`,
	} {
		t.Run(name, func(t *testing.T) {
			book := newLedger(t, c.Primary, c.Standbys[0])
			l := listen(t, quickly(c.Primary.DSN("application_name="+book.table), follow(t, c.Standbys[0].DSN()), book.channel()))
			book.write(c.Primary, 1, 2)
			book.heard(2)
			kill := `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '` + book.table + `' AND (` + which + `)`
			if n, err := replicationtest.Value[int](t.Context(), c.Primary, kill); err != nil || n == 0 {
				t.Fatalf("%d killed: %v", n, err)
			}
			book.write(c.Primary, 3)
			book.resynced(1)
			book.write(c.Primary, 4, 5)
			book.heard(5)
			book.complete(5)
			if s := l.Stats(); s.Reconnects != 1 || !s.Connected || s.Failure != nil {
				t.Errorf("got %+v", s)
			}
			if name != "asking" { // 3 may be heard by the other one still
				book.gap(2, 5)
			}
		})
	}
}

func TestAPrimaryThatRestartsIsAGap(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{})
	book := newLedger(t, c.Primary, c.Standbys[0])
	l := listen(t, quickly(c.Primary.DSN(), follow(t, c.Standbys[0].DSN()), book.channel()))
	book.write(c.Primary, 1, 2)
	book.heard(2)
	must(t, c.Primary.Stop(t.Context()))
	eventually(t, "the end is noticed", func() bool { s := l.Stats(); return !s.Connected && s.Failure != nil })
	must(t, c.Primary.Start(t.Context()))
	book.resynced(1)
	book.write(c.Primary, 3, 4)
	book.gap(2, 4)
}

// Without a word: found out by the probe.
func TestACutNetworkIsFoundByTheProbe(t *testing.T) {
	c := cluster(t)
	book := newLedger(t, c.Primary, c.Standbys[0])
	proxy := through(t, c.Primary)
	l := listen(t, quickly(proxy.DSN(), follow(t, c.Standbys[0].DSN()), book.channel()))
	book.write(c.Primary, 1, 2)
	book.heard(2)
	proxy.Cut()
	cut := time.Now()
	book.write(c.Primary, 3)
	eventually(t, "the cut is noticed", func() bool { return !l.Stats().Connected })
	t.Logf("noticed after %s, with a Probe of 200 ms and a QueryTimeout of 2 s", time.Since(cut).Round(time.Millisecond))
	if n := len(book.so()); n != 2 {
		t.Errorf("got %s", told(book.so()))
	}
	book.write(c.Primary, 4)
	proxy.Heal()
	book.resynced(1)
	book.write(c.Primary, 5)
	book.gap(2, 5)
}

// While something is held, it is the replica that is waited for.
func TestWhatIsHeldOutlivesTheConnection(t *testing.T) {
	c := cluster(t)
	book := newLedger(t, c.Primary, c.Standbys[0])
	proxy := through(t, c.Primary)
	l := listen(t, quickly(proxy.DSN(), follow(t, c.Standbys[0].DSN()), book.channel()))
	book.write(c.Primary, 1)
	book.heard(1)
	t.Cleanup(func() { _ = c.Standbys[0].Resume(context.Background()) })
	must(t, c.Standbys[0].Pause(t.Context()))
	book.write(c.Primary, 2, 3)
	eventually(t, "two are held", func() bool { return l.Stats().Channels[0].Held == 2 })
	proxy.Drop()
	eventually(t, "it is connected again", func() bool { s := l.Stats(); return s.Reconnects == 1 && s.Connected })
	book.write(c.Primary, 4)
	eventually(t, "three are held", func() bool { return l.Stats().Channels[0].Held == 3 })
	if n := len(book.so()); n != 1 {
		t.Errorf("came while replay is paused: %s", told(book.so()))
	}
	must(t, c.Standbys[0].Resume(t.Context()))
	book.gap(3, 4)
}

func TestAPrimaryThatIsDownAtTheStartIsWaitedFor(t *testing.T) {
	c := replicationtest.Start(t, replicationtest.Options{})
	book := newLedger(t, c.Primary, c.Standbys[0])
	replica := follow(t, c.Standbys[0].DSN())
	must(t, c.Primary.Stop(t.Context()))
	l, ended := start(t, quickly(c.Primary.DSN(), replica, book.channel()))
	eventually(t, "it says why", func() bool { return l.Stats().Failure != nil })
	if s := l.Stats(); s.Connected || s.Reconnects != 0 || strings.Contains(s.Failure.Error(), password(t, c.Primary)) {
		t.Errorf("got %+v", s)
	}
	must(t, c.Primary.Start(t.Context()))
	select {
	case <-l.Ready():
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatalf("not ready: %+v", l.Stats())
	}
	book.write(c.Primary, 1)
	if events := book.heard(1); len(events) != 1 {
		t.Errorf("got %s", told(events))
	}
}

// The server's queue is full when somebody who listens does not read.
func TestAFullNotificationQueueIsFreed(t *testing.T) {
	if c := cluster(t); c.Version < 17 {
		t.Skip("max_notify_queue_pages is there from PostgreSQL 17 on: with 8 GB the queue is not filled")
	}
	c := replicationtest.Start(t, replicationtest.Options{Settings: map[string]string{"max_notify_queue_pages": "64"}})
	book := newLedger(t, c.Primary, c.Standbys[0])
	goOn := make(chan struct{})
	cfg := quickly(c.Primary.DSN(), follow(t, c.Standbys[0].DSN()), pgnotify.Channel{
		Name: book.table, Buffer: 4,
		Handler: pgnotify.HandlerFunc(func(ctx context.Context, e pgnotify.Event) error {
			select {
			case <-goOn:
				return book.Handle(ctx, e)
			case <-ctx.Done():
				return ctx.Err()
			}
		}),
	})
	cfg.BlockMost = 3 * time.Second
	l := listen(t, cfg)
	writer := connect(t, c.Primary)
	large := strings.Repeat("x", 7900)
	var refused, accepted int
	for id := 1; l.Stats().Reconnects == 0; {
		_, err := writer.Exec(t.Context(), book.writing(id, large), pgx.QueryExecModeSimpleProtocol)
		switch {
		case err == nil:
			accepted, id = id, id+1
		case strings.Contains(err.Error(), "54000"):
			refused++
			exec(t, writer, `ROLLBACK`)
		default:
			t.Fatal(err)
		}
		if held := l.Stats().Channels[0].Held; held > 4 {
			t.Fatalf("%d are held", held)
		}
	}
	t.Logf("%d accepted, %d refused", accepted, refused)
	if refused == 0 {
		t.Error("the queue was never full")
	}
	// Given up: it is free again, for all.
	eventually(t, "NOTIFY works again", func() bool {
		_, err := writer.Exec(t.Context(), book.writing(accepted+1, ""), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			exec(t, writer, `ROLLBACK`)
		}
		return err == nil
	})
	close(goOn)
	book.resynced(1)
	eventually(t, "it listens", func() bool { return l.Stats().Connected })
	book.write(c.Primary, accepted+2)
	book.heard(accepted + 2)
	book.complete(accepted + 2)
}

// Who listens, in a transaction that does not end, reads nothing, and so keeps the
// queue full.
func TestAQueueThatOthersKeepFullIsListenedTo(t *testing.T) {
	if c := cluster(t); c.Version < 17 {
		t.Skip("max_notify_queue_pages is there from PostgreSQL 17 on: with 8 GB the queue is not filled")
	}
	c := replicationtest.Start(t, replicationtest.Options{Settings: map[string]string{"max_notify_queue_pages": "64"}})
	book := newLedger(t, c.Primary, c.Standbys[0])
	other, writer := connect(t, c.Primary), connect(t, c.Primary)
	exec(t, other, `LISTEN something`)
	exec(t, other, `BEGIN`)
	var err error
	for err == nil {
		_, err = writer.Exec(t.Context(), `SELECT pg_notify('something', repeat('x', 7900))`)
	}
	if !strings.Contains(err.Error(), "54000") {
		t.Fatal(err)
	}
	listen(t, quickly(c.Primary.DSN(), follow(t, c.Standbys[0].DSN()), book.channel()))
	exec(t, other, `COMMIT`)
	eventually(t, "NOTIFY works again", func() bool {
		_, err := replicationtest.Value[float64](t.Context(), c.Primary, `SELECT pg_notification_queue_usage()`)
		must(t, err)
		_, err = writer.Exec(t.Context(), book.writing(1, ""), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			exec(t, writer, `ROLLBACK`)
		}
		return err == nil
	})
	if got := told(book.heard(1)); got != "1" {
		t.Errorf("got %s", got)
	}
}
