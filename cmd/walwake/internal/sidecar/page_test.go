package sidecar

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAClientThatDoesNotReadThePageIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64 << 10 // more than any buffer on the way
		k := start(t, func(c *Config) {
			c.Page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", size)) })
		})
		conn, answers := k.dial()
		k.write(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		time.Sleep(DefaultWriteTimeout + time.Second)
		if b, err := io.ReadAll(answers); err != nil || len(b) >= size {
			t.Errorf("it was sent %d bytes (%v)", len(b), err)
		}
	})
}
