package pgnotify

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// scripted is a tracker's source that sees what a test says.
type scripted struct {
	feeds chan *tracker.Feed
	fail  chan error
}

func (scripted) Name() string { return "scripted" }

func (s scripted) Observe(ctx context.Context, f *tracker.Feed) error {
	s.feeds <- f
	select {
	case err := <-s.fail:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// followed runs a tracker until the test ends.
func followed(t *testing.T, name string) (*tracker.Tracker, scripted) {
	t.Helper()
	s := scripted{make(chan *tracker.Feed, 10), make(chan error)}
	tr, err := tracker.New(tracker.Config{Source: s, Name: name, RetryMin: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(context.Background()) }()
	t.Cleanup(tr.Close)
	return tr, s
}

func seen(lsn tracker.LSN) tracker.Observation {
	return tracker.Observation{System: 7, Timeline: 1, LSN: lsn, History: tracker.History{}}
}

// publishing runs a Publisher over w until the test ends.
func publishing(t *testing.T, w *wire, cfg PublisherConfig) *Publisher {
	t.Helper()
	cfg.Primary = replication.Server{DSN: "host=127.0.0.1"}
	p, err := NewPublisher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.s.dial = w.dial
	go func() { _ = p.Run(context.Background()) }()
	t.Cleanup(func() {
		p.Close()
		if w.open != 0 {
			t.Errorf("%d connections are open at the end", w.open)
		}
	})
	return p
}

// members reads what was said.
func (w *wire) members(t *testing.T) []member {
	t.Helper()
	said, _ := w.snapshot()
	all := make([]member, len(said))
	for i, payload := range said {
		m, ok := parseMember(payload)
		if !ok {
			t.Fatalf("%d: %q cannot be read", i, payload)
		}
		all[i] = m
	}
	return all
}

func TestAReplicaIsPublishedOnceASecondAndWhenItsStateChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		tr, source := followed(t, "r1")
		feed := <-source.feeds
		publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{tr}, Instance: "p1"})
		synctest.Wait()
		// says has exactly one more said, soon, and returns it.
		said := 0
		says := func(what string, within time.Duration) member {
			t.Helper()
			time.Sleep(within)
			synctest.Wait()
			all := w.members(t)
			if len(all) != said+1 {
				t.Fatalf("%s: said %+v, want one", what, all[said:])
			}
			said++
			return all[said-1]
		}
		if m := says("at first", 0); m != (member{Name: "r1", Instance: "p1", Source: "scripted"}) {
			t.Errorf("at first: %+v", m)
		}
		epoch := feed.Begin()
		epoch.Observe(seen(100))
		if m := says("known", DefaultSoonest); !m.Known || m.At != on(1, 100) {
			t.Errorf("known: %+v", m)
		}
		// Positions that move are no reason: each NOTIFY moves them.
		start := len(w.members(t))
		for i := range 1000 { // 10 s
			epoch.Observe(seen(tracker.LSN(101 + i)))
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		if n := len(w.members(t)) - start; n < 9 || n > 10 {
			t.Errorf("said %d times in 10 s, want one a second", n)
		}
		said = len(w.members(t))
		// What is announced, and replayed, is said at once.
		tr.PrimaryAt(on(1, 2000))
		time.Sleep(DefaultSoonest)
		synctest.Wait()
		if n := len(w.members(t)); n > said+1 { // its second may be over
			t.Errorf("announced, not replayed: said %d times", n-said)
		}
		said = len(w.members(t))
		epoch.Observe(seen(2000))
		if m := says("replayed what was announced", DefaultSoonest); m.At != on(1, 2000) {
			t.Errorf("replayed what was announced: %+v", m)
		}
		feed.Ladder([]tracker.Rung{{Source: "quick", Up: true}})
		if m := says("another source", DefaultSoonest); m.Source != "quick" {
			t.Errorf("another source: %+v", m)
		}
		epoch.Observe(tracker.Observation{System: 7, Timeline: 2, LSN: 2000, History: tracker.History{{Timeline: 1, End: 1500}}})
		if m := says("another timeline", DefaultSoonest); m.At != on(2, 2000) {
			t.Errorf("another timeline: %+v", m)
		}
		epoch.End()
		if m := says("unknown", DefaultSoonest); m.Known || !m.At.IsZero() {
			t.Errorf("unknown: %+v", m)
		}
		tr.Close()
		if m := says("closed", DefaultSoonest); !m.Left {
			t.Errorf("closed: %+v", m)
		}
		time.Sleep(time.Hour)
		if all := w.members(t); len(all) != said {
			t.Errorf("after the tracker was closed: said %+v", all[said:])
		}
	})
}

