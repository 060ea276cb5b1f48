package tracker_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/walwake/walwake/tracker"
)

func TestParseHistoryReadsWhatServersWrite(t *testing.T) {
	for _, c := range []struct {
		name, content string
		want          tracker.History
	}{
		{"one promotion", "1\t0/1787320\tno recovery target specified\n", tracker.History{{1, 0x1787320}}},
		{
			"two promotions, with the empty line that the server puts between them",
			"1\t0/50000A0\tno recovery target specified\n\n2\t0/60001C8\tno recovery target specified\n",
			tracker.History{{1, 0x50000A0}, {2, 0x60001C8}},
		},
		{"LSN of PostgreSQL 19", "1\t0/01787320\tno recovery target specified\n", tracker.History{{1, 0x1787320}}},
		{
			"gaps between timelines",
			"1\t0/1\tx\n4\t0/2\tx\n4294967295\tFFFFFFFF/FFFFFFFF\tx",
			tracker.History{{1, 1}, {4, 2}, {1<<32 - 1, 1<<64 - 1}},
		},
		{"comments, blank lines, no last newline", "# by hand\n \t\r\n  # too\n\n7\t0/1", tracker.History{{7, 1}}},
		{"CRLF, spaces, no reason", "  1  0/1\r\n\v\f2\t\t0/2 \r\n", tracker.History{{1, 1}, {2, 2}}},
		{"any bytes in the reason", "1\t0/1\tat restore point \"\xff\x00#1\t0/2\"\n", tracker.History{{1, 1}}},
		{
			"switch points that fall",
			"1\t0/50000A0\tno recovery target specified\n\n2\t0/30160C8\tafter LSN 0/3016088\n",
			tracker.History{{1, 0x50000A0}, {2, 0x30160C8}},
		},
		{"no ancestors", "", tracker.History{}},
		{"no ancestors, in words", "# none\n\n", tracker.History{}},
	} {
		got, err := tracker.ParseHistory([]byte(c.content))
		if err != nil || got == nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
		}
	}
}

func TestParseHistoryRefusesEverythingElse(t *testing.T) {
	var many strings.Builder
	for i := range 1<<16 + 1 {
		fmt.Fprintf(&many, "%d\t0/1\n", i+1)
	}
	for name, content := range map[string]string{
		"no switch point":                "1\n",
		"no switch point, but a reason":  "1\tno recovery target specified\n",
		"no timeline":                    "0/1787320\tno recovery target specified\n",
		"words":                          "x\t0/1\n",
		"timeline 0":                     "0\t0/1\n",
		"negative timeline":              "-1\t0/1\n",
		"signed timeline":                "+1\t0/1\n",
		"hex timeline":                   "0x1\t0/1\n",
		"timeline over 32 bits":          "4294967296\t0/1\n",
		"switch point cut short":         "1\t0/\n",
		"switch point without a slash":   "1\t1787320\n",
		"switch point over 32 bits":      "1\t0/1FFFFFFFF\tx\n",
		"switch point with 0x":           "1\t0x0/0x1\n",
		"junk behind the switch point":   "1\t0/1;2\n",
		"timeline twice":                 "1\t0/1\n1\t0/2\n",
		"timelines that fall":            "2\t0/1\n1\t0/2\n",
		"an error after a good line":     "1\t0/1\tx\nnonsense\n",
		"more than 1 MiB":                strings.Repeat("#", 1<<20) + "\n",
		"more than 65,536 entries":       many.String(),
		"a line that would fill the log": strings.Repeat("x", 1<<19),
	} {
		got, err := tracker.ParseHistory([]byte(content))
		if err == nil || got != nil {
			t.Errorf("%s: %v, %v; want an error", name, got, err)
			continue
		}
		if n := len(err.Error()); n > 512 {
			t.Errorf("%s: error of %d bytes", name, n)
		}
	}
}

func TestHistoryEndIsWhereTheTimelineWasLeft(t *testing.T) {
	h := tracker.History{{1, 100}, {3, 250}, {4, 250}, {7, 300}}
	for tli, want := range map[uint32]tracker.LSN{1: 100, 3: 250, 4: 250, 7: 300} {
		if got, ok := h.End(tli); !ok || got != want {
			t.Errorf("End(%d) = %v, %v; want %v", tli, got, ok, want)
		}
	}
	for _, tli := range []uint32{0, 2, 5, 8} {
		if got, ok := h.End(tli); ok || got != 0 {
			t.Errorf("End(%d) = %v, %v; it is no ancestor", tli, got, ok)
		}
	}
	for _, none := range []tracker.History{nil, {}} {
		if got, ok := none.End(1); ok || got != 0 {
			t.Errorf("%#v.End(1) = %v, %v", none, got, ok)
		}
	}
}

// The history file is one that PostgreSQL 15 wrote: timeline 2 left 1 at 0/50000A0; then a recovery along timeline 2
// (recovery_target_timeline=latest) was stopped at 0/30160C8, before that point. Taken line by line it would vouch for
// the writes between the two on timeline 1, and they are not there.
func TestHistoryEndAfterARecoveryThatStoppedBeforeTheForkIsTheLowerPoint(t *testing.T) {
	h, err := tracker.ParseHistory([]byte(
		"1\t0/50000A0\tno recovery target specified\n\n2\t0/30160C8\tafter LSN 0/3016088\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tli := range []uint32{1, 2} {
		if got, ok := h.End(tli); !ok || got != 0x30160C8 {
			t.Errorf("End(%d) = %v, %v; want 0/30160C8", tli, got, ok)
		}
	}
}
