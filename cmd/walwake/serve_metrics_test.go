package main

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

// The README's table is what /metrics says of the sidecar, by name.
func TestREADMEHasTheMetricsOfServe(t *testing.T) {
	t.Parallel()
	s := serve(t, env{"WALWAKE_REPLICA": "postgres://u@" + closed + "/db"})
	if status, body := s.get("/healthz"); status != http.StatusOK { // or there would be no answer to count
		t.Fatalf("got %d %s", status, body)
	}
	_, shown := s.get("/metrics")
	var want strings.Builder
	for _, m := range regexp.MustCompile(`# HELP (walwake_sidecar_\w+) (.*)\n# TYPE \w+ (\w+)\n\w+(?:\{(\w+)=)?`).FindAllStringSubmatch(string(shown), -1) {
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s |\n", m[1], m[3], m[4], m[2])
	}
	file, err := os.ReadFile("../../tracker/metrics/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(file), "| of serve | type | labels | what |\n|---|---|---|---|\n")
	if table, _, _ = strings.Cut(table, "\n\n"); table+"\n" != want.String() {
		t.Errorf("README.md has\n%s\nwant\n%s", table, want.String())
	}
}