func TestTheReplicaIsAskedOnceForEachNotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		tr, source := followed(t, "r1")
		feed := <-source.feeds
		feed.Begin().Observe(seen(100))
		asked := 0
		feed.OnDemand(func() {
			if feed.Demand().Waiting > 0 {
				asked++
			}
		})
		publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{tr}})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(w.members(t)); asked < n-1 || asked > n+1 {
			t.Errorf("idle: asked %d times for %d NOTIFYs", asked, n)
		}
		asked = 0
		tr.PrimaryAt(on(1, 2000))
		time.Sleep(time.Minute)
		synctest.Wait()
		if asked < 590 || asked > 610 {
			t.Errorf("behind what is announced: asked %d times in a minute, want ten a second", asked)
		}
	})
}

func TestAFlappingReplicaIsPublishedNoMoreThanTenTimesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		tr, source := followed(t, "r1")
		feed := <-source.feeds
		publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{tr}})
		for range 10_000 { // 10 s
			e := feed.Begin()
			e.Observe(seen(100))
			time.Sleep(500 * time.Microsecond)
			e.End()
			time.Sleep(500 * time.Microsecond)
		}
		_, at := w.snapshot()
		if len(at) > 101 {
			t.Errorf("%d NOTIFYs in 10 s", len(at))
		}
		for i := range at[1:] {
			if gap := at[i+1].Sub(at[i]); gap < DefaultSoonest {
				t.Errorf("%d comes %s after the one before", i+1, gap)
			}
		}
	})
}

func TestAPublisherOutlivesFailuresAndLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		a, one := followed(t, "a")
		b, two := followed(t, "b")
		(<-one.feeds).Begin().Observe(seen(10))
		(<-two.feeds).Begin().Observe(seen(20))
		down := errors.New("down")
		w.set(down, false)
		p := publishing(t, w, PublisherConfig{Trackers: []*tracker.Tracker{a, b}})
		time.Sleep(time.Minute)
		if s := p.Stats(); s.Failures < 10 || !errors.Is(s.Failure, down) || s.Connected || s.Notifies != 0 {
			t.Errorf("while it is down: %+v", s)
		}
		w.set(nil, false)
		time.Sleep(DefaultRetryMax)
		synctest.Wait()
		all := w.members(t)
		if len(all) < 2 || all[0].Name != "a" || all[0].At != on(1, 10) || all[1].Name != "b" || all[1].At != on(1, 20) {
			t.Fatalf("after it: %+v", all)
		}
		s := p.Stats()
		if s.Failure != nil || !s.Connected || s.Notifies != uint64(len(all)) || all[0].Instance != s.Instance || all[1].Instance != s.Instance {
			t.Errorf("after it: %+v", s)
		}
		p.Close()
		all = w.members(t)[len(all):]
		if len(all) < 2 || !all[len(all)-2].Left || !all[len(all)-1].Left {
			t.Errorf("at the end: %+v", all)
		}
		if err := p.Run(t.Context()); !errors.Is(err, errRanBefore) {
			t.Errorf("Run again: %v", err)
		}
	})
}

