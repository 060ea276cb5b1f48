package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/walwake/walwake/tracker"
)

// sourceChange is a source that came into use, as the tracker tells of it.
type sourceChange struct {
	at       time.Time
	from, to string
	reason   string // why from is not up any more
}

// changed notes that another source is in use. The tracker calls it, and waits for it.
func (s *show) changed(from, to string, state tracker.State) {
	c := sourceChange{at: time.Now(), from: from, to: to}
	for _, r := range rungs(state) {
		if r.Source == from && !r.Up {
			c.reason = r.Reason
		}
	}
	select {
	case s.changes <- c:
	default: // so many will not be shown
	}
}

// demoRead is one read that had waited.
type demoRead struct {
	source string
	took   time.Duration
	stale  bool
}

// read writes, waits and reads.
func (s *show) read(ctx context.Context) (r demoRead, err error) {
	if err := s.write(ctx); err != nil {
		return r, err
	}
	committed := time.Now()
	if err := s.wait(ctx); err != nil {
		return r, err
	}
	r.took, r.source = time.Since(committed), s.replica.State().Source
	r.stale, err = s.stale(ctx)
	return r, err
}

// kill ends the stream's server process while there is a loop of writes and reads, which goes on until the stream is in
// use again.
func (s *show) kill(ctx context.Context) (k demoKilled, err error) {
	always := s.replica.Request(tracker.Token{LSN: math.MaxUint64}) // the reads' own waits are too short for a stream
	defer always.Cancel()
	k.From = s.replica.settle(ctx, demoSettle).Source
	for len(s.changes) > 0 { // those of before
		<-s.changes
	}
	var reads []demoRead
	loop := func(on func() bool) error {
		for on() {
			r, err := s.read(ctx)
			if err != nil {
				return err
			}
			reads = append(reads, r)
		}
		return nil
	}
	some := func() func() bool {
		end := len(reads) + demoSome
		return func() bool { return len(reads) < end }
	}
	if err := loop(some()); err != nil {
		return k, err
	}
	if k.Sessions, err = s.terminate(ctx); err != nil {
		return k, err
	}
	killed := time.Now()
	err = loop(func() bool {
		s.take(&k, killed)
		return k.BackUS == 0 && time.Since(killed) < demoBack
	})
	if err == nil {
		err = loop(some())
	}
	if err != nil {
		return k, err
	}
	k.sum(reads)
	s.tell(k.summary())
	return k, nil
}

// terminate ends the server processes that walwake streams from, as an administrator would.
func (s *show) terminate(ctx context.Context) (n int, err error) {
	err = s.reader.QueryRow(ctx, `select count(pg_terminate_backend(pid)) from pg_stat_activity
		where backend_type = 'walsender' and application_name = 'walwake'`).Scan(&n)
	if err != nil {
		return n, fmt.Errorf("kill the stream: %w", err)
	}
	return n, nil
}

// take takes note of the changes that have come.
func (s *show) take(k *demoKilled, killed time.Time) {
	for len(s.changes) > 0 {
		c := <-s.changes
		after := c.at.Sub(killed).Microseconds()
		k.Changes = append(k.Changes, demoChange{AfterUS: after, From: c.from, To: c.to})
		if c.from == k.From {
			k.Reason = cmp.Or(k.Reason, c.reason)
		}
		if c.to == k.From {
			k.BackUS = max(after, 1)
		}
	}
}

// sum gathers reads by the source in use: one phase for each time that it was another.
func (k *demoKilled) sum(reads []demoRead) {
	for len(reads) > 0 {
		p := demoPhase{Source: reads[0].source}
		var took []time.Duration
		for len(reads) > 0 && reads[0].source == p.Source {
			took = append(took, reads[0].took)
			if reads[0].stale {
				p.Stale++
			}
			reads = reads[1:]
		}
		p.Reads, p.P50US, p.P99US = len(took), percentile(took, 50).Microseconds(), percentile(took, 99).Microseconds()
		k.Stale += p.Stale
		k.Phases = append(k.Phases, p)
	}
}

// phase names phase i in the table.
func (k *demoKilled) phase(i int) string {
	switch {
	case i == 0:
		return "at full speed, until its stream is killed"
	case k.Phases[i].Source == k.From:
		return "at full speed, the stream is back"
	}
	return "at full speed, the stream is gone"
}

// summary is what became of the stream, in one line.
func (k *demoKilled) summary() string {
	if len(k.Changes) == 0 {
		return fmt.Sprintf("source %s: it has no stream that could be killed", k.From)
	}
	meanwhile, reads := map[string]bool{}, 0
	var names []string
	for _, p := range k.Phases {
		if p.Source == k.From {
			continue
		}
		reads += p.Reads
		if !meanwhile[p.Source] {
			meanwhile[p.Source] = true
			names = append(names, p.Source)
		}
	}
	back := "it was not back within " + short(demoBack)
	if k.BackUS > 0 {
		back = "it was back after " + micros(k.BackUS)
	}
	return fmt.Sprintf("the stream of source %s was killed: %d reads by %s meanwhile, %d stale; %s",
		k.From, reads, cmp.Or(strings.Join(names, ", "), "no other source"), k.Stale, back)
}

// text is the summary with the reason, for the table.
func (k *demoKilled) text() string {
	text := k.summary()
	text = strings.ToUpper(text[:1]) + text[1:] + ".\n"
	if k.Reason != "" {
		text += "Why: " + k.Reason + ".\n"
	}
	return text + "\n"
}
