package tracker

import (
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

// calls is how often a benchmark calls what takes less time than b.Loop, which
// it reports as ns/call.
const calls = 1000

func reportCalls(b *testing.B) {
	b.Helper()
	b.ReportAllocs()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/calls, "ns/call")
}

// BenchmarkReplayed and BenchmarkWaitReplayed stand beside the least that they
// could be: see refPosition.
func BenchmarkReplayed(b *testing.B) {
	tr, _ := loaded(b, 1000)
	tk := tok(900)
	b.Run("impl=walwake", func(b *testing.B) {
		for b.Loop() {
			for range calls {
				if !tr.Replayed(tk) {
					b.Fatal("not replayed")
				}
			}
		}
		reportCalls(b)
	})
	benchmarkRefPosition(b)
}

func BenchmarkWaitReplayed(b *testing.B) {
	tr, _ := loaded(b, 1000)
	tk, ctx := tok(900), b.Context()
	b.Run("impl=walwake", func(b *testing.B) {
		for b.Loop() {
			for range calls {
				if err := tr.Wait(ctx, tk); err != nil {
					b.Fatal(err)
				}
			}
		}
		reportCalls(b)
	})
	benchmarkRefPosition(b)
}

func benchmarkRefPosition(b *testing.B) {
	ref := newRefPosition(1000)
	tk := tok(900)
	b.Run("impl=atomic", func(b *testing.B) {
		for b.Loop() {
			for range calls {
				if !ref.replayed(tk) {
					b.Fatal("not replayed")
				}
			}
		}
		reportCalls(b)
	})
}

// BenchmarkReplayedParallel is to be run with -cpu 1,2,…: the time divided by
// the cores must fall with them, while a source moves the position on and
// others request and cancel.
func BenchmarkReplayedParallel(b *testing.B) {
	tr, e := loaded(b, 1000)
	tk, ctx := tok(900), b.Context()
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		every := time.NewTicker(100 * time.Microsecond)
		defer every.Stop()
		for lsn := LSN(1000); ; lsn++ {
			select {
			case <-stop:
				return
			case <-every.C:
				e.Observe(at(lsn))
				tr.Request(tok(1 << 60)).Cancel()
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
	others.Wait()
}

// The list beside two references, in one run, with a million waiters: how long
// adding and waking each takes, and what each costs in memory, with positions
// in several orders. Both walwake and the heap make a channel where a waiter
// asks for one; here nobody asks.
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
	// The three that a sorted array could fear.
	{"descending", func() orderOf { return func(i int) LSN { return LSN(1<<40 - i) } }},
	{"equal", func() orderOf { return func(int) LSN { return 1000 } }},
	{"middle", func() orderOf { // each between the two before it
		return func(i int) LSN {
			if i%2 == 0 {
				return LSN(1000 + i)
			}
			return LSN(1<<40 - i)
		}
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

// BenchmarkCancelOneOfAMillion cancels 10,000 at random, and puts them back
// without being timed.
func BenchmarkCancelOneOfAMillion(b *testing.B) {
	forCancel(b, func(b *testing.B, next orderOf, request func(LSN) any, cancel func(any)) {
		const batch = 10_000
		ws := make([]any, million)
		lsns := make([]LSN, million)
		for i := range ws {
			lsns[i] = next(i)
			ws[i] = request(lsns[i])
		}
		rand.New(rand.NewPCG(3, 4)).Shuffle(million, func(i, j int) {
			ws[i], ws[j] = ws[j], ws[i]
			lsns[i], lsns[j] = lsns[j], lsns[i]
		})
		for from := 0; b.Loop(); from = (from + batch) % million {
			for _, w := range ws[from : from+batch] {
				cancel(w)
			}
			b.StopTimer()
			for i := from; i < from+batch; i++ {
				ws[i] = request(lsns[i])
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/cancel")
	})
}

// BenchmarkCancelAllOfAMillion cancels a million at random, down to none.
func BenchmarkCancelAllOfAMillion(b *testing.B) {
	forCancel(b, func(b *testing.B, next orderOf, request func(LSN) any, cancel func(any)) {
		ws := make([]any, million)
		for b.Loop() {
			b.StopTimer()
			for i := range ws {
				ws[i] = request(next(i))
			}
			rand.New(rand.NewPCG(3, 4)).Shuffle(million, func(i, j int) { ws[i], ws[j] = ws[j], ws[i] })
			b.StartTimer()
			for _, w := range ws {
				cancel(w)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/million, "ns/cancel")
	})
}

// forCancel runs a benchmark with each order and each list that can cancel.
func forCancel(b *testing.B, run func(b *testing.B, next orderOf, request func(LSN) any, cancel func(any))) {
	for _, order := range orders {
		b.Run("order="+order.name+"/list=walwake", func(b *testing.B) {
			tr, _ := loaded(b, 10)
			run(b, order.of(), func(lsn LSN) any { return tr.Request(tok(lsn)) }, func(w any) { w.(*Waiter).Cancel() })
			if n := tr.Stats().Waiting; n%million != 0 {
				b.Fatal(n, "wait")
			}
		})
		b.Run("order="+order.name+"/list=heap", func(b *testing.B) {
			h := new(refHeap)
			run(b, order.of(), func(lsn LSN) any { return h.request(lsn) }, func(w any) { h.cancel(w.(*refWaiter)) })
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
