package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// step writes and reads.
func (s *show) step(ctx context.Context, hold time.Duration, waiting bool) (demoStep, error) {
	step := demoStep{DelayMS: hold.Milliseconds(), Waiting: waiting, Reads: demoReads}
	if hold > 0 {
		step.Reads = demoHeldReads
	}
	start := time.Now()
	var took []time.Duration
	for range step.Reads {
		if err := s.write(ctx); err != nil {
			return step, err
		}
		committed := time.Now()
		if waiting {
			if err := s.wait(ctx); err != nil {
				return step, err
			}
			took = append(took, time.Since(committed))
		}
		stale, err := s.stale(ctx)
		if err != nil {
			return step, err
		}
		if stale {
			step.Stale++
		}
	}
	if waiting {
		step.Source = s.replica.State().Source
		step.P50US, step.P99US = new(percentile(took, 50).Microseconds()), new(percentile(took, 99).Microseconds())
	}
	s.tell(fmt.Sprintf("replay %s, %s: %d writes, each read at once on the standby: %d stale (%s)",
		step.replay(), step.how(), step.Reads, step.Stale, short(time.Since(start))))
	return step, s.settle(ctx)
}

// percentile is the nearest rank.
func percentile(ds []time.Duration, p float64) time.Duration {
	slices.Sort(ds)
	return ds[max(0, int(math.Ceil(p/100*float64(len(ds))))-1)]
}

// pause waits while replay is paused: once until the time is up, once until it is resumed.
func (s *show) pause(ctx context.Context) (p demoPaused, err error) {
	p.TimeoutMS = demoTimeout.Milliseconds()
	if err := s.standby.Pause(ctx); err != nil {
		return p, err
	}
	if err := s.write(ctx); err != nil {
		return p, err
	}
	token, err := replication.Capture(ctx, s.writer)
	if err != nil {
		return p, err
	}
	brief, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	err = s.replica.Wait(brief, token)
	late, ok := errors.AsType[*tracker.TimeoutError](err)
	switch {
	case err == nil:
		return p, errors.New("a wait ended with success while replay was paused")
	case !ok:
		return p, err
	}
	p.Source = s.replica.State().Source
	p.Error = s.replica.explainTimeout(late, late.Waited).Error()
	s.tell("replay paused, with waiting: " + p.Error)

	waiter := s.replica.Request(token)
	var returned time.Time
	done := make(chan error, 1)
	go func() {
		err := waiter.Await(ctx)
		returned = time.Now()
		done <- err
	}()
	resumed := time.Now()
	_, err = s.reader.Exec(ctx, `select pg_wal_replay_resume()`)
	if err != nil {
		waiter.Cancel()
	}
	if err = errors.Join(err, <-done); err != nil {
		return p, fmt.Errorf("resume replay: %w", err)
	}
	p.ResumedUS = returned.Sub(resumed).Microseconds()
	if p.Stale, err = s.stale(ctx); err != nil {
		return p, err
	}
	s.tell(fmt.Sprintf("replay resumed: the reader that had waited went on after %s", micros(p.ResumedUS)))
	return p, s.settle(ctx)
}

// pageEnd makes a WAL record end with its page, and waits for it while nobody writes.
func (s *show) pageEnd(ctx context.Context) (p demoPage, err error) {
	for range demoPageTries {
		if err := s.settle(ctx); err != nil { // or there is no segment to leave
			return p, err
		}
		if err := s.writer.QueryRow(ctx, `select pg_switch_wal()`).Scan(new(string)); err != nil {
			return p, fmt.Errorf("end a WAL page: %w", err)
		}
		if err := s.writer.QueryRow(ctx, `select pg_current_wal_insert_lsn()::text`).Scan(&p.Raw); err != nil {
			return p, fmt.Errorf("ask for the insert position: %w", err)
		}
		if p.Token, err = replication.Capture(ctx, s.writer); err != nil {
			return p, err
		}
		start := time.Now()
		if err := s.replica.Wait(ctx, p.Token); err != nil {
			return p, err
		}
		p.WaitedUS = time.Since(start).Microseconds()
		if p.Raw != p.Token.LSN {
			break
		}
	}
	p.Source = s.replica.State().Source
	brief, cancel := context.WithTimeout(ctx, demoRawWait)
	defer cancel()
	err = s.replica.Wait(brief, tracker.Token{System: p.Token.System, Timeline: p.Token.Timeline, LSN: p.Raw})
	if late, ok := errors.AsType[*tracker.TimeoutError](err); ok {
		p.RawError, err = s.replica.explainTimeout(late, late.Waited).Error(), nil
	}
	s.tell(fmt.Sprintf("a WAL page ended, primary idle: the wait for %s was over after %s", p.Token.LSN, micros(p.WaitedUS)))
	return p, err
}
