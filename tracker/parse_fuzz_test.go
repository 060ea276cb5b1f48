package tracker_test

import (
	"strings"
	"testing"

	"github.com/walwake/walwake/tracker"
)

func FuzzParseLSN(f *testing.F) {
	for _, s := range append([]string{"0/174FFB0", "0/0174FFB0", "ffffffff/FFFFFFFF", "16/b374d848"}, badLSNs...) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := tracker.ParseLSN(s)
		var fromText tracker.LSN
		if textErr := fromText.UnmarshalText([]byte(s)); (err == nil) != (textErr == nil) || l != fromText {
			t.Fatalf("ParseLSN: %v, %v; UnmarshalText: %v, %v", l, err, fromText, textErr)
		}
		if err != nil {
			return
		}
		text := l.String()
		if again, err := tracker.ParseLSN(text); err != nil || again != l {
			t.Fatalf("%q is %v, its text %q is %v, %v", s, l, text, again, err)
		}
		if short := shortLSN(s); short != text {
			t.Fatalf("%q is %s, and should be %s", s, text, short)
		}
	})
}

// shortLSN is how %X/%X writes an LSN text.
func shortLSN(s string) string {
	hi, lo, _ := strings.Cut(strings.ToUpper(s), "/")
	short := func(s string) string {
		if s = strings.TrimLeft(s, "0"); s == "" {
			return "0"
		}
		return s
	}
	return short(hi) + "/" + short(lo)
}

func FuzzParseToken(f *testing.F) {
	for s := range tokenTexts {
		f.Add(s)
	}
	for _, s := range []string{"", "0/1", "v2.0.0.0-0", "v1.00.0.0-0", "v1.0.0.0-a", "v1.Z.0.0-0", "v1.+1.0.0-0", "v1.0.0.0-0\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := tracker.ParseToken(s)
		if err != nil {
			if !tok.IsZero() {
				t.Fatalf("an error, and yet %v", tok)
			}
			return
		}
		if got := tok.String(); got != s {
			t.Fatalf("%q and %q are the same token", s, got)
		}
		if strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~") != "" {
			t.Fatalf("%q needs escaping", s)
		}
	})
}

func FuzzTokenRoundTrip(f *testing.F) {
	f.Add(uint64(0), uint32(0), uint64(0))
	f.Add(uint64(1<<64-1), uint32(1<<32-1), uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, system uint64, timeline uint32, lsn uint64) {
		tok := tracker.Token{System: system, Timeline: timeline, LSN: tracker.LSN(lsn)}
		if got, err := tracker.ParseToken(tok.String()); err != nil || got != tok {
			t.Fatalf("%+v became %q, and that %+v, %v", tok, tok, got, err)
		}
	})
}

func FuzzParseHistory(f *testing.F) {
	f.Add([]byte("1\t0/50000A0\tno recovery target specified\n\n2\t0/30160C8\tafter LSN 0/3016088\n"))
	f.Add([]byte("# none\n"))
	f.Add([]byte("  7 1/2\r\n8\t0/1"))
	f.Fuzz(func(t *testing.T, content []byte) {
		h, err := tracker.ParseHistory(content)
		if (err == nil) != (h != nil) {
			t.Fatalf("%#v, %v", h, err)
		}
		for i, fork := range h {
			if fork.Timeline == 0 || i > 0 && fork.Timeline <= h[i-1].Timeline {
				t.Fatalf("timelines do not rise: %v", h)
			}
			if end, ok := h.End(fork.Timeline); !ok || end > fork.End {
				t.Fatalf("End(%d) = %v, %v: %v", fork.Timeline, end, ok, h)
			}
		}
	})
}
