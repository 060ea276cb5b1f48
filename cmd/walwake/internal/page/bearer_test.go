package page_test

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

func TestWhoHasTheBearerTokenTypesItIn(t *testing.T) {
	primary, standby := cluster(t)
	const token = "correct-horse-battery-staple"
	s := serve(t, primary, standby.DSN(), []string{"WALWAKE_BEARER=" + token})
	p := open(t, s.address)
	p.showing("locked")
	p.until(`document.activeElement.id === "token"`)
	p.picture("locked")
	if title := p.text("status-title"); title != "A bearer token is needed" {
		t.Errorf("the page says %s", title)
	}
	p.do(chromedp.SendKeys("#token", "wrong-horse-battery-staple"+kb.Enter))
	p.until(`document.getElementById("status-title").textContent === "The bearer token is wrong"`)
	p.do(chromedp.SendKeys("#token", token+kb.Enter))
	p.showing("following")
	p.until(`document.getElementById("bearer").hidden`)
	p.until(fmt.Sprintf(past, write(t, primary)))
	p.until(`document.querySelector("#fleet-rows").textContent.startsWith("There is no fleet")`)

	const kept = `JSON.stringify([document.documentElement.outerHTML, document.getElementById("token").value, location.href, document.cookie,
		{...localStorage}, {...sessionStorage}, history.state, window.name]).includes("` + token + `")`
	if value[bool](p, kept) {
		t.Error("the token is kept where somebody else could find it")
	}
	s.kill()
	p.showing("away")
	s.start()
	p.showing("following") // with the token that it has
	p.do(chromedp.Reload())
	p.showing("locked") // for it is forgotten
	p.clean(true)
}
