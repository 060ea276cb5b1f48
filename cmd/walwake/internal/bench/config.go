package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config says what to measure.
type Config struct {
	Primary, Replica *pgx.ConnConfig

	// Postmaster is the replica's, whose processes' CPU is counted. 0: it is not
	// on this machine, or not known.
	Postmaster int

	Ways    []string      // names; empty: all that the servers' version has
	Rates   []int         // transactions a second in the background
	Waiters []int         // how many wait at once for each write; 0: what it costs while nobody waits
	Rounds  int           // in each of which every way is measured
	Slice   time.Duration // how long each is measured in a round

	// Sessions is the most that a way with a session for each wait may have; more
	// waits than these take turns.
	Sessions int

	// Load makes a background of rate transactions a second on the primary, from
	// another process than this one, whose CPU is counted. It returns when it writes;
	// stop ends it, and returns how many a second there were.
	Load func(ctx context.Context, rate int) (stop func() (float64, error), err error)

	// Step is called before each measurement. It may be nil.
	Step func(done, all int, what string)
}

// Check names the field that is wrong.
func (c Config) Check() error {
	switch {
	case len(c.Rates) == 0 || slices.Min(c.Rates) < 0:
		return errors.New("rates: want one or more, none below 0")
	case len(c.Waiters) == 0 || slices.Min(c.Waiters) < 0 || slices.Max(c.Waiters) > MaxWaiters:
		return fmt.Errorf("waiters: want one or more, each from 0 to %d", MaxWaiters)
	case c.Rounds < 1:
		return errors.New("rounds: want 1 or more")
	case c.Slice <= 0:
		return errors.New("slice: want a time above 0")
	case c.Sessions < 1:
		return errors.New("sessions: want 1 or more")
	}
	for _, name := range c.Ways {
		if !slices.Contains(Ways(), name) {
			return fmt.Errorf("ways: there is no %q, want one of %s", name, strings.Join(Ways(), ", "))
		}
	}
	if slices.Max(c.Waiters) == 0 && !slices.ContainsFunc(all, func(w way) bool { return w.idles && (len(c.Ways) == 0 || slices.Contains(c.Ways, w.name)) }) {
		return errors.New("waiters: while nobody waits there is nothing to measure of these ways")
	}
	return nil
}

// MaxWaiters keeps what a run needs within a small machine.
const MaxWaiters = 100_000
