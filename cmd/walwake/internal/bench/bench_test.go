package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/tracker"
)

func good() Config {
	return Config{Rates: []int{0, 500}, Waiters: []int{0, 1, MaxWaiters}, Rounds: 1, Slice: time.Millisecond, Sessions: 1}
}

func TestCheckNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	if err := good().Check(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		says  string
		spoil func(*Config)
	}{
		{"rates: want one or more, none below 0", func(c *Config) { c.Rates = nil }},
		{"rates: want one or more, none below 0", func(c *Config) { c.Rates = []int{0, -1} }},
		{"waiters: want one or more, each from 0 to 100000", func(c *Config) { c.Waiters = nil }},
		{"waiters: want one or more, each from 0 to 100000", func(c *Config) { c.Waiters = []int{1, -1} }},
		{"waiters: want one or more, each from 0 to 100000", func(c *Config) { c.Waiters = []int{MaxWaiters + 1} }},
		{"rounds: want 1 or more", func(c *Config) { c.Rounds = 0 }},
		{"slice: want a time above 0", func(c *Config) { c.Slice = 0 }},
		{"slice: want a time above 0", func(c *Config) { c.Slice = -time.Second }},
		{"sessions: want 1 or more", func(c *Config) { c.Sessions = 0 }},
		{`ways: there is no "nonsense", want one of poll-100ms, `, func(c *Config) { c.Ways = []string{"walwake", "nonsense"} }},
	} {
		cfg := good()
		c.spoil(&cfg)
		if err := cfg.Check(); err == nil || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("want %q, got %v", c.says, err)
		}
		if _, err := Run(t.Context(), cfg); err == nil || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("Run: want %q, got %v", c.says, err)
		}
	}
}

func TestChosenWaysAreThoseThatTheVersionHas(t *testing.T) {
	t.Parallel()
	names := func(named []string, major int) string {
		ways, err := chosen(named, major)
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, w := range ways {
			names = append(names, w.name)
		}
		return strings.Join(names, " ")
	}
	if got := names(nil, 19); got != strings.Join(Ways(), " ") {
		t.Errorf("19 has %s", got)
	}
	if got := names(nil, 14); strings.Contains(got, "wait-for-lsn") || strings.Contains(got, "logical") || !strings.Contains(got, "walwake-physical") {
		t.Errorf("14 has %s", got)
	}
	if got := names([]string{"floor", "walwake", "walwake"}, 14); got != "walwake floor" {
		t.Errorf("got %s", got)
	}
	if got := names([]string{"floor", "wait-for-lsn"}, 18); got != "wait-for-lsn needs PostgreSQL 19, and the replica is 18" {
		t.Errorf("got %s", got)
	}
}

// at returns a turn of waits that began and ended at ms after start.
func at(start time.Time, ms ...[2]float64) *turns {
	t := &turns{n: len(ms)}
	after := func(f float64) time.Time { return start.Add(time.Duration(f * float64(time.Millisecond))) }
	for _, m := range ms {
		t.began, t.ended = append(t.began, after(m[0])), append(t.ended, after(m[1]))
	}
	return t
}

