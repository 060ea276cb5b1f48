package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/walwake/walwake/cmd/walwake/internal/bench"
	"github.com/walwake/walwake/replication/replicationtest"
)

type benchCommand struct {
	*app
	pg               string
	primary, replica serverFlag
	ways             []string
	rates, waiters   []int
	rounds, sessions int
	slice            period
	svg              string
}

const benchLong = `Measures from COMMIT acknowledged by the primary to known that a replica has replayed it: loops of queries
as one writes them by hand, the server's own WAIT FOR LSN (from PostgreSQL 19) in a session for each wait, and
walwake, by itself and with each of its sources.

All are measured in one run, in rounds, in each of which every way has its turn in random order: a noisy
machine hits all alike, and the figures are to be read as ratios. Writes are transactional messages in the
WAL (pg_logical_emit_message): no table is made, and nothing on the servers is changed.

Without --primary and --replica it starts a primary and a standby of its own on 127.0.0.1, and removes them
in the end. On servers of yours the roles need what "walwake doctor" says; --rates writes as much as it says.

With one waiter a write is made, and its token waited for. More than one wait already when the write is made,
of 64 kB, for a position that it will cross: that is measured from when it was sent. Once all have it they wait
four times for a token that is replayed already: the mean of the five is the mix, which is what a web service
sees. "floor" waits for a word from the writer: what is left is the time of measuring, and of waking all who
wait. "round-trip" asks once, and does not wait.

With --json: postgres, machine, sessions, rounds, slice_ms and cells, each with way, rate, rate_made, waiters,
waits, p50_us, p90_us, p99_us, max_us, reference (what the ratios are to), p50_ratio, p99_ratio, mix_ratio,
cpu_ratio, waits_per_second, mix_us, requests_per_write, bytes_per_write, bytes_per_second, sessions_held,
server_cpu and client_cpu (in cores; 0: not known), distribution (pairs of percentile and µs), and missing (why
a way is not possible).

Exit status: 0 done, 2 usage, 3 a server did not answer or replay in time, 4 the replica is of another cluster,
130 interrupted, 143 terminated, 1 anything else.`

func (a *app) benchCommand() *cobra.Command {
	b := &benchCommand{app: a, primary: primaryFlag(), replica: replicaFlag(), slice: period(200 * time.Millisecond)}
	c := &cobra.Command{
		Use:   "bench",
		Short: "Compare the ways to know that a write is replayed",
		Long:  benchLong,
		Example: `  walwake bench
  walwake bench --pg 19 --rates 0,3000 --waiters 1 --rounds 50 --svg latency.svg
  walwake bench --ways tight-loop,wait-for-lsn,walwake --json
  walwake bench --primary 'host=db1 user=app dbname=app' --replica 'host=db2 user=app dbname=app' --rates 0`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return b.run(c.Context()) },
	}
	pgFlag(c, &b.pg)
	b.primary.add(c, "the primary")
	b.replica.add(c, "the replica")
	c.Flags().StringSliceVar(&b.ways, "ways", nil, "`ways` to measure, with commas: "+strings.Join(bench.Ways(), ", ")+" (default: all)")
	c.Flags().IntSliceVar(&b.rates, "rates", []int{0, 500, 3000}, "transactions a `second` in the background, with commas")
	c.Flags().IntSliceVar(&b.waiters, "waiters", []int{0, 1, 100, 10_000}, "how `many` wait at once for each write, with commas; 0: what it costs while nobody waits")
	c.Flags().IntVar(&b.rounds, "rounds", 5, "`number` of rounds, in each of which every way is measured")
	c.Flags().Var(&b.slice, "slice", "how long each way is measured in a round, with its unit")
	c.Flags().IntVar(&b.sessions, "sessions", 100, "`number` of sessions at most for ways that need one for each wait; more waits take turns")
	c.Flags().StringVar(&b.svg, "svg", "", "write a picture of the distributions to this `file`")
	complete(c, "ways", bench.Ways()...)
	for _, flag := range []string{"rates", "waiters", "rounds", "slice", "sessions"} {
		complete(c, flag)
	}
	a.jsonFlag(c)
	return c
}

