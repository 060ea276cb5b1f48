package sidecar

import (
	"io"
	"sync"
	"time"

	"github.com/walwake/walwake/tracker"
)

// sayAgain is how often a demand is repeated: the sidecar forgets it after 30 s.
const sayAgain = 10 * time.Second

// demands says in the body of the stream's request what the Tracker waits for. A goroutine
// writes, since the body may block and whoever changes the demand must not.
type demands struct {
	feed   *tracker.Feed
	body   *io.PipeReader
	out    *io.PipeWriter
	wake   chan struct{} // room for one
	ended  chan struct{}
	closed sync.Once
	stop   chan struct{}

	mu    sync.Mutex  // guards what follows
	now   tracker.LSN // the lowest that is waited for; 0: nothing
	brief tracker.LSN // was waited for, and is over before it was said: it was a Refresh
	at    tracker.LSN // the highest position that is known
	said  tracker.LSN // the latest that was said
}

func newDemands(feed *tracker.Feed) *demands {
	d := &demands{feed: feed, wake: make(chan struct{}, 1), ended: make(chan struct{}), stop: make(chan struct{})}
	d.body, d.out = io.Pipe()
	go d.run()
	return d
}

func (d *demands) close() {
	d.closed.Do(func() {
		close(d.stop)
		d.hangUp()
		<-d.ended
	})
}

// hangUp ends the body.
func (d *demands) hangUp() { _ = d.out.Close() }

// changed is called when who waits may have changed. It does not block.
func (d *demands) changed() {
	d.mu.Lock()
	wants := d.feed.Demand() // under mu: of two answers the later one counts
	was := d.now
	d.now = wants.Lowest
	if wants.Waiting > 0 && wants.Lowest == 0 { // for a timeline: anything new may bring it
		d.now = d.at + 1
	}
	if d.now == 0 && was != 0 && d.said != was {
		d.brief = was
	}
	news := d.now != d.said
	d.mu.Unlock()
	if news {
		d.poke()
	}
}

func (d *demands) poke() {
	select {
	case d.wake <- struct{}{}:
	default: // it has yet to look
	}
}

// seen is called when positions are known up to lsn: what is said next may be another.
func (d *demands) seen(lsn tracker.LSN) {
	d.mu.Lock()
	d.at = lsn
	idle := d.said == 0 && d.now == 0
	d.mu.Unlock()
	if !idle {
		d.changed()
	}
}

// forget has what is waited for said again: the sidecar may have been on its way to tell of a
// position of an epoch that is over.
func (d *demands) forget() {
	d.mu.Lock()
	d.said = 0
	d.mu.Unlock()
	d.changed()
}

func (d *demands) run() {
	defer close(d.ended)
	again := time.NewTicker(sayAgain)
	defer again.Stop()
	for {
		repeat := false
		select {
		case <-d.wake:
		case <-again.C:
			repeat = true
		case <-d.stop:
			return
		}
		d.mu.Lock()
		lines := d.linesLocked(repeat)
		d.mu.Unlock()
		if len(lines) == 0 {
			continue
		}
		if _, err := d.out.Write(lines); err != nil {
			return // the stream is over
		}
	}
}

// linesLocked is what is to be said.
func (d *demands) linesLocked(repeat bool) []byte {
	var lines []byte
	say := func(lsn tracker.LSN) {
		lines, _ = lsn.AppendText(lines) // whose error is always nil
		lines = append(lines, '\n')
		d.said = lsn
	}
	if d.brief != 0 {
		say(d.brief)
		d.brief = 0
	}
	if d.now != d.said || repeat && d.now != 0 {
		say(d.now)
	}
	return lines
}
