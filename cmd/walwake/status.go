package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/tracker"
)

// lagProbe is how long status watches a replica that is behind, to tell how far in time.
const lagProbe = time.Second

type statusCommand struct {
	*app
	primary, replica serverFlag
	timeout          period
	source           choice
}

// statusAnswer is what --json prints. What is not known is null.
type statusAnswer struct {
	Server     string      `json:"server"`
	Role       string      `json:"role"` // standby or primary
	Position   tracker.LSN `json:"position"`
	Timeline   *uint32     `json:"timeline"`
	System     uint64      `json:"system,string"`
	Source     string      `json:"source"`
	Ladder     []rung      `json:"ladder"` // best first
	ObservedAt time.Time   `json:"observed_at"`
	AgeUS      int64       `json:"age_us"`
	Note       string      `json:"note,omitempty"`
	*Lag
}

// Lag is what --primary adds to it. It is exported so that encoding/json can set it, embedded as it is.
type Lag struct {
	Primary  string         `json:"primary"`
	Written  *tracker.Token `json:"primary_token"`
	LagBytes uint64         `json:"lag_bytes"`
	LagUS    *int64         `json:"lag_us"`
	LagFrom  string         `json:"lag_from"` // measured, estimated, or empty when not known
}

func (a *app) statusCommand() *cobra.Command {
	s := &statusCommand{app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag(), timeout: period(connectTimeout)}
	c := &cobra.Command{
		Use:   "status --replica DSN",
		Short: "Show how far a replica is",
		Long: `Shows what is known of a replica: role, replayed position, timeline, system identifier, the sources,
and how old the position is. A note says what is missing, such as a right or a paused replay.

It starts the sources as for somebody who waits, for a second at most, and shows for each whether it is
up, or why not. What each needs is what "walwake doctor" tells.

With --primary it also shows the lag: the bytes that the primary had written and the replica had not
replayed, and the time. A replica that is behind is watched for up to a second: the time that it took is
"measured", or else "estimated" from the speed of its replay.

With --json: server, role, position, timeline, system (a string), source, ladder (of source, up,
reason; best first), observed_at, age_us, note, and with --primary: primary, primary_token, lag_bytes,
lag_us and lag_from. Times are in microseconds.`,
		Example: `  walwake status --replica 'postgres://app@db2/app'
  walwake status --primary 'host=db1 user=app' --replica 'host=db2 user=app' --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			answer, err := s.run(c.Context())
			if err != nil {
				return err
			}
			return s.answer(answer, answer.table())
		},
	}
	s.replica.add(c, "the replica")
	s.primary.add(c, "the primary, to show the lag")
	c.Flags().Var(&s.timeout, "timeout", "bound on asking each server, with its unit")
	c.Flags().Var(&s.source, "source", sourceUsage)
	complete(c, "source", s.source.of...)
	a.jsonFlag(c)
	return c
}

func (s *statusCommand) run(ctx context.Context) (*statusAnswer, error) {
	server, err := s.required(s.replica)
	if err != nil {
		return nil, err
	}
	primary, err := s.optional(s.primary)
	if err != nil {
		return nil, err
	}
	var written tracker.Token
	asked := time.Now()
	if primary != nil { // before the replica, or there would be lag where none is
		if written, err = capture(ctx, primary, time.Duration(s.timeout)); err != nil {
			return nil, err
		}
	}
	first := make(chan error, 1)
	r, err := s.follow(following{server: server, primary: primary, source: s.source.value, timeout: min(lagProbe, time.Duration(s.timeout)), failed: func(err error, give bool) {
		if give {
			select {
			case first <- explain(server, err):
			default:
			}
		}
	}})
	if err != nil {
		return nil, err
	}
	defer r.stop()
	answer, err := s.look(ctx, r, first)
	if err != nil {
		return nil, err
	}
	if primary != nil {
		if err := s.compare(ctx, r, answer, primary, written, asked); err != nil {
			return nil, err
		}
	}
	settled := r.settle(ctx, min(settleWithin, time.Duration(s.timeout)))
	answer.Source, answer.Ladder = settled.Source, rungs(settled)
	if tl := settled.Position.Timeline; answer.Timeline == nil && tl != 0 { // a replication connection has taken over, and sees it
		answer.Timeline, answer.Note = &tl, settled.Note
	}
	return answer, context.Cause(ctx)
}

// compare adds the lag.
func (s *statusCommand) compare(ctx context.Context, r *replica, answer *statusAnswer, primary *server, written tracker.Token, asked time.Time) (err error) {
	if answer.System != written.System {
		return fmt.Errorf("%w: %s is of system %d, %s of system %d: check %s and %s", tracker.ErrWrongSystem,
			r.server, answer.System, primary, written.System, r.server.from, primary.from)
	}
	answer.Lag, err = lag(ctx, r, answer, written, asked)
	if err == nil {
		answer.Primary = primary.address
	}
	return err
}

// look returns what the replica says of itself.
func (s *statusCommand) look(ctx context.Context, r *replica, first <-chan error) (*statusAnswer, error) {
	timer := time.NewTimer(time.Duration(s.timeout))
	defer timer.Stop()
	select {
	case <-r.Ready():
	case err := <-first:
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timer.C:
		return nil, fmt.Errorf("%w after %s: %s: its position is not known: %s", tracker.ErrTimeout, short(time.Duration(s.timeout)), r.server, r.unknown())
	}
	state := r.State()
	if !state.Known {
		return nil, explain(r.server, state.Failure)
	}
	answer := &statusAnswer{
		Server: r.server.address, Role: "standby", Position: state.Position.LSN, System: state.Position.System,
		ObservedAt: state.ObservedAt, AgeUS: time.Since(state.ObservedAt).Microseconds(), Note: state.Note,
	}
	if state.Position.Primary {
		answer.Role = "primary"
	}
	if state.Position.Timeline != 0 {
		answer.Timeline = &state.Position.Timeline
	}
	return answer, nil
}

// lag compares the replica with what the primary had written when it was asked.
func lag(ctx context.Context, r *replica, at *statusAnswer, written tracker.Token, asked time.Time) (*Lag, error) {
	l := &Lag{Written: &written, LagBytes: at.Position.Behind(written.LSN), LagFrom: "measured"}
	if l.LagBytes == 0 {
		l.LagUS = new(int64(0))
		return l, nil
	}
	err := r.Wait(ctx, tracker.Token{LSN: written.LSN}) // bytes know no timeline
	late, ok := errors.AsType[*tracker.TimeoutError](err)
	switch {
	case err == nil:
		l.LagUS = new(time.Since(asked).Microseconds())
	case !ok:
		return nil, err
	case credible(late) > 0:
		l.LagUS, l.LagFrom = new((time.Since(asked) + late.ETA).Microseconds()), "estimated"
	default:
		l.LagFrom = ""
	}
	return l, nil
}

// table is what a person reads.
func (s *statusAnswer) table() string {
	var rows [][]string
	row := func(name, format string, args ...any) {
		rows = append(rows, []string{name, fmt.Sprintf(format, args...)})
	}
	row("server", "%s, a %s", s.Server, s.Role)
	row("position", "%s", s.Position)
	if s.Timeline != nil {
		row("timeline", "%d", *s.Timeline)
	} else {
		row("timeline", "not known")
	}
	row("system", "%d", s.System)
	row("observed", "%s ago", micros(s.AgeUS))
	name := "sources"
	for _, r := range s.Ladder {
		row(name, "%s: %s", r.Source, r.state(s.Source))
		name = ""
	}
	if l := s.Lag; l != nil {
		row("primary", "%s, at %s of timeline %d", l.Primary, l.Written.LSN, l.Written.Timeline)
		if l.LagBytes == 0 {
			row("lag", "none")
		} else {
			row("lag", "%d bytes, %s", l.LagBytes, l.inTime())
		}
		if s.Timeline != nil && *s.Timeline != l.Written.Timeline {
			row("", "the two are on different timelines: the bytes say little")
		}
	}
	if s.Note != "" {
		row("note", "%s", oneLine(plain(s.Note)))
	}
	return columns(rows)
}

func (l *Lag) inTime() string {
	if l.LagUS == nil {
		return "not replayed within " + lagProbe.String()
	}
	return micros(*l.LagUS) + " (" + l.LagFrom + ")"
}
