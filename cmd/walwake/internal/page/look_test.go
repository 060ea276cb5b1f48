package page_test

import (
	"fmt"
	"testing"

	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// faint lists the texts whose contrast is less than WCAG 2's level AA asks for, in every state that the page may have.
const faint = `(() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  let looked = 0;
  const was = document.body.dataset.state;
  for (const state of ["connecting", "following", "held", "fallback", "unknown", "away", "locked"]) {
    document.body.dataset.state = state;
    document.getElementById("bearer").hidden = state !== "locked";
    for (const e of document.querySelectorAll("body *")) {
      const text = [...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.data.trim()).join("");
      if (!text || !e.checkVisibility() || e.closest("noscript, script")) continue;
      looked++;
      const style = getComputedStyle(e), size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
      const [a, b] = [light(rgba(style.color)), light(behind(e))].sort((a, b) => b - a);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < (size >= 24 || (bold && size >= 18.66) ? 3 : 4.5)) found.push(state + ": " + text + ": " + ratio.toFixed(2));
    }
  }
  document.body.dataset.state = was;
  document.getElementById("bearer").hidden = true;
  if (looked < 200) found.push("only " + looked + " texts were looked at");
  return found;
})()`

func TestLightAndDarkCanBeRead(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil, "--fleet")
	p := open(t, s.address, "prefers-color-scheme", "light")
	backs := map[string]bool{}
	for _, scheme := range []string{"light", "dark"} {
		p.prefer("prefers-color-scheme", scheme)
		p.showing("following")
		p.until(fmt.Sprintf(past, write(t, primary)))
		p.until(`document.querySelector("#fleet-rows th")`)
		for chart, color := range map[string]string{"chart-position": "--replica", "chart-bytes": "--replica"} {
			p.until(fmt.Sprintf(drawn, chart, color) + " > 5") // in the colours of the scheme
		}
		p.picture(scheme)
		if found := value[[]string](p, faint); len(found) > 0 {
			t.Errorf("%s: hard to read: %q", scheme, found)
		}
		backs[value[string](p, "getComputedStyle(document.body).backgroundColor")] = true
	}
	if len(backs) != 2 {
		t.Errorf("light and dark have the backgrounds %v", backs)
	}
	p.clean(false)
}

func TestItFitsPhonesAndWideScreens(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil, "--fleet")
	p := open(t, s.address)
	p.showing("following")
	p.until(`document.querySelector("#fleet-rows th")`)
	for _, width := range []int64{320, 390, 768, 1280, 2560} {
		p.size(width, 900)
		// What is wider scrolls by itself, and the page does not.
		const fits = `document.documentElement.scrollWidth <= innerWidth && [...document.querySelectorAll("body *")].every((e) =>
			e.closest(".scroll, .skip, .chart, noscript") || e.getBoundingClientRect().right <= innerWidth + 0.5)`
		p.until(fits)
		p.until(`[...document.querySelectorAll(".chart")].every((e) => Math.abs(e.querySelector("canvas").getBoundingClientRect().width - e.clientWidth) < 2)`)
		p.picture(fmt.Sprintf("width %d", width))
	}
	p.clean(false)
}

// Who wants little motion sees the charts move once in five seconds, and not twice a second.
func TestChartsHoldStillForWhoWantsLittleMotion(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil)
	p := open(t, s.address, "prefers-reduced-motion", "reduce")
	const count = `window.drawn = [];
		const clear = CanvasRenderingContext2D.prototype.clearRect;
		CanvasRenderingContext2D.prototype.clearRect = function (...rect) {
			if (this.canvas.closest("#chart-bytes")) drawn.push(performance.now());
			return clear.apply(this, rect);
		};`
	if _, err := chromedp.Call(p.ctx, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: count}); err != nil {
		t.Fatal(err)
	}
	p.do(chromedp.Reload())
	p.showing("following")
	p.until("performance.now() - drawn[0] > 11000")
	times := value[[]float64](p, "drawn")
	const least = 4900 // ms
	last := len(times) - 1
	if apart := times[last] - times[last-1]; apart < least {
		t.Errorf("the chart was drawn twice within %.0f ms: %v", apart, times)
	}
	p.clean(false)
}