// heardOf hands payloads to a Fleet.
func heardOf(t *testing.T, f *Fleet, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		if err := f.Handle(t.Context(), Notification{Payload: p}); err != nil {
			t.Fatal(err)
		}
	}
}

func newFleet(t *testing.T, cfg FleetConfig) *Fleet {
	t.Helper()
	f, err := NewFleet(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func names(ms []Member) string {
	var b strings.Builder
	for _, m := range ms {
		b.WriteString(m.Name + "/" + m.Instance)
		if m.Silent {
			b.WriteString(" silent")
		}
		if m.Unsure {
			b.WriteString(" unsure")
		}
		b.WriteString(" ")
	}
	return strings.TrimSpace(b.String())
}

func said(name, instance string, at tracker.Token) string {
	return member{Name: name, Instance: instance, At: at, Known: at.LSN != 0, Source: "poll", Waiting: 3}.payload()
}

func TestMembersFallSilentAndAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, FleetConfig{})
		start := time.Now()
		heardOf(t, f, said("b", "1", on(1, 5)), said("a", "2", on(1, 6)), said("a", "1", on(1, 7)))
		ms := f.Members()
		if got, want := names(ms), "a/1 a/2 b/1"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if want := (Member{Name: "a", Instance: "1", Position: on(1, 7), Known: true, Source: "poll", Waiting: 3, Heard: start}); ms[0] != want {
			t.Errorf("%+v, want %+v", ms[0], want)
		}
		time.Sleep(DefaultSilent - 1)
		heardOf(t, f, said("b", "1", on(1, 9)))
		if got, want := names(f.Members()), "a/1 a/2 b/1"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		time.Sleep(time.Nanosecond)
		ms = f.Members()
		if got, want := names(ms), "a/1 silent a/2 silent b/1"; got != want || ms[0].Age != DefaultSilent || ms[2].Age != 1 {
			t.Errorf("%s, want %s; %+v", got, want, ms)
		}
		if got, want := names(f.Having(tracker.Token{})), "b/1"; got != want {
			t.Errorf("who can be chosen: %s, want %s", got, want)
		}
		time.Sleep(DefaultForget - DefaultSilent - 1)
		if got, want := names(f.Members()), "a/1 silent a/2 silent b/1 silent"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		time.Sleep(time.Nanosecond)
		if got, want := names(f.Members()), "b/1 silent"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		heardOf(t, f, said("b", "1", on(1, 9)), said("c", "1", tracker.Token{}))
		if got, want := names(f.Members()), "b/1 c/1"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		heardOf(t, f, member{Name: "b", Instance: "1", Left: true}.payload())
		if got, want := names(f.Members()), "c/1"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if s := f.Stats(); s != (FleetStats{Heard: 7}) {
			t.Errorf("%+v", s)
		}
	})
}

func TestAResyncMarksAndErasesNothing(t *testing.T) {
	f := newFleet(t, FleetConfig{})
	heardOf(t, f, said("a", "1", on(1, 9)), said("b", "1", on(1, 8)))
	if err := f.Handle(t.Context(), Resync{Reason: "the connection was lost"}); err != nil {
		t.Fatal(err)
	}
	if got, want := names(f.Members()), "a/1 unsure b/1 unsure"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	heardOf(t, f, said("b", "1", on(1, 8)))
	if got, want := names(f.Having(on(1, 8))), "b/1 a/1 unsure"; got != want {
		t.Errorf("%s, want who is sure first: %s", got, want)
	}
	if s := f.Stats(); s.Resyncs != 1 {
		t.Errorf("%+v", s)
	}
}

