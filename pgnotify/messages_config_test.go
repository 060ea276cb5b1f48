package pgnotify_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

func TestNewMessagesNamesTheFieldThatIsWrong(t *testing.T) {
	h := pgnotify.HandlerFunc(func(context.Context, pgnotify.Event) error { return nil })
	for want, cfg := range map[string]pgnotify.MessagesConfig{
		"MessagesConfig.Channels is empty":                 {},
		`MessagesConfig.Channels[0].Name "": want 1 to 63`: {Channels: []pgnotify.Channel{{Handler: h}}},
		`MessagesConfig.Channels[0].Name "ppp`:             {Channels: []pgnotify.Channel{{Name: strings.Repeat("p", 64), Handler: h}}},
		`"walwake": this one is walwake's own`:             {Channels: []pgnotify.Channel{{Name: "walwake", Handler: h}}},
		`want no zero byte`:                                {Channels: []pgnotify.Channel{{Name: "a\x00b", Handler: h}}},
		`MessagesConfig.Channels: "a" twice`:               {Channels: []pgnotify.Channel{{Name: "a", Handler: h}, {Name: "a", Handler: h}}},
		`MessagesConfig.Channels[0].Handler of "a" is nil`: {Channels: []pgnotify.Channel{{Name: "a"}}},
		`MessagesConfig.Channels[0].AtOnce of "a"`:         {Channels: []pgnotify.Channel{{Name: "a", Handler: h, AtOnce: true}}},
		`MessagesConfig.Channels[0].Buffer -1: want 0`:     {Channels: []pgnotify.Channel{{Name: "a", Handler: h, Buffer: -1}}},
		`MessagesConfig.Channels[0].Full 7: want Block`:    {Channels: []pgnotify.Channel{{Name: "a", Handler: h, Full: 7}}},
		`MessagesConfig.BlockMost -1s: want 0 or more`:     {Channels: []pgnotify.Channel{{Name: "a", Handler: h}}, BlockMost: -time.Second},
	} {
		if m, err := pgnotify.NewMessages(cfg); m != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// never is an Execer that must not be called.
type never struct{ t *testing.T }

func (n never) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	n.t.Error("it was called")
	return pgconn.CommandTag{}, nil
}

func TestEmitRefusesWhatNobodyCouldHear(t *testing.T) {
	for _, c := range []struct{ prefix, payload, want string }{
		{"", "x", "want 1 to 63 bytes"},
		{strings.Repeat("p", 64), "x", "want 1 to 63 bytes"},
		{"walwake", "x", "walwake's own"},
		{"a\x00", "x", "zero byte"},
		{"a", strings.Repeat("x", pgnotify.MaxPayload+1), "1048577 bytes, want at most 1048576"},
	} {
		if err := pgnotify.Emit(t.Context(), never{t}, c.prefix, c.payload); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.10q: %v, want %s", c.prefix, err, c.want)
		}
		if err := pgnotify.EmitSQL(t.Context(), nil, c.prefix, c.payload); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.10q: %v, want %s", c.prefix, err, c.want)
		}
	}
}

func TestEmitSQL(t *testing.T) {
	c := cluster(t)
	decodable(t, c)
	got := make(events, 10)
	receiving(t, c.Standbys[0].DSN(), c.Primary, pgnotify.MessagesConfig{Channels: []pgnotify.Channel{{Name: "sql", Handler: got}}}).wait(t)
	db := stdlib.OpenDB(*connect(t, c.Primary).Config())
	defer db.Close()
	for _, commit := range []bool{false, true} {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := pgnotify.EmitSQL(t.Context(), tx, "sql", fmt.Sprint("committed: ", commit)); err != nil {
			t.Fatal(err)
		}
		if end := map[bool]func() error{false: tx.Rollback, true: tx.Commit}[commit]; end() != nil {
			t.Fatal("it did not end")
		}
	}
	if n := got.next(t).(pgnotify.Notification); n.Payload != "committed: true" {
		t.Errorf("%+v", n)
	}
	if err := pgnotify.EmitSQL(t.Context(), failing{}, "sql", "x"); !errors.Is(err, sql.ErrConnDone) {
		t.Error(err)
	}
}

type failing struct{}

func (failing) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	return nil, sql.ErrConnDone
}

func TestMessagesSayWhyTheyAreNotReady(t *testing.T) {
	c := cluster(t)
	writer := connect(t, c.Primary)
	exec(t, writer, `DO $$ BEGIN CREATE ROLE plain LOGIN PASSWORD 'wachtwoord'; EXCEPTION WHEN duplicate_object THEN END $$`)
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := pgnotify.HandlerFunc(func(context.Context, pgnotify.Event) error { return nil })
	r := receiving(t, c.Standbys[0].DSNFor("plain", "wachtwoord", "postgres"), nil, pgnotify.MessagesConfig{Channels: []pgnotify.Channel{{Name: "a", Handler: h}}})
	want := "REPLICATION"
	if c.Version < 16 {
		want = "needs PostgreSQL 16"
	}
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(r.Stats().Failure.Error(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(r.Stats().Failure)
		}
	}
	if s := r.Stats(); s.Connected {
		t.Errorf("%+v", s)
	}
	if s := r.replica.State(); !strings.Contains(s.Ladder[0].Reason, want) || s.Ladder[0].Source != "logical" {
		t.Errorf("%+v", s)
	}
	select {
	case <-r.Ready():
		t.Error("ready")
	case err := <-r.ended:
		t.Error(err)
	default:
	}
}

