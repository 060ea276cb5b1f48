package metrics

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var update = flag.Bool("update", false, "TestREADMEHasTheMetrics: write the table into README.md")

func TestREADMEHasTheMetrics(t *testing.T) {
	kinds := map[prometheus.ValueType]string{prometheus.GaugeValue: "gauge", prometheus.CounterValue: "counter", prometheus.UntypedValue: "histogram"}
	var want strings.Builder
	want.WriteString("| metric | type | labels | what |\n|---|---|---|---|\n")
	for _, m := range all {
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s |\n", m.name, kinds[m.kind], strings.Join(m.labels, ", "), m.help)
	}
	file, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(file), "| metric |")
	_, after, ends := strings.Cut(rest, "\n\n")
	if !found || !ends {
		t.Fatal("README.md has no table")
	}
	whole := before + want.String() + "\n" + after
	if whole == string(file) {
		return
	}
	if !*update {
		t.Fatalf("the table of README.md is not what the code says; go test ./tracker/metrics -run README -update writes it:\n%s", want.String())
	}
	if err := os.WriteFile("README.md", []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
}
