package replication

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/tracker"
)

// freshFor is how long after the last waiter went the position is kept fresh,
// so that the next one, who comes with a token that has just been written, need
// not ask. freshGap is the pause between two questions for nobody.
const (
	freshFor = 250 * time.Millisecond
	freshGap = time.Millisecond
)

// followFor is how long after a hint the server is asked again at once where it
// has not replayed yet what the hint was of: replay follows receipt within that.
const followFor = 300 * time.Microsecond

// fullEvery is how often, once somebody has waited for streamAfter, the question is
// asked that also tells why replay does not move. It takes half a millisecond,
// which one short wait in forty would otherwise last longer.
const fullEvery = 100 * time.Millisecond

// betweenEvery is how often it is asked where waits are short, or nobody waits and
// State is looked at (tracker.Refresh): after one of them, so that none lasts longer.
const betweenEvery = time.Second

// run is the life of one session, which is the epoch, and what decides when to
// ask it. It has no goroutine of its own that things must pass through:
// a waiter, a stream's hint, an answer or the timer each act where they happen,
// under mu, which is what makes a wait two steps long and not five.
type run struct {
	cfg       Config
	feed      *tracker.Feed
	board     *board
	histories *histories
	upgrade   *upgrade
	peer      *atomic.Pointer[Peer]
	upgraded  *session // takes over after this run: guarded by mu until over

	s       *session // nil before observe: it is to be opened
	epoch   *tracker.Epoch
	streams *streams
	failed  chan error // room for one: the first counts

	vouching atomic.Uint64 // the position that the inbox waits for; 0: for none
	said     chan struct{} // room for one: there was an answer, while it did

	// order is held from where an answer is taken to where the tracker has it,
	// so that two sessions' answers cannot overtake each other. mu may be taken
	// under it; it is not held where others' code may ask.
	order sync.Mutex

	mu         sync.Mutex // guards what follows, s.busy, and writing to sessions
	over       bool
	waits      *waitFor // nil where WAIT FOR LSN is not the kind in use
	standing   standing // s waits for any replay
	pace       pace
	two        bool        // there is, or was, a second session
	last       reading     // the latest
	unstreamed time.Time   // since when no walreceiver streams; zero: it does
	asked      time.Time   // when it was asked for
	fullAt     time.Time   // when the full question was asked last
	wanted     time.Time   // when somebody last waited
	again      bool        // something came up that calls for asking
	heard      tracker.LSN // the highest position that a stream told of
	heardAt    time.Time   // when it came to what was then the lowest in demand
	timer      *time.Timer
	due        time.Time // when it fires
	patience
}

// next returns the run after r. What r learned of its server is not passed on:
// the next session may be to another. Calls that were under way when r ended may
// still come to r.
func (r *run) next() *run {
	return &run{cfg: r.cfg, feed: r.feed, peer: r.peer, board: r.board, histories: &histories{server: r.cfg.Replica}, upgrade: r.upgrade, s: r.upgraded}
}

