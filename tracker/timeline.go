package tracker

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
)

// Fork is the end of one timeline in the history of another.
type Fork struct {
	Timeline uint32 // the timeline that was left, from 1 on
	End      LSN    // the switch point that the history file names; see [History.End]
}

// History is how a timeline came about: the timelines that it descends from, oldest first, with rising numbers, each
// with the position at which it was left. The nil History means "not known", an empty one that is not nil "no
// ancestors", which is what timeline 1 has.
type History []Fork

// Bounds of a history file. A cluster that was promoted once a day for a century is well inside of them.
const (
	maxHistoryBytes = 1 << 20
	maxHistoryForks = 1 << 16
)

// ParseHistory reads the content of a timeline history file, which the replication command TIMELINE_HISTORY sends, as
// PostgreSQL itself does (readTimeLineHistory in src/backend/access/transam/timeline.c): a line for each ancestor with
// its timeline, white space, its switch point, and a reason that nobody reads. Empty lines and lines that begin with #
// are skipped. Where the server's sscanf would shut an eye (signs, 0x, long numbers, junk after the switch point)
// ParseHistory returns an error.
//
// It returns an error too when a timeline does not rise over the one before it, when one is 0, and when content has
// more than 1 MiB or 65,536 entries. That the last is an ancestor of the timeline asked about, so that its number is
// lower, only the caller can check. The History is not nil unless there is an error.
func ParseHistory(content []byte) (History, error) {
	if len(content) > maxHistoryBytes {
		return nil, fmt.Errorf("tracker: parse timeline history: %d bytes, want at most %d", len(content), maxHistoryBytes)
	}
	h := History{}
	number := 0
	for line := range bytes.SplitSeq(content, []byte("\n")) {
		number++
		line = bytes.TrimLeft(line, historySpace)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		f, ok := parseFork(line)
		switch {
		case !ok:
			return nil, fmt.Errorf("tracker: parse timeline history: line %d: %s: want a timeline and a switch point",
				number, quoteInput(line))
		case len(h) > 0 && f.Timeline <= h[len(h)-1].Timeline:
			return nil, fmt.Errorf("tracker: parse timeline history: line %d: timeline %d after %d",
				number, f.Timeline, h[len(h)-1].Timeline)
		case len(h) == maxHistoryForks:
			return nil, fmt.Errorf("tracker: parse timeline history: more than %d entries", maxHistoryForks)
		}
		h = append(h, f)
	}
	return h, nil
}

// historySpace is what isspace means in the C locale, but for the newline that ends a line.
const historySpace = " \t\v\f\r"

func parseFork(line []byte) (Fork, bool) {
	i := bytes.IndexAny(line, historySpace)
	if i < 0 {
		return Fork{}, false
	}
	timeline, end := line[:i], bytes.TrimLeft(line[i:], historySpace)
	if i := bytes.IndexAny(end, historySpace); i >= 0 {
		end = end[:i]
	}
	tli, err := strconv.ParseUint(string(timeline), 10, 32)
	lsn, ok := parseLSN(end)
	return Fork{Timeline: uint32(tli), End: lsn}, ok && err == nil && tli > 0
}

// End returns the position up to which the WAL of timeline tli belongs to this history; what was written on tli past
// it is lost here. It is false when tli is not an ancestor.
//
// That is the lowest switch point of tli and of all that came after it, which is not always the one in tli's own line.
// A recovery that follows timeline 2 and is told to stop before the point where 2 left 1 ends on timeline 1, yet
// PostgreSQL names 2 as the parent of the new timeline (StartupXLOG in src/backend/access/transam/xlog.c), and the
// file says 1 0/50000A0, 2 0/30160C8: of timeline 1 it has only what was written up to 0/30160C8.
func (h History) End(tli uint32) (LSN, bool) {
	end := LSN(math.MaxUint64)
	for i := len(h) - 1; i >= 0; i-- { //nolint:modernize // with slices.Backward it is not inlined: see view.judge
		end = min(end, h[i].End)
		if h[i].Timeline == tli {
			return end, true
		}
	}
	return 0, false
}
