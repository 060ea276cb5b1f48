package main

import (
	"math"
	"time"
)

// bar is one column of a chart.
type bar struct {
	value float64 // the highest; below 0: there is none
	gap   bool    // whether one was not known
}

// series is what a chart shows of the samples: one value each, math.NaN where it was not known.
type series struct {
	of    func(p *sight, i int) float64
	label func(highest float64) string
}

var (
	lagInBytes = series{
		func(p *sight, i int) float64 {
			if lag := p.samples[i].lag; lag.known {
				return float64(lag.bytes)
			}
			return math.NaN()
		},
		size,
	}
	lagInTime = series{
		func(p *sight, i int) float64 {
			lag := p.samples[i].lag
			if !lag.known || lag.from == "" {
				return math.NaN()
			}
			return lag.late.Seconds()
		},
		func(v float64) string {
			if v == 0 {
				return "0 s"
			}
			return short(time.Duration(v * float64(time.Second)))
		},
	}
	replaySpeed = series{
		func(p *sight, i int) float64 {
			s := p.samples[i]
			if s.epoch == 0 {
				return math.NaN()
			}
			if i == 0 || p.samples[i-1].epoch != s.epoch || p.samples[i-1].lsn > s.lsn {
				return 0
			}
			was := p.samples[i-1]
			return float64(s.lsn-was.lsn) / max(s.at.Sub(was.at), time.Millisecond).Seconds()
		},
		func(v float64) string { return size(v) + "/s" },
	}
)

// perBar is how many samples a column has, in a chart so wide.
func (p *sight) perBar(width int) int {
	looks := float64(watchSpan) / float64(p.interval)
	return max(1, int(math.Ceil(looks/float64(max(1, width)))))
}

// bars are the samples in columns, the latest at the right: the highest of each. A sample stays with those that it came with,
// or the chart would change its shape with each.
// What was not known before anything was is no gap. highest is below 0 where nothing is known.
func (p *sight) bars(s series, width int) (bars []bar, highest float64) {
	per := uint64(p.perBar(width))
	bars = make([]bar, width)
	for i := range bars {
		bars[i].value = -1
	}
	highest = -1
	known := false
	for i := range p.samples {
		ago := uint64(len(p.samples) - 1 - i)
		behind := (p.looks-1)/per - (p.looks-1-ago)/per
		if behind >= uint64(width) {
			continue
		}
		switch v, b := s.of(p, i), &bars[width-1-int(behind)]; {
		case !math.IsNaN(v):
			known = true
			b.value, highest = max(b.value, v), max(highest, v)
		case known:
			b.gap = true
		}
	}
	return bars, highest
}

const eighths = " ▁▂▃▄▅▆▇█"

// chart draws bars in so many rows, the uppermost first.
func chart(bars []bar, highest float64, rows int) []line {
	glyphs := []rune(eighths)
	full := len(glyphs) - 1
	lines := make([]line, rows)
	for y := range lines {
		below := (rows - 1 - y) * full
		for _, b := range bars {
			glyph, t := glyphs[0], toneText
			switch {
			case b.value < 0 && b.gap:
				if below == 0 {
					glyph, t = 'x', toneBad
				}
			case b.value >= 0:
				level := 1 // a line at the bottom, for nothing
				t = toneDim
				if b.value > 0 {
					level = max(2, int(math.Ceil(b.value/highest*float64(rows*full))))
					t = toneBar
				}
				if b.gap {
					t = toneBad
				}
				glyph = glyphs[min(max(level-below, 0), full)]
			}
			lines[y] = lines[y].add(string(glyph), t)
		}
	}
	return lines
}
