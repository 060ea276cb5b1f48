package pgnotify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/walwake/walwake/tracker"
)

// FleetConfig configures a Fleet. It is copied by NewFleet.
type FleetConfig struct {
	// Silent is the age from which a member counts as silent. 0 means DefaultSilent.
	Silent time.Duration

	// Forget is the age at which a member is forgotten. 0 means DefaultForget.
	Forget time.Duration

	// MaxMembers bounds how many are remembered; newcomers are ignored while there
	// are as many. 0 means DefaultMaxMembers.
	MaxMembers int
}

// What a zero field of FleetConfig means.
const (
	DefaultSilent     = 10 * time.Second
	DefaultForget     = time.Minute
	DefaultMaxMembers = 1024
)

// A Fleet knows where all replicas are that Publishers tell of, in whichever
// process. It is fed by a Listener, see Channel.
//
// What it knows is as old as Member.Age says, and a standby that crashes comes
// back lower: it is good for choosing a replica to try, and for a look at all of
// them. That a replica shows a write only its Tracker knows.
//
// All methods may be called by any number of goroutines, and none of them blocks.
type Fleet struct {
	cfg FleetConfig

	mu      sync.Mutex
	members map[memberKey]*heard // guarded by mu
	stats   FleetStats           // guarded by mu
}

type memberKey struct{ name, instance string }

// heard is what a Publisher said last.
type heard struct {
	member
	at     time.Time // when it came, by our clock
	unsure bool
}

// A Member is a replica as one process sees it. Two processes that follow the same
// replica are two members, with one Name.
type Member struct {
	Name     string        // the tracker.Config.Name of who follows it
	Instance string        // the process that does: see PublisherConfig.Instance
	Position tracker.Token // up to where it had replayed; zero when Known is false. A part of it may not be known
	Known    bool          // whether its position was known to who follows it
	Source   string        // the source in use there; empty when none ran
	Waiting  int           // how many waited for it there

	Heard  time.Time     // when this came, by our clock
	Age    time.Duration // since then
	Silent bool          // Age is FleetConfig.Silent or more
	Unsure bool          // later word of it may have been missed: see Resync
}

// FleetStats counts what a Fleet has been told.
type FleetStats struct {
	Heard   uint64 // payloads of Publishers
	Skipped uint64 // payloads of others, or of versions that are not known
	Refused uint64 // members that there was no room for
	Resyncs uint64
}

// NewFleet returns a Fleet that knows nothing until a Listener has its Channel. An
// error names the field that is wrong.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	cfg.Silent = cmp.Or(cfg.Silent, DefaultSilent)
	cfg.Forget = cmp.Or(cfg.Forget, max(DefaultForget, cfg.Silent))
	cfg.MaxMembers = cmp.Or(cfg.MaxMembers, DefaultMaxMembers)
	if cfg.Silent < 0 || cfg.Forget < cfg.Silent || cfg.MaxMembers < 0 {
		return nil, fmt.Errorf("pgnotify: FleetConfig.Silent %s, Forget %s, MaxMembers %d: want none below 0, and Silent <= Forget",
			cfg.Silent, cfg.Forget, cfg.MaxMembers)
	}
	return &Fleet{cfg: cfg, members: map[memberKey]*heard{}}, nil
}

// Channel is the Listener's that feeds the Fleet. Its Name is DefaultFleet, which
// the caller may change.
func (f *Fleet) Channel() Channel {
	return Channel{Name: DefaultFleet, AtOnce: true, Buffer: 256, Full: DropOldest, Handler: f}
}

// Handle is a Handler's, for Channel. It never fails: what is no Publisher's is
// skipped, and a Resync marks all members as unsure until they are heard of again.
func (f *Fleet) Handle(_ context.Context, e Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch e := e.(type) {
	case Notification:
		m, is := parseMember(e.Payload)
		if !is {
			f.stats.Skipped++
			return nil
		}
		f.stats.Heard++
		f.takeLocked(m, time.Now())
	case Resync:
		f.stats.Resyncs++
		for _, h := range f.members {
			h.unsure = true
		}
	}
	return nil
}

func (f *Fleet) takeLocked(m member, now time.Time) {
	key := memberKey{m.Name, m.Instance}
	if m.Left {
		delete(f.members, key)
		return
	}
	if f.members[key] == nil && len(f.members) >= f.cfg.MaxMembers {
		f.forgetLocked(now)
		if len(f.members) >= f.cfg.MaxMembers {
			f.stats.Refused++
			return
		}
	}
	f.members[key] = &heard{member: m, at: now}
}

// forgetLocked takes out what has not been heard of for too long.
func (f *Fleet) forgetLocked(now time.Time) {
	for key, h := range f.members {
		if now.Sub(h.at) >= f.cfg.Forget {
			delete(f.members, key)
		}
	}
}

// Members returns all members, in the order of their names and instances.
func (f *Fleet) Members() []Member {
	now := time.Now()
	f.mu.Lock()
	f.forgetLocked(now)
	all := make([]Member, 0, len(f.members))
	for _, h := range f.members {
		age := now.Sub(h.at)
		all = append(all, Member{
			Name: h.Name, Instance: h.Instance, Position: h.At, Known: h.Known, Source: h.Source, Waiting: h.Waiting,
			Heard: h.at, Age: age, Silent: age >= f.cfg.Silent, Unsure: h.unsure,
		})
	}
	f.mu.Unlock()
	slices.SortFunc(all, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Instance, b.Instance)) })
	return all
}

// Having returns the members whose replica had replayed tok when they were last
// heard of, best first: those that are not Unsure, and then the furthest. It
// leaves out who is Silent, and whose position is not known; of a token of an
// earlier timeline than the replica's it cannot tell, and leaves that out too.
func (f *Fleet) Having(tok tracker.Token) []Member {
	have := slices.DeleteFunc(f.Members(), func(m Member) bool { return m.Silent || !m.Known || !has(m.Position, tok) })
	slices.SortStableFunc(have, func(a, b Member) int {
		if a.Unsure != b.Unsure {
			if a.Unsure {
				return 1
			}
			return -1
		}
		return b.Position.Compare(a.Position)
	})
	return have
}

// Best returns the first of Having, and false when there is none. Whoever reads
// there asks that replica's Tracker, or waits for tok there, all the same.
func (f *Fleet) Best(tok tracker.Token) (Member, bool) {
	have := f.Having(tok)
	if len(have) == 0 {
		return Member{}, false
	}
	return have[0], true
}

// Order returns set's trackers in the order in which to try them: those first whose
// replicas have tok already, as in Having, where members go by tracker.Config.Name,
// and then the others in the set's order.
func (f *Fleet) Order(set *tracker.Set, tok tracker.Token) []*tracker.Tracker {
	rank := map[string]int{}
	have := f.Having(tok)
	for i, m := range slices.Backward(have) {
		rank[m.Name] = i - len(have) // of several members the best
	}
	all := set.Trackers()
	slices.SortStableFunc(all, func(a, b *tracker.Tracker) int { return cmp.Compare(rank[a.State().Name], rank[b.State().Name]) })
	return all
}

// Stats returns the counts.
func (f *Fleet) Stats() FleetStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}