func TestWhoHasAToken(t *testing.T) {
	f := newFleet(t, FleetConfig{})
	heardOf(t, f,
		said("low", "1", on(1, 50)), said("high", "1", on(1, 70)), said("level", "1", on(1, 60)),
		said("unknown", "1", tracker.Token{}), said("promoted", "1", on(2, 65)),
		said("other", "1", tracker.Token{System: 8, Timeline: 1, LSN: 90}), said("bare", "1", tracker.Token{LSN: 90}))
	for _, c := range []struct {
		name string
		tok  tracker.Token
		want string
	}{
		{"a token", on(1, 60), "high/1 level/1"},
		{"beyond all", on(1, 71), ""},
		{"of a later timeline", on(2, 60), "promoted/1"},
		{"without a timeline", tracker.Token{System: 7, LSN: 60}, "promoted/1 high/1 level/1"},
		{"a bare LSN", tracker.Token{LSN: 80}, "other/1 bare/1"},
		{"of another cluster", tracker.Token{System: 9, Timeline: 1, LSN: 1}, ""},
	} {
		if got := names(f.Having(c.tok)); got != c.want {
			t.Errorf("%s: %q have it, want %q", c.name, got, c.want)
		}
		best, ok := f.Best(c.tok)
		if ok != (c.want != "") || ok && best.Name+"/1" != strings.Fields(c.want)[0] {
			t.Errorf("%s: the best is %+v, %t", c.name, best, ok)
		}
	}
}

func TestASetIsOrderedByTheFleet(t *testing.T) {
	var trackers []*tracker.Tracker
	for _, name := range []string{"low", "unheard", "level", "high"} {
		tr, err := tracker.New(tracker.Config{Source: scripted{}, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		trackers = append(trackers, tr)
	}
	f := newFleet(t, FleetConfig{})
	heardOf(t, f, said("low", "1", on(1, 50)), said("high", "1", on(1, 70)), said("level", "1", on(1, 60)), said("level", "2", on(1, 65)), said("elsewhere", "1", on(1, 99)))
	var got []string
	for _, tr := range f.Order(tracker.NewSet(trackers...), on(1, 60)) {
		got = append(got, tr.State().Name)
	}
	if want := []string{"high", "level", "low", "unheard"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAFleetIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, FleetConfig{MaxMembers: 2})
		heardOf(t, f, said("a", "1", on(1, 1)), said("b", "1", on(1, 1)), said("c", "1", on(1, 1)), said("b", "1", on(1, 2)))
		if got, want := names(f.Members()), "a/1 b/1"; got != want || f.Stats().Refused != 1 {
			t.Errorf("%s, want %s; %+v", got, want, f.Stats())
		}
		if b, ok := f.Best(on(1, 2)); !ok || b.Name != "b" {
			t.Errorf("who is known is heard of when it is full: %+v", b)
		}
		time.Sleep(DefaultForget)
		heardOf(t, f, said("c", "1", on(1, 1)))
		if got, want := names(f.Members()), "c/1"; got != want {
			t.Errorf("%s, want %s: who is gone makes room", got, want)
		}
	})
	f := newFleet(t, FleetConfig{})
	long := strings.Repeat("x", maxName+1)
	hostile := []string{
		"", "r1 ", "r1 {}", "r1 null", "r1 []", "r2 " + said("a", "1", on(1, 1)), "p1 " + on(1, 1).String(), said("a", "1", on(1, 1)) + "{}",
		said("", "1", on(1, 1)), said("a", "", on(1, 1)), said(long, "1", on(1, 1)), said("a", long, on(1, 1)),
		member{Name: "a", Instance: "1", Source: long}.payload(), member{Name: "a", Instance: "1", Waiting: -1}.payload(),
		said("\x1b[2J", "1", on(1, 1)), said("a\nb", "1", on(1, 1)), said("a", "\u202e1", on(1, 1)),
		member{Name: "a", Instance: "1", Known: true}.payload(), member{Name: "a", Instance: "1", At: on(1, 1)}.payload(),
		`r1 {"name":"a","instance":"1","at":"nonsense","known":true}`, `r1 {"name":"a","instance":"1","at":null,"known":true}`,
		strings.TrimSuffix(said("a", "1", on(1, 1)), "}") + `,"x":"` + strings.Repeat("x", maxMember) + `"}`,
	}
	heardOf(t, f, hostile...)
	if ms, s := f.Members(), f.Stats(); len(ms) != 0 || s.Skipped != uint64(len(hostile)) {
		t.Errorf("%+v, %+v", ms, s)
	}
	heardOf(t, f, strings.TrimSuffix(said("a", "1", on(1, 1)), "}")+`,"of a later version":[1,2]}`)
	if got := names(f.Members()); got != "a/1" {
		t.Errorf("what a later version adds: %s", got)
	}
}