func TestACellsArithmetic(t *testing.T) {
	t.Parallel()
	committed := time.Now()
	c := newCell(way{name: "walwake"}, 2, 500)
	c.made = 499.12345
	c.turn(at(committed, [2]float64{0.5, 1}, [2]float64{0.5, 3}), committed)
	c.turn(at(committed, [2]float64{0.5, 2}, [2]float64{0.5, 4}), committed)
	for range stale {
		c.old(at(committed, [2]float64{0, 0.1}, [2]float64{0, 0.3}))
	}
	c.took, c.client, c.server = 2*time.Second, time.Second, 500*time.Millisecond
	c.requests, c.bytes, c.sessions = 3, 1001, 2

	got := c.result()
	near := func(name string, got, want float64) {
		if math.Abs(got-want) > want/1000 { // a histogram keeps three digits
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	near("p50", got.P50, 2000)
	near("p90", got.P90, 4000)
	near("p99", got.P99, 4000)
	near("max", got.Max, 4000)
	near("waits a second", got.PerSecond, 4/0.007)
	near("mix", *got.Mix, (2000+4*200)/5.) // fresh: (0.5 + 2.5 + 1.5 + 3.5)/4 ms
	near("made", got.Made, 499.123)
	if got.Way != "walwake" || got.Rate != 500 || got.Waiters != 2 || got.Waits != 4 || got.Missing != "" ||
		got.Requests != 1.5 || got.Bytes != 500.5 || got.Held != 2 || got.ServerCPU != 0.25 || got.ClientCPU != 0.5 {
		t.Errorf("got %+v", got)
	}
	if n := len(got.Distribution); n != len(percentiles) || got.Distribution[0][0] != 0.5 || got.Distribution[n-1] != [2]float64{100, got.Max} {
		t.Errorf("got %v", got.Distribution)
	}
	for i, q := range got.Distribution[1:] {
		if q[0] <= got.Distribution[i][0] || q[1] < got.Distribution[i][1] {
			t.Errorf("%v comes after %v", q, got.Distribution[i])
		}
	}

	c.stales = 0 // too many waiters for a mix
	if got := c.result(); got.Mix != nil {
		t.Errorf("got a mix of %v", *got.Mix)
	}
}

func TestACellWithoutWaitsHasNoFigures(t *testing.T) {
	t.Parallel()
	c := newCell(way{name: "walwake-logical"}, 1, 0)
	c.missing = fmt.Errorf("logical %w: no right", errNotUp)
	got := c.result()
	if got.Missing != "logical is not possible here: no right" || got.Waits != 0 || got.Mix != nil || got.Distribution != nil {
		t.Errorf("got %+v", got)
	}
}

func TestAWaitThatWasOverBeforeTheCommitWasAcknowledgedIsNotBelowZero(t *testing.T) {
	t.Parallel()
	committed := time.Now()
	c := newCell(way{}, 1, 0)
	c.turn(at(committed, [2]float64{-2, -1}), committed)
	c.old(at(committed, [2]float64{0, 0}))
	c.took = time.Millisecond
	got := c.result()
	if got.P50 < 0 || got.Max < 0 || got.PerSecond <= 0 || *got.Mix < 0 {
		t.Errorf("got %+v", got)
	}
	if _, err := json.Marshal(got); err != nil { // which takes no infinity
		t.Error(err)
	}
}

func TestRatiosAreToTheServersOwnWayOrElseToTheTightLoop(t *testing.T) {
	t.Parallel()
	measured := func(name string, rate, waiters int, ms float64, mix bool) *cell {
		committed := time.Now()
		c := newCell(way{name: name}, waiters, rate)
		c.turn(at(committed, [2]float64{0, ms}), committed)
		if mix {
			c.old(at(committed, [2]float64{0, ms}))
		}
		return c
	}
	r := &Result{cells: []*cell{
		measured(tightWay, 0, 1, 2, true),
		measured(nativeWay, 0, 1, 4, true),
		measured("walwake", 0, 1, 1, true),
		newCell(way{name: "walwake-logical"}, 1, 0), // impossible

		measured(tightWay, 500, 1, 2, true), // the server's own way was not measured
		measured("walwake", 500, 1, 1, true),
		newCell(way{name: nativeWay}, 1, 500),

		measured(nativeWay, 500, 10, 4, false), // in another order
		measured(tightWay, 500, 10, 2, false),
		measured("walwake", 500, 10, 1, false),

		measured("walwake", 3000, 1, 1, true), // no reference
	}}
	r.finish()
	for i, want := range []struct {
		reference     string
		ratio, ofMixs float64
	}{
		{nativeWay, 0.5, 0.5},
		{nativeWay, 1, 1},
		{nativeWay, 0.25, 0.25},
		{"", 0, 0},
		{tightWay, 1, 1},
		{tightWay, 0.5, 0.5},
		{"", 0, 0},
		{nativeWay, 1, 0},
		{nativeWay, 0.5, 0},
		{nativeWay, 0.25, 0},
		{"", 0, 0},
	} {
		c := r.Cells[i]
		c.Distribution = nil // of no interest here
		near := func(got, want float64) bool { return math.Abs(got-want) <= want/500 }
		if c.Reference != want.reference || !near(c.P50Ratio, want.ratio) || !near(c.P99Ratio, want.ratio) || !near(c.MixRatio, want.ofMixs) {
			t.Errorf("%s at %d with %d: want %+v, got %+v", c.Way, c.Rate, c.Waiters, want, c)
		}
	}
}

func TestTurnsHaveAllWaitEachTime(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 100} {
		var waits atomic.Int64
		var sum atomic.Uint64
		ts := newTurns(n, &opened{wait: func(_ context.Context, tok tracker.Token) error {
			waits.Add(1)
			sum.Add(uint64(tok.LSN))
			return nil
		}})
		for turn := range 50 {
			before := time.Now()
			if err := ts.all(t.Context(), tracker.Token{LSN: tracker.LSN(turn)}); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if ts.began[i].Before(before) || ts.ended[i].Before(ts.began[i]) || ts.ended[i].After(time.Now()) {
					t.Fatalf("%d of %d, turn %d: from %s to %s", i, n, turn, ts.began[i], ts.ended[i])
				}
			}
		}
		ts.close()
		if waits.Load() != int64(50*n) || sum.Load() != uint64(n*50*49/2) {
			t.Errorf("%d: %d waits for a sum of %d", n, waits.Load(), sum.Load())
		}
	}
}

