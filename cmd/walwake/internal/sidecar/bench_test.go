package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	client "github.com/walwake/walwake/tracker/sidecar"
)

// clientEnv has the test binary be the client of a benchmark, which is a process of its own so that the sidecar's memory
// and time can be told from its clients'.
const clientEnv = "WALWAKE_SIDECAR_BENCH_CLIENT" // wait or stream, address, how many, first LSN, step

func TestMain(m *testing.M) {
	switch args := strings.Fields(os.Getenv(clientEnv)); {
	case len(args) != 5:
	case args[0] == "wait":
		waitMany(args[1:])
		return
	default:
		streamMany(args[1:])
		return
	}
	os.Exit(m.Run())
}

// work hands out what to wait for, the nth first + n*step, and prints when that came.
type work struct {
	mu         sync.Mutex
	next, step uint64
}

func numberOf(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// took prints what has come, 0 for nothing, and returns the next.
func (w *work) took(lsn uint64) uint64 {
	at := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if lsn != 0 {
		var line [16]byte
		binary.BigEndian.PutUint64(line[:], lsn)
		binary.BigEndian.PutUint64(line[8:], uint64(at.UnixNano()))
		_, _ = os.Stdout.Write(line[:]) // the parent may be gone
	}
	w.next += w.step
	return w.next - w.step
}

// streamMany has as many trackers follow the sidecar, each over a stream of its own, and one wait each.
func streamMany(args []string) {
	w := &work{next: numberOf(args[2]), step: numberOf(args[3])}
	var running sync.WaitGroup
	for range numberOf(args[1]) {
		c, err := client.New(client.Config{URL: "http://" + args[0]})
		if err != nil {
			panic(err)
		}
		tr, err := tracker.New(tracker.Config{Source: c, Timeout: -1})
		if err != nil {
			panic(err)
		}
		go func() { _ = tr.Run(context.Background()) }()
		running.Go(func() {
			for lsn := w.took(0); tr.Wait(context.Background(), token(1, tracker.LSN(lsn))) == nil; {
				lsn = w.took(lsn)
			}
		})
	}
	running.Wait()
}

// waitMany keeps waits under way, each over a connection of its own. With a step of 0 each connection has one.
func waitMany(args []string) {
	w := &work{next: numberOf(args[2]), step: numberOf(args[3])}
	var running sync.WaitGroup
	for range numberOf(args[1]) {
		conn, err := new(net.Dialer).DialContext(context.Background(), "tcp", args[0])
		if err != nil {
			panic(err)
		}
		running.Go(func() {
			defer conn.Close()
			answers := bufio.NewReaderSize(conn, 512)
			for lsn := w.took(0); ; {
				if _, err := fmt.Fprintf(conn, "GET /v1/wait?timeout=1m&token=%s HTTP/1.1\r\nHost: localhost\r\n\r\n", tracker.LSN(lsn)); err != nil {
					return
				}
				if !answered(answers) {
					return
				}
				if lsn = w.took(lsn); w.step == 0 {
					_, _ = answers.ReadByte() // until the sidecar ends
					return
				}
			}
		})
	}
	running.Wait()
}

// answered reads one answer, and reports whether it was a success.
func answered(r *bufio.Reader) bool {
	length, success := 0, false
	for n := 0; ; n++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return false
		}
		line = bytes.TrimRight(line, "\r\n")
		if n == 0 {
			success = bytes.HasSuffix(line, []byte("200 OK"))
		}
		if text, is := bytes.CutPrefix(line, []byte("Content-Length: ")); is {
			length, _ = strconv.Atoi(string(text))
		}
		if len(line) == 0 {
			break
		}
	}
	_, err := r.Discard(length)
	return err == nil && success
}

// answersOf hands over what the client prints.
func answersOf(b *testing.B, out io.Reader, took func(lsn uint64, at time.Time) (more bool)) {
	b.Helper()
	r := bufio.NewReader(out)
	var line [16]byte
	for {
		if _, err := io.ReadFull(r, line[:]); err != nil {
			b.Fatal(err)
		}
		if !took(binary.BigEndian.Uint64(line[:]), time.Unix(0, int64(binary.BigEndian.Uint64(line[8:])))) {
			return
		}
	}
}

// clients starts one that keeps waits under way, and returns what it prints when all wait.
func clients(b *testing.B, tr *tracker.Tracker, kind, address string, waits int, first, step uint64) io.Reader {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d %d", clientEnv, kind, address, waits, first, step), "GOGC=400")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	allWait(b, tr, waits)
	return out
}

// allWait returns when so many wait.
func allWait(b *testing.B, tr *tracker.Tracker, waits int) {
	b.Helper()
	for began := time.Now(); tr.Stats().Waiting < waits; time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			b.Fatalf("%d of %d wait", tr.Stats().Waiting, waits)
		}
	}
}

// beside runs a server on loopback beside a script.
func beside(b *testing.B) (k *kit, address string) {
	b.Helper()
	l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	percent := debug.SetGCPercent(GCPercent)
	b.Cleanup(func() { debug.SetGCPercent(percent) })
	k = startOn(b, &countedListener{Listener: l}, nil)
	k.script.observe(tracker.Observation{LSN: 1, System: system, Timeline: 1, History: tracker.History{}})
	return k, l.Addr().String()
}

// used is what the process holds for its own use: heap and stacks.
func used() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// resident is the process's resident memory.
func resident(b *testing.B) uint64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0 // not on Linux
	}
	pages, _ := strconv.ParseUint(strings.Fields(string(text))[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// latencies of waits.
type latencies []time.Duration

func (l latencies) report(b *testing.B) {
	b.Helper()
	slices.Sort(l)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(l[(len(l)-1)*p/100].Nanoseconds())/1e6, fmt.Sprintf("p%d-ms", p))
	}
}

