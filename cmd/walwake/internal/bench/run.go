package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication"

	"github.com/walwake/walwake/tracker"
)

const (
	waitMost  = 20 * time.Second       // a wait that takes longer has failed
	setUpMost = 30 * time.Second       // connecting, or making a kind come up
	upWithin  = 10 * time.Second       // a kind that is possible comes up in this time
	warmUp    = 5                      // writes that are not counted, each time a way was opened
	rest      = 2 * time.Millisecond   // between writes: what one has set going comes to rest
	stale     = 4                      // of five tokens in the mix are replayed already
	mixMost   = 1000                   // waiters at most for which the mix is measured
	settled   = 300 * time.Millisecond // after the background has begun
)

// Run measures, and returns what it has found. ctx ends it early, with an error.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	w, err := newWriter(ctx, cfg.Primary)
	if err != nil {
		return nil, fmt.Errorf("the primary: %w", err)
	}
	defer w.close()
	r := &run{Config: cfg, writer: w, impossible: map[string]error{}, result: &Result{Machine: machine(), Sessions: cfg.Sessions, Rounds: cfg.Rounds, SliceMS: float64(cfg.Slice) / 1e6}}
	major, err := r.versions(ctx)
	if err != nil {
		return nil, fmt.Errorf("the replica: %w", err)
	}
	if r.ways, err = chosen(cfg.Ways, major); err != nil {
		return nil, err
	}
	if err := r.replays(ctx); err != nil {
		return nil, err
	}
	for _, rate := range cfg.Rates {
		if err := r.at(ctx, rate); err != nil {
			return nil, err
		}
	}
	r.result.finish()
	return r.result, nil
}

type run struct {
	Config
	writer *writer
	ways   []way
	result *Result
	done   int // slices

	impossible map[string]error // why, by way
}

// versions notes the servers', and returns the replica's major one.
func (r *run) versions(ctx context.Context) (major int, err error) {
	ctx, cancel := context.WithTimeout(ctx, setUpMost)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, r.Replica)
	if err != nil {
		return 0, err
	}
	defer disconnect(conn)
	var num string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')`).Scan(&r.result.Postgres, &num)
	if err != nil {
		return 0, err
	}
	r.result.Postgres, _, _ = strings.Cut(r.result.Postgres, " ") // what a packager adds
	n, err := strconv.Atoi(num)
	return n / 10000, err
}

// replays fails where the replica does not replay what the primary writes.
func (r *run) replays(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setUpMost)
	defer cancel()
	o, err := follow(replication.Poll)(ctx, &line{replica: r.Replica, primary: r.Primary})
	if err != nil {
		return fmt.Errorf("the replica: %w", err)
	}
	defer o.close()
	ctx, cancel = context.WithTimeout(ctx, upWithin)
	defer cancel()
	if err := o.wait(ctx, r.writer.token); err != nil {
		return fmt.Errorf("the replica does not replay what the primary has written: %w", err)
	}
	return nil
}

// at measures all ways, beside rate transactions a second.
func (r *run) at(ctx context.Context, rate int) (err error) {
	var cells []*cell
	for _, waiters := range r.Waiters {
		for _, w := range r.ways {
			if waiters > 1 && w.alone || waiters == 0 && !w.idles {
				continue
			}
			cells = append(cells, newCell(w, waiters, rate))
		}
	}
	if rate > 0 {
		stop, loadErr := r.Load(ctx, rate)
		if loadErr != nil {
			return fmt.Errorf("a background of %d tx/s: %w", rate, loadErr)
		}
		defer func() {
			made, stopErr := stop()
			if stopErr != nil {
				err = errors.Join(err, fmt.Errorf("a background of %d tx/s: %w", rate, stopErr))
			}
			for _, c := range cells {
				c.made = made
			}
		}()
		pause(ctx, settled)
	}
	for range r.Rounds {
		// In another order each time: none always comes after the same.
		for _, i := range rand.Perm(len(cells)) {
			c := cells[i]
			if r.Step != nil {
				r.Step(r.done, r.Rounds*len(cells)*len(r.Rates), fmt.Sprintf("%d tx/s, %d waiting, %s", rate, c.waiters, c.way.name))
			}
			r.done++
			if c.missing = r.impossible[c.way.name]; c.missing != nil {
				continue
			}
			err := r.measure(ctx, c)
			switch {
			case errors.Is(err, errNotUp):
				c.missing, r.impossible[c.way.name] = err, err
			case err != nil:
				return fmt.Errorf("%s: %w", c.way.name, err)
			}
		}
	}
	r.result.cells = append(r.result.cells, cells...)
	return nil
}

// measure opens a way and measures it for a slice.
func (r *run) measure(ctx context.Context, c *cell) error {
	l := &line{replica: r.Replica, primary: r.Primary, most: min(max(c.waiters, 1), r.Sessions)}
	setUp, cancel := context.WithTimeout(ctx, setUpMost)
	defer cancel()
	o, err := c.way.open(setUp, l)
	if err != nil {
		return err
	}
	defer o.close()
	runtime.GC() // what the way before has left is not for this one to clear
	if c.waiters == 0 {
		pause(ctx, settled)
		return r.spend(c, l, func() error { pause(ctx, r.Slice); return ctx.Err() })
	}
	t := newTurns(c.waiters, o)
	defer t.close()
	for range warmUp {
		if err := r.turn(ctx, t, nil); err != nil {
			return err
		}
	}
	return r.spend(c, l, func() error {
		start := time.Now()
		for n := 0; n == 0 || time.Since(start) < r.Slice; n++ {
			if err := r.turn(ctx, t, c); err != nil {
				return err
			}
			pause(ctx, rest+rand.N(c.way.period+1))
		}
		return nil
	})
}