func TestTurnsReturnTheErrorOfOneAndGoOn(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 20} {
		failed := errors.New("failed")
		var waits atomic.Int64
		ts := newTurns(n, &opened{wait: func(context.Context, tracker.Token) error {
			if waits.Add(1) == int64(n) { // the last of the first turn
				return failed
			}
			return nil
		}})
		if err := ts.all(t.Context(), tracker.Token{}); !errors.Is(err, failed) {
			t.Errorf("%d: got %v", n, err)
		}
		if err := ts.all(t.Context(), tracker.Token{}); err != nil {
			t.Errorf("%d: the error of the turn before is still there: %v", n, err)
		}
		ts.close()
	}
}

func TestTurnsWaitTogetherAndEndWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var waiting atomic.Int64
		ts := newTurns(30, &opened{wait: func(ctx context.Context, _ tracker.Token) error {
			waiting.Add(1)
			<-ctx.Done()
			return ctx.Err()
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- ts.all(ctx, tracker.Token{}) }()
		synctest.Wait()
		if waiting.Load() != 30 {
			t.Errorf("%d wait", waiting.Load())
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		ts.close() // synctest fails if one of them is left
	})
}

func TestOnlyWhatIsToldIsToldOfAWrite(t *testing.T) {
	t.Parallel()
	newTurns(1, &opened{}).written(tracker.Token{LSN: 5})

	o, err := floor(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ts := newTurns(3, o)
	ts.begin(t.Context(), tracker.Token{LSN: 5})
	ts.settle(t.Context())
	ts.written(tracker.Token{LSN: 5})
	if err := ts.end(); err != nil {
		t.Error(err)
	}
	ts.close()
}

func TestWhatIsMeasuredWithNobodyWaiting(t *testing.T) {
	t.Parallel()
	idle := func(name string, took, server time.Duration) *cell {
		c := newCell(way{name: name}, 0, 0)
		c.took, c.server, c.client, c.bytes, c.sessions = took, server, took/10, 1000, 2
		return c
	}
	r := &Result{cells: []*cell{
		idle("walwake", 2*time.Second, 60*time.Millisecond), idle(floorWay, 2*time.Second, 40*time.Millisecond), idle(nativeWay, 0, 0),
	}}
	r.finish()
	c := r.Cells[0]
	if c.ServerCPU != 0.03 || c.ClientCPU != 0.1 || c.CPURatio != 1.5 || c.BytesPerSecond != 500 || c.Held != 2 || c.Waits != 0 || c.Reference != "" || c.P50Ratio != 0 {
		t.Errorf("got %+v", c)
	}
	if _, err := json.Marshal(r); err != nil { // which takes no NaN
		t.Error(err)
	}
}

func TestABroadcastReachesAllWhoWaitForWhatItSays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBroadcast()
		wait := func(ctx context.Context, lsn tracker.LSN) <-chan error {
			ended := make(chan error, 1)
			go func() { ended <- b.wait(ctx, tracker.Token{LSN: lsn}) }()
			synctest.Wait()
			return ended
		}
		over := func(what string, c <-chan error) error {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-c:
				return err
			default:
				t.Fatalf("%s is not over", what)
				return nil
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		at5, at5too, at9, gone, at20 := wait(t.Context(), 5), wait(t.Context(), 5), wait(t.Context(), 9), wait(ctx, 9), wait(t.Context(), 20)
		b.set(4)
		synctest.Wait()
		if len(at5)+len(at5too)+len(at9)+len(gone) > 0 {
			t.Error("4 is below 5")
		}
		b.set(5)
		if err := errors.Join(over("5", at5), over("5 too", at5too)); err != nil || len(at9) > 0 {
			t.Errorf("at 5: %v", err)
		}
		cancel()
		if err := over("who gave up", gone); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		b.set(10)
		if err := over("9", at9); err != nil {
			t.Error(err)
		}
		if err := over("what is there already", wait(t.Context(), 10)); err != nil {
			t.Error(err)
		}
		failed := errors.New("failed")
		b.fail(failed)
		if err := over("20", at20); !errors.Is(err, failed) || !strings.Contains(err.Error(), "the loop on the server has ended") {
			t.Errorf("got %v", err)
		}
		if err := over("who comes later", wait(t.Context(), 20)); !errors.Is(err, failed) {
			t.Errorf("got %v", err)
		}
		if err := over("what was there before", wait(t.Context(), 10)); err != nil {
			t.Error(err)
		}
	})
}

