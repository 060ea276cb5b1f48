package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"
)

// tone says how a text looks, where the terminal can.
type tone int

const (
	toneText tone = iota
	toneTitle
	toneDim
	toneGood
	toneWarn
	toneBad
	toneBar

	tones = iota // how many there are
)

type span struct {
	text string
	tone tone
}

// line is one of the screen.
type line []span

// add appends a text, to the last span where that has the same tone.
func (l line) add(text string, t tone) line {
	if last := len(l) - 1; last >= 0 && l[last].tone == t {
		l[last].text += text
		return l
	}
	return append(l, span{text, t})
}

func (l line) String() string {
	var b strings.Builder
	for _, s := range l {
		b.WriteString(s.text)
	}
	return strings.TrimRight(b.String(), " ")
}

func columnsOf(s string) int { return displaywidth.String(s) }

// cut is as much of a text as there is room for.
func cut(text string, width int) string {
	if width < 1 {
		return ""
	}
	return displaywidth.TruncateString(text, width, "…")
}

// wrapped breaks a text at spaces into at most so many lines; what is left over is cut off.
func wrapped(text string, width, most int) (lines []string) {
	for len(lines) < most-1 && columnsOf(text) > width {
		fits := displaywidth.TruncateString(text, width, "")
		if i := strings.LastIndexByte(fits, ' '); i > 0 && text[len(fits)] != ' ' {
			fits = fits[:i]
		}
		if fits == "" { // a character wider than the line
			break
		}
		lines = append(lines, strings.TrimRight(fits, " "))
		text = strings.TrimLeft(text[len(fits):], " ")
	}
	return append(lines, cut(text, width))
}

// size is a number of bytes with three digits.
func size(n float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	i := 0
	for ; n >= 999.5 && i < len(units)-1; i++ {
		n /= 1000
	}
	return fmt.Sprintf("%.3g %s", n, units[i])
}

// several is a number of things.
func several(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// rounded is a time in seconds, or in steps of five where it is long.
func rounded(d time.Duration) string {
	if d >= time.Minute {
		d = d.Round(5 * time.Second)
	}
	if d = d.Round(time.Second); d >= time.Minute && d%time.Minute == 0 {
		return strings.TrimSuffix(d.String(), "0s")
	}
	return d.String()
}
