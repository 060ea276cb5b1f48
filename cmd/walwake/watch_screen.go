package main

import (
	"context"
	"fmt"

	"github.com/gdamore/tcell/v3"
)

// onScreen draws on the terminal until the person leaves or ctx ends. The terminal is then as it was.
func (w *watchCommand) onScreen(ctx context.Context, seen *watched) error {
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("the terminal cannot be drawn on: %w: let a pipe, such as | cat, have lines instead", err)
	}
	defer screen.Fini()
	for r, instead := range inASCII {
		screen.RegisterRuneFallback(r, string(instead))
	}
	tones := tonesOf(w.getenv("NO_COLOR") == "")
	for {
		p := seen.sight()
		p.samples, p.looks = seen.kept()
		draw(screen, &p, &tones)
		select {
		case <-seen.changed:
		case e := <-screen.EventQ():
			switch e := e.(type) {
			case *tcell.EventResize:
				screen.Sync()
			case *tcell.EventKey:
				if leaves(e) {
					return nil
				}
			case *tcell.EventError:
				return fmt.Errorf("the terminal is gone: %w", e)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func leaves(e *tcell.EventKey) bool {
	return e.Key() == tcell.KeyCtrlC || e.Key() == tcell.KeyEscape || e.Key() == tcell.KeyRune && (e.Str() == "q" || e.Str() == "Q")
}

// inASCII is what a terminal shows that knows no more.
var inASCII = map[rune]rune{'▁': '_', '▂': '.', '▃': ':', '▄': '-', '▅': '=', '▆': '+', '▇': '*', '█': '#', '…': '~', 'µ': 'u'}

// tonesOf are the styles of a view's tones.
func tonesOf(colour bool) (of [tones]tcell.Style) {
	plain := tcell.StyleDefault
	of = [tones]tcell.Style{
		toneText: plain, toneTitle: plain.Bold(true), toneDim: plain.Dim(true),
		toneGood: plain, toneWarn: plain.Bold(true), toneBad: plain.Bold(true), toneBar: plain,
	}
	if colour { // the terminal's own green, yellow, red and cyan
		of[toneGood] = plain.Foreground(tcell.PaletteColor(2))
		of[toneWarn] = plain.Foreground(tcell.PaletteColor(3))
		of[toneBad] = plain.Foreground(tcell.PaletteColor(1))
		of[toneBar] = plain.Foreground(tcell.PaletteColor(6))
	}
	return of
}

func draw(screen tcell.Screen, p *sight, styles *[tones]tcell.Style) {
	width, height := screen.Size()
	screen.Clear()
	for y, line := range p.view(width, height) {
		x := 0
		for _, s := range line {
			screen.PutStrStyled(x, y, s.text, styles[s.tone])
			x += columnsOf(s.text)
		}
	}
	screen.Show()
}
