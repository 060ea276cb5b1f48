package tracker_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/walwake/walwake/tracker"
)

var tokenTexts = map[string]tracker.Token{
	"v1.0.0.0-0":                   {},
	"v1.0.0.0-174FFB0":             {LSN: 0x174FFB0},
	"v1.1kkqojsdcyw9u.1.0-174FFB0": {System: 7446648400156243938, Timeline: 1, LSN: 0x174FFB0},
	"v1.0.12.16-B374D848":          {Timeline: 12, LSN: 0x16_B374D848},
	"v1.z.0.1-0":                   {System: 35, LSN: 1 << 32},
	"v1.3w5e11264sgsf.4294967295.FFFFFFFF-FFFFFFFF": {System: 1<<64 - 1, Timeline: 1<<32 - 1, LSN: 1<<64 - 1},
}

func TestTokenTextRoundTrips(t *testing.T) {
	for text, tok := range tokenTexts {
		if got := tok.String(); got != text {
			t.Errorf("String() = %q, want %q", got, text)
		}
		if got, err := tracker.ParseToken(text); err != nil || got != tok {
			t.Errorf("ParseToken(%q) = %+v, %v", text, got, err)
		}
		if got := (tok == tracker.Token{}); got != tok.IsZero() {
			t.Errorf("%s: IsZero() = %v", text, tok.IsZero())
		}
		if len(text) > tracker.MaxTokenLen {
			t.Errorf("%s: %d bytes, over MaxTokenLen", text, len(text))
		}
	}
	longest := tracker.Token{System: 1<<64 - 1, Timeline: 1<<32 - 1, LSN: 1<<64 - 1}
	if n := len(longest.String()); n != tracker.MaxTokenLen {
		t.Errorf("the longest token has %d bytes, MaxTokenLen says %d", n, tracker.MaxTokenLen)
	}
}

func TestTokenTextNeedsNoEscaping(t *testing.T) {
	for text := range tokenTexts {
		if q, p := url.QueryEscape(text), url.PathEscape(text); q != text || p != text {
			t.Errorf("%s is escaped to %s in a query, %s in a path", text, q, p)
		}
		cookie := &http.Cookie{Name: "t", Value: text}
		if got := cookie.String(); got != "t="+text || cookie.Valid() != nil {
			t.Errorf("%s in a cookie: %s", text, got)
		}
	}
}

func TestParseTokenRefusesEveryOtherSpelling(t *testing.T) {
	for _, in := range []string{
		"", " ", "v", "v1", "v1.", "v1...", "v1.0", "v1.0.0", "v1.0.0.", "v1.0.0.0", "v1.0.0.0-", "v1.0.0.-0",
		"v1..0.0-0", "v1.0..0-0",
		"v1.00.0.0-0", "v1.0.00.0-0", "v1.0.01.0-0", "v1.01.0.0-0", "v1.0.0.00-0", "v1.0.0.0-00", "v1.0.0.0-0174FFB0",
		"v1.0.0.0-174ffb0", "v1.0.0.a-0", "v1.Z.0.0-0", "V1.0.0.0-0",
		"v1.+1.0.0-0", "v1.0.+1.0-0", "v1.0.0.+1-0", "v1.0.0.0-+1", "v1.-1.0.0-0", "v1.0.-1.0-0", "v1.0.0.0--1",
		"v1.0.0.0-0 ", " v1.0.0.0-0", "v1.0.0.0-0\n", "v1.0.0.0-0\x00", "v1.0. 0.0-0",
		"v1.0.0.0/0", "v1.0.0.0.0", "v1.0.0.0-0-0", "v1.0.0.0-0.0",
		"v1:0:0:0-0", "v1.1_0.0.0-0", "v1.0.1_0.0-0", "v1.0.0x1.0-0", "v1.0.0.0-0x1", "v1.é.0.0-0",
		"v1.3w5e11264sgsg.0.0-0", "v1.zzzzzzzzzzzzz.0.0-0", "v1.0.4294967296.0-0", "v1.0.9999999999.0-0",
		"v1.0.0.100000000-0", "v1.0.0.0-100000000",
		strings.Repeat("v", tracker.MaxTokenLen+1), "v1.0.0.0-" + strings.Repeat("0", 1<<20), "\xff\xfe",
	} {
		got, err := tracker.ParseToken(in)
		if err == nil || !got.IsZero() {
			t.Errorf("ParseToken(%.60q) = %+v, %v; want an error", in, got, err)
			continue
		}
		if n := len(err.Error()); n > 512 {
			t.Errorf("ParseToken(%.60q): error of %d bytes", in, n)
		}
		tok := tracker.Token{LSN: 7}
		if tok.UnmarshalText([]byte(in)) == nil || tok.LSN != 7 {
			t.Errorf("UnmarshalText(%.60q) left %+v", in, tok)
		}
	}
}

