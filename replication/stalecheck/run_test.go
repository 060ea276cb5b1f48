package stalecheck

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

var (
	seed   = flag.Uint64("seed", 0, "what is random comes from it; 0: another one each time")
	reads  = flag.Int64("reads", 5_000, "checked reads of TestNothingIsStale")
	within = flag.Duration("within", 10*time.Minute, "TestNothingIsStale may take so long")
)

func chosenSeed() uint64 {
	if *seed != 0 {
		return *seed
	}
	return rand.Uint64N(1_000_000)
}

// run lets everything happen to a scene until enough was read.
func (s *scene) run() {
	t := s.t
	t.Helper()
	t.Logf("PostgreSQL %s, seed %d", s.cluster.Release, s.o.seed)
	ctx, cancel := context.WithTimeout(context.Background(), s.o.within)
	defer cancel()
	reading, stop := context.WithCancel(ctx)
	var writers, others sync.WaitGroup
	for w := range s.o.writers {
		writers.Go(func() { s.write(reading, int64(w)) })
	}
	<-s.history.first
	for r := range s.o.readers {
		others.Go(func() { s.read(reading, r) })
	}
	others.Go(func() {
		if err := s.breakThings(reading); err != nil {
			t.Error(err)
			cancel()
		}
	})
	for s.history.reads.Load() < s.o.reads && ctx.Err() == nil {
		if s.history.has(s.o.until) {
			break
		}
		rest(ctx, 10*time.Millisecond)
	}
	stop()
	others.Wait()
	writers.Wait()
	h := s.history
	t.Logf("%d checked reads in %s; %d writes; %d waits were told that the write is lost, %d timed out, %d reads failed with their connection",
		h.reads.Load(), time.Since(h.began).Round(time.Millisecond), len(h.all()), h.refused.Load(), h.timeouts.Load(), h.broken.Load())
}

// settled brings every node to a standstill, and checks every tracker's word
// about every write against what the primary has.
func (s *scene) settled(ctx context.Context) error {
	leader := s.leader()
	last, err := leader.Position(ctx)
	if err != nil {
		return err
	}
	for _, st := range s.stations {
		if st == leader {
			continue
		}
		if err := errors.Join(st.WaitStreaming(ctx), st.WaitForReplay(ctx, last)); err != nil {
			return err
		}
	}
	conn, err := leader.Connect(ctx)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	there, err := kept(ctx, conn)
	if err != nil {
		return err
	}
	ends, err := timelineEnds(ctx, conn)
	if err != nil {
		return err
	}
	said := s.history.saidLost()
	for _, w := range s.history.all() {
		if by := said[w.id]; by != "" && there[w.id] && !w.pastItsEnd(ends) {
			s.history.violate(notLost, "%s: write %d, %s", by, w.id, w.token)
		}
	}
	return s.judged(ctx, there, ends)
}

// timelineEnds reads where each timeline was left for the primary's.
func timelineEnds(ctx context.Context, conn *pgx.Conn) (map[uint32]tracker.LSN, error) {
	rows, err := conn.Query(ctx, `SELECT * FROM regexp_split_to_table(pg_read_file('pg_wal/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '.history', 0, 1000000, true), E'\n') AS line WHERE line LIKE '%/%'`)
	if err != nil {
		return nil, err
	}
	ends := map[uint32]tracker.LSN{}
	var line string
	_, err = pgx.ForEachRow(rows, []any{&line}, func() error {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return fmt.Errorf("history line %q", line)
		}
		timeline, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return err
		}
		ends[uint32(timeline)], err = tracker.ParseLSN(fields[1])
		return err
	})
	return ends, err
}

// pastItsEnd reports whether a write's token is behind where its timeline was
// left. The write may be there all the same: the token is the end of the WAL
// when it was taken, and others may have written after the commit.
func (w write) pastItsEnd(ends map[uint32]tracker.LSN) bool {
	end, left := ends[w.token.Timeline]
	return left && w.token.LSN > end
}

func kept(ctx context.Context, conn *pgx.Conn) (map[int64]bool, error) {
	rows, err := conn.Query(ctx, `SELECT id FROM writes`)
	if err != nil {
		return nil, err
	}
	there := map[int64]bool{}
	var id int64
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error { there[id] = true; return nil })
	return there, err
}

