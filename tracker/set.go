package tracker

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// A Set waits on several replicas at once. It holds no state of its own; its
// methods may be called by any number of goroutines.
type Set struct {
	trackers []*Tracker
}

// NewSet returns a Set of trackers, which it neither runs nor closes.
func NewSet(trackers ...*Tracker) *Set {
	return &Set{trackers: append([]*Tracker(nil), trackers...)}
}

// Trackers returns the members, in the order given to NewSet.
func (s *Set) Trackers() []*Tracker { return append([]*Tracker(nil), s.trackers...) }

// Replayed returns those that have replayed tok now. It does not block.
func (s *Set) Replayed(tok Token) []*Tracker {
	var have []*Tracker
	for _, t := range s.trackers {
		if t.Replayed(tok) {
			have = append(have, t)
		}
	}
	return have
}

// Any blocks until one member has replayed tok, and returns it.
// See N for ctx and errors.
func (s *Set) Any(ctx context.Context, tok Token) (*Tracker, error) {
	for _, t := range s.trackers {
		if t.Replayed(tok) {
			return t, nil
		}
	}
	have, err := s.N(ctx, 1, tok)
	if err != nil {
		return nil, err
	}
	return have[0], nil
}

// All blocks until every member has replayed tok. See N for ctx and errors.
func (s *Set) All(ctx context.Context, tok Token) error {
	_, err := s.N(ctx, len(s.trackers), tok)
	return err
}

// N blocks until n members have replayed tok, and returns those that have, in
// the order in which they did; more than n where more had it at the start. ctx
// and Config.Timeout bound each member's wait as in Await. When so many waits
// have failed that n cannot be reached, N gives the others up and returns what
// it has with the failures joined, each with its replica's name.
func (s *Set) N(ctx context.Context, n int, tok Token) ([]*Tracker, error) {
	if n < 0 || n > len(s.trackers) {
		return nil, fmt.Errorf("tracker: wait for %d of a set of %d", n, len(s.trackers))
	}
	have := s.Replayed(tok)
	if len(have) >= n {
		return have, nil
	}
	type result struct {
		t   *Tracker
		err error
	}
	results := make(chan result, len(s.trackers)) // room for all: nobody is left blocked
	var waits sync.WaitGroup
	defer waits.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	have = have[:0]
	for _, t := range s.trackers {
		waits.Go(func() { results <- result{t, t.Wait(ctx, tok)} })
	}
	var failed []error
	for len(have) < n {
		r := <-results
		if r.err == nil {
			have = append(have, r.t)
			continue
		}
		failed = append(failed, fmt.Errorf("%s: %w", r.t.cfg.Name, r.err))
		if len(s.trackers)-len(failed) < n {
			return have, errors.Join(failed...)
		}
	}
	return have, nil
}
