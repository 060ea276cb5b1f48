package tracker

import (
	"math/bits"
	"slices"
)

// leafCap makes a leaf 4 KiB.
const leafCap = 256

// waitlist holds waiters in order of position, and of arrival where
// positions are equal. It is a two-level array: slots, in order, each with a
// leaf of up to leafCap entries. A leaf is put in order when that matters: when
// it has become the first, is split, or is walked.
//
//   - An arrival is appended to a leaf, found by binary search among the slots,
//     or without one where it is the last, as is usual.
//   - A removal, wherever the waiter stands, is a search and a move within one
//     leaf.
//   - The lowest ones come off the front one after the other, without a search.
//
// Neighbours in order are neighbours in memory, which is what makes it faster
// than a heap: a heap's pop touches log n entries that lie far apart. Beside
// the Waiter itself a place costs 16 bytes with ascending arrivals, about 25
// with random ones and 36 with descending ones.
//
// A waitlist is guarded by its owner's mutex.
type waitlist struct {
	slots []slot // none is empty
	n     int
	spare *leaf // kept so that a list around a leaf's edge does not churn
}

// key orders waiters: by position, then by arrival.
type key struct {
	lsn LSN
	seq uint64
}

func (k key) less(o key) bool {
	return k.lsn < o.lsn || k.lsn == o.lsn && k.seq < o.seq
}

// slot is a leaf and what is known of it, so that an arrival touches no more of
// the leaf than its end.
type slot struct {
	key        key // a lower bound, above all keys of the slot before; not raised when the lowest goes
	leaf       *leaf
	head, tail uint16 // leaf[head:tail] are in use
	unsorted   bool
}

// leaf's entries that are not in use are zero.
type leaf [leafCap]entry

// entry repeats the position, so that a search seldom has to follow w.
type entry struct {
	lsn LSN
	w   *Waiter
}

func (e entry) less(k key) bool {
	return e.lsn < k.lsn || e.lsn == k.lsn && e.w.seq < k.seq
}

func (l *waitlist) len() int { return l.n }

// min returns the lowest position, 0 and false when nobody waits.
func (l *waitlist) min() (LSN, bool) {
	if l.n == 0 {
		return 0, false
	}
	return l.slots[0].sorted()[0].lsn, true
}

// add puts w into its place.
func (l *waitlist) add(w *Waiter) {
	l.n++
	k := w.key()
	i := len(l.slots) - 1
	if i >= 0 && k.less(l.slots[i].key) {
		i = l.find(k)
	}
	switch {
	case i < 0 || i == len(l.slots)-1 && l.slots[i].full() && l.slots[i].endsBelow(k):
		l.slots = append(l.slots, slot{key: k, leaf: l.newLeaf()})
		i++
	case l.slots[i].full():
		l.split(i)
		if !k.less(l.slots[i+1].key) {
			i++
		}
	}
	if i == 0 { // in order: min is asked for with each arrival
		l.slots[0].insert(k, w)
		return
	}
	l.slots[i].append(k, w)
}

// remove takes w out. It must be in the list.
func (l *waitlist) remove(w *Waiter) {
	i := l.find(w.key())
	s := &l.slots[i]
	s.delete(w)
	l.n--
	if s.len() == 0 {
		l.drop(i)
		return
	}
	// Leaves that have become sparse are joined, or cancellation could leave
	// many leaves with a waiter each.
	if s.len() < leafCap/4 && i+1 < len(l.slots) {
		if next := &l.slots[i+1]; s.len()+next.len() <= leafCap*3/4 {
			s.take(next)
			l.drop(i + 1)
		}
	}
}

// popUpTo takes the lowest waiters at or below lsn out of the list, at most
// len(buf) of them, and returns how many it put into buf.
func (l *waitlist) popUpTo(lsn LSN, buf []*Waiter) int {
	n := 0
	for n < len(buf) && len(l.slots) > 0 {
		s := &l.slots[0]
		es := s.sorted()
		taken := 0
		for n < len(buf) && taken < len(es) && es[taken].lsn <= lsn {
			buf[n] = es[taken].w
			taken++
			n++
		}
		clear(es[:taken])
		s.head += uint16(taken)
		if s.len() > 0 {
			break
		}
		l.drop(0)
	}
	l.n -= n
	return n
}

// after copies the waiters that follow k into buf, without taking them out,
// and returns how many.
func (l *waitlist) after(k key, buf []*Waiter) int {
	if l.n == 0 {
		return 0
	}
	n := 0
	k.seq++
	for i := l.find(k); i < len(l.slots) && n < len(buf); i++ {
		es := l.slots[i].sorted()
		for _, e := range es[search(es, k):] {
			if n == len(buf) {
				break
			}
			buf[n] = e.w
			n++
		}
	}
	return n
}

// find returns the slot whose leaf holds, or would hold, k.
func (l *waitlist) find(k key) int {
	lo, hi := 0, len(l.slots)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if k.less(l.slots[mid].key) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return max(lo-1, 0)
}

func (l *waitlist) newLeaf() *leaf {
	if lf := l.spare; lf != nil {
		l.spare = nil
		return lf
	}
	return new(leaf)
}