func TestParseTokenErrorsSayWhatToDo(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "empty",
		"0/174FFB0":                     "ParseLSN",
		"0/0174FFB0":                    "ParseLSN",
		"v2.0.0.0-0":                    "reads v1",
		"v10.x":                         "reads v1",
		"v2." + strings.Repeat("a", 99): "reads v1",
		"v1." + strings.Repeat("a", 99): "102 bytes",
		"v01.0.0.0-0":                   "v1.<system>.<timeline>.<lsn>",
		"vx.0.0.0-0":                    "v1.<system>.<timeline>.<lsn>",
		"v1.0.0.0-0174FFB0":             "v1.<system>.<timeline>.<lsn>",
		".":                             "v1.<system>.<timeline>.<lsn>",
		strings.Repeat("A", 200):        `"` + strings.Repeat("A", 64) + `"…: 200 bytes, want at most 45`,
	} {
		if _, err := tracker.ParseToken(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseToken(%.60q): %v; want %q in it", in, err, want)
		}
	}
}

func TestTokenInJSONIsAStringAndNothingElse(t *testing.T) {
	type body struct {
		T tracker.Token  `json:"t"`
		P *tracker.Token `json:"p"`
		Z tracker.Token  `json:"z,omitzero"`
	}
	out, err := json.Marshal(body{T: tracker.Token{Timeline: 1, LSN: 2}})
	if want := `{"t":"v1.0.1.0-2","p":null}`; err != nil || string(out) != want {
		t.Fatalf("Marshal: %s, %v; want %s", out, err, want)
	}
	var b body
	if err := json.Unmarshal(out, &b); err != nil || b.T != (tracker.Token{Timeline: 1, LSN: 2}) || b.P != nil {
		t.Fatalf("Unmarshal: %+v, %v", b, err)
	}
	for _, bad := range []string{`null`, `0`, `""`, `"0/0"`, `false`, `{"LSN":1}`, `["v1.0.0.0-0"]`} {
		b := body{T: tracker.Token{LSN: 7}}
		if err := json.Unmarshal([]byte(`{"t":`+bad+`}`), &b); err == nil || b.T.LSN != 7 {
			t.Errorf("JSON %s: %+v, %v; want an error", bad, b.T, err)
		}
	}
}

func TestTokenScansTextAndRefusesNull(t *testing.T) {
	want := tracker.Token{System: 35, LSN: 1 << 32}
	var tok tracker.Token
	for _, src := range []any{"v1.z.0.1-0", []byte("v1.z.0.1-0")} {
		if err := tok.Scan(src); err != nil || tok != want {
			t.Errorf("Scan(%T): %+v, %v", src, tok, err)
		}
	}
	for _, src := range []any{nil, int64(0), "", []byte{}, true, "0/0"} {
		if err := tok.Scan(src); err == nil || tok != want {
			t.Errorf("Scan(%v): %+v, %v; want an error", src, tok, err)
		}
	}
	var null sql.Null[tracker.Token]
	if err := null.Scan(nil); err != nil || null.Valid {
		t.Errorf("sql.Null: %+v, %v", null, err)
	}
	if v, err := tok.Value(); v != "v1.z.0.1-0" || err != nil {
		t.Errorf("Value() = %v, %v", v, err)
	}
}

func TestTokenIsLoggedAsAGroup(t *testing.T) {
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("seen", "token", tracker.Token{System: 7, Timeline: 2, LSN: 0x174FFB0})
	if want := "token.system=7 token.timeline=2 token.lsn=0/174FFB0"; !strings.Contains(out.String(), want) {
		t.Errorf("logged: %s; want %s", out.String(), want)
	}
}

func TestTokenAppendTextAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, tracker.MaxTokenLen)
	tok := tracker.Token{System: 1<<64 - 1, Timeline: 1<<32 - 1, LSN: 1<<64 - 1}
	text := tok.String()
	if n := testing.AllocsPerRun(100, func() {
		buf, _ = tok.AppendText(buf[:0])
		tok, _ = tracker.ParseToken(text)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTokensSortBySystemThenTimelineThenLSN(t *testing.T) {
	sorted := []tracker.Token{
		{},
		{LSN: 9},
		{Timeline: 1, LSN: 8},
		{Timeline: 2, LSN: 7},
		{System: 1},
		{System: 1, Timeline: 1, LSN: 6},
		{System: 1, Timeline: 1, LSN: 7},
		{System: 2},
	}
	got := slices.Clone(sorted)
	slices.Reverse(got)
	slices.SortFunc(got, tracker.Token.Compare)
	if !slices.Equal(got, sorted) {
		t.Errorf("sorted: %v", got)
	}
}

func TestMergeTakesTheLater(t *testing.T) {
	for _, c := range []struct{ name, a, b, want string }{
		{"larger LSN", "v1.a.1.0-1", "v1.a.1.0-2", "v1.a.1.0-2"},
		{"later timeline wins over larger LSN", "v1.a.1.0-9", "v1.a.2.0-2", "v1.a.2.0-2"},
		{"system filled in", "v1.0.1.0-9", "v1.a.1.0-2", "v1.a.1.0-9"},
		{"system filled in from the loser", "v1.0.2.0-1", "v1.a.1.0-2", "v1.a.2.0-1"},
		{"bare LSN is larger", "v1.0.0.0-9", "v1.a.3.0-2", "v1.a.3.0-9"},
		{"bare LSN is smaller", "v1.0.0.0-1", "v1.a.3.0-2", "v1.a.3.0-2"},
		{"zero token", "v1.0.0.0-0", "v1.a.3.0-2", "v1.a.3.0-2"},
		{"two zero tokens", "v1.0.0.0-0", "v1.0.0.0-0", "v1.0.0.0-0"},
	} {
		for _, p := range [][2]string{{c.a, c.b}, {c.b, c.a}} {
			a, errA := tracker.ParseToken(p[0])
			b, errB := tracker.ParseToken(p[1])
			got, err := a.Merge(b)
			if err := errors.Join(errA, errB, err); err != nil || got.String() != c.want {
				t.Errorf("%s: %s and %s: %s, %v; want %s", c.name, p[0], p[1], got, err, c.want)
			}
		}
	}
}

func TestMergeOfTwoClustersIsAnError(t *testing.T) {
	got, err := tracker.Token{System: 1, LSN: 5}.Merge(tracker.Token{System: 2, LSN: 6})
	if !errors.Is(err, tracker.ErrWrongSystem) || !got.IsZero() {
		t.Errorf("Merge: %v, %v; want ErrWrongSystem", got, err)
	}
}

// drawToken draws from few values, so that equal ones meet.
func drawToken(t *rapid.T, name string, lowestTimeline uint32) tracker.Token {
	return tracker.Token{
		System:   rapid.Uint64Range(0, 2).Draw(t, name+" system"),
		Timeline: rapid.Uint32Range(lowestTimeline, 3).Draw(t, name+" timeline"),
		LSN:      tracker.LSN(rapid.Uint64Range(0, 4).Draw(t, name+" lsn")),
	}
}

func TestMergeIsCommutativeIdempotentAndHasAnIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawToken(t, "a", 0), drawToken(t, "b", 0)
		ab, errAB := a.Merge(b)
		ba, errBA := b.Merge(a)
		if ab != ba || (errAB == nil) != (errBA == nil) {
			t.Fatalf("a+b = %v, %v; b+a = %v, %v", ab, errAB, ba, errBA)
		}
		if aa, err := a.Merge(a); aa != a || err != nil {
			t.Fatalf("a+a = %v, %v", aa, err)
		}
		if a0, err := a.Merge(tracker.Token{}); a0 != a || err != nil {
			t.Fatalf("a+0 = %v, %v", a0, err)
		}
		if errAB != nil {
			return
		}
		if abb, err := ab.Merge(b); abb != ab || err != nil {
			t.Fatalf("(a+b)+b = %v, %v; a+b = %v", abb, err, ab)
		}
	})
}

func TestMergeIsAssociativeWhereTimelinesAreKnown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawToken(t, "a", 1), drawToken(t, "b", 1), drawToken(t, "c", 1)
		if rapid.Bool().Draw(t, "bare") { // all not known is as good as all known
			a.Timeline, b.Timeline, c.Timeline = 0, 0, 0
		}
		left, errL := mergeAll(a, b, c)
		right, errR := mergeAll(b, c, a) // with commutativity: a+(b+c)
		if left != right || (errL == nil) != (errR == nil) {
			t.Fatalf("(a+b)+c = %v, %v; a+(b+c) = %v, %v", left, errL, right, errR)
		}
	})
}

// What the comment of Merge warns of, and its way out.
func TestMergeOfBareLSNsLastKeepsThem(t *testing.T) {
	one, bare, two := tracker.Token{Timeline: 1, LSN: 200}, tracker.Token{LSN: 300}, tracker.Token{Timeline: 2, LSN: 250}
	if got, err := mergeAll(one, bare, two); err != nil || got != two {
		t.Errorf("bare LSN in the middle: %v, %v; the comment of Merge says it is displaced", got, err)
	}
	want := tracker.Token{Timeline: 2, LSN: 300}
	for _, first := range [][]tracker.Token{{one, two}, {two, one}} {
		if got, err := mergeAll(first[0], first[1], bare); err != nil || got != want {
			t.Errorf("bare LSN last: %v, %v; want %v", got, err, want)
		}
	}
}

func mergeAll(first tracker.Token, rest ...tracker.Token) (tracker.Token, error) {
	var err error
	for _, tok := range rest {
		if first, err = first.Merge(tok); err != nil {
			return first, err
		}
	}
	return first, nil
}
