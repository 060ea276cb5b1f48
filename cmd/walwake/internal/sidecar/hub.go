package sidecar

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/tracker"
)

// Hub hears what happens to a Tracker, remembers it for a while, and makes the frames
// that streams write. It is made before the Tracker, whose Config.Observer it is.
type Hub struct {
	urgent chan struct{} // room for one: an epoch, a timeline or a source is another
	moved  chan struct{} // room for one: the position is another
	epoch  atomic.Uint64 // of the latest frame with a position; 0: that has none

	mu      sync.Mutex
	s       *Server       // guarded by mu; nil until attached
	latest  frame         // guarded by mu
	changed chan struct{} // closed and made anew with each frame and event
	n       uint64        // guarded by mu; counts frames and events
	events  []Event       // guarded by mu; the latest, oldest first
	early   []early       // guarded by mu; told before there was a server
}

// early is an event that waits for the server that gives it its text.
type early struct {
	kind string
	text func(*Server) string
}

// An Event is something that an operator may want to know of. Where the same happens again
// it is told again, with the number of times and another N.
type Event struct {
	N     uint64    `json:"n"` // rises
	At    time.Time `json:"at"`
	Since time.Time `json:"since"` // when it happened for the first time of these; At where that is the only one
	Kind  string    `json:"kind"`  // source, failed, epoch or primary
	Text  string    `json:"text"`
	Times int       `json:"times"` // that it happened one after the other
}

// frame is what streams write, the same for all.
type frame struct {
	n        uint64
	stateN   uint64 // the n of the latest frame in which more than the position was another
	of       Position
	seen     tracker.Observation
	known    bool   // whether seen is
	state    []byte // the data of an event "state"
	position []byte // of an event "position"; nil where the position is not known
}

const (
	maxEvents = 64

	// lookEvery is how often the epoch is compared with the one that streams have been
	// told of, while there are streams: the tracker has no call for an epoch that ends and
	// is not followed by a failure. It is one atomic load.
	lookEvery = 20 * time.Millisecond
	// tellEvery is how often a state is told of in which only lag, waiters and ages are others,
	// and how often the replica is asked for those who look on while nobody waits.
	tellEvery = time.Second
)

