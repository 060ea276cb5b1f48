package tracker

// leafCap makes a leaf exactly 4 KiB: its two indexes and 255 entries.
const leafCap = 255

// waitlist holds waiters in order of position, and of arrival where
// positions are equal. It is a two-level sorted array: slots, in order, each
// with a leaf of up to leafCap entries, in order.
//
//   - An arrival at or past the highest position, the usual one, appends: O(1).
//   - Any other one is a binary search and a move within one leaf; so is a
//     removal, wherever the waiter stands.
//   - The lowest ones come off the front one after the other, without a search.
//
// Neighbours in order are neighbours in memory, which is what makes it faster
// than a heap: a heap's pop touches log n entries that lie far apart. Beside
// the Waiter itself a place costs 16 bytes with ascending arrivals and about
// 23 with random ones.
//
// A waitlist is guarded by its owner's mutex.
type waitlist struct {
	slots []slot // no leaf in it is empty
	n     int
	spare *leaf // kept so that a list around a leaf's edge does not churn
}

// slot is a leaf and a lower bound of its keys, above all keys of the slot
// before. The bound is not raised when the leaf's first entry goes.
type slot struct {
	key  key
	leaf *leaf
}

// key orders waiters: by position, then by arrival.
type key struct {
	lsn LSN
	seq uint64
}

func (k key) less(o key) bool {
	return k.lsn < o.lsn || k.lsn == o.lsn && k.seq < o.seq
}

// leaf holds e[head:tail], in order. Entries outside are zero.
type leaf struct {
	head, tail int
	e          [leafCap]entry
}

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
	first := l.slots[0].leaf
	return first.e[first.head].lsn, true
}

// add puts w into its place. w's seq is above that of all in the list.
func (l *waitlist) add(w *Waiter) {
	l.n++
	k := w.key()
	e := entry{k.lsn, w}
	if len(l.slots) == 0 {
		l.appendLeaf(k, e)
		return
	}
	if last := l.slots[len(l.slots)-1].leaf; last.e[last.tail-1].less(k) {
		if last.tail == leafCap {
			l.appendLeaf(k, e)
			return
		}
		last.e[last.tail] = e
		last.tail++
		return
	}
	i := l.find(k)
	lf := l.slots[i].leaf
	if lf.len() == leafCap {
		lf = l.split(i, k)
	}
	lf.insert(lf.search(k), e)
}

// remove takes w out. It must be in the list.
func (l *waitlist) remove(w *Waiter) {
	k := w.key()
	i := l.find(k)
	lf := l.slots[i].leaf
	lf.delete(lf.search(k))
	l.n--
	if lf.len() == 0 {
		l.drop(i)
		return
	}
	// Leaves that have become sparse are joined, or cancellation could leave
	// many leaves with a waiter each.
	if lf.len() < leafCap/4 && i+1 < len(l.slots) {
		if next := l.slots[i+1].leaf; lf.len()+next.len() <= leafCap*3/4 {
			lf.take(next)
			l.drop(i + 1)
		}
	}
}

// popUpTo takes the lowest waiters at or below lsn out of the list, at most
// len(buf) of them, and returns how many it put into buf.
func (l *waitlist) popUpTo(lsn LSN, buf []*Waiter) int {
	n := 0
	for n < len(buf) && len(l.slots) > 0 {
		lf := l.slots[0].leaf
		for n < len(buf) && lf.head < lf.tail && lf.e[lf.head].lsn <= lsn {
			buf[n] = lf.e[lf.head].w
			lf.e[lf.head] = entry{}
			lf.head++
			n++
		}
		if lf.len() > 0 {
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
		lf := l.slots[i].leaf
		for _, e := range lf.e[lf.search(k):lf.tail] {
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

func (l *waitlist) appendLeaf(k key, e entry) {
	lf := l.newLeaf()
	lf.e[0] = e
	lf.tail = 1
	l.slots = append(l.slots, slot{k, lf})
}

func (l *waitlist) newLeaf() *leaf {
	if lf := l.spare; lf != nil {
		l.spare = nil
		return lf
	}
	return new(leaf)
}

// split moves the upper half of slot i's full leaf into one of its own, and
// returns the half that k belongs to.
func (l *waitlist) split(i int, k key) *leaf {
	lower, upper := l.slots[i].leaf, l.newLeaf()
	mid := lower.head + lower.len()/2
	upper.tail = copy(upper.e[:], lower.e[mid:lower.tail])
	clear(lower.e[mid:lower.tail])
	lower.tail = mid
	first := upper.e[0].w.key()
	l.slots = append(l.slots, slot{})
	copy(l.slots[i+2:], l.slots[i+1:])
	l.slots[i+1] = slot{first, upper}
	if k.less(first) {
		return lower
	}
	return upper
}

// drop takes slot i out and keeps its leaf, which is empty, for reuse.
func (l *waitlist) drop(i int) {
	lf := l.slots[i].leaf
	lf.head, lf.tail = 0, 0
	l.spare = lf
	if i == 0 {
		l.slots[0] = slot{}
		l.slots = l.slots[1:]
		return
	}
	copy(l.slots[i:], l.slots[i+1:])
	l.slots[len(l.slots)-1] = slot{}
	l.slots = l.slots[:len(l.slots)-1]
}

func (lf *leaf) len() int { return lf.tail - lf.head }

// search returns the first place whose key is not below k.
func (lf *leaf) search(k key) int {
	lo, hi := lf.head, lf.tail
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if lf.e[mid].less(k) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// insert puts e at place p, moving the shorter side where both have room.
func (lf *leaf) insert(p int, e entry) {
	if lf.tail == leafCap || lf.head > 0 && p-lf.head < lf.tail-p {
		copy(lf.e[lf.head-1:], lf.e[lf.head:p])
		lf.head--
		p--
	} else {
		copy(lf.e[p+1:lf.tail+1], lf.e[p:lf.tail])
		lf.tail++
	}
	lf.e[p] = e
}

func (lf *leaf) delete(p int) {
	if p-lf.head < lf.tail-p {
		copy(lf.e[lf.head+1:p+1], lf.e[lf.head:p])
		lf.e[lf.head] = entry{}
		lf.head++
		return
	}
	copy(lf.e[p:], lf.e[p+1:lf.tail])
	lf.tail--
	lf.e[lf.tail] = entry{}
}

// take moves all entries of next, which follow those of lf, into lf.
func (lf *leaf) take(next *leaf) {
	if lf.tail+next.len() > leafCap {
		n := copy(lf.e[:], lf.e[lf.head:lf.tail])
		clear(lf.e[n:lf.tail])
		lf.head, lf.tail = 0, n
	}
	lf.tail += copy(lf.e[lf.tail:], next.e[next.head:next.tail])
	clear(next.e[next.head:next.tail])
}