// observe asks over one connection, for as long as it lasts. It is called once.
func (r *run) observe(ctx context.Context) error {
	if r.s == nil {
		s, err := openSession(ctx, r.cfg.Replica, false, nil)
		if err != nil {
			return err
		}
		r.s = s
	}
	s := r.s
	r.epoch = r.feed.Begin()
	peer := &Peer{Epoch: r.epoch.Number(), backend: s.backend, started: s.started}
	r.peer.Store(peer)
	defer r.peer.CompareAndSwap(peer, nil)
	r.failed, r.said = make(chan error, 1), make(chan struct{}, 1)
	r.pace = pace{min: r.cfg.MinInterval, max: r.cfg.MaxInterval, idle: r.cfg.IdleInterval}
	r.feed.Note("") // of a run before this one
	r.board.reset()
	r.streams = newStreams(ctx, r)
	r.mu.Lock()
	r.standing = standing{usable: s.standby && !s.walsender && s.major >= firstVersion[WaitFor] && r.board.has(WaitFor)}
	r.timer = time.AfterFunc(r.cfg.IdleInterval, r.tick)
	r.patience.timer = time.AfterFunc(time.Hour, r.lasts)
	r.mu.Unlock()
	defer r.close()
	s.listen(func(a answer) { r.take(s, a) })
	r.first()
	r.streams.open()
	r.feed.OnDemand(r.demanded)
	r.demanded() // for who came before
	select {
	case err := <-r.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close ends all that observe began.
func (r *run) close() {
	r.feed.OnDemand(func() {})
	r.timer.Stop()
	r.mu.Lock()
	r.patience.timer.Stop()
	r.over = true
	r.mu.Unlock()
	r.epoch.End()
	r.streams.close()
	r.mu.Lock()
	busy := r.s.busy
	r.mu.Unlock()
	r.s.close(busy)
}

// historyRead is called when a history has been read, or could not be: the
// tracker gets it with the next answer, whether or not somebody waits.
func (r *run) historyRead() {
	r.mu.Lock()
	r.wanted = time.Now()
	r.mu.Unlock()
	r.event(true)
}

// takeOver ends the run in favour of s.
func (r *run) takeOver(s *session) {
	r.mu.Lock()
	r.upgraded = s
	r.mu.Unlock()
	r.fail(errUpgraded)
}

// fail ends the run.
func (r *run) fail(err error) {
	select {
	case r.failed <- err:
	default: // it has failed already
	}
}

// first asks for the first time, and says all there is to say.
func (r *run) first() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = time.Now()
	r.fullAt = r.asked
	if err := r.s.ask(full); err != nil {
		r.fail(err)
	}
}

// demanded is called when who waits has changed. Asking comes first: it is what
// they wait for.
func (r *run) demanded() {
	r.event(true)
	if r.streams.attentive.Load() > 0 {
		r.streams.kick()
	}
}

// lasts is called when somebody may have waited for so long that streams are
// worth their while.
func (r *run) lasts() {
	r.mu.Lock()
	lasting := !r.over && r.outlastedLocked(time.Now())
	r.mu.Unlock()
	if lasting {
		r.streams.kick()
	}
}

// idle returns for how long no wait has lasted: 0 while one does.
func (r *run) idle() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.idleLocked(time.Now())
}

// hinted is called when a stream says that the server has come to lsn, or is
// about to. It calls for asking when the lowest position that is waited for has
// now come. Where that is still to come there is nothing to ask for, and where it
// came before, replay lags: WAL that goes on coming says nothing about when.
func (r *run) hinted(lsn tracker.LSN) {
	d := r.demand()
	r.mu.Lock()
	before := r.heard
	r.heard = max(r.heard, lsn)
	come := d.Waiting > 0 && before < d.Lowest && d.Lowest <= r.heard
	if come {
		r.heardAt = time.Now()
		r.pace.since = r.heardAt // from here on replay is what is waited for
	}
	r.mu.Unlock()
	r.event(come || d.Waiting == 0)
}

// tick is called when the time has come to ask again.
func (r *run) tick() { r.event(true) }

// event acts on something that happened.
func (r *run) event(again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.again = r.again || again
	asked, now := r.asked, time.Now()
	next, err := r.actLocked()
	if err != nil {
		r.fail(err)
	}
	if r.s.busy && (r.waits == nil || !r.s.waiting.Load()) {
		return // its answer acts
	}
	// What asked nothing does not put off what is due: hints may come for ever.
	at := now.Add(next)
	if r.asked.Equal(asked) && r.due.After(now) && r.due.Before(at) {
		return
	}
	r.due = at
	r.timer.Reset(next)
}

// actLocked asks what is to be asked now, and returns when to act again at the
// latest.
func (r *run) actLocked() (time.Duration, error) {
	now, d := time.Now(), r.demand()
	if d.Waiting > 0 {
		r.wanted = now
	}
	r.followLocked(d.Waiting > 0, now)
	pause := r.pace.next(d, now)
	if r.last.lsn < d.Lowest && d.Lowest <= r.heard && now.Sub(r.heardAt) < followFor {
		r.again = true
	}
	most := eagerMost
	if r.standing.usable {
		most = eagerFew
	}
	if stream, _ := r.board.better(Poll); !stream && !r.s.busy && r.pace.eager(now, most) {
		r.again = true
	}
	switch {
	case !r.s.busy && d.Waiting == 0 && r.wanted.After(r.fullAt) && now.Sub(r.fullAt) >= betweenEvery:
		r.again, r.asked, r.fullAt = false, now, now
		return pause, r.s.ask(full)
	case r.waits.usableLocked(r):
		return r.waits.actLocked(r, d, pause, now)
	case r.s.busy:
		return pause, nil
	case !r.again && r.standing.possibleLocked(r, d, now):
		r.asked = now
		return pause, r.s.askAfter(r.last.lsn+1, streamAfter)
	case !r.again:
		return pause, nil
	case d.Waiting > 0, now.Sub(r.asked) >= r.cfg.IdleInterval:
	case now.Sub(r.wanted) > freshFor:
		r.again = false
		return pause, nil
	case now.Sub(r.asked) < freshGap:
		return freshGap, nil // for nobody: not at every hint
	}
	r.again, r.asked = false, now
	return pause, r.s.ask(r.questionLocked(now))
}