func TestABackgroundThatFailsFailsTheRun(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	r := &run{Config: good(), ways: all, result: &Result{}}
	r.Rounds = 0
	r.Load = func(context.Context, int) (func() (float64, error), error) { return nil, failed }
	if err := r.at(t.Context(), 500); !errors.Is(err, failed) || !strings.Contains(err.Error(), "500") {
		t.Errorf("it does not start: %v", err)
	}
	r.Load = func(context.Context, int) (func() (float64, error), error) {
		return func() (float64, error) { return 0, failed }, nil
	}
	if err := r.at(t.Context(), 500); !errors.Is(err, failed) {
		t.Errorf("it ends: %v", err)
	}
	r.Load = func(context.Context, int) (func() (float64, error), error) {
		return func() (float64, error) { return 490.5, nil }, nil
	}
	r.result.cells = nil
	if err := r.at(t.Context(), 500); err != nil || len(r.result.cells) == 0 || r.result.cells[0].made != 490.5 {
		t.Errorf("%v, %+v", err, r.result.cells)
	}
}

// A session in the middle of a query learns from nothing but a request to cancel that its client has gone, and a
// process that ends before that was sent leaves it behind.
func TestAWayThatIsClosedHasToldTheServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var cancelled atomic.Int64
	asked := make(chan struct{}, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := pgproto3.NewBackend(conn, conn)
				first, err := b.ReceiveStartupMessage()
				if err != nil {
					return
				}
				if _, ok := first.(*pgproto3.CancelRequest); ok {
					cancelled.Add(1)
					return
				}
				for _, m := range []pgproto3.BackendMessage{&pgproto3.AuthenticationOk{}, &pgproto3.BackendKeyData{SecretKey: []byte{0, 0, 0, 1}}, &pgproto3.ReadyForQuery{TxStatus: 'I'}} {
					b.Send(m)
				}
				_ = b.Flush()
				for {
					if _, err := b.Receive(); err != nil {
						return
					}
					asked <- struct{}{} // and never answers
				}
			}()
		}
	}()
	config, err := pgx.ParseConfig("postgres://u@" + l.Addr().String() + "/db?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	o, err := serverLoop(t.Context(), &line{replica: config, most: 1})
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	o.close()
	if n := cancelled.Load(); n != 1 {
		t.Errorf("%d requests to cancel were sent when it is closed", n)
	}
}

func TestAWaitThatTakesTooLongSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), waitMost, errTooLong)
		defer cancel()
		failed := errors.New("failed")
		if err := tooLong(ctx, failed); !errors.Is(err, failed) {
			t.Errorf("before: %v", err)
		}
		<-ctx.Done()
		err := tooLong(ctx, fmt.Errorf("a loop: %w", ctx.Err()))
		if !errors.Is(err, tracker.ErrTimeout) || !strings.HasSuffix(err.Error(), "timeout after 20s: a write is not known to be replayed: is replay paused?") {
			t.Errorf("got %v", err)
		}
		if err := tooLong(ctx, failed); !errors.Is(err, failed) {
			t.Errorf("another error: %v", err)
		}

		caller, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		ctx, cancel = context.WithTimeoutCause(caller, waitMost, errTooLong)
		defer cancel()
		<-ctx.Done()
		if err := tooLong(ctx, ctx.Err()); errors.Is(err, tracker.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller's time: %v", err)
		}
	})
}
