package sidecar

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walwake/walwake/tracker"
)

// parameters reads a query that may have each of the names once, and nothing else.
func parameters(query string, names ...string) (map[string]string, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	got := make(map[string]string, len(values))
	for name, all := range values {
		switch {
		case !slices.Contains(names, name):
			return nil, fmt.Errorf("parameter %.64q is not known here: want %s", name, orNone(names))
		case len(all) > 1:
			return nil, fmt.Errorf("parameter %s is given %d times: give it once", name, len(all))
		}
		got[name] = all[0]
	}
	return got, nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// ParseTarget reads a token or a bare LSN, as "walwake wait" takes them.
func ParseTarget(text string) (tracker.Token, error) {
	if text == "" {
		return tracker.Token{}, errors.New("the token is empty: did what made it fail?")
	}
	target, err := tracker.ParseToken(text)
	if err != nil && strings.Contains(text, "/") {
		target.LSN, err = tracker.ParseLSN(text)
	} else if err != nil && !strings.HasPrefix(text, "v") {
		err = fmt.Errorf("%w, or an LSN such as 0/174FFB0", err)
	}
	if err == nil && target.LSN == 0 {
		err = fmt.Errorf("%.64q names no position", text)
	}
	if err != nil {
		return tracker.Token{}, err
	}
	return target, nil
}

// parseTimeout reads how long to wait; 0 asks and does not wait.
func parseTimeout(text string, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil || d < 0:
		return 0, fmt.Errorf("timeout %.64q: want a duration with its unit, such as 500ms or 3s, from 0 to %s", text, most)
	case d > most:
		return 0, fmt.Errorf("timeout %s: want at most %s: wait again when it is over", d, most)
	}
	return d, nil
}

// MaxLag is how far behind a replica may be: bytes, or else time.
type MaxLag struct {
	Bytes  uint64
	Time   time.Duration
	InTime bool
}

var byteUnits = []struct {
	name string
	size uint64
}{{"kB", 1 << 10}, {"MB", 1 << 20}, {"GB", 1 << 30}, {"TB", 1 << 40}, {"B", 1}, {"", 1}}

// ParseMaxLag reads bytes, in PostgreSQL's units of 1024, or a duration.
func ParseMaxLag(text string) (MaxLag, error) {
	for _, u := range byteUnits {
		digits, is := strings.CutSuffix(text, u.name)
		if !is {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 64)
		if err == nil && digits[0] != '+' && n <= math.MaxUint64/u.size {
			return MaxLag{Bytes: n * u.size}, nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return MaxLag{Time: d, InTime: true}, nil
	}
	return MaxLag{}, fmt.Errorf("max_lag %.64q: want bytes, such as 1048576 or 16MB, or a duration with its unit, such as 500ms", text)
}

func (m MaxLag) String() string {
	if m.InTime {
		return m.Time.String()
	}
	return strconv.FormatUint(m.Bytes, 10) + " bytes"
}
