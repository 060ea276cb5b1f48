package main

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/tracker"
)

// maxVerifyWriters keeps a slip of the finger from taking all connections that servers have: each writer takes one on the
// primary and one on the replica.
const maxVerifyWriters = 1000

type verifyCommand struct {
	*app
	primary, replica  serverFlag
	duration, timeout period
	rate              float64 // writes a second, of all writers together
	writers           int
	source            choice
}

const verifyLong = `Writes to your primary, reads from your replica, and counts the reads that do not show the write yet:
reads made at once, and reads made after waiting, which must never be stale.

It creates a table of its own, walwake_verify_ and random letters, in the first schema of the search path,
and drops it in the end, also after an error, Ctrl-C or SIGTERM. It has a row for each writer, which only
that writer updates, so that it does not grow. Where a publication would publish the table it refuses to
write, because subscribers that have no such table would stop.

Every other write is followed at once by a read on the replica. The ones between are followed by a token
from the primary, a wait, and then the read. The connections that read are opened before the wait, so that
none outlives what the wait has learned; a failed read or write is counted as an error, and is tried again
on a new connection.

The role on the primary needs CREATE on the schema; the one on the replica needs what "walwake doctor" says,
and USAGE on the schema. Both connection strings must name the same database. Any database of the cluster
will do: replay is of them all.

With --json: result (ok, stale, lost, timeouts, wrong_system, interrupted, errors), writes, reads, reads_without
and reads_with (waiting), stale_without, stale_with, timeouts, lost, errors, rate (achieved, writes a second),
source (in use at the end), seconds, latency_us (p50, p90, p99 and max, from COMMIT acknowledged to the wait's
end; null: no wait succeeded) and error.

Exit status: 0 no read that had waited was stale, 1 one was, or errors made it impossible to go on, 2 usage,
3 a wait timed out, 4 a write was lost in a failover, or the replica is of another cluster, 130 interrupted,
143 terminated.`

func (a *app) verifyCommand() *cobra.Command {
	v := &verifyCommand{
		app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag(),
		duration: period(30 * time.Second), timeout: period(tracker.DefaultTimeout),
	}
	c := &cobra.Command{
		Use:   "verify --primary DSN --replica DSN",
		Short: "Count stale reads on servers of yours, without waiting and with it",
		Long:  verifyLong,
		Example: `  walwake verify --primary 'host=db1 user=app dbname=app' --replica 'host=db2 user=app dbname=app'
  walwake verify --duration 10m --rate 1000 --writers 16
  walwake verify --duration 10s --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return v.run(c.Context()) },
	}
	v.primary.add(c, "the primary")
	v.replica.add(c, "the replica")
	c.Flags().Var(&v.duration, "duration", "how long to write, with its unit")
	c.Flags().Float64Var(&v.rate, "rate", 100, "`writes` a second, of all writers together")
	c.Flags().IntVar(&v.writers, "writers", 4, "`number` of writers, each with a connection to either server")
	c.Flags().Var(&v.timeout, "timeout", "how long to wait for a write at most, with its unit")
	c.Flags().Var(&v.source, "source", sourceUsage)
	complete(c, "source", v.source.of...)
	for _, flag := range []string{"duration", "rate", "writers", "timeout"} {
		complete(c, flag)
	}
	a.jsonFlag(c)
	return c
}

func (v *verifyCommand) run(ctx context.Context) error {
	switch {
	case !(v.rate > 0) || math.IsInf(v.rate, 0): // NaN is not above 0
		return usagef("--rate %g: want a number of writes a second above 0", v.rate)
	case v.writers < 1 || v.writers > maxVerifyWriters:
		return usagef("--writers %d: want 1 to %d", v.writers, maxVerifyWriters)
	}
	primary, err := v.required(v.primary)
	if err != nil {
		return err
	}
	replica, err := v.required(v.replica)
	if err != nil {
		return err
	}
	r := newVerification(v, primary, replica)
	err = r.run(ctx)
	return r.tell(ctx, err)
}

// tell prints what was counted, and returns how the command ends: with err, or with what the counts say.
func (r *verification) tell(ctx context.Context, err error) error {
	counts := r.tally.counts()
	verdict := counts.verdict()
	if err == nil {
		err = verdict
	} else if counts.stale[waited] > 0 || counts.lost > 0 { // which says more than how it ended
		err = errors.Join(verdict, err)
	}
	if counts.errors > 0 {
		r.note("%d errors on the way, the first: %s", counts.errors, plain(counts.firstError.Error()))
	}
	if counts.writes == 0 && err != nil && !r.json {
		return err
	}
	a := r.result(counts)
	a.Result = counts.result(ctx, err)
	if err != nil {
		a.Error = message(ctx, err)
	}
	if writeErr := r.answer(a, a.table(r)); writeErr != nil {
		return errors.Join(writeErr, err)
	}
	return err
}
