package page_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

func TestAllIsReachedAndUsedByKeyboard(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil)
	p := open(t, s.address)
	p.showing("following")
	want := []string{
		"Skip to the state of the replica", "span", "pause", "The charts as a table", "ladder-title", "events-title", "fleet-title",
		"what the sidecar answers", "metrics", "uPlot",
	}
	const focused = `(({id, ariaLabel, textContent, attributes}) => id || attributes["aria-labelledby"]?.value || ariaLabel || textContent)(document.activeElement)`
	for _, name := range want {
		p.do(chromedp.KeyEvent(kb.Tab))
		if got := value[string](p, focused); got != name {
			t.Fatalf("want the focus on %s, got %s", name, got)
		}
		if seen := value[string](p, `(({outlineStyle, outlineWidth}) => outlineStyle + " " + outlineWidth)(getComputedStyle(document.activeElement))`); seen != "solid 3px" {
			t.Errorf("%s has the focus, and the outline %s", name, seen)
		}
	}

	// A page that moves can be stopped.
	press := func(id, key string) {
		p.do(chromedp.Focus(chromedp.CSS("#"+id)), chromedp.KeyEvent(key))
	}
	press("pause", " ")
	p.until(`document.getElementById("pause").ariaPressed === "true"`)
	before := p.text("position")
	write(t, primary)
	const second = `new Promise((done) => setTimeout(() => done(true), 1000))` // the page writes what is new four times as often
	value[bool](p, second, chromedp.EvalAwaitPromise)
	if after := p.text("position"); after != before {
		t.Errorf("the page is paused, and goes from %s to %s", before, after)
	}
	press("pause", " ")
	p.until(fmt.Sprintf(`document.getElementById("position").textContent !== %q`, before))

	press("span", kb.ArrowDown)
	p.until(`document.getElementById("span").value === "900"`)
	p.do(chromedp.Focus("summary"), chromedp.KeyEvent(kb.Enter))
	p.until(`document.querySelectorAll("#samples-rows tr").length >= 1 && document.querySelector("#samples-rows td").textContent.includes("/")`)
	p.clean(false)
}

func TestScreenReadersHaveANameForAll(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil)
	p := open(t, s.address)
	p.showing("following")
	p.until(`document.getElementById("chart-bytes").getAttribute("aria-label").includes("now 0 B")`)
	p.do(chromedp.Click("summary"))
	tree, err := chromedp.Call(p.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string][]string{} // by role
	for _, n := range tree.Nodes {
		if n.Ignored {
			continue
		}
		role, name := said(t, n.Role), said(t, n.Name)
		names[role] = append(names[role], name)
		switch role {
		case "button", "link", "combobox", "textbox", "table", "image", "region", "heading", "DisclosureTriangle", "option":
			if strings.TrimSpace(name) == "" {
				t.Errorf("a %s has no name", role)
			}
		}
	}
	for role, want := range map[string][]string{
		"RootWebArea": {"Following by poll, 127.0.0.1:" + fmt.Sprint(standby.Port()) + ": walwake"},
		"heading":     {"Replica 127.0.0.1:" + fmt.Sprint(standby.Port()), "Following by poll", "Now", "The last minutes", "Source ladder", "Recent events", "Fleet"},
		"table": {
			"The ways to learn of replay, best first", "What happened, newest first", "Replicas that say where they are", "Position at each time, and the most lag since the time before it, newest first",
		},
		"combobox": {"Show"},
		"button":   {"Pause"},
		"main":     {""},
	} {
		slices.Sort(want)
		if slices.Sort(names[role]); !slices.Equal(names[role], want) { // the tree has them in no order
			t.Errorf("%s: want %q, got %q", role, want, names[role])
		}
	}
	for i, begins := range []string{"Position, 5 minutes: from 0/", "Lag in bytes, 5 minutes: now 0 B, at most ", "Lag in time, 5 minutes: now 0 µs, at most "} {
		if images := names["image"]; len(images) != 3 || !strings.HasPrefix(images[i], begins) {
			t.Fatalf("want an image that is called %s…, got %q", begins, images)
		}
	}
	if len(names["columnheader"]) != 4+4+3+7 || slices.Contains(names["columnheader"], "") || len(names["rowheader"]) < 5 {
		t.Errorf("the tables have the headers %q and %q", names["columnheader"], names["rowheader"])
	}
	if len(names["status"]) != 1 {
		t.Errorf("want one live region, got %q", names["status"])
	}
	p.clean(false)
}

// said is the text of a role or a name.
func said(t *testing.T, v *accessibility.Value) string {
	t.Helper()
	if v == nil || len(v.Value) == 0 {
		return ""
	}
	var text string
	if err := json.Unmarshal(v.Value, &text); err != nil {
		t.Fatal(err)
	}
	return text
}
