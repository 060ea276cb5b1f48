package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/walwake/walwake/tracker"
)

type waitCommand struct {
	*app
	primary, replica serverFlag
	timeout          period
	source           choice
	start            time.Time
}

// left is what is left of the time allowed, which is for all that the command does.
func (w *waitCommand) left() time.Duration {
	return max(time.Duration(w.timeout)-time.Since(w.start), time.Millisecond)
}

// waitAnswer is what --json prints. What is not known is null.
type waitAnswer struct {
	Result   string       `json:"result"` // replayed, timeout, diverged, wrong_system or error
	Target   *tracker.LSN `json:"target"`
	Replayed *tracker.LSN `json:"replayed"`
	Timeline *uint32      `json:"timeline"`
	Source   string       `json:"source"`
	Primary  bool         `json:"primary"` // whether the server is no replica
	WaitedUS int64        `json:"waited_us"`
	Error    string       `json:"error,omitempty"`
}

func (a *app) waitCommand() *cobra.Command {
	w := &waitCommand{
		app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag(),
		timeout: period(tracker.DefaultTimeout),
	}
	c := &cobra.Command{
		Use:   "wait --replica DSN TOKEN|LSN",
		Short: "Wait until a replica has replayed a token",
		Long: `Waits until the replica has replayed the token: a query that starts there afterwards sees the write.

A bare LSN such as 0/174FFB0 will do, but says neither on which timeline nor in which cluster it lies: a
write that a failover has lost, or one of another cluster, is then not told from one that is there. With
--primary, the cluster is checked for it too. Source logical also uses it, to start at once.

With --primary, a position that is ahead of all that the primary has written is refused at once, with
status 1: nothing is sure to bring it. Without, it ends with a timeout that says how far ahead it is. A
primary that cannot be asked is an error: --primary= waits without one although WALWAKE_PRIMARY is set.

A server that cannot be reached, or does not let the role in, is an error at once. One that goes away
later is tried again until the time is up. On a primary every position of its own history is there at
once, and a note says that it is no replica. A role with LOGIN will do for a bare LSN; for a token it needs
pg_read_all_stats or REPLICATION, without which the timeline is not visible.

With --json: result (replayed, timeout, diverged, wrong_system, error), target, replayed, timeline,
source (in use at the end; a wait that is over at once was polled), primary, waited_us (microseconds,
connecting included) and error.

` + exitStatuses,
		Example: `  walwake wait --replica 'postgres://app@db2/app' v1.1kkqojsdcyw9u.1.0-174FFB0
  walwake wait --replica 'host=db2 user=app' --timeout 500ms --json "$(walwake token)"
  walwake wait --primary 'host=db1 user=app' --replica 'host=db2 user=app' 0/174FFB0
  walwake wait --replica 'host=db2 user=app' --source poll "$token"`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%d arguments given, want one TOKEN or LSN: see %s --help", len(args), c.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			w.start = time.Now()
			var answer waitAnswer
			err := w.run(c.Context(), args[0], &answer)
			return w.tell(c.Context(), answer, err)
		},
	}
	w.replica.add(c, "the replica")
	w.primary.add(c, "the primary, to check the position with")
	c.Flags().Var(&w.timeout, "timeout", "how long to wait at most, with its unit")
	c.Flags().Var(&w.source, "source", sourceUsage)
	complete(c, "source", w.source.of...)
	a.jsonFlag(c)
	return c
}

func (w *waitCommand) run(ctx context.Context, arg string, answer *waitAnswer) error {
	target, err := parseTarget(arg)
	if err != nil {
		return err
	}
	answer.Target = &target.LSN
	server, err := w.required(w.replica)
	if err != nil {
		return err
	}
	primary, err := w.optional(w.primary)
	if err != nil {
		return err
	}
	if target.System == 0 {
		if target.LSN, err = w.recordEnd(ctx, server, target.LSN); err != nil {
			return err
		}
	}
	if primary != nil {
		if target, err = w.check(ctx, primary, target); err != nil {
			return err
		}
	}
	return w.await(ctx, server, primary, target, answer)
}

// parseTarget reads a token or a bare LSN.
func parseTarget(arg string) (tracker.Token, error) {
	target, err := tracker.ParseToken(arg)
	if err != nil && strings.Contains(arg, "/") {
		target.LSN, err = tracker.ParseLSN(arg)
	} else if err != nil && !strings.HasPrefix(arg, "v") {
		err = fmt.Errorf("%w, or an LSN such as 0/174FFB0", err)
	}
	switch {
	case arg == "":
		return target, usagef("the token is empty: did the command that made it fail?")
	case err != nil:
		return target, usagef("%w", err)
	case target.LSN == 0:
		return target, usagef("%.64q names no position", arg)
	}
	return target, nil
}

// recordEnd takes a bare LSN that lies behind a WAL page's header back to where the last record before it ends:
// pg_current_wal_insert_lsn() gives such a one, which replay does not reach while nobody writes. See LSN.Normalize.
func (w *waitCommand) recordEnd(ctx context.Context, s *server, lsn tracker.LSN) (tracker.LSN, error) {
	const smallest = 1024 // of wal_block_size, which divides all others and the segment sizes
	if lsn.Normalize(smallest, smallest) == lsn {
		return lsn, nil
	}
	var block, segment int64
	err := s.query(ctx, w.left(), func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `select current_setting('wal_block_size')::bigint,
			pg_size_bytes(current_setting('wal_segment_size'))`).Scan(&block, &segment)
	})
	if err != nil {
		return lsn, err
	}
	end := lsn.Normalize(uint64(block), uint64(segment))
	if end != lsn {
		w.note("%s is behind the header of a WAL page that is still empty: waiting for %s, where the last record ends", lsn, end)
	}
	return end, nil
}