func TestTheLargestPayload(t *testing.T) {
	at := tracker.Token{System: 1<<64 - 1, Timeline: 1<<32 - 1, LSN: 1<<64 - 1}
	for _, name := range []string{strings.Repeat("<", maxName), strings.Repeat(`"`, maxName), strings.Repeat("ä", maxName/2)} {
		m := member{Name: name, Instance: name, At: at, Known: true, Source: name, Waiting: 1<<63 - 1, Left: true}
		if got, ok := parseMember(m.payload()); !ok || got != m {
			t.Errorf("%d bytes: %+v", len(m.payload()), got)
		}
	}
	for source, want := range map[string]string{
		"wait\x1b[2Jfor":                "wait[2Jfor",
		strings.Repeat("ä", maxName):    strings.Repeat("ä", maxName/2),
		"x" + strings.Repeat("ä", 1000): "x" + strings.Repeat("ä", (maxName-1)/2),
		"\xff":                          "",
	} {
		if got := cut(source); got != want || got != "" && !presentable(got) {
			t.Errorf("%.10q: %q", source, got)
		}
	}
}

func TestPublisherAndFleetConfigErrorsNameTheField(t *testing.T) {
	ok := replication.Server{DSN: "host=127.0.0.1"}
	named := func(name string) *tracker.Tracker {
		tr, err := tracker.New(tracker.Config{Source: scripted{}, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	one := []*tracker.Tracker{named("a")}
	for want, cfg := range map[string]PublisherConfig{
		"Primary":            {Trackers: one},
		"Trackers is empty":  {Primary: ok},
		"Trackers[0] is nil": {Primary: ok, Trackers: []*tracker.Tracker{nil}},
		`two are named "a"`:  {Primary: ok, Trackers: []*tracker.Tracker{one[0], named("a")}},
		`its name "a\nb"`:    {Primary: ok, Trackers: []*tracker.Tracker{named("a\nb")}},
		"Instance":           {Primary: ok, Trackers: one, Instance: strings.Repeat("x", maxName+1)},
		"Interval 50ms":      {Primary: ok, Trackers: one, Interval: 50 * time.Millisecond},
		"Soonest -1ns":       {Primary: ok, Trackers: one, Soonest: -1},
	} {
		if _, err := NewPublisher(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, cfg := range []FleetConfig{{Silent: -1}, {Silent: 2, Forget: 1}, {MaxMembers: -1}} {
		if _, err := NewFleet(cfg); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
	if f := newFleet(t, FleetConfig{Silent: time.Hour}); f.cfg.Forget != time.Hour {
		t.Errorf("%+v", f.cfg)
	}
}

func FuzzMember(f *testing.F) {
	for _, s := range []string{"", "r1 {}", said("a", "1", on(1, 5)), said("a", "1", tracker.Token{}), member{Name: "ä\"", Instance: "<", Left: true}.payload()} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		m, ok := parseMember(payload)
		if !ok {
			if m != (member{}) {
				t.Errorf("%q was not read, and is %+v", payload, m)
			}
			return
		}
		for _, name := range []string{m.Name, m.Instance, m.Source} {
			if len(name) > maxName || !utf8.ValidString(name) || strings.ContainsAny(name, "\x00\x1b\n\r\u2028") {
				t.Errorf("%q was let in", name)
			}
		}
		if again, ok := parseMember(m.payload()); !ok || again != m {
			t.Errorf("%+v is written as %q, which is %+v", m, m.payload(), again)
		}
	})
}