// spend does something, and counts what that costs.
func (r *run) spend(c *cell, l *line, do func() error) error {
	server, client := serverCPU(r.Postmaster), clientCPU() // in this order: to look at the processes takes CPU too
	requests, bytes := l.requests.Load(), l.bytes.Load()
	start := time.Now()
	if err := do(); err != nil {
		return err
	}
	c.took += time.Since(start)
	c.client += clientCPU() - client
	for pid, used := range serverCPU(r.Postmaster) {
		c.server += used - server[pid]
	}
	c.requests += l.requests.Load() - requests
	c.bytes += l.bytes.Load() - bytes
	c.sessions = max(c.sessions, l.open.Load())
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// turn writes once, and has all wait for it. Then, as most of what a web service
// is shown is replayed already, it has them wait for what is. c counts it; nil:
// it is not counted.
func (r *run) turn(ctx context.Context, t *turns, c *cell) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, waitMost, errTooLong)
	defer cancel()
	defer func() { err = tooLong(ctx, err) }()
	tok, from, err := r.fresh(ctx, t)
	if err != nil {
		return err
	}
	if c != nil {
		c.turn(t, from)
	}
	if c == nil || t.n > mixMost {
		return nil
	}
	for range stale {
		if err := t.all(ctx, tok); err != nil {
			return err
		}
		c.old(t)
	}
	return nil
}

var errTooLong = fmt.Errorf("%w after %s: a write is not known to be replayed: is replay paused?", tracker.ErrTimeout, waitMost)

// tooLong puts errTooLong in the place of what a loop says when it was the end of ctx.
func tooLong(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), errTooLong) {
		return errTooLong
	}
	return err
}

// fresh has one wait with the token of a write, from when its commit was
// acknowledged. Many wait already when the write is made, for a position that it
// will cross, from when it was sent: or it would be measured how long they take to
// begin.
func (r *run) fresh(ctx context.Context, t *turns) (tok token, from time.Time, err error) {
	if t.n == 1 {
		if tok, from, err = r.writer.commit(ctx); err != nil {
			return tok, from, fmt.Errorf("the primary: %w", err)
		}
		t.written(tok)
		return tok, from, t.all(ctx, tok)
	}
	if tok, err = r.writer.ahead(ctx); err != nil {
		return tok, from, fmt.Errorf("the primary: %w", err)
	}
	t.begin(ctx, tok)
	t.settle(ctx)
	from = time.Now()
	if err = r.writer.cross(ctx); err != nil {
		err = fmt.Errorf("the primary: %w", err)
	}
	t.written(tok)
	return tok, from, errors.Join(err, t.end())
}

// turns has n goroutines, or the caller's own for one, wait for a token together.
type turns struct {
	n int
	*opened

	began, ended []time.Time // of each one's last wait
	errs         []error

	next    chan struct{} // closed when there is a turn, or the end
	tok     token
	ctx     context.Context
	over    bool
	begun   atomic.Int32
	waiting sync.WaitGroup
	running sync.WaitGroup
}

func newTurns(n int, o *opened) *turns {
	t := &turns{n: n, opened: o, began: make([]time.Time, n), ended: make([]time.Time, n), errs: make([]error, n), next: make(chan struct{})}
	if n == 1 {
		return t
	}
	for i := range n {
		next := t.next
		t.running.Go(func() {
			for {
				<-next
				if t.over {
					return
				}
				next = t.next
				t.one(i)
				t.waiting.Done()
			}
		})
	}
	return t
}

func (t *turns) one(i int) {
	t.began[i] = time.Now()
	t.begun.Add(1)
	t.errs[i] = t.wait(t.ctx, t.tok)
	t.ended[i] = time.Now()
}

// all waits for tok, n times at once.
func (t *turns) all(ctx context.Context, tok token) error {
	t.begin(ctx, tok)
	return t.end()
}

// begin has all wait for tok; end returns when they have done so.
func (t *turns) begin(ctx context.Context, tok token) {
	t.ctx, t.tok = ctx, tok
	if t.n == 1 {
		t.one(0)
		return
	}
	t.begun.Store(0)
	t.waiting.Add(t.n)
	now := t.next
	t.next = make(chan struct{})
	close(now)
}

func (t *turns) end() error {
	t.waiting.Wait()
	if i := slices.IndexFunc(t.errs, func(err error) bool { return err != nil }); i >= 0 {
		return t.errs[i]
	}
	return nil
}

func (t *turns) written(tok token) {
	if t.told != nil {
		t.told(tok)
	}
}

// settle returns when all wait, as far as one can tell from outside.
func (t *turns) settle(ctx context.Context) {
	for int(t.begun.Load()) < t.n && ctx.Err() == nil {
		time.Sleep(100 * time.Microsecond)
	}
	pause(ctx, 2*rest+time.Duration(t.n)*time.Microsecond)
}

func (t *turns) close() {
	t.over = true
	close(t.next)
	t.running.Wait()
}
