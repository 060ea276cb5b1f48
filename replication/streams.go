package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/tracker"
)

// streams runs the kinds that listen to the server. Each starts when somebody
// waits for long and all better kinds have failed, and ends when nobody has for a
// while or a better one has come up. What they hear is a hint to ask.
type streams struct {
	r      *run
	ctx    context.Context //nolint:containedctx // of the goroutines that it owns
	cancel context.CancelFunc
	all    sync.WaitGroup

	attentive atomic.Int32 // how many want to be kicked at every change of demand

	mu    sync.Mutex
	kicks []chan struct{} // guarded by mu; one each: demand may have changed
}

// listener is what a stream knows of the run, and tells it.
type listener struct {
	run    *run
	cfg    Config
	system uint64
	demand func() tracker.Demand
	idle   func() time.Duration // for how long nobody has waited for long
	kicked <-chan struct{}

	messages MessageHandler // nil: none are wanted, or not of this kind

	up   func()              // it listens now
	hint func(tracker.LSN)   // the server has come to a position, or is about to
	note func(reason string) // why it does not listen yet
}

// errNobodyWaits ends a stream that nobody has needed for Config.Linger.
var errNobodyWaits = errors.New("no wait has lasted")

func newStreams(ctx context.Context, r *run) *streams {
	st := &streams{r: r}
	st.ctx, st.cancel = context.WithCancel(ctx)
	return st
}

// firstVersion is the first PostgreSQL that each kind can observe.
var firstVersion = map[Kind]int{Physical: 14, Logical: 16, WaitFor: 19}

func (st *streams) open() {
	r := st.r
	for kind, from := range firstVersion {
		switch {
		case !r.board.has(kind):
		case !r.s.standby && r.messages(kind) == nil:
			r.failing(kind, "the server is a primary")
		case r.s.major < from:
			r.failing(kind, fmt.Sprintf("needs PostgreSQL %d, the server is %d", from, r.s.major))
		default:
			st.start(kind)
		}
	}
}

func (st *streams) close() {
	st.mu.Lock()
	st.cancel()
	st.mu.Unlock()
	st.all.Wait()
}

// spawn runs f in a goroutine that close waits for; false: it is too late.
func (st *streams) spawn(f func()) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.ctx.Err() != nil {
		return false
	}
	st.all.Go(f)
	return true
}

// kick tells the streams that demand may have changed.
func (st *streams) kick() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, c := range st.kicks {
		select {
		case c <- struct{}{}:
		default: // it has yet to take the last one
		}
	}
}

func (st *streams) start(kind Kind) {
	kicked := make(chan struct{}, 1)
	kicked <- struct{}{} // who waits already
	st.mu.Lock()
	st.kicks = append(st.kicks, kicked)
	st.mu.Unlock()
	r := st.r
	l := &listener{
		run:    r,
		cfg:    r.cfg,
		system: r.s.system,
		demand: r.feed.Demand,
		idle:   r.idle,
		kicked: kicked,
		up:     func() { r.board.set(kind, up, "") },
		note:   func(reason string) { r.failing(kind, reason) },
		hint:   r.hinted,
	}
	if l.messages = r.messages(kind); l.messages != nil {
		l.idle = func() time.Duration { return 0 } // who wants messages waits all the time
	}
	st.all.Go(func() {
		keep(st.ctx, r.board, kind, l)
		if l.messages != nil {
			l.messages.Missing("the session to the server has ended")
		}
	})
}

// messages is who wants messages from kind; nil: nobody.
func (r *run) messages(kind Kind) MessageHandler {
	if kind != Logical {
		return nil
	}
	return r.cfg.Messages
}

// failing says why kind is not up.
func (r *run) failing(kind Kind, reason string) {
	r.board.set(kind, failing, reason)
	if h := r.messages(kind); h != nil {
		h.Missing(reason)
	}
}

// keep listens whenever kind is needed, until ctx ends.
func keep(ctx context.Context, board *board, kind Kind, l *listener) {
	var pauses pauses
	for needed(ctx, board, kind, l) {
		started := time.Now()
		err := listenUntilBetter(ctx, board, kind, l)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errNobodyWaits) || errors.Is(err, errBetter) {
			board.set(kind, resting, err.Error())
			continue
		}
		l.note(err.Error())
		if time.Since(started) > lastPause {
			pauses.reset()
		}
		select {
		case <-time.After(pauses.next()):
		case <-ctx.Done():
			return
		}
	}
}

// needed blocks until somebody waits for long and all better kinds have failed;
// false: ctx ended.
func needed(ctx context.Context, board *board, kind Kind, l *listener) bool {
	for {
		better, change := board.hopeful(kind)
		if !better && l.idle() == 0 {
			return true
		}
		select {
		case <-l.kicked:
		case <-change:
		case <-ctx.Done():
			return false
		}
	}
}

// listeners listen until ctx ends or there is nothing to listen to any more, and
// say why.
var listeners = map[Kind]func(context.Context, *listener) error{
	Physical: listenPhysical, Logical: listenLogical, WaitFor: listenWaitFor,
}

// errBetter ends a stream when a better kind has come up.
var errBetter = errors.New("a better one is up")

// listenUntilBetter listens until the stream ends or a better kind is up.
func listenUntilBetter(ctx context.Context, board *board, kind Kind, l *listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		for {
			better, change := board.better(kind)
			if better {
				cancel(errBetter)
				return
			}
			select {
			case <-change:
			case <-ctx.Done():
				return
			}
		}
	})
	err := listeners[kind](ctx, l)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
