package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/walwake/walwake/tracker"
)

// dropWithin is how long dropping the table is tried for.
const dropWithin = 15 * time.Second

// verification is one run of verify, on servers that are not ours.
type verification struct {
	*verifyCommand
	primaryServer, replicaServer *server
	follower                     *replica // of the replica; set once it is followed
	tally                        *verifyTally
	limiter                      *rate.Limiter
	turns                        atomic.Int64 // that writers have had
	table                        string       // quoted, with its schema; empty: there never was one
	database                     string       // that it is in

	// What is known at the end.
	using string        // the source
	took  time.Duration // of writing
}

func newVerification(v *verifyCommand, primary, replica *server) *verification {
	return &verification{
		verifyCommand: v, primaryServer: primary, replicaServer: replica,
		tally: newVerifyTally(time.Duration(v.timeout) + connectTimeout),
		// What comes late, because another write took long, is made up for when it is not much.
		limiter: rate.NewLimiter(rate.Limit(v.rate), int(min(math.Ceil(v.rate/10), float64(v.writers)))),
	}
}

// run looks at both servers before it changes anything, and leaves nothing behind.
func (r *verification) run(ctx context.Context) (err error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	token, err := capture(ctx, r.primaryServer, connectTimeout)
	if err != nil {
		return err
	}
	r.follower, err = r.follow(following{
		server: r.replicaServer, primary: r.primaryServer, source: r.source.value, timeout: time.Duration(r.timeout),
		failed: func(err error, first bool) {
			if first {
				giveUp(explain(r.replicaServer, err))
			}
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		r.using = r.follower.State().Source
		r.follower.stop()
	}()
	if err := r.awaitAlone(ctx, token); err != nil {
		return err
	}
	if o, ok := r.follower.LastReplay(); ok && o.Primary {
		r.note("%s is a primary, no replica: all that is committed there can be read there at once", r.replicaServer)
	}
	defer func() {
		if dropErr := r.drop(ctx); dropErr != nil {
			err = errors.Join(err, dropErr)
		}
	}()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	return r.write(ctx, giveUp)
}

// await waits, and explains why it was in vain.
func (r *verification) await(ctx context.Context, token tracker.Token) error {
	err := r.follower.Wait(ctx, token)
	late, isLate := errors.AsType[*tracker.TimeoutError](err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case isLate:
		return r.follower.explainTimeout(late, late.Waited)
	case errors.Is(err, tracker.ErrWrongSystem):
		return fmt.Errorf("%w: check %s and %s", err, r.primaryServer.from, r.replicaServer.from)
	}
	return err
}

// awaitAlone is await while nobody writes yet: without it there is nothing to verify.
func (r *verification) awaitAlone(ctx context.Context, token tracker.Token) error {
	err := r.await(ctx, token)
	switch {
	case errors.Is(err, tracker.ErrTimeout):
		r.tally.timeout(err)
	case errors.Is(err, tracker.ErrDiverged):
		return fmt.Errorf("%w: name in %s a server that follows %s", err, r.replicaServer.from, r.primaryServer)
	}
	return err
}

// prepare creates the table, and waits for it on the replica.
func (r *verification) prepare(ctx context.Context) error {
	var role, database string
	err := r.replicaServer.query(ctx, connectTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `select current_user, current_database()`).Scan(&role, &database)
	})
	if err != nil {
		return err
	}
	if err := r.create(ctx, role, database); err != nil {
		return err
	}
	r.log.Info("table created", "table", r.table)
	token, err := capture(ctx, r.primaryServer, connectTimeout)
	if err != nil {
		return err
	}
	return r.awaitAlone(ctx, token)
}

// create makes the table, in one transaction: either it is there, or nothing is. Once begun it is not interrupted, or it
// would not be known which. It does not wait for synchronous standbys, whose absence would keep it from ending.
func (r *verification) create(ctx context.Context, reader, readerDatabase string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var schema *string
	var role string
	err := r.changing(context.WithoutCancel(ctx), func(ctx context.Context, tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `select current_schema(), current_database(), current_user`).Scan(&schema, &r.database, &role)
		switch {
		case err != nil:
			return err
		case r.database != readerDatabase:
			return fmt.Errorf("it is database %s here, and %s on the replica: name the same in %s and %s",
				r.database, readerDatabase, r.primaryServer.from, r.replicaServer.from)
		case schema == nil:
			return fmt.Errorf("no schema of the search path exists and may be used by role %s: name one with options='-c search_path=…' in %s",
				role, r.primaryServer.from)
		}
		name := "walwake_verify_" + strings.ToLower(rand.Text()[:12])
		r.table = pgx.Identifier{*schema, name}.Sanitize()
		return r.fill(ctx, tx, *schema, name, reader)
	})
	if e, ok := errors.AsType[*serverError](err); ok && schema != nil && sqlstate(err) == insufficientRights {
		return &serverError{fmt.Sprintf("%s: on the primary run GRANT CREATE ON SCHEMA %s TO %s, in database %s", e.text,
			pgx.Identifier{*schema}.Sanitize(), pgx.Identifier{role}.Sanitize(), r.database), err}
	}
	return err
}

