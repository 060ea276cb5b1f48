package main

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

// listening runs listen until it ends by itself or stop is called. Both functions return what it left.
func listening(t *testing.T, e env, args ...string) (end, stop func() *outcome) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	stderr := watchFor("walwake: note: listening")
	done := make(chan *outcome, 1)
	go func() { done <- walwakeUntil(ctx, t, e, stderr, append([]string{"listen"}, args...)...) }()
	select {
	case <-stderr.found:
	case o := <-done:
		t.Fatalf("it has ended: %s", o)
	}
	end = func() *outcome { return <-done }
	return end, func() *outcome {
		cancel(&interruptedError{os.Interrupt})
		return end()
	}
}

func send(t *testing.T, primary *replicationtest.Node, sql string) {
	t.Helper()
	if err := primary.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func linesOf(t *testing.T, o *outcome) []listenLine {
	t.Helper()
	var lines []listenLine
	for text := range strings.Lines(o.stdout) {
		var line listenLine
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&line); err != nil {
			t.Fatalf("line %q: %v", text, err)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestListenPrintsEachNotificationOnceTheReplicaShowsIt(t *testing.T) {
	primary, standby := cluster(t)
	end, _ := listening(t, on(primary, standby), "--count", "3", "listen_plain", "Listen quoted")
	send(t, primary, `NOTIFY listen_plain, 'a b'`)
	send(t, primary, `NOTIFY listen_other, 'not asked for'`)
	send(t, primary, `NOTIFY listen_plain, 'c'`)
	send(t, primary, `NOTIFY "Listen quoted"`)
	o := end().is(exitOK)
	var got []string
	for line := range strings.Lines(o.stdout) {
		got = append(got, line)
	}
	slices.Sort(got) // channels do not wait for one another
	if !slices.Equal(got, []string{"Listen quoted\t\n", "listen_plain\ta b\n", "listen_plain\tc\n"}) {
		t.Errorf("got %q", got)
	}
}

func TestListenInJSONHasATokenToWaitFor(t *testing.T) {
	primary, standby := cluster(t)
	end, _ := listening(t, on(primary, standby), "--count", "1", "--json", "listen_json")
	send(t, primary, `NOTIFY listen_json, 'x"y'`)
	lines := linesOf(t, end().is(exitOK))
	if len(lines) != 1 || lines[0].Event != "notification" || lines[0].Channel != "listen_json" || *lines[0].Payload != `x"y` || lines[0].PID == 0 {
		t.Fatalf("got %+v", lines)
	}
	walwake(t, on(nil, standby), "wait", "--timeout", "10s", lines[0].Token.String()).is(exitOK)
	end, _ = listening(t, on(primary, nil), "--count", "1", "--json", "--at-once", "listen_json")
	send(t, primary, `NOTIFY listen_json, 'z'`)
	if lines := linesOf(t, end().is(exitOK)); len(lines) != 1 || lines[0].Token != nil || *lines[0].Payload != "z" {
		t.Errorf("got %+v", lines)
	}
}

func TestListenTellsOfAGap(t *testing.T) {
	primary, standby := cluster(t)
	end, _ := listening(t, named(primary, standby, "listen_gap"), "--count", "1", "--json", "listen_gap")
	send(t, primary, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'listen_gap'`)
	notified := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // some are sent while nobody listens
		for ctx.Err() == nil {
			if err := primary.Exec(ctx, `SELECT pg_notify('listen_gap', 'again')`); err != nil && ctx.Err() == nil {
				notified <- err
				return
			}
		}
		notified <- nil
	}()
	o := end().is(exitOK)
	cancel()
	if err := <-notified; err != nil {
		t.Fatal(err)
	}
	lines := linesOf(t, o)
	if len(lines) != 2 || lines[0].Event != "resync" || lines[0].Reason == "" || lines[0].Token == nil || lines[1].Event != "notification" {
		t.Errorf("want a resync and then a notification, got %+v", lines)
	}
}

func TestListenHearsMessagesInTheWAL(t *testing.T) {
	primary, standby := cluster(t)
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	if c.Version < 16 {
		ctx, cancel := context.WithCancelCause(t.Context())
		stderr := watchFor("needs PostgreSQL 16")
		go func() { <-stderr.found; cancel(&interruptedError{os.Interrupt}) }()
		walwakeUntil(ctx, t, on(primary, standby), stderr, "listen", "--messages", "orders").is(130).notes("not listening yet")
		return
	}
	send(t, primary, `CREATE PUBLICATION walwake`)
	t.Cleanup(func() { _ = primary.Exec(context.Background(), `DROP PUBLICATION walwake`) })
	end, _ := listening(t, on(primary, standby), "--count", "2", "--json", "--messages", "orders")
	send(t, primary, `SELECT pg_logical_emit_message(true, 'orders', 'one'); SELECT pg_logical_emit_message(true, 'others', 'no'); SELECT pg_logical_emit_message(true, 'orders', 'two')`)
	lines := linesOf(t, end().is(exitOK))
	if len(lines) != 2 || *lines[0].Payload != "one" || *lines[1].Payload != "two" || lines[0].Token == nil || lines[0].PID != 0 {
		t.Errorf("got %+v", lines)
	}
}

func TestListenSaysWhatIsWrong(t *testing.T) {
	primary, standby := cluster(t)
	walwake(t, on(standby, standby), "listen", "x").is(exitFailure).says("is a standby: name its primary in WALWAKE_PRIMARY").alone()
	walwake(t, env{"WALWAKE_PRIMARY": primary.DSN(), "WALWAKE_REPLICA": "host=127.0.0.1 port=1"}, "listen", "x").is(exitFailure).says("replica 127.0.0.1:1", "connection refused")
	walwake(t, env{"WALWAKE_PRIMARY": "host=127.0.0.1 port=1", "WALWAKE_REPLICA": standby.DSN()}, "listen", "x").is(exitFailure).says("primary 127.0.0.1:1", "connection refused")
	o := walwake(t, env{"WALWAKE_PRIMARY": strings.Replace(role(primary, plainRole), secret, "wr0ng"+secret, 1), "WALWAKE_REPLICA": standby.DSN()}, "listen", "x").is(exitFailure).says("password")
	if strings.Contains(o.stderr, secret) {
		t.Errorf("the password is shown: %s", o)
	}
}

func TestASignalEndsListen(t *testing.T) {
	primary, standby := cluster(t)
	_, stop := listening(t, named(primary, standby, "listen_signal"), "listen_signal")
	stop().is(130).says("interrupted").atOnce()
	noSessions(t, "listen_signal", primary, standby)
}
