package sidecar

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/walwake/walwake/tracker"
)

// The last line of a body need not end, as that of curl -d does not. One that was cut is none.
func TestALastDemandWithoutANewlineCounts(t *testing.T) {
	for body, want := range map[string]tracker.LSN{
		"0/C8": 0xC8, "0/C8\n": 0xC8, "0/C8\r\n": 0xC8, "0/C8\n0/D0": 0xD0, "0/C8\n0/0": 0,
	} {
		synctest.Test(t, func(t *testing.T) {
			k := start(t, nil)
			k.script.observe(on(1, 100))
			req := k.request(http.MethodPost, "/v1/stream?keepalive=30s")
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			s := k.open(req, nil, nil)
			s.until("state")
			synctest.Wait()
			if d := k.script.running().Demand(); d.Lowest != want {
				t.Errorf("%q: the tracker is told of %+v", body, d)
			}
			if want != 0 {
				k.script.observe(on(1, want))
				for read[Moved](t, s.until("position")).LSN != want {
				}
			}
		})
	}
	for name, cut := range map[string]string{"a length": "Content-Length: 6\r\n\r\n0/C8", "chunks": "Transfer-Encoding: chunked\r\n\r\n4\r\n0/C8\r\n2\r\n"} {
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST / HTTP/1.1\r\nHost: localhost\r\n" + cut)))
		if err != nil {
			t.Fatal(err)
		}
		c := make(chan tracker.LSN, 1)
		if err := readDemands(req.Body, c); !errors.Is(err, io.ErrUnexpectedEOF) || len(c) > 0 {
			t.Errorf("a body of %s that was cut: %v, %d demands", name, err, len(c))
		}
	}
}

func TestABadLastDemandEndsTheStream(t *testing.T) {
	for _, body := range []string{"garbage line", "garbage line\n", "0/C8\ngarbage"} {
		synctest.Test(t, func(t *testing.T) {
			k := start(t, nil)
			k.script.observe(on(1, 100))
			req := k.request(http.MethodPost, "/v1/stream")
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			if e := read[End](t, k.open(req, nil, nil).until("end")); e.Reason != badRequest.reason || !strings.Contains(e.Detail, "want an LSN") {
				t.Errorf("%q: %+v", body, e)
			}
		})
	}
}