// questionLocked is the short one, and now and then the full one.
func (r *run) questionLocked(now time.Time) question {
	switch {
	case now.Sub(r.fullAt) >= fullEvery && now.Sub(r.pace.since) >= streamAfter:
		r.fullAt = now
		return full
	case r.last.timeline == 0:
		return plain
	}
	return short
}

// take is called by s's reader with each answer.
func (r *run) take(s *session, a answer) {
	r.mu.Lock()
	s.done()
	r.waits.tookLocked(a)
	r.standing.tookLocked(a)
	// A second session that WaitFor has left ends, and the run goes on.
	over := r.over || s != r.s && (r.waits == nil || r.waits.second != s)
	r.mu.Unlock()
	if over {
		return
	}
	err := a.err
	if err == nil {
		err = r.report(a)
	}
	if err != nil {
		r.fail(err)
		return
	}
	r.event(false)
}

// lasting reports whether a timeline that is not told is likely to stay so:
// a walreceiver that does not stream is often back at once.
func (r *run) lasting(rd reading) bool {
	const hiccup = 2 * time.Second
	r.mu.Lock()
	defer r.mu.Unlock()
	if !rd.unstreamed {
		return true
	}
	if r.unstreamed.IsZero() {
		r.unstreamed = time.Now()
	}
	return time.Since(r.unstreamed) >= hiccup
}

// cancelled asks again: at once where we had it cancelled ourselves, and when
// that is due anyway where others did, who may do it each time.
func (r *run) cancelled() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.s.interrupted.Swap(false) {
		r.again = true
		return nil
	}
	r.last.reason = "the server cancels the question for the position: a statement_timeout of the role, or an administrator"
	r.feed.Note(r.last.note())
	return nil
}

// report tells the tracker what an answer said.
func (r *run) report(a answer) error {
	r.order.Lock()
	defer r.order.Unlock()
	if a.canceled {
		return r.cancelled()
	}
	rd := a.reading
	if rd.fast && (rd.timeline == 0 || !rd.known) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.last.timeline, r.again = 0, true
		return nil // a query will say more
	}
	if rd.standby && rd.timeline == 0 && rd.known && !r.s.walsender && r.lasting(rd) {
		if err := r.upgrade.want(r.streams.ctx, r.streams.spawn, r.takeOver); err != nil {
			rd.reason += " (" + err.Error() + ")"
		}
	}
	r.mu.Lock()
	// Two sessions' answers may overtake each other; those of one only rise, unless
	// another server has taken its place behind a pooler.
	late := rd.timeline != 0 && rd.timeline < r.last.timeline || rd.known && rd.lsn < r.last.lsn
	alone := r.waits == nil && !r.two
	r.mu.Unlock()
	switch {
	case late && alone:
		return fmt.Errorf("replication: the position went down within one connection, from %s on timeline %d to %s on timeline %d: connect to the replica directly",
			r.last.lsn, r.last.timeline, rd.lsn, rd.timeline)
	case late:
		return nil
	}
	history, err := r.histories.of(r.streams.ctx, r.s, rd.timeline, r.streams.spawn, r.historyRead)
	if err != nil {
		rd.reason = err.Error()
	}
	r.mu.Lock()
	said := r.last.note()
	if moved := r.last.known && rd.lsn > r.last.lsn; !rd.full {
		if rd.held = r.last.held; moved && rd.held != (held{}) {
			rd.held = rd.held.since(rd.lsn, r.demand())
		}
	} else if moved {
		rd.held.alone = false // it has something to replay yet
	}
	r.last = rd
	if rd.timeline != 0 {
		r.unstreamed = time.Time{}
	}
	r.mu.Unlock()
	if note := rd.note(); note != said {
		r.feed.Note(note)
	}
	if rd.known {
		r.epoch.Observe(tracker.Observation{
			LSN:      rd.lsn,
			System:   r.s.system,
			Timeline: rd.timeline,
			History:  history,
			Primary:  !rd.standby,
		})
	}
	if r.vouching.Load() != 0 {
		select {
		case r.said <- struct{}{}:
		default: // it has yet to take the last one
		}
	}
	return nil
}
