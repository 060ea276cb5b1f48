package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/walwake/walwake/cmd/walwake/internal/bench"
)

// benchTable is what a person reads in the end: a table for each rate and number of waiters.
func benchTable(r *bench.Result) string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "PostgreSQL %s; client on %s, %d cores, %s, Go %s.\n", r.Postgres, m.CPU, m.Cores, m.OS, m.Go)
	var rows [][]string
	for i, c := range r.Cells {
		if i == 0 || c.Rate != r.Cells[i-1].Rate || c.Waiters != r.Cells[i-1].Waiters {
			b.WriteString(columns(rows))
			rows = [][]string{benchHeader(c)}
			fmt.Fprintf(&b, "\n%s\n\n", benchTitle(c, r))
		}
		rows = append(rows, benchRow(c))
	}
	b.WriteString(columns(rows))
	b.WriteString(`
p50 and so on are to known to be replayed: from COMMIT acknowledged, with several waiters from COMMIT sent. MIX: mean of a wait where four of five tokens are replayed
already. REQUESTS, BYTES: sent to and got from the replica for each write that was waited for. STANDBY: CPU of all its processes,
with the background's replay. CLIENT: CPU of this process, with the measuring.
`)
	return b.String()
}

func benchTitle(c bench.Cell, r *bench.Result) string {
	background := "No background"
	if c.Rate > 0 {
		background = fmt.Sprintf("%d transactions a second in the background (%.0f made)", c.Rate, c.Made)
	}
	if c.Waiters == 0 {
		return background + ", nobody waits. x: of nothing attached (floor)."
	}
	reference := ""
	for _, o := range r.Cells {
		if o.Rate == c.Rate && o.Waiters == c.Waiters && o.Reference != "" {
			reference = " x: of " + o.Reference + "."
		}
	}
	return fmt.Sprintf("%s, %d waiting for each write.%s", background, c.Waiters, reference)
}

func benchHeader(c bench.Cell) []string {
	if c.Waiters == 0 {
		return []string{"WAY", "STANDBY", "STANDBY x", "CLIENT", "BYTES/s", "SESSIONS"}
	}
	return []string{
		"WAY", "WAITS", "p50", "p90", "p99", "p50 x", "p99 x", "MIX", "MIX x", "WAITS/s", "REQUESTS", "BYTES", "SESSIONS", "STANDBY", "CLIENT",
	}
}

func benchRow(c bench.Cell) []string {
	us := func(f float64) string { return micros(int64(f)) }
	ratio := func(f float64) string {
		if f == 0 {
			return "-"
		}
		return strconv.FormatFloat(f, 'f', 2, 64)
	}
	percent := func(f float64) string { return fmt.Sprintf("%.2f%%", 100*f) }
	held := strconv.FormatInt(c.Held, 10)
	switch {
	case c.Missing != "":
		return []string{c.Way, c.Missing}
	case c.Waiters == 0:
		return []string{c.Way, percent(c.ServerCPU), ratio(c.CPURatio), percent(c.ClientCPU), fmt.Sprintf("%.0f", c.BytesPerSecond), held}
	}
	mix := "-"
	if c.Mix != nil {
		mix = us(*c.Mix)
	}
	p99, p99Ratio := us(c.P99), ratio(c.P99Ratio)
	if c.Waits < 100 { // too few
		p99, p99Ratio = "-", "-"
	}
	return []string{
		c.Way, strconv.FormatInt(c.Waits, 10), us(c.P50), us(c.P90), p99, ratio(c.P50Ratio), p99Ratio, mix, ratio(c.MixRatio),
		fmt.Sprintf("%.0f", c.PerSecond), fmt.Sprintf("%.1f", c.Requests), fmt.Sprintf("%.0f", c.Bytes), held,
		percent(c.ServerCPU), percent(c.ClientCPU),
	}
}
