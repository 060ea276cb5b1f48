package page_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// drawn counts a chart's pixels that are of the colour of a line.
const drawn = `(() => {
  const canvas = document.querySelector("#%s canvas");
  const ctx = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
  ctx.drawImage(canvas, 0, 0);
  ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("%s");
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(ctx.fillStyle.slice(i, i + 2), 16));
  const {data} = ctx.getImageData(0, 0, canvas.width, canvas.height);
  let n = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i] === r && data[i+1] === g && data[i+2] === b && data[i+3] === 255) n++;
  return n;
})()`

// past is whether the page shows a position that is not before an LSN.
const past = `(([high, low]) => parseInt(high, 16) * 2 ** 32 + parseInt(low, 16) >= %d)(document.getElementById("position").textContent.split("/"))`

func TestThePageShowsPositionAndLagMoving(t *testing.T) {
	primary, standby := cluster(t)
	s := serve(t, primary, standby.DSN(), nil, "--fleet")
	p := open(t, s.address)
	p.showing("following")
	for range 3 {
		p.until(fmt.Sprintf(past, write(t, primary)))
	}
	p.until(`document.getElementById("lag-bytes").textContent === "0 B"`)

	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	resume := func() {
		if err := standby.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	at := write(t, primary)
	p.showing("held")
	p.until(`document.getElementById("status-detail").textContent.startsWith("Replay is paused on the standby: ")`)
	p.until(`document.getElementById("lag-bytes").textContent.endsWith(" kB")`)
	p.until(`parseFloat(document.getElementById("lag-time").textContent) > 1 && document.getElementById("lag-time").textContent.endsWith(" s")`)
	if value[bool](p, fmt.Sprintf(past, at)) {
		t.Errorf("replay is paused, and the page shows %s", p.text("position"))
	}
	resume()
	p.showing("following")
	p.until(fmt.Sprintf(past, at))
	p.until(`document.getElementById("lag-bytes").textContent === "0 B" && document.getElementById("lag-time").textContent === "0 µs"`)

	// The charts hold what was.
	for chart, color := range map[string]string{"chart-position": "--primary", "chart-bytes": "--replica", "chart-time": "--replica"} {
		p.until(fmt.Sprintf(drawn, chart, color) + " > 20")
		p.until(fmt.Sprintf(`document.getElementById(%q).getAttribute("aria-label").includes("5 minutes: ")`, chart))
	}
	p.do(chromedp.Click(chromedp.CSS("summary")))
	p.until(`[...document.querySelectorAll("#samples-rows td:nth-child(3)")].some((cell) => cell.textContent.endsWith(" kB"))`)
	p.until(`document.querySelector("#fleet-rows th").textContent === "127.0.0.1:` + fmt.Sprint(standby.Port()) + `"`)
	p.until(`document.querySelectorAll("#ladder-rows tr").length === 4`)
	p.until(`document.getElementById("streams").textContent === "1"`)
	const told = `[...document.querySelectorAll(".at")].every((e) => /^\d\d:\d\d:\d\d: /.test(e.textContent))`
	// The browser may take a minute to find out what is below a real mouse while nothing else is drawn.
	const point = `((over) => {
		const {left, right, top, bottom} = over.getBoundingClientRect();
		for (const kind of ["mouseenter", "mousemove"]) {
			over.dispatchEvent(new MouseEvent(kind, {bubbles: true, clientX: (left + 3 * right) / 4, clientY: (top + bottom) / 2}));
		}
		return true;
	})(document.querySelector("#chart-bytes .u-over"))`
	for began := time.Now(); !value[bool](p, told) && time.Since(began) < patience; {
		value[bool](p, point)
		time.Sleep(200 * time.Millisecond) // to be drawn: each move puts that off
	}
	p.until(told)
	p.until(`said.at(-1) === "Following by poll"`)
	if said := value[[]string](p, "said"); len(said) > 4 { // connecting, following, held back, following
		t.Errorf("screen readers are told of another state, and of nothing else: got %q", said)
	}
	p.clean(false)
}
