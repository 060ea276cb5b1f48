package ryw

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Whatever net/http finds in a Cookie header is found here too.
func FuzzCookies(f *testing.F) {
	for _, line := range []string{"", "walwake=v", "a=b; walwake=v;walwake=w", " walwake =v ", "walwake", "walwake=a=b", `walwake="v"`, ";;=;walwake=\x00"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got := slices.Collect(cookies([]string{line}, "walwake"))
		if len(got) > strings.Count(line, "walwake") {
			t.Fatalf("%q has %q", line, got)
		}
		r := http.Request{Header: http.Header{"Cookie": {line}}}
		for _, c := range r.CookiesNamed("walwake") {
			value := c.Value
			if c.Quoted {
				value = `"` + value + `"`
			}
			if !slices.Contains(got, value) {
				t.Fatalf("%q has %q, and not %q", line, got, value)
			}
		}
	})
}