// fill creates the table with the writers' rows, for reader to read. A publication of all tables would have its
// subscribers stop at a table that they do not have (LogicalRepRelationNotFound in PostgreSQL's relation.c), and one that
// has no primary key cannot be updated where it is published.
func (r *verification) fill(ctx context.Context, tx pgx.Tx, schema, name, reader string) error {
	if _, err := tx.Exec(ctx, `create table `+r.table+` (id int primary key, n bigint not null)`); err != nil {
		return err
	}
	var publication *string
	err := tx.QueryRow(ctx, `select min(pubname) from pg_publication_tables where schemaname = $1 and tablename = $2`,
		schema, name).Scan(&publication)
	if err != nil {
		return err
	}
	if publication != nil {
		return fmt.Errorf("publication %q publishes new tables too, and its subscribers would stop at one that they do not have: "+
			"name another database of this cluster in %s and %s", *publication, r.primaryServer.from, r.replicaServer.from)
	}
	if _, err := tx.Exec(ctx, `grant select on `+r.table+` to `+pgx.Identifier{reader}.Sanitize()); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into `+r.table+` select id, 0 from generate_series(1, $1) id`, r.writers)
	return err
}

// changing runs f in a transaction on the primary, which gives up by itself before the client does: whoever goes away while
// the server waits for a lock would not know how it ends.
func (r *verification) changing(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	return r.primaryServer.query(ctx, connectTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `select set_config('synchronous_commit', 'local', true), set_config('lock_timeout', '4s', true)`)
			if err != nil {
				return err
			}
			return f(ctx, tx)
		})
	})
}

// drop takes the table away, whatever has ended ctx. A primary that restarts is given some time.
func (r *verification) drop(ctx context.Context) error {
	if r.table == "" {
		return nil
	}
	sql := `DROP TABLE IF EXISTS ` + r.table
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropWithin)
	defer cancel()
	var err error
	for failures := 0; ; failures++ {
		err = r.changing(ctx, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		})
		// A right that is missing stays so; locks, crowds and restarts pass.
		if err == nil || strings.HasPrefix(sqlstate(err), "42") || ctx.Err() != nil {
			break
		}
		pause(ctx, failures)
	}
	if err != nil { // its text alone: how the run ended says more than why this failed
		return fmt.Errorf("%w: %s: on the primary, in database %s, run %s", errCleanUp, err.Error(), r.database, sql)
	}
	r.log.Info("table dropped", "table", r.table)
	return nil
}

// write has all writers write until the time is up.
func (r *verification) write(ctx context.Context, giveUp context.CancelCauseFunc) error {
	writers := make([]*verifyWriter, r.writers)
	for i := range writers {
		writers[i] = newVerifyWriter(r, i+1)
	}
	each := func(f func(*verifyWriter)) {
		var all sync.WaitGroup
		for _, w := range writers {
			all.Go(func() { f(w) })
		}
		all.Wait()
	}
	defer each((*verifyWriter).close)
	each(func(w *verifyWriter) {
		if err := w.begin(ctx); err != nil {
			giveUp(err)
		}
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.log.Info("writing", "table", r.table)
	start := time.Now()
	paced, cancel := context.WithTimeout(ctx, time.Duration(r.duration))
	defer cancel()
	hide := r.progress(start)
	each(func(w *verifyWriter) { w.run(ctx, paced, giveUp) })
	hide()
	r.took = time.Since(start)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return inVain(writers)
}

// inVain is an error when not one writer works any more.
func inVain(writers []*verifyWriter) error {
	for _, w := range writers {
		if w.failing == nil {
			return nil
		}
	}
	return fmt.Errorf("no writer works any more: %w", writers[0].failing)
}
