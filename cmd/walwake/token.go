package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// connectTimeout bounds what is done on a primary, connecting included, where no flag does.
const connectTimeout = 5 * time.Second

type tokenAnswer struct {
	Token    tracker.Token `json:"token"`
	System   uint64        `json:"system,string"` // JavaScript's numbers are too small for it
	Timeline uint32        `json:"timeline"`
	LSN      tracker.LSN   `json:"lsn"`
}

func (a *app) tokenCommand() *cobra.Command {
	primary, timeout := primaryFlag(), period(connectTimeout)
	c := &cobra.Command{
		Use:   "token --primary DSN",
		Short: "Print a token for all that is committed on the primary",
		Long: `Prints a token for all that is committed on the primary when the command runs: whoever has committed
before reads the write from a replica for which "walwake wait" has accepted the token.

The token names cluster, timeline and position, and needs no escaping in a URL, a cookie or a header.
The role needs no more than LOGIN. Take the token after COMMIT has returned, not inside the transaction.

With --json: token, system (the system identifier, a string), timeline and lsn.`,
		Example: `  token=$(walwake token --primary 'postgres://app@db1/app')
  WALWAKE_PRIMARY='host=db1 user=app' walwake token --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.required(primary)
			if err != nil {
				return err
			}
			t, err := capture(c.Context(), s, time.Duration(timeout))
			if err != nil {
				return err
			}
			return a.answer(tokenAnswer{Token: t, System: t.System, Timeline: t.Timeline, LSN: t.LSN}, t.String()+"\n")
		},
	}
	primary.add(c, "the primary")
	c.Flags().Var(&timeout, "timeout", "bound on connecting and asking, with its unit")
	a.jsonFlag(c)
	return c
}

// capture returns a token for all that is committed on s.
func capture(ctx context.Context, s *server, timeout time.Duration) (tracker.Token, error) {
	var t tracker.Token
	err := s.query(ctx, timeout, func(ctx context.Context, conn *pgx.Conn) (err error) {
		t, err = replication.Capture(ctx, conn)
		return err
	})
	if errors.Is(err, replication.ErrStandby) {
		return t, &serverError{fmt.Sprintf("%s is a standby: name in %s the primary, where the write was committed", s, s.from), err}
	}
	return t, err
}

// query runs f on a connection of its own. The time allowed covers both.
func (s *server) query(ctx context.Context, timeout time.Duration, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, tracker.ErrTimeout)
	defer cancel()
	err := s.ask(ctx, f)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), tracker.ErrTimeout):
		text := fmt.Sprintf("timeout after %s: no answer from %s: check host and port in %s, and firewalls between", short(timeout), s, s.from)
		return &serverError{text, tracker.ErrTimeout}
	}
	return explain(s, err)
}

func (s *server) ask(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	config := s.config.Copy()
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "walwake"
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nothing is left to lose
	}()
	return f(ctx, conn)
}