func (b *benchCommand) run(ctx context.Context) error {
	if err := checkPG(b.pg); err != nil {
		return err
	}
	cfg := bench.Config{
		Ways: b.ways, Rates: b.rates, Waiters: b.waiters, Rounds: b.rounds, Slice: time.Duration(b.slice), Sessions: b.sessions,
	}
	if err := cfg.Check(); err != nil {
		return usagef("--%w", err)
	}
	if b.svg != "" && slices.Max(b.waiters) == 0 {
		return usagef("--svg is of waits: name in --waiters how many wait")
	}
	primary, err := b.optional(b.primary)
	if err != nil {
		return err
	}
	replica, err := b.optional(b.replica)
	if err != nil {
		return err
	}
	if (primary == nil) != (replica == nil) {
		return usagef("name both --primary and --replica, or neither: then it starts servers of its own")
	}
	if primary != nil && b.pg != "" {
		return usagef("--pg is for servers of its own, without --primary and --replica")
	}
	var svg *picture
	if b.svg != "" {
		if svg, err = openPicture(b.svg); err != nil {
			return err
		}
		defer svg.close()
	}
	var result *bench.Result
	if primary != nil {
		result, err = b.measure(ctx, cfg, primary, replica)
	} else {
		result, err = b.onServers(ctx, cfg)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	err = b.answer(result, benchTable(result)) // first: a picture that fails is no reason to lose it
	if svg != nil {
		err = errors.Join(err, svg.draw(result))
	}
	return err
}

// onServers measures on servers of its own.
func (b *benchCommand) onServers(ctx context.Context, cfg bench.Config) (result *bench.Result, err error) {
	_, _ = fmt.Fprintln(b.stderr, "· starting PostgreSQL: a primary and a standby on 127.0.0.1")
	cluster, err := replicationtest.New(ctx, replicationtest.Options{Version: b.pg, Log: b.log, PrimarySettings: map[string]string{
		"max_connections": fmt.Sprint(b.sessions + 50),
	}})
	if err != nil {
		return nil, explainStart(err)
	}
	defer func() {
		if closeErr := cluster.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", errCleanUp, closeErr))
		}
	}()
	if err := cluster.Primary.Exec(ctx, `CREATE PUBLICATION walwake`); err != nil {
		return nil, err
	}
	if err := cluster.WaitForReplay(ctx); err != nil {
		return nil, err
	}
	cfg.Postmaster = cluster.Standbys[0].PID()
	own := func(f serverFlag, dsn string) (*server, error) {
		f.dsn, f.given = dsn, func() bool { return true }
		return b.required(f)
	}
	primary, err := own(b.primary, cluster.Primary.DSN())
	if err != nil {
		return nil, err
	}
	replica, err := own(b.replica, cluster.Standbys[0].DSN())
	if err != nil {
		return nil, err
	}
	return b.measure(ctx, cfg, primary, replica)
}

func (b *benchCommand) measure(ctx context.Context, cfg bench.Config, primary, replica *server) (*bench.Result, error) {
	for _, s := range []*server{primary, replica} {
		if err := usable(ctx, s); err != nil {
			return nil, err
		}
	}
	cfg.Primary, cfg.Replica = benchSessions(primary.config), benchSessions(replica.config)
	cfg.Load = func(ctx context.Context, rate int) (func() (float64, error), error) {
		return startLoad(ctx, primary, rate)
	}
	step, hide := b.progress()
	defer hide()
	cfg.Step = step
	return bench.Run(ctx, cfg)
}

// benchSessions gives the sessions a name, unless they have one.
func benchSessions(config *pgx.ConnConfig) *pgx.ConnConfig {
	config = config.Copy()
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "walwake bench"
	}
	return config
}

// picture is the file of --svg. It is opened before minutes go by, and written to after them alone.
type picture struct {
	file  *os.File
	fresh bool // there was none before, and nothing is in it yet
}

func openPicture(path string) (*picture, error) {
	_, statErr := os.Stat(path)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return nil, usagef("--svg: %w", err)
	}
	return &picture{file, errors.Is(statErr, fs.ErrNotExist)}, nil
}

func (p *picture) draw(r *bench.Result) error {
	var b bytes.Buffer
	err := r.WriteSVG(&b)
	if err == nil {
		p.fresh = false
		_ = p.file.Truncate(0) // what is no file cannot be, and need not
		_, err = p.file.Write(b.Bytes())
	}
	if err = errors.Join(err, p.file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", p.file.Name(), err)
	}
	return nil
}

func (p *picture) close() {
	p.file.Close()
	if p.fresh {
		os.Remove(p.file.Name())
	}
}

// progress shows on a terminal how far it is.
func (b *benchCommand) progress() (step func(done, all int, what string), hide func()) {
	if l, ok := b.stderr.(*lockedWriter); b.json || !ok || !l.terminal {
		return nil, func() {}
	}
	var bar *progressbar.ProgressBar
	var once sync.Once
	return func(done, all int, what string) {
			once.Do(func() {
				bar = progressbar.NewOptions(all, progressbar.OptionSetWriter(b.stderr), progressbar.OptionSetWidth(progressWidth),
					progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionShowDescriptionAtLineEnd())
			})
			bar.Describe(what)
			_ = bar.Set(done) // it is no loss when it cannot be drawn
		}, func() {
			if bar != nil {
				_ = bar.Clear()
			}
		}
}
