package pgnotify

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// AnnouncerConfig configures an Announcer. It is copied by NewAnnouncer.
type AnnouncerConfig struct {
	// Primary is where to NOTIFY, directly or through a pooler. For failovers name
	// all servers, with target_session_attrs=read-write. Required.
	Primary replication.Server

	// Channel is what to NOTIFY. Empty means DefaultAnnouncements.
	Channel string

	// Interval is the least time from one NOTIFY to the next. 0 means
	// DefaultInterval.
	Interval time.Duration

	// RetryMin and RetryMax bound the pause before trying again what has failed: it
	// doubles from the one to the other, with jitter. 0 means DefaultRetryMin and
	// DefaultRetryMax.
	RetryMin, RetryMax time.Duration

	// Farewell is how much longer Run may take than its context, or Close, to say
	// what is not said yet. 0 means DefaultFarewell.
	Farewell time.Duration

	// Logger gets lost connections and new ones. nil: silence.
	Logger *slog.Logger
}

// What a zero field of AnnouncerConfig or PublisherConfig means.
const (
	DefaultAnnouncements = "walwake"             // the channel of an Announcer
	DefaultInterval      = 20 * time.Millisecond // of an Announcer
	DefaultFarewell      = time.Second
)

// An Announcer tells those who listen how far the writers of this process have
// come: with Announcements, every Tracker knows where the primary is. However many
// writes there are, it NOTIFYs at most once in Interval, of the latest, and not at
// all when there was none.
//
// Run drives it; all other methods may be called by any number of goroutines,
// before Run as well.
type Announcer struct {
	s *sender

	at        atomic.Pointer[stretch] // the latest; nil before the first
	pending   atomic.Bool             // the sender has been told that at has risen, and has not looked yet
	announced atomic.Uint64
	said      tracker.Token // the sender's
}

// stretch is how far a timeline was announced. All but lsn is fixed.
type stretch struct {
	system   uint64
	timeline uint32
	lsn      atomic.Uint64 // only rises
}

// AnnouncerStats is what an Announcer has done so far.
type AnnouncerStats struct {
	Announced uint64        // calls of Announce
	Latest    tracker.Token // what Announce has raised the position to
	Notifies  uint64        // NOTIFYs that the primary has acknowledged
	Failures  uint64        // NOTIFYs that failed, and connections that could not be made
	Connected bool          // whether the last of them worked, and the connection is kept
	Failure   error         // why it did not; nil when it did
}

