package pgnotify_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

func nothing(context.Context, pgnotify.Event) error { return nil }

func TestAStandbyCannotListen(t *testing.T) {
	standby := cluster(t).Standbys[0]
	l, ended := start(t, quickly(standby.DSN(), follow(t, standby.DSN()), pgnotify.Channel{Name: "c", Handler: pgnotify.HandlerFunc(nothing)}))
	began := time.Now()
	err := ends(t, l, ended)
	if !errors.Is(err, pgnotify.ErrCannotListen) || !strings.Contains(err.Error(), "the server is a standby: connect to the primary") {
		t.Errorf("got %v", err)
	}
	if strings.Contains(err.Error(), password(t, standby)) {
		t.Errorf("the error holds the password: %v", err)
	}
	t.Logf("after %s: %v", time.Since(began).Round(time.Millisecond), err)
}

func TestTheHandlersErrorEndsRun(t *testing.T) {
	c := cluster(t)
	mine := errors.New("mine")
	book := newLedger(t, c.Primary, c.Standbys[0])
	l, ended := start(t, quickly(c.Primary.DSN(), follow(t, c.Standbys[0].DSN()), pgnotify.Channel{
		Name:    book.table,
		Handler: pgnotify.HandlerFunc(func(context.Context, pgnotify.Event) error { return mine }),
	}))
	<-l.Ready()
	book.write(c.Primary, 1)
	if err := ends(t, l, ended); !errors.Is(err, mine) || !strings.Contains(err.Error(), book.table) {
		t.Errorf("got %v", err)
	}
	if s := l.Stats(); s.Connected {
		t.Errorf("got %+v", s)
	}
	if err := l.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Run was called before") {
		t.Errorf("once more: %v", err)
	}
}

func TestAClosedTrackerEndsRun(t *testing.T) {
	c := cluster(t)
	replica := follow(t, c.Standbys[0].DSN())
	book := newLedger(t, c.Primary, c.Standbys[0])
	l, ended := start(t, quickly(c.Primary.DSN(), replica, book.channel()))
	<-l.Ready()
	replica.Close()
	book.write(c.Primary, 1)
	if err := ends(t, l, ended); !errors.Is(err, tracker.ErrClosed) || !strings.Contains(err.Error(), book.table) {
		t.Errorf("got %v", err)
	}
}

// Nothing has to be notified of for that.
func TestAReplicaOfAnotherClusterEndsRun(t *testing.T) {
	c, other := cluster(t), replicationtest.Start(t, replicationtest.Options{Standbys: -1})
	replica := follow(t, other.Primary.DSN())
	<-replica.Ready()
	l, ended := start(t, quickly(c.Primary.DSN(), replica, pgnotify.Channel{Name: "c", Handler: pgnotify.HandlerFunc(nothing)}))
	if err := ends(t, l, ended); !errors.Is(err, tracker.ErrWrongSystem) {
		t.Errorf("got %v", err)
	}
}

// In each state that it may be in.
func TestNothingIsLeftWhenRunHasReturned(t *testing.T) {
	c := cluster(t)
	replica := follow(t, c.Standbys[0].DSN())
	<-replica.Ready()
	cut := func(t *testing.T, l *pgnotify.Listener, p *replicationtest.Proxy) {
		p.Cut()
		eventually(t, "the cut is noticed", func() bool { return !l.Stats().Connected })
	}
	for name, bring := range map[string]func(*testing.T, *pgnotify.Listener, *replicationtest.Proxy){
		"listening":       func(*testing.T, *pgnotify.Listener, *replicationtest.Proxy) {},
		"cut":             func(_ *testing.T, _ *pgnotify.Listener, p *replicationtest.Proxy) { p.Cut() },
		"cut and noticed": cut,
		"connecting": func(t *testing.T, l *pgnotify.Listener, p *replicationtest.Proxy) {
			cut(t, l, p)
			p.Drop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			book := newLedger(t, c.Primary, c.Standbys[0])
			proxy := through(t, c.Primary)
			l, err := pgnotify.New(quickly(proxy.DSN("application_name="+book.table), replica, book.channel()))
			must(t, err)
			mine := errors.New("mine")
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- l.Run(ctx) }()
			<-l.Ready()
			book.write(c.Primary, 1)
			book.heard(1)
			bring(t, l, proxy)
			cancel(mine)
			asked := time.Now()
			if err := ends(t, l, ended); !errors.Is(err, mine) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(asked); d > 5*time.Second {
				t.Errorf("Run returned after %s", d)
			}
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			for stack := range strings.SplitSeq(string(stacks), "\n\n") {
				if strings.Contains(stack, "pgnotify.(*") || strings.Contains(stack, "asyncClose") {
					t.Errorf("left behind: %s", stack)
				}
			}
			proxy.Close()
			eventually(t, "the sessions are gone", func() bool {
				n, err := replicationtest.Value[int](t.Context(), c.Primary, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, book.table)
				return err == nil && n == 0
			})
		})
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: "host=127.0.0.1"}})
	must(t, err)
	replica, err := tracker.New(tracker.Config{Source: source})
	must(t, err)
	good := pgnotify.Channel{Name: "c", Handler: pgnotify.HandlerFunc(nothing)}
	channel := func(change func(*pgnotify.Channel)) pgnotify.Config {
		bad := good
		change(&bad)
		return pgnotify.Config{Primary: replication.Server{DSN: "host=127.0.0.1"}, Replica: replica, Channels: []pgnotify.Channel{good, bad}}
	}
	whole := func(change func(*pgnotify.Config)) pgnotify.Config {
		cfg := pgnotify.Config{Primary: replication.Server{DSN: "host=127.0.0.1"}, Replica: replica, Channels: []pgnotify.Channel{good}}
		change(&cfg)
		return cfg
	}
	for want, cfg := range map[string]pgnotify.Config{
		"Config.Channels is empty":     whole(func(c *pgnotify.Config) { c.Channels = nil }),
		"Config.Replica is nil":        whole(func(c *pgnotify.Config) { c.Replica = nil }),
		"Config.Primary: neither DSN":  whole(func(c *pgnotify.Config) { c.Primary = replication.Server{} }),
		"Config.Probe -1s":             whole(func(c *pgnotify.Config) { c.Probe = -time.Second }),
		"BlockMost -1s":                whole(func(c *pgnotify.Config) { c.BlockMost = -time.Second }),
		"RetryMin 2s, RetryMax 1s":     whole(func(c *pgnotify.Config) { c.RetryMin, c.RetryMax = 2*time.Second, time.Second }),
		`"c" twice`:                    channel(func(*pgnotify.Channel) {}),
		"Channels[1].Name":             channel(func(c *pgnotify.Channel) { c.Name = strings.Repeat("x", 64) }),
		"Channels[1].Handler of \"d\"": channel(func(c *pgnotify.Channel) { c.Name, c.Handler = "d", nil }),
		"Channels[1].Buffer -1":        channel(func(c *pgnotify.Channel) { c.Name, c.Buffer = "d", -1 }),
		"Channels[1].Full 3":           channel(func(c *pgnotify.Channel) { c.Name, c.Full = "d", 3 }),
	} {
		if _, err := pgnotify.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	all := whole(func(c *pgnotify.Config) { c.Replica, c.Channels[0].AtOnce = nil, true })
	if _, err := pgnotify.New(all); err != nil {
		t.Error(err)
	}
}
