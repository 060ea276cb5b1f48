package bench

import (
	"bufio"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/walwake/walwake/tracker"
)

type token = tracker.Token

// Result is what a run has found.
type Result struct {
	Postgres string  `json:"postgres"` // the replica's version
	Machine  Machine `json:"machine"`
	Sessions int     `json:"sessions"` // the most of a way with a session for each wait
	Rounds   int     `json:"rounds"`
	SliceMS  float64 `json:"slice_ms"`
	Cells    []Cell  `json:"cells"`

	cells []*cell
}

// Machine is where the client ran.
type Machine struct {
	CPU   string `json:"cpu"`
	Cores int    `json:"cores"`
	OS    string `json:"os"`
	Go    string `json:"go"`
}

// Cell is one way at one rate with one number of waiters.
type Cell struct {
	Way     string  `json:"way"`
	Rate    int     `json:"rate"`      // transactions a second asked for in the background
	Made    float64 `json:"rate_made"` // and made
	Waiters int     `json:"waiters"`   // for each write; 0: nobody waits, and only what is spent is measured
	Missing string  `json:"missing,omitempty"`

	Waits int64   `json:"waits"`
	P50   float64 `json:"p50_us"` // from COMMIT acknowledged, with several waiters from COMMIT sent, to known to be replayed
	P90   float64 `json:"p90_us"`
	P99   float64 `json:"p99_us"`
	Max   float64 `json:"max_us"`

	// To the same of Reference at the same rate with as many waiters.
	Reference string  `json:"reference"`
	P50Ratio  float64 `json:"p50_ratio"`
	P99Ratio  float64 `json:"p99_ratio"`
	MixRatio  float64 `json:"mix_ratio"`
	CPURatio  float64 `json:"cpu_ratio"` // of the server, to that of floor: nothing attached, but where somebody waits

	PerSecond float64  `json:"waits_per_second"` // while they wait, without the pauses between writes
	Mix       *float64 `json:"mix_us"`           // mean of a wait where four of five tokens are replayed already; null: not measured

	Requests       float64 `json:"requests_per_write"` // what was sent to the replica, for each write that was waited for
	Bytes          float64 `json:"bytes_per_write"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	Held           int64   `json:"sessions_held"` // of the replica
	ServerCPU      float64 `json:"server_cpu"`    // of all of its processes, in cores, with the background's replay
	ClientCPU      float64 `json:"client_cpu"`    // of this process, with the measuring

	// Distribution has pairs of a percentile and a latency in µs.
	Distribution [][2]float64 `json:"distribution"`
}

// cell collects.
type cell struct {
	way     way
	waiters int
	rate    int
	made    float64
	missing error // why it could not be measured

	latency *hdrhistogram.Histogram // ns: see Cell.P50
	turns   int64
	within  time.Duration // of turns
	waited  time.Duration // the sum of fresh waits, from when each began or, when that was later, it was written
	stale   time.Duration // and of those for what is replayed
	stales  int64

	took, client, server time.Duration
	requests, bytes      int64
	sessions             int64
}

func newCell(w way, waiters, rate int) *cell {
	return &cell{way: w, waiters: waiters, rate: rate, latency: hdrhistogram.New(100, 2*waitMost.Nanoseconds(), 3)}
}

// turn counts the waits of a turn for what was written; see run.fresh for from.
func (c *cell) turn(t *turns, from time.Time) {
	var last time.Time
	for i, end := range t.ended {
		_ = c.latency.RecordValue(max(end.Sub(from).Nanoseconds(), 100)) // it is in range: waits are bounded
		if t.began[i].After(from) {
			c.waited += end.Sub(t.began[i])
		} else {
			c.waited += max(end.Sub(from), 0)
		}
		if end.After(last) {
			last = end
		}
	}
	c.turns++
	c.within += max(last.Sub(from), time.Microsecond)
}

// old counts the waits of a turn for what was replayed before.
func (c *cell) old(t *turns) {
	for i, end := range t.ended {
		c.stale += end.Sub(t.began[i])
	}
	c.stales += int64(t.n)
}

// finish makes Cells of cells.
func (r *Result) finish() {
	for _, c := range r.cells {
		r.Cells = append(r.Cells, c.result())
	}
	for i := range r.Cells {
		c := &r.Cells[i]
		if f := r.find(floorWay, c); f != nil && f.ServerCPU > 0 {
			c.CPURatio = rounded(c.ServerCPU / f.ServerCPU)
		}
		ref := r.find(nativeWay, c)
		if ref == nil || ref.Waits == 0 {
			ref = r.find(tightWay, c)
		}
		if ref == nil || ref.Waits == 0 || c.Waits == 0 {
			continue
		}
		c.Reference = ref.Way
		c.P50Ratio, c.P99Ratio = rounded(c.P50/ref.P50), rounded(c.P99/ref.P99)
		if c.Mix != nil && ref.Mix != nil {
			c.MixRatio = rounded(*c.Mix / *ref.Mix)
		}
	}
}

// find returns way at the rate and with as many waiters as c; nil: it was not
// measured.
func (r *Result) find(way string, c *Cell) *Cell {
	i := slices.IndexFunc(r.Cells, func(o Cell) bool { return o.Way == way && o.Rate == c.Rate && o.Waiters == c.Waiters })
	if i < 0 {
		return nil
	}
	return &r.Cells[i]
}

func (c *cell) result() Cell {
	out := Cell{Way: c.way.name, Rate: c.rate, Made: rounded(c.made), Waiters: c.waiters, Waits: c.latency.TotalCount()}
	if c.missing != nil {
		out.Missing = c.missing.Error()
	}
	if c.took > 0 {
		out.Held, out.BytesPerSecond = c.sessions, rounded(float64(c.bytes)/c.took.Seconds())
		out.ServerCPU, out.ClientCPU = rounded(c.server.Seconds()/c.took.Seconds()), rounded(c.client.Seconds()/c.took.Seconds())
	}
	if out.Waits == 0 {
		return out
	}
	us := func(q float64) float64 { return rounded(float64(c.latency.ValueAtPercentile(q)) / 1e3) }
	out.P50, out.P90, out.P99, out.Max = us(50), us(90), us(99), rounded(float64(c.latency.Max())/1e3)
	out.PerSecond = rounded(float64(out.Waits) / c.within.Seconds())
	if c.stales > 0 {
		fresh, old := float64(c.waited.Nanoseconds())/float64(out.Waits), float64(c.stale.Nanoseconds())/float64(c.stales)
		mix := math.Round((fresh+stale*old)/(1+stale)) / 1e3
		out.Mix = &mix
	}
	out.Requests, out.Bytes = rounded(float64(c.requests)/float64(c.turns)), rounded(float64(c.bytes)/float64(c.turns))
	for _, q := range percentiles {
		out.Distribution = append(out.Distribution, [2]float64{q, us(q)})
	}
	return out
}

// percentiles are those of a Distribution: denser towards the ends.
var percentiles = func() []float64 {
	var p []float64
	for q := 0.5; q < 99.5; q += 0.5 {
		p = append(p, q)
	}
	return append(p, 99.5, 99.9, 100)
}()

// rounded keeps four decimals.
func rounded(f float64) float64 { return math.Round(f*1e4) / 1e4 }

func machine() Machine {
	m := Machine{CPU: runtime.GOARCH, Cores: runtime.NumCPU(), OS: runtime.GOOS, Go: strings.TrimPrefix(runtime.Version(), "go")}
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return m
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			return m
		}
	}
	return m
}
