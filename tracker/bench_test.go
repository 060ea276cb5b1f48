package tracker

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// loaded returns a Tracker at position at, without a running source.
func loaded(b *testing.B, lsn LSN) (*Tracker, *Epoch) {
	b.Helper()
	tr, err := New(Config{Source: noSource{}, MaxWaiters: -1})
	if err != nil {
		b.Fatal(err)
	}
	e := tr.openFeed().Begin()
	e.Observe(at(lsn))
	return tr, e
}

func BenchmarkReplayed(b *testing.B) {
	tr, _ := loaded(b, 1000)
	tk := tok(900)
	b.ReportAllocs()
	for b.Loop() {
		if !tr.Replayed(tk) {
			b.Fatal("not replayed")
		}
	}
}

func BenchmarkWaitReplayed(b *testing.B) {
	tr, _ := loaded(b, 1000)
	tk, ctx := tok(900), b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if err := tr.Wait(ctx, tk); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReplayedParallel is to be run with -cpu 1,2,…: the time divided by
// the cores must fall with them, while a source moves the position on.
func BenchmarkReplayedParallel(b *testing.B) {
	tr, e := loaded(b, 1000)
	tk, ctx := tok(900), b.Context()
	stop := make(chan struct{})
	var moving sync.WaitGroup
	moving.Go(func() {
		every := time.NewTicker(100 * time.Microsecond)
		defer every.Stop()
		for lsn := LSN(1000); ; lsn++ {
			select {
			case <-stop:
				return
			case <-every.C:
				e.Observe(at(lsn))
			}
		}
	})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := tr.Wait(ctx, tk); err != nil {
				b.Fail()
			}
		}
	})
	close(stop)
	moving.Wait()
}

// The list beside two references, in one run, with a million waiters: how long
// adding and waking each takes, with ascending and with random positions, and
// what each costs in memory. All three hand out a channel a waiter where one
// is asked for; here nobody asks.
const million = 1_000_000

type orderOf func(i int) LSN

var orders = []struct {
	name string
	of   func() orderOf
}{
	{"ascending", func() orderOf { return func(i int) LSN { return LSN(1000 + i) } }},
	{"jitter", func() orderOf { // what a service sees: arrivals overtake one another a little
		r := rand.New(rand.NewPCG(1, 2))
		return func(i int) LSN { return LSN(100000 + i*64 + r.IntN(6400)) }
	}},
	{"random", func() orderOf {
		r := rand.New(rand.NewPCG(1, 2))
		return func(int) LSN { return LSN(1000 + r.Uint64N(1<<40)) }
	}},
}

func BenchmarkAddAndWakeAMillion(b *testing.B) {
	for _, order := range orders {
		b.Run("order="+order.name+"/list=walwake", func(b *testing.B) {
			bench(b, order.of, func(next orderOf) (keep any, wakeAll func()) {
				tr, e := loaded(b, 10)
				for i := range million {
					tr.Request(tok(next(i)))
				}
				return tr, func() {
					e.Observe(at(1 << 60))
					if tr.Stats().Woken != million {
						b.Fatal("not all woken")
					}
				}
			})
		})
		b.Run("order="+order.name+"/list=heap", func(b *testing.B) {
			bench(b, order.of, func(next orderOf) (keep any, wakeAll func()) {
				h := new(refHeap)
				for i := range million {
					h.request(next(i))
				}
				return h, func() { h.wake(1 << 60) }
			})
		})
		b.Run("order="+order.name+"/list=etcd", func(b *testing.B) {
			bench(b, order.of, func(next orderOf) (keep any, wakeAll func()) {
				m := newRefMap()
				for i := range million {
					m.request(next(i))
				}
				return m, func() { m.wake(1 << 60) }
			})
		})
	}
}

func bench(b *testing.B, order func() orderOf, fill func(orderOf) (any, func())) {
	b.Helper()
	var add, wake time.Duration
	for b.Loop() {
		next := order()
		b.StopTimer()
		before := heapInUse()
		b.StartTimer()
		start := time.Now()
		keep, wakeAll := fill(next)
		add += time.Since(start)
		b.StopTimer()
		b.ReportMetric(float64(heapInUse()-before)/million, "B/waiter")
		b.StartTimer()
		start = time.Now()
		wakeAll()
		wake += time.Since(start)
		runtime.KeepAlive(keep)
	}
	b.ReportMetric(float64(add.Nanoseconds())/float64(b.N)/million, "ns/add")
	b.ReportMetric(float64(wake.Nanoseconds())/float64(b.N)/million, "ns/wake")
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkCancelOneOfAMillion takes one out, at random, and puts one back.
func BenchmarkCancelOneOfAMillion(b *testing.B) {
	for _, order := range orders {
		b.Run("order="+order.name, func(b *testing.B) {
			tr, _ := loaded(b, 10)
			next := order.of()
			ws := make([]*Waiter, million)
			for i := range ws {
				ws[i] = tr.Request(tok(next(i)))
			}
			r := rand.New(rand.NewPCG(3, 4))
			b.ReportAllocs()
			for b.Loop() {
				i := r.IntN(million)
				ws[i].Cancel()
				ws[i] = tr.Request(ws[i].Token())
			}
		})
	}
}

// BenchmarkBlockedWait is the whole way: a goroutine blocks in Wait, an
// observation wakes it.
func BenchmarkBlockedWait(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprint("waiters=", n), func(b *testing.B) {
			tr, e := loaded(b, 1)
			ctx := context.Background()
			var lsn LSN = 1
			b.ReportAllocs()
			for b.Loop() {
				lsn++
				var wg sync.WaitGroup
				for range n {
					wg.Go(func() {
						if err := tr.Wait(ctx, tok(lsn)); err != nil {
							b.Fail()
						}
					})
				}
				for tr.Stats().Waiting < n {
					runtime.Gosched()
				}
				e.Observe(at(lsn))
				wg.Wait()
			}
		})
	}
}

// refHeap is the first reference: container/heap with an index for removal.
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

// refMap is the second reference: waiters by position in a map, as etcd's
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
