package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/walwake/walwake/replication"
)

// labelled is the width of the column that says what a line has.
const labelled = 10

// density is how much room a view takes, for terminals of different heights.
type density struct {
	rows   int  // of a chart
	texts  int  // lines of one text at most
	gaps   bool // empty lines between parts
	happen int  // events that there must be room for
}

// densities, best first. The last is taken where none fits.
var densities = []density{{6, 3, true, 12}, {4, 3, true, 6}, {3, 2, true, 5}, {2, 2, true, 4}, {1, 2, true, 4}, {1, 2, false, 3}, {1, 1, false, 1}, {0, 1, false, 0}}

// view is what the terminal shows: as many lines as there is room for, none wider than it.
func (p *sight) view(width, height int) []line {
	if width < 1 || height < 1 {
		return nil
	}
	var v *view
	for _, d := range densities {
		v = &view{sight: p, density: d, width: width}
		v.draw()
		if len(v.lines)+v.absent()+d.happen+1 <= height {
			break
		}
	}
	v.happened(height)
	return v.lines[:min(height, len(v.lines))]
}

// view is a sight that is being drawn.
type view struct {
	*sight
	density
	width int
	lines []line
}

// draw adds all but the events.
func (v *view) draw() {
	v.title()
	v.position()
	v.behind()
	if note := v.holds(); note != "" {
		v.row("note", note, toneWarn)
	}
	v.gap()
	v.charts()
	v.sources()
	v.row("counts", fmt.Sprintf("%s, %s, %s, %s", several(v.stats.Observations, "observation"), several(v.stats.Epochs, "epoch"),
		several(v.stats.Failures, "failure"), several(v.stats.SourceChanges, "source change")), toneDim)
}

// absent is how many lines may come and go: for them the charts do not change their height.
func (v *view) absent() (lines int) {
	if v.holds() == "" {
		lines = 1
	}
	if len(v.last.Ladder) == 0 {
		lines += len(replication.Kinds())
	}
	return lines
}

func (v *view) gap() {
	if v.gaps {
		v.lines = append(v.lines, nil)
	}
}

// row adds a label, and a text in as many lines as it may have.
func (v *view) row(label, text string, t tone) {
	label = cut(label, labelled-1)
	for i, part := range wrapped(text, max(1, v.width-labelled), v.texts) {
		if i > 0 {
			label = ""
		}
		v.lines = append(v.lines, v.clipped(line{}.add(label+strings.Repeat(" ", labelled-columnsOf(label)), toneDim).add(part, t)))
	}
}

// clipped is a line no wider than the terminal.
func (v *view) clipped(l line) line {
	room := v.width
	for i, s := range l {
		l[i].text = cut(s.text, room)
		room -= columnsOf(l[i].text)
	}
	return l
}

func (v *view) title() {
	const leave = "  q leaves"
	clock := v.now.Format(time.TimeOnly)
	room := v.width - len(clock) - 2
	left, shown := line{}.add("walwake watch", toneTitle), v.server
	if long := v.server + " through " + v.sidecar; v.sidecar != "" && room > columnsOf("walwake watch  "+long) {
		shown = long
	}
	if room > columnsOf("walwake watch  "+shown) {
		left = left.add("  "+shown, toneText)
	} else {
		left = line{}.add(cut(shown, room), toneTitle)
	}
	if free := v.width - columnsOf(left.String()) - len(clock); free > len(leave) {
		left, clock = left.add(strings.Repeat(" ", free-len(leave)), toneText), clock+leave
	} else {
		left = left.add(strings.Repeat(" ", max(0, free)), toneText)
	}
	v.lines = append(v.lines, v.clipped(left.add(clock, toneDim)))
	v.gap()
}

func (v *view) position() {
	st := &v.state
	if !st.Known {
		text := "its position is not known"
		if !st.ObservedAt.IsZero() {
			text += ": last seen " + rounded(v.now.Sub(st.ObservedAt)) + " ago"
		}
		v.row("replica", text, toneBad)
		return
	}
	text := st.Position.LSN.String()
	if st.Position.Timeline != 0 {
		text += fmt.Sprintf(" of timeline %d", st.Position.Timeline)
	}
	if st.Source != "" {
		text += ", by " + st.Source
	}
	text += v.ago(st.ObservedAt)
	v.row(roleOf(st.Position), text, toneText)
	if st.Position.System != 0 && v.gaps && v.width >= labelled+20 {
		v.row("system", fmt.Sprint(st.Position.System), toneText)
	}
}