// NewAnnouncer returns an Announcer that says nothing until Run is called. It does
// no I/O; an error names the field that is wrong.
func NewAnnouncer(cfg AnnouncerConfig) (*Announcer, error) {
	s, err := newSender(senderConfig{
		of:      "AnnouncerConfig",
		primary: cfg.Primary,
		channel: cfg.Channel, defaultChannel: DefaultAnnouncements,
		gap: cfg.Interval, defaultGap: DefaultInterval, gapOf: "Interval",
		retryMin: cfg.RetryMin, retryMax: cfg.RetryMax, farewell: cfg.Farewell,
		log: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	a := &Announcer{s: s}
	s.words = a.words
	return a, nil
}

// Announce says that everything up to tok is committed on the primary: tok is one
// that replication.Capture returned. A later timeline's token counts as further
// than all of an earlier one, and one that does not raise the position, or whose
// system or timeline is not known, changes nothing. An Announcer is for one
// cluster: a token of another system takes the place of what was to be said.
//
// It does no I/O, does not block, allocates nothing but for a new timeline, and may
// be called at any rate. What is announced after Run has ended is not said.
func (a *Announcer) Announce(tok tracker.Token) {
	a.announced.Add(1)
	if !a.raise(tok) {
		return
	}
	// The sender takes pending back before it looks at the position.
	if !a.pending.Load() && !a.pending.Swap(true) {
		signal(a.s.came)
	}
}

// raise reports whether tok is the latest now.
func (a *Announcer) raise(tok tracker.Token) bool {
	for {
		at := a.at.Load()
		if at == nil || at.system != tok.System || at.timeline != tok.Timeline {
			if !whole(tok) || at != nil && at.system == tok.System && at.timeline > tok.Timeline {
				return false
			}
			next := &stretch{system: tok.System, timeline: tok.Timeline}
			a.at.CompareAndSwap(at, next) // or somebody else has: look again
			continue
		}
		for {
			lsn := at.lsn.Load()
			if uint64(tok.LSN) <= lsn {
				return false
			}
			if at.lsn.CompareAndSwap(lsn, uint64(tok.LSN)) {
				return true
			}
		}
	}
}

// whole reports whether tok says all that there is to know of a write.
func whole(tok tracker.Token) bool { return tok.System != 0 && tok.Timeline != 0 && tok.LSN != 0 }

func (a *Announcer) latest() tracker.Token {
	at := a.at.Load()
	if at == nil {
		return tracker.Token{}
	}
	return tracker.Token{System: at.system, Timeline: at.timeline, LSN: tracker.LSN(at.lsn.Load())}
}

func (a *Announcer) words(bool) (payloads []string, said func()) {
	a.pending.Store(false)
	tok := a.latest()
	if tok == a.said || tok.LSN == 0 { // 0: it is about to be raised
		return nil, nil
	}
	return []string{announcement(tok)}, func() { a.said = tok }
}

// Run announces until ctx ends or Close is called; before it returns it says what
// is not said yet, for at most AnnouncerConfig.Farewell. It connects when there is
// something to say; what fails it tries again. It blocks, is called once, and
// belongs to the caller's goroutine. It returns nil after Close, and ctx's cause
// otherwise.
func (a *Announcer) Run(ctx context.Context) error { return a.s.run(ctx) }

// Close ends Run and waits for it. It may be called several times, and without
// Run.
func (a *Announcer) Close() { a.s.close() }

// Stats returns what was done so far. It does not block.
func (a *Announcer) Stats() AnnouncerStats {
	s := a.s.snapshot()
	return AnnouncerStats{
		Announced: a.announced.Load(), Latest: a.latest(),
		Notifies: s.notifies, Failures: s.failures, Connected: s.connected, Failure: s.failure,
	}
}

// An announcement is "p1 " and a token: 48 bytes at most. What begins otherwise is
// of another version, or of somebody else, and nobody's mistake.
const announcementV1 = "p1 "

func announcement(tok tracker.Token) string { return announcementV1 + tok.String() }

// parseAnnouncement returns false for what announcement does not write.
func parseAnnouncement(payload string) (tracker.Token, bool) {
	text, is := strings.CutPrefix(payload, announcementV1)
	if !is {
		return tracker.Token{}, false
	}
	tok, err := tracker.ParseToken(text)
	if err != nil || !whole(tok) {
		return tracker.Token{}, false
	}
	return tok, true
}

// Announcements is a Listener's Channel that tells trackers where the primary is,
// as Announcers say: see (*tracker.Tracker).PrimaryAt. Its Name is
// DefaultAnnouncements, which the caller may change.
//
// Whoever may NOTIFY on the primary may announce. An announcement never ends
// a wait, early or otherwise: it only adds to what State and TimeoutError say.
func Announcements(trackers ...*tracker.Tracker) Channel {
	return Channel{
		Name: DefaultAnnouncements, AtOnce: true, Buffer: 16, Full: DropOldest,
		Handler: HandlerFunc(func(_ context.Context, e Event) error {
			tok, is := tracker.Token{}, false
			switch e := e.(type) {
			case Notification:
				tok, is = parseAnnouncement(e.Payload)
			case Resync:
				tok, is = e.Token, whole(e.Token) // where the primary was when the gap ended
			}
			for _, t := range trackers {
				if is && t != nil {
					t.PrimaryAt(tok)
				}
			}
			return nil
		}),
	}
}