// check compares the target with what the primary has written, and fills in the cluster of a bare LSN.
func (w *waitCommand) check(ctx context.Context, primary *server, target tracker.Token) (tracker.Token, error) {
	written, err := capture(ctx, primary, w.left())
	if err != nil {
		return target, err
	}
	ahead := written.LSN.Behind(target.LSN)
	switch {
	case target.System == 0:
		target.System = written.System
	case target.System != written.System:
		return target, fmt.Errorf("%w: %s is of system %d, the token of system %d: check %s", tracker.ErrWrongSystem,
			primary, written.System, target.System, primary.from)
	}
	switch {
	case target.Timeline > written.Timeline:
		return target, fmt.Errorf("the token is of timeline %d, and %s still on %d: name the server that is the primary now in %s",
			target.Timeline, primary, written.Timeline, primary.from)
	case ahead > 0 && target.Timeline != 0 && target.Timeline < written.Timeline:
		return target, fmt.Errorf("%w: %s is on timeline %d at %s, before the token's %s of timeline %d: write again", tracker.ErrDiverged,
			primary, written.Timeline, written.LSN, target.LSN, target.Timeline)
	case ahead > 0:
		return target, fmt.Errorf("%s is %d bytes ahead of all that %s has written (%s): check the position, and %s",
			target.LSN, ahead, primary, written.LSN, primary.from)
	}
	return target, nil
}

func (w *waitCommand) await(ctx context.Context, s, primary *server, target tracker.Token, answer *waitAnswer) error {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	told := false // by the tracker's goroutine alone
	r, err := w.follow(following{server: s, primary: primary, source: w.source.value, timeout: w.left(), failed: func(err error, first bool) {
		if first {
			giveUp(explain(s, err))
		} else if !told {
			told = true
			w.note("%s: trying again until the time is up", explain(s, err))
		}
	}})
	if err != nil {
		return err
	}
	defer r.stop()
	err = r.Wait(ctx, target)
	answer.WaitedUS = time.Since(w.start).Microseconds()
	answer.Source = r.State().Source
	if o, ok := r.LastReplay(); ok {
		answer.saw(o)
	}
	late, isLate := errors.AsType[*tracker.TimeoutError](err)
	if isLate && late.Known {
		answer.saw(late.Last)
	}
	if answer.Primary && (err == nil || isLate) {
		w.note("%s is a primary, no replica: all that is committed there can be read there at once", s.address)
	}
	if isLate {
		err := r.explainTimeout(late, time.Since(w.start))
		if late.Behind > 0 && late.Reason == "" && w.unchecked() {
			return fmt.Errorf("%w: is it written? With --primary that is checked", err)
		}
		return err
	}
	if _, ok := errors.AsType[*serverError](err); ok {
		return context.Cause(ctx)
	}
	return w.advise(err, s)
}

// unchecked reports whether the target was not compared with a primary.
func (w *waitCommand) unchecked() bool {
	s, err := w.optional(w.primary)
	return s == nil && err == nil
}

// advise says what to do about a write that will not come.
func (w *waitCommand) advise(err error, s *server) error {
	switch {
	case errors.Is(err, tracker.ErrDiverged):
		return fmt.Errorf("%w: write again", err)
	case errors.Is(err, tracker.ErrWrongSystem):
		return fmt.Errorf("%w: check %s", err, s.from)
	}
	return err
}

func (a *waitAnswer) saw(o tracker.Observation) {
	a.Replayed, a.Primary = &o.LSN, o.Primary
	if o.Timeline != 0 {
		a.Timeline = &o.Timeline
	}
}

// tell prints how the wait ended.
func (w *waitCommand) tell(ctx context.Context, a waitAnswer, err error) error {
	if a.WaitedUS == 0 { // it did not come to waiting
		a.WaitedUS = time.Since(w.start).Microseconds()
	}
	switch {
	case err == nil:
		a.Result = "replayed"
	case errors.Is(err, tracker.ErrTimeout):
		a.Result = "timeout"
	case errors.Is(err, tracker.ErrDiverged):
		a.Result = "diverged"
	case errors.Is(err, tracker.ErrWrongSystem):
		a.Result = "wrong_system"
	default:
		a.Result = "error"
	}
	if err != nil {
		a.Error = message(ctx, err)
		if w.json {
			if writeErr := w.answer(a, ""); writeErr != nil {
				return writeErr
			}
		}
		return err
	}
	at := "at a position that is not known any more"
	if a.Replayed != nil { // the connection may have ended just after
		at = "at " + a.Replayed.String()
	}
	if a.Timeline != nil {
		at += fmt.Sprintf(" of timeline %d", *a.Timeline)
	}
	return w.answer(a, fmt.Sprintf("%s is replayed: the server is %s (source %s, %s with connecting)\n", a.Target, at, a.Source, micros(a.WaitedUS)))
}