func (v *view) behind() {
	lag := v.lag
	switch {
	case !lag.known:
		v.row("lag", "not known: "+lag.reason, toneDim)
	case lag.bytes == 0:
		v.row("lag", "none", toneGood)
	default:
		text := size(float64(lag.bytes))
		switch lag.from {
		case "measured":
			text += ", for " + short(lag.late)
		case "estimated":
			text += ", about " + short(lag.late)
		}
		if v.state.Rate > 0 {
			text += ", replaying " + size(v.state.Rate) + "/s"
		}
		if v.state.ETA > 0 && v.state.Note == "" {
			text += ": replayed in about " + short(v.state.ETA)
		}
		v.row("lag", text, toneWarn)
	}
	text := v.primary
	if at := v.state.Primary; v.lags && !at.IsZero() {
		text += fmt.Sprintf(", at %s of timeline %d", at.LSN, at.Timeline) + v.ago(v.state.PrimaryHeard)
	}
	if text != "" {
		v.row("primary", strings.TrimPrefix(text, ", "), toneText)
	}
}

// ago is how long ago something was, where that is worth telling.
func (v *view) ago(at time.Time) string {
	d := v.now.Sub(at)
	if d < max(2*time.Second, 2*v.interval) {
		return ""
	}
	return ", " + rounded(d) + " ago"
}

func (v *view) charts() {
	width := v.width - labelled
	if v.rows == 0 || width < 4 {
		return
	}
	shown := []series{lagInBytes, lagInTime}
	if !v.lags {
		shown = []series{replaySpeed}
	}
	for _, s := range shown {
		bars, highest := v.bars(s, width)
		for y, drawn := range chart(bars, highest, v.rows) {
			label := ""
			switch y {
			case 0:
				label = "-"
				if highest >= 0 {
					label = s.label(highest)
				}
			case v.rows - 1:
				label = "0"
			}
			v.lines = append(v.lines, append(line{}.add(fmt.Sprintf("%*s ", labelled-1, label), toneDim), drawn...))
		}
	}
	from := rounded(time.Duration(v.perBar(width)*width)*v.interval) + " ago"
	if free := width - len(from) - len("now"); free > 0 {
		v.row("", from+strings.Repeat(" ", free)+"now", toneDim)
	}
	v.gap()
}

// sources shows the ladder or, dim, the latest while no source runs.
func (v *view) sources() {
	if len(v.state.Ladder) == 0 {
		for i, r := range rungs(v.last) {
			text := "was " + r.state(v.last.Source)
			if v.last.Ladder[i].Resting {
				text = "rested: " + r.Reason
			}
			v.row(r.Source, text, toneDim)
		}
		return
	}
	better := true // than the one in use
	for i, r := range rungs(v.state) {
		t := toneText
		switch {
		case r.Source == v.state.Source:
			t, better = toneGood, false
		case v.state.Ladder[i].Resting, !r.Up && !better:
			t = toneDim
		case !r.Up:
			t = toneWarn
		}
		text := r.state(v.state.Source)
		if v.state.Ladder[i].Resting {
			text = "rests: " + r.Reason
		}
		v.row(r.Source, text, t)
	}
}

// happened fills the lines that are left with the events, the latest first.
func (v *view) happened(height int) {
	if len(v.events) == 0 || len(v.lines) >= height {
		return
	}
	v.gap()
	for i := len(v.events) - 1; i >= 0 && len(v.lines) < height; i-- {
		e := v.events[i]
		text := e.kind + ": " + e.text
		if e.times > 1 {
			text += fmt.Sprintf(" (%d times)", e.times)
		}
		v.row(e.at.Format(time.TimeOnly), text, toneOf(e.kind))
	}
}

func toneOf(kind string) tone {
	switch kind {
	case "failed":
		return toneBad
	case "note", "primary", "role", "timeline":
		return toneWarn
	}
	return toneText
}