// judged asks every tracker about the lost writes, and as many others.
func (s *scene) judged(ctx context.Context, there map[int64]bool, ends map[uint32]tracker.LSN) error {
	var gone, present []write
	for _, w := range s.history.all() {
		switch {
		case !there[w.id]:
			gone = append(gone, w)
		case !w.pastItsEnd(ends):
			present = append(present, w)
		}
	}
	rng := rand.New(rand.NewPCG(s.o.seed, 2))
	rng.Shuffle(len(present), func(i, j int) { present[i], present[j] = present[j], present[i] })
	rng.Shuffle(len(gone), func(i, j int) { gone[i], gone[j] = gone[j], gone[i] })
	present, gone = present[:min(len(present), 1000)], gone[:min(len(gone), 1000)]
	s.logf("at the end: %d writes and %d lost ones are shown to every tracker", len(present), len(gone))
	for _, st := range s.stations {
		for _, f := range st.followers {
			for _, w := range present {
				if err := f.Wait(ctx, w.token); err != nil {
					s.history.violate(notLost, "%s: write %d, %s, at the end: %v", f.name, w.id, w.token, err)
				}
			}
			for _, w := range gone {
				if err := f.Wait(ctx, w.token); !errors.Is(err, tracker.ErrDiverged) {
					s.history.violate(hidden, "%s: write %d, %s, at the end: %v", f.name, w.id, w.token, err)
				}
			}
		}
	}
	return ctx.Err()
}

// nothingLeft closes all trackers, and looks for what they left behind.
func (s *scene) nothingLeft(ctx context.Context) error {
	for _, st := range s.stations {
		for _, f := range st.followers {
			if tr, is := f.waiter.(*tracker.Tracker); is && tr.Stats().Waiting != 0 {
				s.history.violate(left, "%s: %d wait", f.name, tr.Stats().Waiting)
			}
			f.Close()
		}
	}
	for _, st := range s.stations {
		st.proxy.Close() // and with it what was cut off
		const query = `SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walwake') + (SELECT count(*) FROM pg_replication_slots)`
		var n int
		for began := time.Now(); ; { // a server process takes a moment to end
			var err error
			if n, err = replicationtest.Value[int](ctx, st.Node, query); err != nil {
				return err
			}
			if n == 0 || time.Since(began) > 10*time.Second {
				break
			}
			rest(ctx, 10*time.Millisecond)
		}
		if n != 0 {
			s.history.violate(left, "%s: %d sessions and slots", st.Name(), n)
		}
	}
	return nil
}

func (s *scene) report() {
	s.t.Helper()
	wrong := s.history.wrong()
	for _, v := range wrong[:min(len(wrong), 20)] {
		s.t.Errorf("%s", v)
	}
	if len(wrong) > 0 {
		s.t.Errorf("%d violations; the seed was %d: go test ./replication/stalecheck -run TestNothingIsStale -args -seed %[2]d", len(wrong), s.o.seed)
	}
}

func TestNothingIsStale(t *testing.T) {
	s := newScene(t, options{
		seed: chosenSeed(), reads: *reads, within: *within,
		writers: 3, readers: 32, pause: 2 * time.Millisecond,
		faults: allFaults(), timeout: 12 * time.Second, late: 4 * time.Second,
		capture: afterCommit, follow: walwake,
	})
	s.run()
	if n := s.history.reads.Load(); n < s.o.reads {
		t.Errorf("%d checked reads within %s, want %d", n, s.o.within, s.o.reads)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := errors.Join(s.settled(ctx), s.nothingLeft(ctx)); err != nil {
		t.Error(err)
	}
	if n := leftOver(s.goroutines); n > 0 {
		s.history.violate(left, "%d goroutines", n)
	}
	s.report()
}

// leftOver returns how many goroutines there are more than before, once those
// that are about to end have.
func leftOver(before int) int {
	for range 500 {
		if runtime.NumGoroutine() <= before {
			return 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	return runtime.NumGoroutine() - before
}
