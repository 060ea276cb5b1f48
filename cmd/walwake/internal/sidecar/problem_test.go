package sidecar

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
)

// What openapi.yaml says of every failure is true beside the page as well.
func TestWhatIsNotThereIsAProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) {
			c.Page = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/" {
					http.NotFound(w, r)
					return
				}
				_, _ = io.WriteString(w, "page")
			})
		})
		k.get("/nope").is(t, notFound)
		k.do(k.request(http.MethodDelete, "/nope")).is(t, badMethod)
		k.do(k.request(http.MethodDelete, "/")).is(t, badMethod)
		if a := k.get("/"); a.status != http.StatusOK || string(a.body) != "page" {
			t.Errorf("got %d %s", a.status, a.body)
		}
	})
}

func TestAnswersAreReadAsTheyAre(t *testing.T) {
	const text = "<a> & <b>"
	synctest.Test(t, func(t *testing.T) {
		k := start(t, func(c *Config) { c.Failure = func(err error) (string, string) { return err.Error(), "kind" } })
		s := k.stream("")
		k.script.fails <- errors.New(text)
		if e := s.until("event"); !strings.Contains(e.data, text) {
			t.Errorf("got %s", e.data)
		}
		a := k.get("/v1/position")
		if a.is(t, unknown); !bytes.Contains(a.body, []byte(text)) || a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("got %s", a.body)
		}
	})
}
