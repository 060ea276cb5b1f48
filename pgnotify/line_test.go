package pgnotify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/walwake/walwake/tracker"
)

// blind is a source that sees nothing.
type blind struct{}

func (blind) Name() string { return "blind" }

func (blind) Observe(ctx context.Context, _ *tracker.Feed) error { <-ctx.Done(); return ctx.Err() }

func newTestLine(t interface{ Fatal(...any) }, c Channel) *line {
	tr, err := tracker.New(tracker.Config{Source: blind{}})
	if err != nil {
		t.Fatal(err)
	}
	return newLine(c, tr)
}

// lineModel checks a line against arithmetic: notifications are numbered, so
// between two that follow one another in what was delivered and what is in the
// queue, as many are missing as the gap between them says, and none without one.
type lineModel struct {
	*rapid.T
	l         *line
	pushed    int          // numbers given out: 1 to pushed
	gaps      map[int]bool // resync was called after so many were pushed
	timeline  uint32       // of what is pushed now
	delivered []Event
	stand     *entry // what first returned, to be taken later
}

func (m *lineModel) token() tracker.Token {
	return tracker.Token{System: 1, Timeline: m.timeline, LSN: tracker.LSN(1 + m.pushed)}
}

func (m *lineModel) push() {
	if m.l.channel.Full == DropOldest || m.l.held < m.l.channel.Buffer {
		m.pushed++
	}
	n := Notification{Channel: "c", Payload: strconv.Itoa(m.pushed), Token: m.token()}
	before := m.l.held
	switch accepted := m.l.offer(n); {
	case !accepted && (before < m.l.channel.Buffer || m.l.channel.Full == DropOldest):
		m.Fatalf("refused with %d of %d held", before, m.l.channel.Buffer)
	case accepted && before == m.l.channel.Buffer && m.l.channel.Full != DropOldest:
		m.Fatalf("accepted with %d of %d held", before, m.l.channel.Buffer)
	}
}

func (m *lineModel) resync() {
	why := rapid.SampledFrom([]string{"cut", "killed", "restarted"}).Draw(m.T, "why")
	m.l.resync(Resync{Reason: why, Token: m.token()})
	m.gaps[m.pushed] = true
}

func (m *lineModel) first() {
	if e, ok := m.l.first(); ok {
		m.stand = &e
	} else if len(m.l.queue) > 0 {
		m.Fatal("nothing is first of something")
	}
}

func (m *lineModel) take() {
	if m.stand == nil {
		m.Skip("nothing stands first")
	}
	if m.l.take(*m.stand) {
		m.delivered = append(m.delivered, m.stand.event)
	}
	m.stand = nil
}

func (m *lineModel) lost() {
	if m.stand == nil || m.stand.event == nil || tokenOf(m.stand.event).Timeline == 0 {
		m.Skip("nothing to lose stands first")
	}
	m.timeline = max(m.timeline, tokenOf(m.stand.event).Timeline+1)
	m.l.lost(*m.stand, errors.New("lost"))
	m.stand = nil
}

// check is called after each step.
func (m *lineModel) check(*rapid.T) {
	all, held := m.delivered, 0
	for i, e := range m.l.queue {
		all = append(all, e.event)
		if _, is := e.event.(Notification); is {
			held++
		} else if i > 0 {
			if _, is := m.l.queue[i-1].event.(Resync); is {
				m.Fatalf("two gaps in a row: %+v", m.l.queue)
			}
		}
	}
	s := m.l.snapshot()
	if s.Held != held || held > m.l.channel.Buffer || s.Received != m.pushed || s.Received != s.Delivered+s.Dropped+s.Lost+s.Held {
		m.Fatalf("%+v, %d are held, %d were pushed", s, held, m.pushed)
	}
	last, missing, gap := 0, 0, false
	upTo := func(next int) {
		if next != last+missing+1 {
			m.Fatalf("%d comes after %d, with %d missing: %+v", next, last, missing, all)
		}
		for after := last; after < next; after++ {
			if m.gaps[after] && !gap {
				m.Fatalf("no gap between %d and %d: %+v", last, next, all)
			}
		}
		last, missing, gap = next, 0, false
	}
	for _, e := range all {
		switch e := e.(type) {
		case Notification:
			n, _ := strconv.Atoi(e.Payload)
			upTo(n)
		case Resync:
			missing += e.Dropped + e.Lost
			gap = true
			if len(e.Reason) > 600 {
				m.Fatalf("a reason of %d bytes", len(e.Reason))
			}
		}
	}
	upTo(m.pushed + 1)
}

