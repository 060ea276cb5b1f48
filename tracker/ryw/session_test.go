package ryw_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

func TestASessionOnlyGoesOn(t *testing.T) {
	t.Parallel()
	tok := func(system uint64, timeline uint32, lsn tracker.LSN) tracker.Token {
		return tracker.Token{System: system, Timeline: timeline, LSN: lsn}
	}
	for _, tt := range []struct{ has, seen, want tracker.Token }{
		{tok(0, 0, 0), tok(7, 1, 5), tok(7, 1, 5)},
		{tok(7, 1, 5), tok(0, 0, 0), tok(7, 1, 5)},
		{tok(7, 1, 5), tok(7, 1, 4), tok(7, 1, 5)},
		{tok(7, 1, 5), tok(7, 1, 6), tok(7, 1, 6)},
		{tok(7, 1, 5), tok(7, 2, 3), tok(7, 2, 3)},
		{tok(7, 2, 3), tok(7, 1, 9), tok(7, 2, 3)},
		{tok(7, 1, 9), tok(8, 1, 3), tok(8, 1, 3)},
	} {
		s := ryw.NewSession(tt.has)
		s.Merge(ryw.NewSession(tt.seen))
		if got, moved := s.Moved(); got != tt.want || moved != (tt.want != tt.has) || s.Token() != got || s.OnPrimary() {
			t.Errorf("%v that sees %v has %v, moved %v", tt.has, tt.seen, got, moved)
		}
	}
	var s ryw.Session
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() { s.Advance(tok(7, 1, tracker.LSN(i))) })
	}
	all.Wait()
	if s.Token() != tok(7, 1, 99) {
		t.Errorf("has %v", s.Token())
	}
	s.RequirePrimary()
	other := ryw.NewSession(tracker.Token{})
	if other.Merge(&s); !other.OnPrimary() {
		t.Error("a merged session may read anywhere")
	}
	if ryw.FromContext(t.Context()) != nil || ryw.FromContext(ryw.NewContext(t.Context(), &s)) != &s {
		t.Error("the context carries another one")
	}
}

func TestNewNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	p, q := pool(t, "host=127.0.0.1 port=1"), pool(t, "host=127.0.0.1 port=1")
	source, err := replication.New(replication.Config{Replica: replication.Server{DSN: "host=127.0.0.1 port=1"}})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.New(tracker.Config{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	good := ryw.Replica{Pool: q, Tracker: tr}
	for want, cfg := range map[string]ryw.Config{
		"Config.Primary is nil":        {},
		"Replicas[0].Pool is nil":      {Primary: p, Replicas: []ryw.Replica{{Tracker: tr}}},
		"is that of the primary":       {Primary: p, Replicas: []ryw.Replica{{Pool: p, Tracker: tr}}},
		"Tracker is nil":               {Primary: p, Replicas: []ryw.Replica{{Pool: q}}},
		"two replicas are named \"a\"": {Primary: p, Replicas: []ryw.Replica{{Name: "a", Pool: q, Tracker: tr}, {Name: "a", Pool: q, Tracker: tr}}},
		"Options.Fallback 9":           {Primary: p, Replicas: []ryw.Replica{good}, Options: ryw.Options{Fallback: 9}},
	} {
		if _, err := ryw.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if _, err := ryw.New(ryw.Config{Primary: p, Replicas: []ryw.Replica{good}}); err != nil {
		t.Error(err)
	}
}
