package replication_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The README's Go code is what Example runs, line by line.
func TestReadmeShowsCodeThatRuns(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	for _, name := range []string{"example_test.go", "../pgnotify/listener_example_test.go", "../tracker/ryw/example_router_test.go"} {
		example, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(example)) {
			lines[strings.TrimSpace(line)] = true
		}
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(blocks) == 0 {
		t.Fatal("the README shows no Go code")
	}
	for _, block := range blocks {
		for line := range strings.Lines(block[1]) {
			if !lines[strings.TrimSpace(line)] {
				t.Errorf("the README shows %q, which Example does not run", strings.TrimSpace(line))
			}
		}
	}
}
