package stalecheck

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/tracker"
)

// reader reads whatever node comes next, and is a session: what it has seen it
// must see again.
type reader struct {
	*scene
	rng   *rand.Rand
	conns map[*station]*pgx.Conn
	watch int64         // the writer whose rows it counts
	seen  int64         // the highest of them that it saw
	token tracker.Token // of what it saw; zero: of nothing
}

// read checks reads until ctx ends.
func (s *scene) read(ctx context.Context, number int) {
	r := s.newReader(number)
	defer r.close()
	for ctx.Err() == nil {
		r.one(ctx)
	}
}

func (s *scene) newReader(number int) *reader {
	return &reader{
		scene: s,
		rng:   rand.New(rand.NewPCG(s.o.seed, uint64(number)+1000)),
		conns: map[*station]*pgx.Conn{},
		watch: int64(number % s.o.writers),
	}
}

func (r *reader) close() {
	for _, c := range r.conns {
		disconnect(c)
	}
}

// one is one read: of some write, in the session, from some node.
func (r *reader) one(ctx context.Context) {
	st := r.stations[r.rng.IntN(len(r.stations))]
	if len(st.followers) > 0 {
		r.check(ctx, st, st.followers[r.rng.IntN(len(st.followers))], r.history.pick(r.rng, r.o.anyAge))
	}
}

// check reads w from a node when a tracker says that it is there.
func (r *reader) check(ctx context.Context, st *station, f follower, w write) {
	// The connection is older than the wait, so it is to the server that the wait
	// was about: a crash in between ends both.
	conn, err := r.conn(ctx, st)
	if err != nil {
		rest(ctx, 10*time.Millisecond)
		return
	}
	if r.token != (tracker.Token{}) && !r.wait(ctx, st, f, conn, write{token: r.token}) {
		return
	}
	if !r.wait(ctx, st, f, conn, w) {
		return
	}
	there, seen, token, primary, err := r.look(ctx, conn, w)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		r.history.broken.Add(1)
		r.forget(st)
		return
	case !there:
		r.history.violate(stale, "%s was passed by %q, and write %d is not there; it is at %s", w.token, f.name, w.id, token)
	case seen < r.seen && !primary:
		r.history.violate(backwards, "%s: write %d was seen at %s, now the last one is %d at %s", f.name, r.seen, r.token, seen, token)
	}
	// A primary shows a commit when the one who made it is told, which may be after
	// a standby did (src/backend/access/transam/xact.c, CommitTransaction): only
	// what was acknowledged is sure to be there.
	r.history.reads.Add(1)
	r.seen, r.token = seen, token
	if token == (tracker.Token{}) {
		r.seen = 0 // nobody knows where this was
	}
}

func (r *reader) conn(ctx context.Context, st *station) (*pgx.Conn, error) {
	if c := r.conns[st]; c != nil && !c.IsClosed() {
		return c, nil
	}
	c, err := r.connect(ctx, st)
	if err != nil {
		return nil, err
	}
	r.conns[st] = c
	return c, nil
}

func (r *reader) forget(st *station) {
	disconnect(r.conns[st])
	delete(r.conns, st)
}

const undefinedTable = "42P01"

const lookQuery = `SELECT EXISTS (SELECT FROM writes WHERE id = $1), coalesce((SELECT max(id) FROM writes WHERE writer = $2), 0)`

// whereQuery asks for a position that what was read is not behind. A standby
// shows a commit a moment before the replayed position includes it
// (src/backend/access/transam/xlogrecovery.c, ApplyWalRecord): so the received
// one counts too. The timeline is left out where it is not visible.
const whereQuery = `SELECT NOT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()) ELSE pg_current_wal_flush_lsn() END::text,
       CASE WHEN pg_is_in_recovery() THEN (SELECT received_tli FROM pg_stat_wal_receiver)::bigint
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint END`

// look reads on conn whether w is there, and the last write of the one that is
// watched, and says where that was.
func (r *reader) look(ctx context.Context, conn *pgx.Conn, w write) (there bool, seen int64, at tracker.Token, primary bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, operation)
	defer cancel()
	err = conn.QueryRow(ctx, lookQuery, w.id, r.watch).Scan(&there, &seen)
	if e, is := errors.AsType[*pgconn.PgError](err); is && e.Code == undefinedTable {
		return false, 0, at, false, nil // so far behind that the table is not there yet
	}
	if err != nil {
		return false, 0, at, false, err
	}
	var system int64
	var lsn string
	var timeline *int64
	err = conn.QueryRow(ctx, whereQuery).Scan(&primary, &system, &lsn, &timeline)
	if err != nil || timeline == nil {
		return there, seen, at, primary, err
	}
	at.System, at.Timeline = uint64(system), uint32(*timeline)
	at.LSN, err = tracker.ParseLSN(lsn)
	return there, seen, at, primary, err
}