// split moves the upper half of slot i's full leaf, or a quarter of the last
// one, where most arrivals are still to come above, into a slot of its own.
func (l *waitlist) split(i int) {
	s := &l.slots[i]
	es := s.sorted()
	mid := len(es) / 2
	if i == len(l.slots)-1 {
		mid = len(es) * 3 / 4
	}
	upper := slot{key: es[mid].w.key(), leaf: l.newLeaf(), tail: uint16(len(es) - mid)}
	copy(upper.leaf[:], es[mid:])
	clear(es[mid:])
	s.tail -= upper.tail
	l.slots = slices.Insert(l.slots, i+1, upper)
}

// drop takes slot i out, whose leaf is empty, and keeps the leaf for reuse.
func (l *waitlist) drop(i int) {
	l.spare = l.slots[i].leaf
	if i == 0 {
		l.slots[0] = slot{}
		l.slots = l.slots[1:]
		return
	}
	l.slots = slices.Delete(l.slots, i, i+1)
}

func (s *slot) used() []entry { return s.leaf[s.head:s.tail] }

func (s *slot) len() int { return int(s.tail - s.head) }

func (s *slot) full() bool { return s.len() == leafCap }

// sorted returns the entries, in order.
func (s *slot) sorted() []entry {
	es := s.used()
	if s.unsorted {
		sort(es)
		s.unsorted = false
	}
	return es
}

// sort puts each entry where it would be if positions were evenly spread, and
// mends the rest by insertion. It is several times faster than slices.SortFunc.
func sort(es []entry) {
	lowest, highest := es[0].lsn, es[0].lsn
	for _, e := range es {
		lowest, highest = min(lowest, e.lsn), max(highest, e.lsn)
	}
	shift := max(bits.Len64(uint64(highest-lowest))-8, 0)
	var next [1 << 8]uint16 // how many belong to each of 256 equal parts; then where its next one goes
	for _, e := range es {
		next[(e.lsn-lowest)>>shift]++
	}
	n := uint16(0)
	for part, in := range next {
		next[part] = n
		n += in
	}
	var out leaf // on the stack, where moves are free of the collector's write barrier
	for _, e := range es {
		part := (e.lsn - lowest) >> shift
		out[next[part]] = e
		next[part]++
	}
	for i := 1; i < len(es); i++ {
		e, p := out[i], i
		for k := e.w; p > 0 && (out[p-1].lsn > e.lsn || out[p-1].lsn == e.lsn && out[p-1].w.seq > k.seq); p-- {
			out[p] = out[p-1]
		}
		out[p] = e
	}
	copy(es, out[:])
}

// endsBelow reports whether the leaf is in order and all of it below k.
func (s *slot) endsBelow(k key) bool {
	return !s.unsorted && (s.len() == 0 || s.leaf[s.tail-1].less(k))
}

// search returns the first place whose key is not below k.
func search(es []entry, k key) int {
	lo, hi := 0, len(es)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if es[mid].less(k) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// insert puts w, whose key is k, in order, and moves the shorter side.
func (s *slot) insert(k key, w *Waiter) {
	p := search(s.sorted(), k)
	if p < s.len()-p {
		if s.head == 0 {
			s.moveTo(leafCap - s.len())
		}
		s.head--
		copy(s.leaf[s.head:], s.used()[1:p+1])
	} else {
		if s.tail == leafCap {
			s.moveTo(0)
		}
		s.tail++
		es := s.used()
		copy(es[p+1:], es[p:])
	}
	s.used()[p] = entry{k.lsn, w}
}

// append puts w, whose key is k, at the end, in order or not.
func (s *slot) append(k key, w *Waiter) {
	s.unsorted = !s.endsBelow(k)
	if s.tail == leafCap {
		s.moveTo(0)
	}
	s.leaf[s.tail] = entry{k.lsn, w}
	s.tail++
}

// delete takes w out, moves the shorter side, and leaves the leaf in order if
// it was.
func (s *slot) delete(w *Waiter) {
	es := s.used()
	var p int
	if s.unsorted {
		p = slices.Index(es, entry{w.lsn, w})
	} else {
		p = search(es, w.key())
	}
	if p < len(es)-p {
		copy(es[1:], es[:p])
		es[0] = entry{}
		s.head++
	} else {
		copy(es[p:], es[p+1:])
		es[len(es)-1] = entry{}
		s.tail--
	}
}

// take moves all entries of next, which follow those of s, into s.
func (s *slot) take(next *slot) {
	s.moveTo(0)
	es := next.used()
	s.tail += uint16(copy(s.leaf[s.tail:], es))
	s.unsorted = s.unsorted || next.unsorted
	clear(es)
}

// moveTo moves all entries so that the first is at head.
func (s *slot) moveTo(head int) {
	es := s.used()
	from := int(s.head)
	s.head, s.tail = uint16(head), uint16(head+len(es))
	copy(s.used(), es)
	if head < from {
		clear(s.leaf[max(int(s.tail), from) : from+len(es)])
	} else {
		clear(s.leaf[from:min(head, from+len(es))])
	}
}
