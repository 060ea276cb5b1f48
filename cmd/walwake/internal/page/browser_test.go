package page_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

var pictures = flag.String("pictures", "", "`folder` to write screenshots to")

// browser is a headless Chromium that all tests share; each has a tab of its own.
var browser = sync.OnceValues(func() (context.Context, error) {
	path, err := osexec.LookPath("chromium")
	if err != nil {
		return nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's does not work for root
	}
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, stopTab := chromedp.NewContext(ctx)
	closeBrowser = func() { stopTab(); stop() }
	return ctx, chromedp.Do(ctx)
})

var closeBrowser = func() {} // the one that was started

// chromium is the browser, without which a test is skipped, or fails where it must not be.
func chromium(t *testing.T) context.Context {
	t.Helper()
	if os.Getenv("WALWAKE_CHROMIUM") == "off" {
		t.Skip("WALWAKE_CHROMIUM=off")
	}
	ctx, err := browser()
	switch {
	case errors.Is(err, osexec.ErrNotFound) && os.Getenv("WALWAKE_CHROMIUM") == "":
		t.Skip("chromium is not installed: apt-get install chromium")
	case errors.Is(err, osexec.ErrNotFound):
		t.Fatal("chromium is not installed, and .ci/run installs it")
	case err != nil:
		t.Fatal(err)
	}
	return ctx
}

// tab is a tab with the page.
type tab struct {
	t    *testing.T
	ctx  context.Context
	host string // the sidecar's

	mu       sync.Mutex
	problems []string // guarded by mu: what the console says
	failed   []string // guarded by mu: of it, requests that failed
	foreign  []string // guarded by mu: requests to other hosts
	asked    []string // guarded by mu: paths
}

// history records, in the page, when it shows what, and what screen readers are told of.
const history = `
window.shown = [];
window.said = [];
new MutationObserver(() => {
  const saying = document.getElementById("announcement")?.textContent;
  if (saying && said.at(-1) !== saying) said.push(saying);
  const body = document.body, title = document.getElementById("status-title");
  if (!body || !title) return;
  const row = document.querySelector("#events-rows tr");
  const is = {state: body.dataset.state, title: title.textContent, event: row ? row.textContent : ""};
  const last = shown.at(-1);
  if (last && last.state === is.state && last.title === is.title && last.event === is.event) return;
  shown.push({at: Date.now(), ...is});
}).observe(document, {subtree: true, childList: true, characterData: true, attributes: true});`

// open opens the page of a sidecar in a new tab, until the test ends. The features are those of media queries, name and
// value in turns.
func open(t *testing.T, address string, features ...string) *tab {
	t.Helper()
	ctx, closeTab := chromedp.NewContext(chromium(t))
	t.Cleanup(closeTab)
	p := &tab{t: t, ctx: ctx, host: address}
	p.do(chromedp.Func(func(context.Context, *chromedp.Target) error { return nil })) // opens it, for Listen
	if err := chromedp.Listen(ctx, p.heard); err != nil {
		t.Fatal(err)
	}
	p.prefer(features...)
	if _, err := chromedp.Call(ctx, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: history}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, cdppage.BringToFront, cdp.Empty{}); err != nil { // one behind others is not drawn
		t.Fatal(err)
	}
	p.do(chromedp.Navigate("http://" + address + "/"))
	return p
}

// prefer emulates media features.
func (p *tab) prefer(features ...string) {
	p.t.Helper()
	var all []*emulation.MediaFeature
	for i := 0; i < len(features); i += 2 {
		all = append(all, &emulation.MediaFeature{Name: features[i], Value: features[i+1]})
	}
	if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: all}); err != nil {
		p.t.Fatal(err)
	}
}

// heard is called with everything that the browser tells of the tab.
func (p *tab) heard(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		p.problems = append(p.problems, fmt.Sprint(e.ExceptionDetails.Text, e.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		p.problems = append(p.problems, "console."+string(e.Type))
	case *log.EventEntryAdded:
		what := fmt.Sprintf("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL)
		if e.Entry.Source == log.EntrySourceNetwork {
			p.failed = append(p.failed, what)
		} else {
			p.problems = append(p.problems, what)
		}
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		if err != nil || u.Host != p.host {
			p.foreign = append(p.foreign, e.Request.URL)
		} else {
			p.asked = append(p.asked, u.Path)
		}
	}
}

// clean checks that nothing was written to the console, and no other host asked. Where the sidecar was away the browser
// tells of requests that failed.
func (p *tab) clean(away bool) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.problems) > 0 || len(p.foreign) > 0 || (len(p.failed) > 0 && !away) {
		p.t.Errorf("console: %q, failed: %q, other hosts: %q", p.problems, p.failed, p.foreign)
	}
	if !slices.Contains(p.asked, "/v1/stream") || !slices.Contains(p.asked, "/main.js") {
		p.t.Errorf("these were asked for: %q", p.asked)
	}
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// value is an expression's, in the page.
func value[T any](p *tab, expression string, options ...chromedp.EvaluateOption) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, options...))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// text is an element's.
func (p *tab) text(id string) string {
	p.t.Helper()
	return value[string](p, fmt.Sprintf("document.getElementById(%q).textContent", id))
}

// until waits until an expression is true in the page.
func (p *tab) until(expression string) {
	p.t.Helper()
	for began := time.Now(); !value[bool](p, "Boolean("+expression+")"); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			p.t.Fatalf("not so after %s: %s\nThe page:\n%s\nIt has shown %+v", patience, expression, value[string](p, "document.body.innerText"), p.shown())
		}
	}
}

// showing waits until the page is in a state.
func (p *tab) showing(state string) {
	p.t.Helper()
	p.until(fmt.Sprintf("document.body.dataset.state === %q", state))
}

// moment is what the page showed from a time on.
type moment struct {
	At    int64  `json:"at"` // in ms since 1970, by the clock that the test has too
	State string `json:"state"`
	Title string `json:"title"`
	Event string `json:"event"` // the newest
}

func (p *tab) shown() []moment {
	p.t.Helper()
	return value[[]moment](p, "shown")
}

// since is how long after a time the page first showed something that is right.
func (p *tab) since(from time.Time, right func(moment) bool) time.Duration {
	p.t.Helper()
	all := p.shown()
	for _, m := range all {
		if m.At >= from.UnixMilli() && right(m) {
			return time.UnixMilli(m.At).Sub(from)
		}
	}
	p.t.Fatalf("it has shown %+v", all)
	return 0
}

// size has the window be of a size, in CSS pixels.
func (p *tab) size(width, height int64) {
	p.t.Helper()
	p.do(chromedp.EmulateViewport(width, height))
	p.until(fmt.Sprintf("innerWidth === %d", width))
}

// picture writes a screenshot of the whole page, where -pictures asks for it.
func (p *tab) picture(name string) {
	p.t.Helper()
	if *pictures == "" {
		return
	}
	b, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*pictures, strings.ReplaceAll(name, " ", "-")+".png"), b, 0o600); err != nil {
		p.t.Fatal(err)
	}
}