// wait waits for w, whose id is 0 where the session's own token is meant, and
// reports whether it is said to be replayed.
func (r *reader) wait(ctx context.Context, st *station, f follower, conn *pgx.Conn, w write) bool {
	waiting, cancel := context.WithTimeout(ctx, r.o.timeout)
	defer cancel()
	stop := r.watchFor(st, conn, w)
	err := f.Wait(waiting, w.token)
	ended := time.Now()
	visible, failed := stop()
	deadline, _ := waiting.Deadline()
	switch {
	case ctx.Err() != nil:
		return false
	case failed:
		r.forget(st)
		return false
	case visible > 0:
		r.history.violate(late, "%s: write %d could be read for %s, and then %d times over new connections, before the wait ended with %v", f.name, w.id, visible.Round(time.Millisecond), proofs, err)
	case ended.Sub(deadline) > r.o.late:
		r.history.violate(late, "%s: a wait went on for %s after its deadline, until %v", f.name, ended.Sub(deadline), err)
	case err == nil, errors.Is(err, tracker.ErrDiverged):
	case ended.Before(deadline), !errors.Is(err, tracker.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded):
		r.history.violate(wrongEnd, "%s: %s before its deadline: %v", f.name, deadline.Sub(ended), err)
	}
	switch {
	case err == nil:
		return true
	case w.id == 0:
		r.seen, r.token = 0, tracker.Token{} // the next session may start anywhere
	case errors.Is(err, tracker.ErrDiverged):
		r.history.calledLost(w.id, f.name)
	default:
		r.history.timeouts.Add(1)
	}
	return false
}

const (
	watchAfter = 50 * time.Millisecond // most waits are over by then
	watchEvery = 20 * time.Millisecond
	proofs     = 5
)

// watchFor looks, while a wait lasts, whether what it is for can be read. stop
// returns for how long it could be, where that is too long, and whether conn
// failed. Too long is measured beside a peer, or a fault and a machine that stands
// still would count as a wake-up that is lost: somebody who connects as the tracker
// does, goes on reading the row over one connection for that long, and then over
// several new ones.
func (r *reader) watchFor(st *station, conn *pgx.Conn, w write) (stop func() (visible time.Duration, failed bool)) {
	ctx, cancel := context.WithCancel(context.Background())
	var since time.Time // the row can be read; zero: it cannot
	var lasted time.Duration
	var failed error
	done := make(chan struct{})
	timer := time.AfterFunc(watchAfter, func() {
		defer close(done)
		var peer *pgx.Conn
		defer func() { disconnect(peer) }()
		for w.id != 0 && failed == nil && lasted == 0 && ctx.Err() == nil {
			var there bool
			var err error
			switch {
			case since.IsZero():
				if there, failed = r.there(context.Background(), conn, w); there {
					since = time.Now()
				}
			case peer == nil:
				if peer, err = r.connectPeer(ctx, st); err != nil {
					since = time.Now()
				}
			default:
				if there, err = r.there(ctx, peer, w); err != nil {
					disconnect(peer)
					peer = nil
				}
				switch {
				case err != nil:
					since = time.Now()
				case !there:
					since = time.Time{} // it came back behind
				case time.Since(since) > r.o.late && r.thereAnew(ctx, st, w):
					lasted = time.Since(since)
				}
			}
			rest(ctx, watchEvery)
		}
	})
	return func() (time.Duration, bool) {
		cancel()
		if !timer.Stop() {
			<-done
		}
		return lasted, lasted == 0 && failed != nil
	}
}

// there reads whether w is.
func (r *reader) there(ctx context.Context, conn *pgx.Conn, w write) (there bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, operation)
	defer cancel()
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM writes WHERE id = $1)`, w.id).Scan(&there)
	if e, is := errors.AsType[*pgconn.PgError](err); is && e.Code == undefinedTable {
		return false, nil
	}
	return there, err
}

// connectPeer connects by the tracker's way, under its name, and with its patience.
func (r *reader) connectPeer(ctx context.Context, st *station) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return pgx.Connect(ctx, st.proxy.DSN("application_name=walwake"))
}

// thereAnew reads whether w is there over several new connections, one after the other.
func (r *reader) thereAnew(ctx context.Context, st *station, w write) bool {
	for range proofs {
		conn, err := r.connectPeer(ctx, st)
		if err != nil {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		there, err := r.there(ctx, conn, w)
		cancel()
		disconnect(conn)
		if err != nil || !there {
			return false
		}
	}
	return true
}
