package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

func (s demoStep) replay() string {
	if s.DelayMS > 0 {
		return fmt.Sprintf("held back by %d ms, on purpose", s.DelayMS)
	}
	return "at full speed"
}

func (s demoStep) how() string {
	if s.Waiting {
		return "with waiting"
	}
	return "without waiting"
}

// table is what a person reads at the end.
func (a *demoAnswer) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "PostgreSQL %s. A row is written on the primary, then read on the standby.\n\n", a.Postgres)
	rows := [][]string{{"REPLAY", "READ", "SOURCE", "READS", "STALE", "WAIT p50", "WAIT p99"}}
	for _, s := range a.Steps {
		p50, p99, source := "-", "-", "-"
		if s.Waiting {
			p50, p99, source = micros(*s.P50US), micros(*s.P99US), s.Source
		}
		rows = append(rows, []string{s.replay(), s.how(), source, strconv.Itoa(s.Reads), strconv.Itoa(s.Stale), p50, p99})
	}
	for i, p := range a.Killed.Phases {
		rows = append(rows, []string{
			a.Killed.phase(i), "with waiting", p.Source, strconv.Itoa(p.Reads), strconv.Itoa(p.Stale), micros(p.P50US), micros(p.P99US),
		})
	}
	b.WriteString(columns(rows))
	fmt.Fprint(&b, "\nWAIT: from COMMIT acknowledged to Wait returned, asking the primary for the token included.\n\n")

	n := a.Notified
	fmt.Fprintf(&b, "NOTIFY while replay is held back: of %d rows %d were not there yet for who heard of them by a bare LISTEN on the primary,\n"+
		"%d for who was told once the standby had replayed them.\n\n", n.Notifications, n.StaleBare, n.StaleHeld)
	b.WriteString(a.Killed.text())
	fmt.Fprintf(&b, "Replay paused (source %s): %s.\n", a.Paused.Source, a.Paused.Error)
	fmt.Fprintf(&b, "Resumed: the reader that had waited went on after %s, and its read was %s.\n\n", micros(a.Paused.ResumedUS), fresh(a.Paused.Stale))

	p := a.PageEnd
	fmt.Fprintf(&b, "A WAL page ends and nobody writes (source %s): the wait for the token's %s was over after %s.\n", p.Source, p.Token.LSN, micros(p.WaitedUS))
	switch {
	case p.Raw == p.Token.LSN:
		b.WriteString("(The server wrote meanwhile, so that pg_current_wal_insert_lsn() gave the same.)\n")
	case p.RawError == "":
		fmt.Fprintf(&b, "pg_current_wal_insert_lsn() gave %s. (The server wrote meanwhile, so that it was replayed.)\n", p.Raw)
	default:
		fmt.Fprintf(&b, "Taken raw, pg_current_wal_insert_lsn() is %s, behind the next page's header: %s.\n", p.Raw, p.RawError)
	}
	if a.Kept != nil {
		b.WriteString(a.Kept.text())
	}
	fmt.Fprintf(&b, "\nStale reads: %d without waiting, %d with it. Took %s.\n", a.StaleWithout, a.StaleWith,
		short(time.Duration(a.TookMS)*time.Millisecond))
	return b.String()
}

func fresh(stale bool) string {
	if stale {
		return "stale"
	}
	return "fresh"
}

func (k *demoKept) text() string {
	return fmt.Sprintf(`
The servers go on running, as you said --keep. The password below is theirs alone:
  export WALWAKE_PRIMARY='%s'
  export WALWAKE_REPLICA='%s'
Stop them and remove their folder:
  %s
`, k.Primary, k.Replica, k.Stop)
}
