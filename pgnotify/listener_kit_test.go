package pgnotify_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// patience is what is given to things that happen at once, on a machine that is
// busy.
const patience = 30 * time.Second

// ledger is a handler that checks each event against a replica. The payload of
// a notification begins with the number of a row in its table.
type ledger struct {
	t       *testing.T
	table   string
	replica *replicationtest.Node
	changed chan struct{} // has room for one

	mu     sync.Mutex
	events []pgnotify.Event // guarded by mu
	shown  []int            // guarded by mu; for each event, the highest row that the replica showed
}

// newLedger makes a table for a ledger, on the primary.
func newLedger(t *testing.T, primary, replica *replicationtest.Node) *ledger {
	t.Helper()
	l := &ledger{t: t, table: "ledger_" + strings.ToLower(strconv.FormatInt(time.Now().UnixNano(), 36)), replica: replica, changed: make(chan struct{}, 1)}
	must(t, primary.Exec(t.Context(), `CREATE TABLE `+l.table+` (id int PRIMARY KEY)`))
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Handle reads the table when the event comes.
func (l *ledger) Handle(ctx context.Context, e pgnotify.Event) error {
	high, err := replicationtest.Value[int](ctx, l.replica, `SELECT coalesce(max(id), 0) FROM `+l.table)
	if err != nil {
		return err
	}
	if n, is := e.(pgnotify.Notification); is && high < number(n) {
		l.t.Errorf("%s came when the replica showed %d", n.Payload, high)
	}
	l.mu.Lock()
	l.events, l.shown = append(l.events, e), append(l.shown, high)
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return nil
}

func number(n pgnotify.Notification) int {
	digits, _, _ := strings.Cut(n.Payload, " ")
	id, _ := strconv.Atoi(digits)
	return id
}

// write commits rows, with a notification each.
func (l *ledger) write(n *replicationtest.Node, ids ...int) {
	l.t.Helper()
	conn := connect(l.t, n)
	for _, id := range ids {
		_, err := conn.Exec(l.t.Context(), l.writing(id, ""), pgx.QueryExecModeSimpleProtocol)
		must(l.t, err)
	}
}

// writing is the SQL of one.
func (l *ledger) writing(id int, more string) string {
	return fmt.Sprintf(`BEGIN; INSERT INTO %s VALUES (%d); SELECT pg_notify('%[1]s', '%[2]d %[3]s'); COMMIT`, l.table, id, more)
}

// channel is the ledger's, which is named as its table.
func (l *ledger) channel() pgnotify.Channel { return pgnotify.Channel{Name: l.table, Handler: l} }

func (l *ledger) so() []pgnotify.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// until waits for events that satisfy ok.
func (l *ledger) until(what string, ok func([]pgnotify.Event) bool) []pgnotify.Event {
	l.t.Helper()
	late := time.After(patience)
	for {
		if events := l.so(); ok(events) {
			return events
		}
		select {
		case <-l.changed:
		case <-late:
			l.t.Fatalf("%s: got %s", what, told(l.so()))
		}
	}
}

// heard waits until the notification of a row has come.
func (l *ledger) heard(id int) []pgnotify.Event {
	l.t.Helper()
	return l.until(fmt.Sprintf("notification %d", id), func(events []pgnotify.Event) bool {
		return slices.ContainsFunc(events, func(e pgnotify.Event) bool {
			n, is := e.(pgnotify.Notification)
			return is && number(n) == id
		})
	})
}

// resynced waits for so many Resyncs, and returns the first of them.
func (l *ledger) resynced(n int) pgnotify.Resync {
	l.t.Helper()
	events := l.until(fmt.Sprintf("%d resyncs", n), func(events []pgnotify.Event) bool { return len(resyncs(events)) >= n })
	return resyncs(events)[0]
}

func resyncs(events []pgnotify.Event) (all []pgnotify.Resync) {
	for _, e := range events {
		if r, is := e.(pgnotify.Resync); is {
			all = append(all, r)
		}
	}
	return all
}

// told is events in a line: numbers, and ~ for a gap.
func told(events []pgnotify.Event) string {
	var b strings.Builder
	for _, e := range events {
		switch e := e.(type) {
		case pgnotify.Notification:
			fmt.Fprintf(&b, "%d ", number(e))
		case pgnotify.Resync:
			fmt.Fprintf(&b, "~(%s, dropped %d, lost %d, %s) ", e.Reason, e.Dropped, e.Lost, e.Token)
		}
	}
	return strings.TrimSpace(b.String())
}

// complete checks that the notifications are in order, and that of all rows up
// to the last none was missed in silence: its notification came, or a Resync did
// when the replica showed it.
func (l *ledger) complete(last int) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	came, before := map[int]bool{}, 0
	for i, e := range l.events {
		switch e := e.(type) {
		case pgnotify.Notification:
			if number(e) <= before {
				l.t.Errorf("%d after %d: %s", number(e), before, told(l.events))
			}
			before = number(e)
			came[before] = true
		case pgnotify.Resync:
			for id := 1; id <= l.shown[i]; id++ {
				came[id] = true
			}
			if e.Reason == "" {
				l.t.Errorf("a Resync without a reason: %+v", e)
			}
		}
	}
	for id := 1; id <= last; id++ {
		if !came[id] {
			l.t.Errorf("nothing was told of %d: %s", id, told(l.events))
		}
	}
}

// quickly is a Config that finds faults in less time than users' do.
func quickly(primaryDSN string, replica *tracker.Tracker, channels ...pgnotify.Channel) pgnotify.Config {
	return pgnotify.Config{
		Primary:  replication.Server{DSN: primaryDSN, ConnectTimeout: 2 * time.Second, QueryTimeout: 2 * time.Second},
		Replica:  replica,
		Channels: channels,
		Probe:    200 * time.Millisecond,
		RetryMax: 200 * time.Millisecond,
	}
}

// eventually polls for what nothing signals.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// through makes a proxy to n for as long as the test lasts.
func through(t *testing.T, n *replicationtest.Node) *replicationtest.Proxy {
	t.Helper()
	p, err := replicationtest.NewProxy(t.Context(), n)
	must(t, err)
	t.Cleanup(p.Close)
	return p
}

// either is a DSN that names several nodes, and leads to the one that is written.
func either(t *testing.T, nodes ...*replicationtest.Node) string {
	t.Helper()
	var hosts []string
	for _, n := range nodes {
		u, err := url.Parse(n.DSN())
		must(t, err)
		hosts = append(hosts, u.Host)
	}
	u, err := url.Parse(nodes[0].DSN("target_session_attrs=read-write"))
	must(t, err)
	u.Host = strings.Join(hosts, ",")
	return u.String()
}

// password is the cluster's.
func password(t *testing.T, n *replicationtest.Node) string {
	t.Helper()
	u, err := url.Parse(n.DSN())
	must(t, err)
	p, _ := u.User.Password()
	return p
}

// ends waits for what Run returns.
func ends(t *testing.T, l *pgnotify.Listener, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		if err == nil {
			t.Fatal("Run returned nil")
		}
		return err
	case <-time.After(patience):
		t.Fatalf("Run has not returned: %+v", l.Stats())
		return errors.New("")
	}
}
