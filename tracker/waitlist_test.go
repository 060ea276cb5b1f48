package tracker

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// naiveList is the waitlist's model: a slice that is sorted each time.
type naiveList []*Waiter

func (m *naiveList) add(w *Waiter) {
	*m = append(*m, w)
	slices.SortFunc(*m, func(a, b *Waiter) int {
		if a.key().less(b.key()) {
			return -1
		}
		return 1
	})
}

func (m *naiveList) remove(w *Waiter) {
	*m = slices.DeleteFunc(*m, func(x *Waiter) bool { return x == w })
}

func (m *naiveList) popUpTo(lsn LSN, most int) []*Waiter {
	n := 0
	for n < len(*m) && n < most && (*m)[n].lsn <= lsn {
		n++
	}
	out := slices.Clone((*m)[:n])
	*m = slices.Delete(*m, 0, n)
	return out
}

// TestWaitlistIsASortedList drives the list and its model with the same
// operations. Bursts make it split, join and drop leaves.
func TestWaitlistIsASortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list waitlist
		var model naiveList
		var seq uint64
		var base LSN
		span := rapid.SampledFrom([]uint64{1, 8, 4000}).Draw(t, "span") // few positions make ties
		check := func() {
			t.Helper()
			checkWaitlist(t, &list, model)
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				ascending := rapid.Bool().Draw(t, "ascending")
				for range rapid.IntRange(1, 400).Draw(t, "n") {
					lsn := base + LSN(rapid.Uint64Range(0, span).Draw(t, "lsn"))
					if ascending {
						base++
						lsn = base + LSN(span)
					}
					seq++
					w := &Waiter{lsn: lsn, seq: seq}
					list.add(w)
					model.add(w)
				}
			},
			"remove": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip("empty")
				}
				for range rapid.IntRange(1, len(model)).Draw(t, "n") {
					w := model[rapid.IntRange(0, len(model)-1).Draw(t, "which")]
					list.remove(w)
					model.remove(w)
				}
			},
			"pop": func(t *rapid.T) {
				lsn := base + LSN(rapid.Uint64Range(0, span).Draw(t, "lsn"))
				buf := make([]*Waiter, rapid.IntRange(1, 300).Draw(t, "buf"))
				n := list.popUpTo(lsn, buf)
				if want := model.popUpTo(lsn, len(buf)); !slices.Equal(buf[:n], want) {
					t.Fatalf("popUpTo(%s) gave %d waiters, want %d", lsn, n, len(want))
				}
			},
			"": func(*rapid.T) { check() },
		})
	})
}

func checkWaitlist(t *rapid.T, list *waitlist, model naiveList) {
	t.Helper()
	if list.len() != len(model) {
		t.Fatalf("len %d, want %d", list.len(), len(model))
	}
	lsn, ok := list.min()
	if ok != (len(model) > 0) || ok && lsn != model[0].lsn {
		t.Fatalf("min %s %v, want that of %d", lsn, ok, len(model))
	}
	var got []*Waiter
	var buf [7]*Waiter
	var from key
	for {
		n := list.after(from, buf[:])
		got = append(got, buf[:n]...)
		if n < len(buf) {
			break
		}
		from = buf[n-1].key()
	}
	if !slices.Equal(got, []*Waiter(model)) {
		t.Fatalf("walk gave %d waiters in another order than the model's %d", len(got), len(model))
	}
	entries := 0
	for i, s := range list.slots {
		if s.leaf.len() == 0 {
			t.Fatalf("slot %d is empty", i)
		}
		for p, e := range s.leaf.e {
			inside := p >= s.leaf.head && p < s.leaf.tail
			if inside != (e.w != nil) {
				t.Fatalf("slot %d holds on to a waiter at %d", i, p)
			}
			if inside {
				entries++
			}
		}
	}
	if entries != len(model) {
		t.Fatalf("%d entries, want %d", entries, len(model))
	}
}
