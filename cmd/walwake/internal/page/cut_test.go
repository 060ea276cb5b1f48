//go:build unix

package page_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/walwake/walwake/replication/replicationtest"
)

// Nothing comes from the replica any more and nothing says so, nothing is written and nobody waits: the page asks once a
// second, and a question may take 5 s.
func TestThePageShowsANetworkThatIsCutInSilence(t *testing.T) {
	primary, standby := cluster(t)
	proxy, err := replicationtest.NewProxy(t.Context(), standby)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	for _, source := range []string{"poll", "physical"} {
		s := serve(t, primary, proxy.DSN(), nil, "--source", source)
		p := open(t, s.address)
		p.showing("following")
		waited(t, s)
		if source == "physical" { // its stream stays for a while
			p.until(`document.querySelector("#ladder-rows tr").textContent.startsWith("physicalin use")`)
		}
		p.until(`document.getElementById("waiting").textContent === "0"`)
		cut := time.Now()
		proxy.Cut()
		p.showing("unknown")
		took := p.since(cut, func(m moment) bool { return m.State == "unknown" })
		t.Logf("%s: shown after %s", source, took)
		if most := 13 * time.Second; took > most { // while nobody looks it is 14 s, and was 28 s once
			t.Errorf("%s: want it shown within %s", source, most)
		}
		p.until(`document.getElementById("status-detail").textContent.includes("the server did not answer within 5s")`)
		p.until(`document.getElementById("position").textContent === "–"`)
		proxy.Heal()
		p.showing("following")
		p.until(fmt.Sprintf(past, write(t, primary)))
		p.clean(true) // what it asks besides the stream may have been refused
		s.kill()
	}
}

// waited has somebody wait in vain for a second.
func waited(t *testing.T, s *running) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.address+"/v1/wait?timeout=1s&token=FFFFFFFF/1", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusGatewayTimeout {
		t.Fatalf("got %s, %v", resp.Status, err)
	}
}
