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
// operations. Bursts make it split, join and drop leaves. Only some steps walk
// the list, which puts all its leaves in order.
func TestWaitlistIsASortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list waitlist
		var model naiveList
		var seq uint64
		base := LSN(1 << 20)
		span := rapid.SampledFrom([]uint64{1, 8, 4000}).Draw(t, "span") // few positions make ties
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				way := rapid.SampledFrom([]int{-1, 0, 1}).Draw(t, "way")
				for range rapid.IntRange(1, 400).Draw(t, "n") {
					lsn := base + LSN(rapid.Uint64Range(0, span).Draw(t, "lsn"))
					switch way {
					case 1:
						base++
						lsn = base + LSN(span)
					case -1:
						base--
						lsn = base
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
			"move": func(t *rapid.T) { // as from parked to ahead: who comes later may have arrived before
				for range rapid.IntRange(0, len(model)).Draw(t, "n") {
					w := model[rapid.IntRange(0, len(model)-1).Draw(t, "which")]
					list.remove(w)
					list.add(w)
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
			"walk": func(t *rapid.T) { checkOrder(t, &list, model) },
			"":     func(t *rapid.T) { checkWaitlist(t, &list, model) },
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
	entries := 0
	for i, s := range list.slots {
		if s.len() == 0 {
			t.Fatalf("slot %d is empty", i)
		}
		entries += s.len()
		for p, e := range s.leaf {
			if inside := p >= int(s.head) && p < int(s.tail); inside != (e.w != nil) {
				t.Fatalf("slot %d: a waiter at %d: %v, should be %v", i, p, !inside, inside)
			}
		}
		for _, e := range s.used() {
			if e.lsn != e.w.lsn || i > 0 && e.less(s.key) || i+1 < len(list.slots) && !e.less(list.slots[i+1].key) {
				t.Fatalf("slot %d holds %v, which is none of its keys", i, e.w.key())
			}
		}
	}
	if entries != len(model) {
		t.Fatalf("%d entries, want %d", entries, len(model))
	}
}

func checkOrder(t *rapid.T, list *waitlist, model naiveList) {
	t.Helper()
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
}