// NewHub returns a Hub.
func NewHub() *Hub {
	return &Hub{urgent: make(chan struct{}, 1), moved: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Observer is what the Tracker's Config needs.
func (h *Hub) Observer() tracker.Observer {
	return tracker.Observer{
		Position: func(o tracker.Observation) {
			if h.epoch.Load() != o.Epoch {
				poke(h.urgent)
			}
			poke(h.moved)
		},
		Failed: func(source string, err error) {
			h.tell("failed", func(s *Server) string {
				text, _ := s.cfg.Failure(err)
				return source + ": " + text
			})
		},
		SourceChanged: func(from, to string) {
			h.Tell("source", fmt.Sprintf("%s is in use, it was %s", to, from))
		},
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // the last one is not taken yet
	}
}

// Tell adds an event, for streams and the page. The text must hold no secret.
func (h *Hub) Tell(kind, text string) {
	h.tell(kind, func(s *Server) string { return s.cfg.Text(text) })
}

// tell adds an event, with its text once there is a server.
func (h *Hub) tell(kind string, text func(*Server) string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.s == nil {
		h.early = append(h.early[max(0, len(h.early)+1-maxEvents):], early{kind, text})
		return
	}
	h.eventLocked(kind, text(h.s))
	h.tellLocked()
	poke(h.urgent)
}

func (h *Hub) tellLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Hub) attach(s *Server) {
	h.mu.Lock()
	h.s = s
	for _, e := range h.early {
		h.eventLocked(e.kind, e.text(s))
	}
	h.early = nil
	h.mu.Unlock()
}

// since returns the latest frame, the events after n, and what is closed when there is more.
func (h *Hub) since(n uint64) (frame, []Event, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := len(h.events)
	for i > 0 && h.events[i-1].N > n {
		i--
	}
	return h.latest, append([]Event(nil), h.events[i:]...), h.changed
}

// run makes frames until ctx ends.
func (h *Hub) run(ctx context.Context, s *Server) {
	look, tell, pause := time.NewTimer(lookEvery), time.NewTicker(tellEvery), time.NewTimer(0)
	defer look.Stop()
	defer tell.Stop()
	defer pause.Stop()
	moved := (<-chan struct{})(nil) // while pause runs nobody listens: 3,000 moves a second are one frame in Interval
	for h.look(s); ; {
		streams := s.streaming.Load() > 0
		if streams {
			look.Reset(lookEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-h.urgent:
			h.look(s)
		case <-moved:
			if streams {
				h.look(s)
			}
			moved = nil
			pause.Reset(s.cfg.Interval)
		case <-pause.C:
			moved = h.moved
		case <-look.C:
			if h.outdated(s) {
				h.look(s)
			}
		case <-tell.C:
			h.look(s)
			if streams {
				s.cfg.Tracker.Refresh() // its answer is looked at when it comes, and a note in the next look
			}
		}
	}
}

// outdated reports whether the latest frame is of another epoch.
func (h *Hub) outdated(s *Server) bool {
	o, known := s.cfg.Tracker.LastReplay()
	return o.Epoch != h.epoch.Load() || known != (o.Epoch != 0)
}

// look makes a frame where there is something to tell.
func (h *Hub) look(s *Server) {
	st := s.cfg.Tracker.State()
	p := s.describe(st, time.Now())
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.latest
	other := was.n == 0 || !sameState(was.of, p)
	if !other && samePosition(was.of, p) {
		return
	}
	f := frame{stateN: was.stateN, of: p, seen: st.Position, known: st.Known}
	var err error
	if f.state, err = encode(p); err != nil {
		s.cfg.Logger.Error("state cannot be written", "err", err)
		return
	}
	if p.Known {
		f.position = positionEvent(p)
		h.tellEpochLocked(was, p)
	}
	h.n++
	f.n = h.n
	if other {
		f.stateN = f.n
	}
	h.latest = f
	h.epoch.Store(st.Position.Epoch)
	h.tellLocked()
}

// tellEpochLocked adds the event of an epoch that has begun.
func (h *Hub) tellEpochLocked(was frame, p Position) {
	if was.of.Epoch != nil && *was.of.Epoch == *p.Epoch {
		return
	}
	text := fmt.Sprintf("the position is known, %s", *p.Position)
	if p.Timeline != nil {
		text += fmt.Sprintf(" of timeline %d", *p.Timeline)
	}
	h.eventLocked("epoch", text)
}

// eventLocked adds an event. One that repeats the latest is counted there: a replica that is away would
// crowd out all that happened before.
func (h *Hub) eventLocked(kind, text string) {
	h.n++
	now := time.Now()
	if last := len(h.events) - 1; last >= 0 && h.events[last].Kind == kind && h.events[last].Text == text {
		e := &h.events[last]
		e.N, e.At, e.Times = h.n, now, e.Times+1
		return
	}
	if len(h.events) == maxEvents {
		h.events = append(h.events[:0], h.events[1:]...)
	}
	h.events = append(h.events, Event{h.n, now, now, kind, text, 1})
}

// sameState reports whether nothing but position, lag, ages and counts differs.
func sameState(a, b Position) bool { return reflect.DeepEqual(lasting(a), lasting(b)) }

func lasting(p Position) Position {
	p.Position, p.Token, p.ObservedAt, p.AgeUS, p.Rate, p.Waiting, p.Streams = nil, nil, nil, nil, 0, 0, 0
	p.Lag = Lag{Known: p.Lag.Known, Reason: p.Lag.Reason}
	return p
}

// samePosition reports whether position, lag and waiters are as they were.
func samePosition(a, b Position) bool {
	return a.Waiting == b.Waiting && reflect.DeepEqual(a.Position, b.Position) &&
		reflect.DeepEqual(a.Lag.Bytes, b.Lag.Bytes) && reflect.DeepEqual(a.Lag.US, b.Lag.US)
}

// Moved is the event "position" of a stream: the position in the epoch, on the timeline, of
// the state before it. What a position that somebody waited for comes without is left out.
type Moved struct {
	Epoch    uint64      `json:"epoch"`
	LSN      tracker.LSN `json:"lsn"`
	LagBytes *uint64     `json:"lag_bytes,omitempty"`
	LagUS    *int64      `json:"lag_us,omitempty"`
	Waiting  *int        `json:"waiting,omitempty"`
}

func positionEvent(p Position) []byte {
	b, _ := encode(Moved{*p.Epoch, *p.Position, p.Lag.Bytes, p.Lag.US, &p.Waiting}) // nothing in it can fail
	return b
}
