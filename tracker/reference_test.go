package tracker

import (
	"container/heap"
	"sync"
	"sync/atomic"
)

// What the benchmarks compare the kernel with.

// refPosition is the least that Replayed and Wait could be: a call that is not
// inlined, loads an atomic pointer and compares.
type refPosition struct{ at atomic.Pointer[LSN] }

func newRefPosition(lsn LSN) *refPosition {
	p := new(refPosition)
	p.at.Store(&lsn)
	return p
}

//go:noinline
func (p *refPosition) replayed(tok Token) bool { return *p.at.Load() >= tok.LSN }

// refHeap is the first reference of the list: container/heap with an index for removal.
type refHeap struct {
	mu sync.Mutex
	ws []*refWaiter
}

type refWaiter struct {
	token Token
	index int
	over  bool
	done  chan struct{}
}

func (h *refHeap) Len() int           { return len(h.ws) }
func (h *refHeap) Less(i, j int) bool { return h.ws[i].token.LSN < h.ws[j].token.LSN }
func (h *refHeap) Swap(i, j int) {
	h.ws[i], h.ws[j] = h.ws[j], h.ws[i]
	h.ws[i].index, h.ws[j].index = i, j
}

func (h *refHeap) Push(x any) {
	w := x.(*refWaiter)
	w.index = len(h.ws)
	h.ws = append(h.ws, w)
}

func (h *refHeap) Pop() any {
	n := len(h.ws) - 1
	w := h.ws[n]
	h.ws[n] = nil
	h.ws = h.ws[:n]
	return w
}

func (h *refHeap) request(lsn LSN) *refWaiter {
	w := &refWaiter{token: tok(lsn)}
	h.mu.Lock()
	heap.Push(h, w)
	h.mu.Unlock()
	return w
}

func (h *refHeap) cancel(w *refWaiter) {
	h.mu.Lock()
	if !w.over {
		heap.Remove(h, w.index)
		w.over = true
	}
	h.mu.Unlock()
	if w.done != nil {
		close(w.done)
	}
}

func (h *refHeap) wake(lsn LSN) {
	h.mu.Lock()
	var over []*refWaiter
	for len(h.ws) > 0 && h.ws[0].token.LSN <= lsn {
		w := heap.Pop(h).(*refWaiter)
		w.over = true
		over = append(over, w)
	}
	h.mu.Unlock()
	for _, w := range over {
		if w.done != nil {
			close(w.done)
		}
	}
}

// refMap is the second: waiters by position in a map, as etcd's
// pkg/wait has them, with a heap of the positions to find those that are due.
// As there, the channel is made on arrival.
type refMap struct {
	mu   sync.Mutex
	by   map[LSN]chan struct{}
	lsns lsnHeap
}

type lsnHeap []LSN

func (h lsnHeap) Len() int           { return len(h) }
func (h lsnHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h lsnHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *lsnHeap) Push(x any)        { *h = append(*h, x.(LSN)) }
func (h *lsnHeap) Pop() any {
	n := len(*h) - 1
	lsn := (*h)[n]
	*h = (*h)[:n]
	return lsn
}

func newRefMap() *refMap { return &refMap{by: map[LSN]chan struct{}{}} }

func (m *refMap) request(lsn LSN) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.by[lsn]
	if !ok {
		c = make(chan struct{})
		m.by[lsn] = c
		heap.Push(&m.lsns, lsn)
	}
	return c
}

func (m *refMap) wake(lsn LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.lsns) > 0 && m.lsns[0] <= lsn {
		l := heap.Pop(&m.lsns).(LSN)
		close(m.by[l])
		delete(m.by, l)
	}
}
