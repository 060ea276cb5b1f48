package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// A writer that failed tries again after a pause that doubles from the one to the other.
const (
	verifyRetryMin = 50 * time.Millisecond
	verifyRetryMax = time.Second
)

// undefinedTable is what a replica says that has not replayed the table's making, and a primary that has lost it.
const undefinedTable = "42P01"

// verifyWriter writes its own row and reads it on the replica. One goroutine uses it.
type verifyWriter struct {
	*verification
	id        int
	n         int64         // of the latest write; never used twice, because a failed write may be committed
	token     tracker.Token // of the latest wait
	toPrimary verifySide
	toReplica verifySide
	failing   error // how the latest round ended; nil: well
}

// verifySide is a connection to one of the two servers.
type verifySide struct {
	server *server
	conn   *pgx.Conn // nil before it is open, and after a failure
}

func newVerifyWriter(r *verification, id int) *verifyWriter {
	return &verifyWriter{
		verification: r, id: id,
		toPrimary: verifySide{server: r.primaryServer}, toReplica: verifySide{server: r.replicaServer},
	}
}

// begin opens the connections and reads the row, which has been waited for.
func (w *verifyWriter) begin(ctx context.Context) error {
	if err := w.open(ctx); err != nil {
		return err
	}
	stale, err := w.read(ctx)
	if stale != nil {
		w.tally.read(waited, stale)
	}
	return err
}

// run writes and reads until paced ends. What has begun then is finished; ctx ends that. All writers together take turns to
// wait and not to, and the first turn waits.
func (w *verifyWriter) run(ctx, paced context.Context, giveUp context.CancelCauseFunc) {
	failures := 0
	for w.limiter.Wait(paced) == nil {
		w.failing = w.round(ctx, w.turns.Add(1)%2 == 1)
		switch {
		case ctx.Err() != nil:
			return
		case w.failing == nil:
			failures = 0
		case hopeless(w.failing):
			giveUp(w.failing)
			return
		default:
			w.tally.failed(w.failing)
			pause(paced, failures)
			failures++
		}
	}
}

// pause waits before another attempt, not so that all writers try at the same time.
func pause(ctx context.Context, failures int) {
	d := min(verifyRetryMin<<min(failures, 10), verifyRetryMax)
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// hopeless reports whether a failure will not pass by itself: a missing right, table or row, another cluster.
func hopeless(err error) bool {
	if errors.Is(err, tracker.ErrWrongSystem) || errors.Is(err, errGone) {
		return true
	}
	for _, class := range []string{"28", "3D", "42"} { // of PostgreSQL's errcodes.txt
		if strings.HasPrefix(sqlstate(err), class) {
			return true
		}
	}
	return false
}

// sqlstate is the server's code for an error, empty when it is none of the server's.
func sqlstate(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// round is one write and one read. Both connections are open before: one that was opened after the wait might lead to a
// standby that has crashed since, and is back with less than the wait has seen.
func (w *verifyWriter) round(ctx context.Context, waiting bool) error {
	if err := w.open(ctx); err != nil {
		return err
	}
	if err := w.update(ctx); err != nil {
		return err
	}
	committed := time.Now()
	how := atOnce
	if waiting {
		how = waited
		if replayed, err := w.awaitWrite(ctx, committed); !replayed || err != nil {
			return err
		}
	}
	stale, err := w.read(ctx)
	if err == nil {
		w.tally.read(how, stale)
	}
	return err
}

// update commits the next number.
func (w *verifyWriter) update(ctx context.Context) error {
	w.n++
	err := w.toPrimary.use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `update `+w.table+` set n = $2 where id = $1`, w.id, w.n)
		if sqlstate(err) == undefinedTable || err == nil && tag.RowsAffected() != 1 {
			return w.gone()
		}
		return err
	})
	if err == nil {
		w.tally.wrote()
	}
	return err
}

// awaitWrite waits for the write, and is false when it did not come in time or never will.
func (w *verifyWriter) awaitWrite(ctx context.Context, committed time.Time) (replayed bool, err error) {
	err = w.toPrimary.use(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		w.token, err = replication.Capture(ctx, conn)
		return err
	})
	if err != nil {
		return false, err
	}
	err = w.await(ctx, w.token) // without a deadline, so that --timeout counts
	took := time.Since(committed)
	switch {
	case err == nil:
		w.tally.replayed(took)
		return true, nil
	case errors.Is(err, tracker.ErrTimeout):
		w.tally.timeout(err)
		return false, nil
	case errors.Is(err, tracker.ErrDiverged):
		w.tally.lose(err)
		return false, nil
	}
	return false, err
}

// errGone says that somebody else has taken a row away.
var errGone = errors.New("leave the table alone while this runs")

func (w *verifyWriter) gone() error {
	return fmt.Errorf("row %d of %s is gone: %w", w.id, w.table, errGone)
}

// read reads the row on the replica. stale is not nil when it does not show the latest write.
func (w *verifyWriter) read(ctx context.Context) (stale, err error) {
	shown := int64(-1) // no row, or no table: the replica is at a position before they were made
	err = w.toReplica.use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		err := conn.QueryRow(ctx, `select n from `+w.table+` where id = $1`, w.id).Scan(&shown)
		if errors.Is(err, pgx.ErrNoRows) || sqlstate(err) == undefinedTable {
			return nil
		}
		return err
	})
	if err != nil || shown >= w.n {
		return nil, err
	}
	if shown < 0 && w.takenAway(ctx) {
		return nil, w.gone()
	}
	return fmt.Errorf("row %d was written as %d, and read as %d (token %s)", w.id, w.n, shown, w.token), nil
}

// takenAway reports whether the row is not on the primary either. When that cannot be told, the replica is not excused.
func (w *verifyWriter) takenAway(ctx context.Context) bool {
	var there bool
	err := w.toPrimary.use(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `select exists (select from `+w.table+` where id = $1)`, w.id).Scan(&there)
	})
	return sqlstate(err) == undefinedTable || err == nil && !there
}

// open opens what is not open.
func (w *verifyWriter) open(ctx context.Context) error {
	for _, s := range []*verifySide{&w.toPrimary, &w.toReplica} {
		if err := s.open(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *verifyWriter) close() {
	w.toPrimary.close()
	w.toReplica.close()
}

func (s *verifySide) open(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config := s.server.config.Copy()
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "walwake"
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return explain(s.server, err)
	}
	s.conn = conn
	return nil
}

// use runs f on the connection, which does not outlive a failure.
func (s *verifySide) use(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := f(ctx, s.conn); err != nil {
		s.close()
		return explain(s.server, err)
	}
	return nil
}

func (s *verifySide) close() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // nothing is left to lose
	s.conn = nil
}
