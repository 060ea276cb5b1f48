package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/walwake/walwake/tracker"
)

// watchLine is what --json prints for each look and each event. What is not known is null.
type watchLine struct {
	At         time.Time    `json:"at"`
	Event      string       `json:"event"` // state, or the kind of what has happened
	Text       string       `json:"text"`
	Server     string       `json:"server"`
	Sidecar    string       `json:"sidecar,omitempty"` // that it is watched through
	Role       *string      `json:"role"`              // standby or primary
	Position   *tracker.LSN `json:"position"`
	Timeline   *uint32      `json:"timeline"`
	System     *string      `json:"system"`
	Source     string       `json:"source"`
	Ladder     []rung       `json:"ladder"` // best first
	ObservedAt *time.Time   `json:"observed_at"`
	AgeUS      *int64       `json:"age_us"`
	Note       string       `json:"note,omitempty"`
	*LagLine

	Observations  uint64 `json:"observations"`
	Epochs        uint64 `json:"epochs"`
	Failures      uint64 `json:"failures"`
	SourceChanges uint64 `json:"source_changes"`
}

// LagLine is what --primary and --sidecar add to it. It is exported so that encoding/json can set it, embedded as it is.
type LagLine struct {
	Primary  string         `json:"primary"` // empty: a sidecar does not say
	Written  *tracker.Token `json:"primary_token"`
	LagBytes *uint64        `json:"lag_bytes"`
	LagUS    *int64         `json:"lag_us"`
	LagFrom  string         `json:"lag_from"` // measured, estimated, or empty when not known
}

// inLines prints a line for each look and each event until ctx ends.
func (w *watchCommand) inLines(ctx context.Context, seen *watched) error {
	var event, look uint64
	for {
		p := seen.sight()
		for _, e := range p.events {
			if e.n <= event {
				continue
			}
			event = e.n
			if err := w.print(p.line(e.at, e.kind, e.text)); err != nil {
				return err
			}
		}
		if p.looks > look {
			look = p.looks
			if err := w.print(p.line(p.now, "state", p.holds())); err != nil {
				return err
			}
		}
		select {
		case <-seen.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// holds is what keeps the position from moving, or from being known.
func (p *sight) holds() string {
	if p.state.Failure != nil {
		return failureText(p.state.Failure, p.sidecar != "")
	}
	return oneLine(plain(p.state.Note))
}

func (p *sight) line(at time.Time, kind, text string) *watchLine {
	st := p.state
	l := &watchLine{
		At: at, Event: kind, Text: text, Server: p.server, Sidecar: p.sidecar, Source: st.Source, Ladder: rungs(st), Note: oneLine(plain(st.Note)),
		Observations: p.stats.Observations, Epochs: p.stats.Epochs, Failures: p.stats.Failures, SourceChanges: p.stats.SourceChanges,
	}
	if !st.ObservedAt.IsZero() {
		l.ObservedAt, l.AgeUS = &st.ObservedAt, new(p.now.Sub(st.ObservedAt).Microseconds())
	}
	if o := st.Position; st.Known {
		l.Role, l.Position = new(roleOf(o)), &o.LSN
		if o.Timeline != 0 {
			l.Timeline = &o.Timeline
		}
		if o.System != 0 {
			l.System = new(strconv.FormatUint(o.System, 10))
		}
	}
	if p.primary == "" && p.sidecar == "" {
		return l
	}
	l.LagLine = &LagLine{Primary: p.primary, Written: known(st.Primary)}
	if p.lag.known {
		l.LagBytes, l.LagFrom = &p.lag.bytes, p.lag.from
		if p.lag.from != "" {
			l.LagUS = new(p.lag.late.Microseconds())
		}
	}
	return l
}

// timeColumn is RFC 3339 with as many digits in each line.
const timeColumn = "2006-01-02T15:04:05.000Z07:00"

// columns are the line for who reads it, or cuts it: each column is there in each line, and the last alone has spaces.
func (l *watchLine) columns() string {
	lag := cmp.Or(l.LagLine, &LagLine{})
	return fmt.Sprintf("%s %-8s %-7s %-17s %-3s %-8s %10s %10s %s", l.At.Format(timeColumn), l.Event, orDash(l.Role), orDash(l.Position),
		orDash(l.Timeline), cmp.Or(l.Source, "-"), orDash(lag.LagBytes), orDash(lag.LagUS), cmp.Or(l.Text, "-"))
}

func orDash[T any](v *T) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(*v)
}

func (w *watchCommand) print(l *watchLine) error {
	text := l.columns()
	if w.json {
		b, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		text = string(b)
	}
	if _, err := io.WriteString(w.stdout, text+"\n"); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
