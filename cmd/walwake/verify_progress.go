package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

const (
	progressEvery = 200 * time.Millisecond
	progressWidth = 20 // leaves room for the words in a terminal of 80 columns
)

// progress shows how far it is, on a terminal and nowhere else, until hide is called.
func (r *verification) progress(start time.Time) (hide func()) {
	if l, ok := r.stderr.(*lockedWriter); r.json || !ok || !l.terminal {
		return func() {}
	}
	total := max(time.Duration(r.duration).Milliseconds(), 1)
	bar := progressbar.NewOptions64(total, progressbar.OptionSetWriter(r.stderr), progressbar.OptionSetWidth(progressWidth),
		progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionShowDescriptionAtLineEnd())
	draw := func() {
		c := r.tally.counts()
		bar.Describe(fmt.Sprintf("%d writes, stale: %d without waiting, %d with", c.writes, c.stale[atOnce], c.stale[waited]))
		// Full, it would say that it has finished while the last waits go on.
		_ = bar.Set64(min(time.Since(start).Milliseconds(), total-1)) // it is no loss when it cannot be drawn
	}
	end := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			draw()
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	})
	return func() {
		close(end)
		drawing.Wait()
		_ = bar.Clear()
	}
}