// began returns Messages as they are with a stream, which is the test's.
func began(t *testing.T, cfg pgnotify.MessagesConfig) *pgnotify.Messages {
	t.Helper()
	m, err := pgnotify.NewMessages(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Began(t.Context(), tracker.Token{}); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFullBufferOfMessages(t *testing.T) {
	got := make(events)
	m := began(t, pgnotify.MessagesConfig{BlockMost: 10 * time.Millisecond, Channels: []pgnotify.Channel{
		{Name: "block", Handler: got, Buffer: 2},
		{Name: "drop", Handler: got, Buffer: 2, Full: pgnotify.DropOldest},
		{Name: "fail", Handler: got, Buffer: 2, Full: pgnotify.Fail},
	}})
	for i := range 3 {
		for _, prefix := range []string{"block", "drop", "fail"} {
			err := m.Message(t.Context(), replication.Message{Prefix: prefix})
			if full := i == 2; (err != nil) != (full && prefix != "drop") || prefix == "fail" && errors.Is(err, pgnotify.ErrFull) != full {
				t.Errorf("%d in %s: %v", i+1, prefix, err)
			}
		}
	}
	if err := m.Run(t.Context(), follow(t, cluster(t).Standbys[0].DSN())); !errors.Is(err, pgnotify.ErrFull) {
		t.Errorf("Run returned %v", err)
	}
	// What comes after it is forgotten, and blocks nobody.
	for range 10 {
		if err := m.Message(t.Context(), replication.Message{Prefix: "block"}); err != nil {
			t.Error(err)
		}
	}
	if m.Wants("block") {
		t.Error("somebody wants it")
	}
}

func TestRunOfMessagesEndsWithTheHandlersError(t *testing.T) {
	no := errors.New("no")
	m := began(t, pgnotify.MessagesConfig{Channels: []pgnotify.Channel{{Name: "a", Handler: pgnotify.HandlerFunc(func(context.Context, pgnotify.Event) error { return no })}}})
	if err := m.Message(t.Context(), replication.Message{Prefix: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context(), follow(t, cluster(t).Standbys[0].DSN())); !errors.Is(err, no) {
		t.Errorf("Run returned %v", err)
	}
}

// A handler that is slow for longer than BlockMost costs a gap, and no more.
func TestStreamIsGivenUpWhenAHandlerBlocks(t *testing.T) {
	c := cluster(t)
	decodable(t, c)
	got := make(events)
	r := receiving(t, c.Standbys[0].DSN(), c.Primary, pgnotify.MessagesConfig{
		BlockMost: 50 * time.Millisecond,
		Channels:  []pgnotify.Channel{{Name: "slow", Handler: got, Buffer: 3}},
	}).wait(t)
	writer := connect(t, c.Primary)
	for i := range 10 {
		if err := pgnotify.Emit(t.Context(), writer, "slow", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); r.Stats().Reconnects == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", r.Stats())
		}
	}
	for i := 0; ; i++ {
		switch e := got.next(t).(type) {
		case pgnotify.Notification:
			if e.Payload != fmt.Sprint(i) || i > 4 {
				t.Errorf("%+v", e)
			}
			continue
		case pgnotify.Resync:
			if !strings.Contains(e.Reason, `the handler has blocked the connection for too long: channel "slow"`) || i < 3 {
				t.Errorf("%d and %+v", i, e)
			}
		}
		break
	}
	if err := pgnotify.Emit(t.Context(), writer, "slow", "after it"); err != nil {
		t.Fatal(err)
	}
	if n, is := got.next(t).(pgnotify.Notification); !is || n.Payload != "after it" {
		t.Errorf("%+v", n)
	}
}

// REPLICATION is enough, on every version: the timeline is then seen over
// a replication connection, which takes over from the plain one.
func TestMessagesOfARoleThatMayReplicate(t *testing.T) {
	c := cluster(t)
	decodable(t, c)
	writer := connect(t, c.Primary)
	exec(t, writer, `DO $$ BEGIN CREATE ROLE replicates LOGIN REPLICATION PASSWORD 'wachtwoord'; EXCEPTION WHEN duplicate_object THEN END $$`)
	if err := c.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make(events, 100)
	r := receiving(t, c.Standbys[0].DSNFor("replicates", "wachtwoord", "postgres"), c.Primary, pgnotify.MessagesConfig{Channels: []pgnotify.Channel{{Name: "a", Handler: got}}}).wait(t)
	for i := range 10 {
		if err := pgnotify.Emit(t.Context(), writer, "a", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if n, is := got.next(t).(pgnotify.Notification); !is || n.Payload != fmt.Sprint(i) || n.Token.Timeline != 1 {
			t.Errorf("%+v", n)
		}
	}
	if s := r.Stats(); s.Reconnects != 0 {
		t.Errorf("%+v", s)
	}
}