func TestALineKeepsOrderAndCountsWhatIsMissing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := Channel{
			Name:   "c",
			Buffer: rapid.IntRange(1, 5).Draw(rt, "buffer"),
			Full:   rapid.SampledFrom([]Policy{Block, DropOldest, DropOldest, Fail}).Draw(rt, "policy"),
		}
		m := &lineModel{T: rt, l: newTestLine(rt, c), gaps: map[int]bool{}, timeline: 1}
		rt.Repeat(map[string]func(*rapid.T){
			"push":   func(*rapid.T) { m.push() },
			"push 2": func(*rapid.T) { m.push() },
			"resync": func(rt *rapid.T) { m.T = rt; m.resync() },
			"first":  func(*rapid.T) { m.first() },
			"take":   func(rt *rapid.T) { m.T = rt; m.take() },
			"hand":   func(*rapid.T) { m.first(); m.takeIfAny() },
			"lost":   func(rt *rapid.T) { m.T = rt; m.lost() },
			"":       m.check,
		})
	})
}

func (m *lineModel) takeIfAny() {
	if m.stand != nil {
		m.take()
	}
}

// A standby that lags for good, by more than the buffer holds, must not keep the
// handler from hearing anything.
func TestAGapThatGrowsIsHandedOverAllTheSame(t *testing.T) {
	l := newTestLine(t, Channel{Name: "c", Buffer: 2, Full: DropOldest})
	push := func(n int) {
		l.offer(Notification{Payload: strconv.Itoa(n), Token: tracker.Token{LSN: tracker.LSN(n)}})
	}
	for n := range 5 {
		push(n + 1)
	}
	e, _ := l.first()
	want := Resync{Channel: "c", Reason: "the buffer was full", Dropped: 3, Token: tracker.Token{LSN: 3}}
	if e.event != want {
		t.Fatalf("got %+v, want %+v", e.event, want)
	}
	push(6) // while 3 is waited for
	if !l.take(e) {
		t.Fatal("what was waited for is gone")
	}
	e, _ = l.first()
	want.Dropped, want.Token.LSN = 1, 4
	if e.event != want {
		t.Errorf("got %+v, want %+v", e.event, want)
	}
}

func TestReasonsDoNotGrowWithoutEnd(t *testing.T) {
	l := newTestLine(t, Channel{Name: "c", Buffer: 2, Full: DropOldest})
	l.resync(Resync{Reason: "the connection was lost"})
	for range 10_000 {
		l.offer(Notification{})
	}
	for i := range 1000 {
		l.resync(Resync{Reason: fmt.Sprintf("connection %d was lost", i)})
	}
	for {
		e, ok := l.first()
		if !ok {
			return
		}
		if r, is := e.event.(Resync); is && len(r.Reason) > 600 {
			t.Fatalf("%d bytes: %.200s", len(r.Reason), r.Reason)
		}
		l.take(e)
	}
}

func TestBlockWaitsForRoomButNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = time.Second
		l := newTestLine(t, Channel{Name: "c", Buffer: 1})
		push := func(ctx context.Context) error { return l.push(ctx, Notification{}, most) }
		if err := push(t.Context()); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(most / 2)
			e, _ := l.first()
			l.take(e)
		}()
		began := time.Now()
		if err := push(t.Context()); err != nil || time.Since(began) != most/2 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		began = time.Now()
		if err := push(t.Context()); !errors.Is(err, errBlocked) || time.Since(began) != most {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), most/4)
		defer cancel()
		if err := push(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		l.channel.Full = Fail
		if err := push(t.Context()); !errors.Is(err, ErrFull) {
			t.Errorf("got %v", err)
		}
	})
}