const (
	benchWaits = 10_000
	benchRate  = 3_000  // positions a second
	benchLeast = 15_000 // answers: the collector, which runs each 4 s, is among them
)

// BenchmarkWaits has 10,000 wait at once, each for a position of its own; 3,000 positions come a second, one for each
// transaction. The time is from where the tracker takes the position to where the client has the answer.
func BenchmarkWaits(b *testing.B) {
	b.Run("library", func(b *testing.B) {
		k, _ := beside(b)
		ctx, cancel := context.WithTimeout(b.Context(), time.Hour) // or a wait's own would count
		defer cancel()
		n := max(b.N, benchLeast)
		moved := make([]time.Time, n+benchWaits)
		got := make(chan time.Duration, n+benchWaits)
		for i := range benchWaits {
			go func() {
				for lsn := i; lsn < n; lsn += benchWaits {
					if k.tr.Wait(ctx, tracker.Token{LSN: tracker.LSN(lsn + 2)}) != nil {
						return
					}
					got <- time.Since(moved[lsn])
				}
			}()
		}
		allWait(b, k.tr, min(n, benchWaits))
		b.ResetTimer()
		pace(n, func(i int) { moved[i] = time.Now(); k.script.observe(on(1, tracker.LSN(i+2))) })
		var all latencies
		for range n {
			all = append(all, <-got)
		}
		all.report(b)
	})
	b.Run("http", func(b *testing.B) {
		k, address := beside(b)
		before, residentBefore := used(), resident(b)
		out := clients(b, k.tr, "wait", address, benchWaits, 2, 1)
		each := float64(used()-before) / benchWaits
		residentEach := float64(resident(b)-residentBefore) / benchWaits
		n := max(b.N, benchLeast)
		moved := make([]time.Time, n)
		b.ResetTimer()
		go pace(n, func(i int) { moved[i] = time.Now(); k.script.observe(on(1, tracker.LSN(i+2))) })
		var all latencies
		answersOf(b, out, func(lsn uint64, at time.Time) bool {
			all = append(all, at.Sub(moved[lsn-2]))
			return len(all) < n
		})
		all.report(b)
		b.ReportMetric(each, "B/wait")
		b.ReportMetric(residentEach, "resident-B/wait")
	})
}

// pace calls f n times, benchRate times a second.
func pace(n int, f func(i int)) {
	began := time.Now()
	for i := range n {
		if due := time.Duration(i) * time.Second / benchRate; time.Since(began) < due {
			time.Sleep(due - time.Since(began))
		}
		f(i)
	}
}

const benchStreams = 1_000

// sent counts the bytes that went out of countedListeners.
var sentBytes atomic.Int64

// countedListener counts what its connections send.
type countedListener struct{ net.Listener }

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{c}, nil
}

type countedConn struct{ net.Conn }

func (c countedConn) Write(b []byte) (int, error) {
	sentBytes.Add(int64(len(b)))
	return c.Conn.Write(b)
}

// BenchmarkStreams has 1,000 clients follow the sidecar over a stream each, with a wait each, while 3,000 positions a
// second come; one client waits for each. The time is from where the sidecar's tracker takes the position to where the
// client's has woken who waits. The CPU is the sidecar's alone.
func BenchmarkStreams(b *testing.B) {
	k, address := beside(b)
	before := used()
	out := clients(b, k.tr, "stream", address, benchStreams, 2, 1)
	each := float64(used()-before) / benchStreams
	n := max(b.N, benchLeast)
	moved := make([]time.Time, n)
	began, cpuBefore, sentBefore := time.Now(), cpu(b), sentBytes.Load()
	b.ResetTimer()
	go pace(n, func(i int) { moved[i] = time.Now(); k.script.observe(on(1, tracker.LSN(i+2))) })
	var all latencies
	answersOf(b, out, func(lsn uint64, at time.Time) bool {
		all = append(all, at.Sub(moved[lsn-2]))
		return len(all) < n
	})
	all.report(b)
	b.ReportMetric(100*float64(cpu(b)-cpuBefore)/float64(time.Since(began)), "cpu-%")
	b.ReportMetric(float64(sentBytes.Load()-sentBefore)/time.Since(began).Seconds()/benchStreams, "sent-B/s/client")
	b.ReportMetric(each, "B/client")
}

// BenchmarkHerd has 10,000 wait for one position: what it takes until all have their answers.
func BenchmarkHerd(b *testing.B) {
	b.Run("library", func(b *testing.B) {
		k, _ := beside(b)
		var all latencies
		for lsn := tracker.LSN(2); b.Loop(); lsn++ {
			got := make(chan time.Time, benchWaits)
			for range benchWaits {
				go func() {
					_ = k.tr.Wait(b.Context(), tracker.Token{LSN: lsn})
					got <- time.Now()
				}()
			}
			allWait(b, k.tr, benchWaits)
			moved := time.Now()
			k.script.observe(on(1, lsn))
			for range benchWaits {
				all = append(all, (<-got).Sub(moved))
			}
		}
		all.report(b)
	})
	b.Run("http", func(b *testing.B) {
		k, address := beside(b)
		out := clients(b, k.tr, "wait", address, benchWaits, 2, 0) // all for the same
		moved := time.Now()
		k.script.observe(on(1, 2))
		var all latencies
		answersOf(b, out, func(_ uint64, at time.Time) bool {
			all = append(all, at.Sub(moved))
			return len(all) < benchWaits
		})
		all.report(b)
	})
}
