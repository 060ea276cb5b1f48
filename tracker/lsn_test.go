package tracker_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/walwake/walwake/tracker"
)

func TestParseLSNReadsWhatServersPrint(t *testing.T) {
	for in, want := range map[string]tracker.LSN{
		"0/0":               0,
		"0/174FFB0":         0x174FFB0, // PostgreSQL 18
		"0/0174FFB0":        0x174FFB0, // PostgreSQL 19
		"0/174ffb0":         0x174FFB0,
		"00000000/00000000": 0,
		"1/0":               1 << 32,
		"16/B374D848":       0x16_B374D848,
		"FFFFFFFF/FFFFFFFF": 1<<64 - 1,
		"aBcDeF01/9":        0xABCDEF01_00000009,
	} {
		if got, err := tracker.ParseLSN(in); err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
}

// badLSNs are not LSNs, to the server neither.
var badLSNs = []string{
	"", "/", "0", "0/", "/0", "//", "0//0", "0/0/0", "0/0/", "/0/0",
	" 0/0", "0/0 ", "0 /0", "0/ 0", "0/0\n", "\t0/0", "0/0\r\n",
	"0/16B3748garbage", "0/16B3748 garbage", "0/1FFFFFFFF", "1FFFFFFFF/0", "000000000/0", "0/000000000",
	"+0/0", "-1/0", "0/-1", "0/+1", "0x1/0", "0/0x1", "g/0", "0/G", "0:0", "0-174FFB0", `0\0`,
	"0/1_0", "0/1,0", "0/1.0", "NULL", "0/٣", "\uff10/0", "0/0é",
	"FFFFFFFF/FFFFFFFFF", "FFFFFFFFF/FFFFFFFF",
}

func TestParseLSNRefusesEverythingElse(t *testing.T) {
	for _, in := range append([]string{"0/0\x00", "\x000/0", "0/\xff", strings.Repeat("0", 1<<20) + "/0"}, badLSNs...) {
		got, err := tracker.ParseLSN(in)
		if err == nil || got != 0 {
			t.Errorf("ParseLSN(%.40q) = %v, %v; want 0 and an error", in, got, err)
			continue
		}
		if len(err.Error()) > 512 {
			t.Errorf("ParseLSN(%.40q): error of %d bytes", in, len(err.Error()))
		}
	}
}

func TestLSNStringIsShortAndUpperCase(t *testing.T) {
	for l, want := range map[tracker.LSN]string{
		0:                    "0/0",
		0x174FFB0:            "0/174FFB0",
		0x16_B374D848:        "16/B374D848",
		1 << 32:              "1/0",
		0xF_0000000F:         "F/F",
		0x10_00000010:        "10/10",
		0xABCDEF:             "0/ABCDEF",
		1<<64 - 1:            "FFFFFFFF/FFFFFFFF",
		0x1000_0000_10000000: "10000000/10000000",
	} {
		if got := l.String(); got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
	}
}

func TestLSNBehind(t *testing.T) {
	const most = tracker.LSN(1<<64 - 1)
	for _, c := range []struct {
		l, target tracker.LSN
		want      uint64
	}{{0, 0, 0}, {0, 1, 1}, {1, 0, 0}, {5, 5, 0}, {0, most, 1<<64 - 1}, {most, 0, 0}, {most - 1, most, 1}} {
		if got := c.l.Behind(c.target); got != c.want {
			t.Errorf("LSN(%v).Behind(%v) = %d, want %d", c.l, c.target, got, c.want)
		}
	}
}

func TestNormalizeTakesBackPageHeadersOnly(t *testing.T) {
	const block, seg = 8 << 10, 16 << 20
	for _, c := range []struct {
		name       string
		l          tracker.LSN
		block, seg uint64
		want       tracker.LSN
	}{
		{"short header at a page's start", 0x2002018, block, seg, 0x2002000},
		{"long header at a segment's start", 0x2000028, block, seg, 0x2000000},
		{"40 in a page that begins no segment is a position", 0x2002028, block, seg, 0x2002028},
		{"24 at a segment's start", 0x2000018, block, seg, 0x2000000},
		{"a page's start", 0x2002000, block, seg, 0x2002000},
		{"a segment's start", 0x2000000, block, seg, 0x2000000},
		{"one byte into a record", 0x2002019, block, seg, 0x2002019},
		{"inside a page", 0x20027F8, block, seg, 0x20027F8},
		{"past 4 GiB", 0x7_00000028, block, seg, 0x7_00000000},
		{"other sizes: page", 0x2001018, 4 << 10, 1 << 20, 0x2001000},
		{"other sizes: segment", 0x2100028, 4 << 10, 1 << 20, 0x2100000},
		{"other sizes: no segment's start", 0x2100028, block, seg, 0x2100028},
		{"segment of 1 GiB", 0x40000028, 64 << 10, 1 << 30, 0x40000000},
		{"block size not known", 0x2002018, 0, seg, 0x2002018},
		{"segment size not known", 0x2000028, block, 0, 0x2000028},
		{"neither known", 0x2000018, 0, 0, 0x2000018},
		{"zero", 0, block, seg, 0},
		{"the highest", 1<<64 - 1, block, seg, 1<<64 - 1},
	} {
		got := c.l.Normalize(c.block, c.seg)
		if got != c.want {
			t.Errorf("%s: %v.Normalize(%d, %d) = %v, want %v", c.name, c.l, c.block, c.seg, got, c.want)
		}
		if again := got.Normalize(c.block, c.seg); again != got {
			t.Errorf("%s: normalized twice: %v, then %v", c.name, got, again)
		}
	}
}

func TestLSNInJSONIsAStringAndNothingElse(t *testing.T) {
	type row struct {
		L tracker.LSN            `json:"l"`
		P *tracker.LSN           `json:"p"`
		M map[tracker.LSN]string `json:"m,omitempty"`
	}
	out, err := json.Marshal(row{L: 0x1_00000002, M: map[tracker.LSN]string{3: "x"}})
	if want := `{"l":"1/2","p":null,"m":{"0/3":"x"}}`; err != nil || string(out) != want {
		t.Fatalf("Marshal: %s, %v; want %s", out, err, want)
	}
	var r row
	if err := json.Unmarshal(out, &r); err != nil || r.L != 0x1_00000002 || r.P != nil || r.M[3] != "x" {
		t.Fatalf("Unmarshal: %+v, %v", r, err)
	}
	if err := json.Unmarshal([]byte(`{"l":"0\/1","p":"0/2"}`), &r); err != nil || r.L != 1 || *r.P != 2 {
		t.Fatalf("Unmarshal: %+v, %v", r, err)
	}
	for _, bad := range []string{`null`, `5`, `5.0`, `""`, `"0/0 "`, `true`, `["0/1"]`, `{}`, `"0\u0000/1"`} {
		r := row{L: 7}
		if err := json.Unmarshal([]byte(`{"l":`+bad+`}`), &r); err == nil {
			t.Errorf("JSON %s became %v", bad, r.L)
		} else if r.L != 7 {
			t.Errorf("JSON %s: an error, and yet %v", bad, r.L)
		}
	}
	if err := new(tracker.LSN).UnmarshalJSON(nil); err == nil {
		t.Error("no JSON at all became an LSN")
	}
}

func TestLSNTextAndBinaryFormsRoundTrip(t *testing.T) {
	for _, l := range []tracker.LSN{0, 1, 0x174FFB0, 1 << 32, 1<<64 - 1} {
		var fromText, fromBinary tracker.LSN
		text, _ := l.MarshalText()
		appended, _ := l.AppendText([]byte("at "))
		if err := fromText.UnmarshalText(text); err != nil || fromText != l || string(appended) != "at "+l.String() {
			t.Errorf("text %q, appended %q: %v, %v", text, appended, fromText, err)
		}
		bin, _ := l.MarshalBinary()
		if err := fromBinary.UnmarshalBinary(bin); err != nil || fromBinary != l || len(bin) != 8 {
			t.Errorf("binary %x: %v, %v", bin, fromBinary, err)
		}
	}
	if bin, _ := tracker.LSN(0x01020304_05060708).AppendBinary([]byte{0}); !bytes.Equal(bin, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("AppendBinary: % x", bin)
	}
	for _, n := range []int{0, 7, 9} {
		l := tracker.LSN(5)
		if err := l.UnmarshalBinary(make([]byte, n)); err == nil || l != 5 {
			t.Errorf("%d bytes became %v, %v", n, l, err)
		}
	}
}

func TestLSNScansTextAndRefusesNull(t *testing.T) {
	var l tracker.LSN
	for _, src := range []any{"0/A", []byte("0/A")} {
		if err := l.Scan(src); err != nil || l != 10 {
			t.Errorf("Scan(%T): %v, %v", src, l, err)
		}
	}
	for _, src := range []any{nil, int64(1), uint64(1), 1.0, true, "", "1", []byte(nil), tracker.LSN(1)} {
		if err := l.Scan(src); err == nil || l != 10 {
			t.Errorf("Scan(%v): %v, %v; want an error", src, l, err)
		}
	}
	if err := l.Scan(nil); !strings.Contains(err.Error(), "sql.Null[LSN]") {
		t.Errorf("the error for NULL does not say what to do: %v", err)
	}
	var null sql.Null[tracker.LSN]
	if err := null.Scan(nil); err != nil || null.Valid {
		t.Errorf("sql.Null: %+v, %v", null, err)
	}
	if err := null.Scan("0/A"); err != nil || !null.Valid || null.V != 10 {
		t.Errorf("sql.Null: %+v, %v", null, err)
	}
	if v, err := tracker.LSN(10).Value(); v != "0/A" || err != nil {
		t.Errorf("Value() = %v, %v", v, err)
	}
}

func TestLSNIsLoggedAsText(t *testing.T) {
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("seen", "at", tracker.LSN(0x174FFB0))
	if !strings.Contains(out.String(), "at=0/174FFB0") {
		t.Errorf("logged: %s", out.String())
	}
}

func TestLSNParsingAndAppendingAllocateNothing(t *testing.T) {
	buf := make([]byte, 0, 64)
	text := []byte("16/B374D848")
	var l tracker.LSN
	if n := testing.AllocsPerRun(100, func() {
		l, _ = tracker.ParseLSN("16/B374D848")
		_ = l.UnmarshalText(text)
		buf, _ = l.AppendText(buf[:0])
		buf, _ = l.AppendBinary(buf[:0])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
