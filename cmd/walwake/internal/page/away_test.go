//go:build unix

package page_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/replication/replicationtest"
)

// bound is how long the page may take to show what has happened. A machine that has other work may not draw for longer:
// once in attempts will do.
const (
	bound    = 2 * time.Second
	attempts = 5
)

// up is since when a source is up.
func up(t *testing.T, s *running, source string) time.Time {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.address+"/v1/position", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var p sidecar.Position
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Ladder {
		if r.Source == source && r.Up {
			return r.Since
		}
	}
	t.Fatalf("%s is not up: %+v", source, p.Ladder)
	return time.Time{}
}

func TestThePageShowsAStreamThatDropsAndComesBack(t *testing.T) {
	primary, standby := cluster(t)
	proxy, err := replicationtest.NewProxy(t.Context(), standby)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	s := serve(t, primary, proxy.DSN(), nil)
	s.waits()
	p := open(t, s.address)
	const following = `document.getElementById("status-title").textContent === "Following by physical"`
	p.until(following)
	within := false
	for n := 0; n < 2 || !within && n < attempts; n++ {
		proxy.SlowStreams(300 * time.Millisecond) // which holds back the end of the stream too, so that it is not back before anybody can see that it was away
		dropped := time.Now()
		if err := standby.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_replication`); err != nil {
			t.Fatal(err)
		}
		p.showing("fallback")
		gone := p.since(dropped, func(m moment) bool { return m.State == "fallback" && strings.HasPrefix(m.Title, "On a fallback: ") })
		p.until(`document.querySelector("#events-rows").textContent.includes("is in use, it was physical")`)
		p.until(`document.querySelector("#ladder-rows tr").textContent.includes("physicalnot up")`)
		if detail := p.text("status-detail"); !strings.Contains(detail, "physical: ") {
			t.Errorf("the page says %s", detail)
		}
		proxy.SlowStreams(0)
		p.until(following)
		since := up(t, s, "physical")
		back := p.since(since, func(m moment) bool { return m.State == "following" && m.Title == "Following by physical" })
		t.Logf("shown after %s, and the way back %s after it", gone, back)
		within = within || gone <= bound && back <= bound
	}
	if !within {
		t.Errorf("want both shown within %s", bound)
	}
	p.clean(false)
}

func TestThePageSaysWhatIsNotKnownAndWhy(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, nil, standby.DSN(), nil)
	p := open(t, s.address)
	p.showing("following")
	const lag = `document.getElementById("lag-reason").textContent`
	p.until(lag + `.startsWith("The lag is not known: nobody says where the primary is")`)
	p.until(`document.getElementById("chart-bytes").dataset.empty.startsWith("Not known")`)
	p.until(`document.getElementById("lag-bytes").textContent === "–"`)

	if err := standby.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.showing("unknown")
	p.until(`document.getElementById("status-detail").textContent.includes("connection refused")`)
	p.until(`document.getElementById("position").textContent === "–"`)
	p.until(`/refused.* \(\d+ times, until /.test(document.querySelector("#events-rows tr").textContent)`)
	const times = `Number(/refused.* \((\d+) times/.exec(document.querySelector("#events-rows tr")?.textContent)?.[1])`
	heard := value[int](p, times)
	late := open(t, s.address) // is told how often it was, in one event
	late.until(fmt.Sprintf("%s >= %d", times, heard))
	late.until(`[...document.querySelectorAll("#events-rows tr")].filter((row) => row.textContent.includes("refused")).length === 1`)
	late.until(`document.querySelector("#events-rows").textContent.includes("the position is known")`)
	p.picture("unknown")
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.showing("following")
	p.until(fmt.Sprintf(past, write(t, primary)))
	p.until(`document.getElementById("chart-position").getAttribute("aria-label").includes("from 0/")`)
	p.clean(true) // what it asks besides the stream may have been refused

	beside := serve(t, nil, primary.DSN(), nil)
	p = open(t, beside.address)
	p.until(`document.getElementById("status-title").textContent === "The server is a primary"`)
	p.until(`document.getElementById("lag-reason").hidden && document.getElementById("lag-bytes").textContent === "0 B"`)
	p.clean(false)
}

func TestAPageForWhichThereIsNoStreamAsks(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil, "--max-streams", "1")
	p := open(t, s.address)
	p.showing("following")
	late := open(t, s.address)
	late.showing("following")
	late.until(`document.getElementById("status-detail").textContent.includes("raise --max-streams")`)
	for range 2 {
		late.until(fmt.Sprintf(past, write(t, primary)))
	}
	late.clean(true)
	p.clean(false)
	p.do(chromedp.Navigate("about:blank")) // which leaves its stream to the other
	late.until(`!document.getElementById("status-detail").textContent.includes("raise --max-streams")`)
}

func TestThePageSaysSinceWhenTheSidecarIsAwayAndComesBackByItself(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil)
	p := open(t, s.address)
	p.showing("following")
	for _, c := range []struct {
		name       string
		away, back func()
		says       string
		within     time.Duration
	}{
		{"killed", s.kill, s.start, "", bound},
		{"stopped for a while", func() { s.signal(syscall.SIGSTOP) }, func() { s.signal(syscall.SIGCONT) }, "", 2 * bound},
		{"shut down", func() { s.signal(syscall.SIGTERM); _ = s.cmd.Wait() }, s.start, "It said: the sidecar is shutting down", bound},
	} {
		within := false
		for n := 0; n < attempts && !within; n++ {
			within = leftAndCame(t, p, c.name, c.says, c.away, c.back) <= c.within
		}
		if !within {
			t.Errorf("%s: want it shown within %s", c.name, c.within)
		}
	}
	p.until(fmt.Sprintf(past, write(t, primary)))
	p.clean(true)
}

// leftAndCame has a sidecar go away and come back, and returns how long the page took to show that it is away.
func leftAndCame(t *testing.T, p *tab, name, says string, leave, come func()) (away time.Duration) {
	t.Helper()
	before := time.Now()
	leave()
	p.showing("away")
	away = p.since(before, func(m moment) bool { return m.State == "away" })
	detail := p.text("status-detail")
	clock, _, _ := strings.Cut(strings.TrimPrefix(detail, "Since "), ".")
	since, err := time.ParseInLocation(time.DateTime, before.Format(time.DateOnly+" ")+clock, time.Local)
	if err != nil || since.Before(before.Add(-bound)) || since.After(time.Now()) || !strings.Contains(detail, says) {
		t.Errorf("%s at %s: the page says %s (%v)", name, before, detail, err)
	}
	returned := time.Now()
	come()
	p.showing("following")
	back := p.since(returned, func(m moment) bool { return m.State == "following" })
	t.Logf("%s: shown after %s, and the way back %s after the beginning of it", name, away, back)
	p.until(`document.querySelector("#events-rows").textContent.includes("the sidecar answers again")`)
	return away
}
