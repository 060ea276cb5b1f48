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
