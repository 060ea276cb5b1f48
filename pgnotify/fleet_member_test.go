package pgnotify

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/walwake/walwake/tracker"
)

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
	for _, name := range []string{"low", "unheard", "mid", "level", "high"} {
		tr, err := tracker.New(tracker.Config{Source: scripted{}, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		trackers = append(trackers, tr)
	}
	f := newFleet(t, FleetConfig{})
	heardOf(t, f, said("low", "1", on(1, 50)), said("high", "1", on(1, 70)), said("mid", "1", on(1, 62)), said("level", "1", on(1, 60)), said("level", "2", on(1, 65)), said("elsewhere", "1", on(1, 99)))
	var got []string
	for _, tr := range f.Order(tracker.NewSet(trackers...), on(1, 60)) {
		got = append(got, tr.State().Name)
	}
	if want := []string{"high", "level", "mid", "low", "unheard"}; !slices.Equal(got, want) {
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
