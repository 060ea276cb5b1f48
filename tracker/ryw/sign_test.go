package ryw

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
)

var (
	signTime  = time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC)
	signToken = tracker.Token{System: 7446648400156243938, Timeline: 1, LSN: 0x174FFB0}
)

func secretOf(b byte) Secret { return bytes.Repeat([]byte{b}, MinSecretLen) }

func keysOf(t testing.TB, cfg KeysConfig) *Keys {
	t.Helper()
	k, err := NewKeys(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOpenReadsWhatSignWrote(t *testing.T) {
	k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a')}, MaxAge: -1})
	for _, tok := range []tracker.Token{{}, signToken, {System: math.MaxUint64, Timeline: math.MaxUint32, LSN: math.MaxUint64}} {
		for _, at := range []time.Time{{}, time.Unix(0, 0), signTime, time.Unix(maxSigned, 0), time.Unix(maxSigned+1, 0)} {
			text := k.Sign(tok, at)
			if len(text) > MaxSignedLen {
				t.Fatalf("%d bytes, and MaxSignedLen is %d", len(text), MaxSignedLen)
			}
			if strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~") != "" {
				t.Fatalf("%q needs escaping", text)
			}
			if got, err := k.Open(text, time.Unix(maxSigned, 0)); err != nil || got != tok {
				t.Fatalf("signed %v at %v, opened %v, %v", tok, at, got, err)
			}
		}
	}
	longest := k.Sign(tracker.Token{System: math.MaxUint64, Timeline: math.MaxUint32, LSN: math.MaxUint64}, time.Unix(maxSigned, 0))
	if len(longest) != MaxSignedLen {
		t.Fatalf("the longest text has %d bytes, and MaxSignedLen is %d", len(longest), MaxSignedLen)
	}
}

// Whoever holds a token for a day reads it with the next version: the text may
// only change together with its version.
func TestTextOfVersionOneStaysTheSame(t *testing.T) {
	k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a')}, Audience: "shop"})
	const want = "s1.6orn.towpk0.v1.1kkqojsdcyw9u.1.0-174FFB0.DP8im8S7rf0jjwoF2f0RXlKvQhFYkIEcOVAdPGtTGTY"
	if got := k.Sign(signToken, signTime); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

func TestEveryChangeOfTheTextIsForged(t *testing.T) {
	k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a'), secretOf('b')}})
	text := k.Sign(signToken, signTime)
	check := func(changed string) {
		t.Helper()
		if got, err := k.Open(changed, signTime); !errors.Is(err, ErrForged) || !got.IsZero() {
			t.Fatalf("%q: %v, %v", changed, got, err)
		}
	}
	for i := range text {
		for bit := range 8 {
			b := []byte(text)
			b[i] ^= 1 << bit
			check(string(b))
		}
		check(text[:i])
		check(text[i+1:])
		check(text[:i] + "." + text[i:])
	}
	for _, s := range []string{
		"", ".", "s1", "s1.", "s1..", "s1....", "s2" + text[2:], text + ".", text + "=", text + "\n", " " + text,
		signToken.String(), strings.Repeat("s1.", 1<<20), strings.Repeat("a", MaxSignedLen+1),
	} {
		check(s)
	}
	if _, err := k.Open(text+strings.Repeat("x", MaxSignedLen), signTime); err == nil || !strings.Contains(err.Error(), "want at most") {
		t.Fatalf("too long, and read all the same: %v", err)
	}
	check(keysOf(t, KeysConfig{Secrets: []Secret{secretOf('c')}}).Sign(signToken, signTime))
	if _, err := new(Keys).Open(text, signTime); !errors.Is(err, ErrForged) {
		t.Fatalf("the zero Keys: %v", err)
	}
}

// Two keys of one id, which four characters cannot rule out, both verify.
func TestKeysOfTheSameIDAreAllTried(t *testing.T) {
	k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a'), secretOf('b')}})
	k.keys()[1].id = k.keys()[0].id
	second := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('b')}})
	second.keys()[0].id = k.keys()[0].id
	if got, err := k.Open(second.Sign(signToken, signTime), signTime); err != nil || got != signToken {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestAudiencesDoNotTakeEachOthersTokens(t *testing.T) {
	audiences := []string{"", "shop", "shop ", "shop\x00", "staging"}
	for _, a := range audiences {
		text := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a')}, Audience: a}).Sign(signToken, signTime)
		for _, b := range audiences {
			_, err := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a')}, Audience: b}).Open(text, signTime)
			if a == b && err != nil || a != b && !errors.Is(err, ErrForged) {
				t.Errorf("for %q, opened by %q: %v", a, b, err)
			}
		}
	}
}

func TestNobodysTokenIsRefusedWhileTheSecretIsChanged(t *testing.T) {
	steps := [][]Secret{
		{secretOf('o')},
		{secretOf('o'), secretOf('n')},
		{secretOf('n'), secretOf('o')},
		{secretOf('n')},
	}
	for i, step := range steps {
		text := keysOf(t, KeysConfig{Secrets: step}).Sign(signToken, signTime)
		// While a step is rolled out some processes are a step behind, or ahead. The
		// last step comes when no token of the old secret is young enough any more.
		for j := max(i-1, 0); j <= min(i+1, len(steps)-1); j++ {
			now := signTime
			if j == len(steps)-1 && i < j-1 {
				now = now.Add(25 * time.Hour)
			}
			if _, err := keysOf(t, KeysConfig{Secrets: steps[j]}).Open(text, now); err != nil {
				t.Errorf("signed at step %d, opened at %d: %v", i, j, err)
			}
		}
	}
	old := keysOf(t, KeysConfig{Secrets: steps[0]}).Sign(signToken, signTime)
	if _, err := keysOf(t, KeysConfig{Secrets: steps[3]}).Open(old, signTime); !errors.Is(err, ErrForged) {
		t.Errorf("a secret that was dropped: %v", err)
	}
}

func TestAge(t *testing.T) {
	for _, c := range []struct {
		name   string
		maxAge time.Duration
		age    time.Duration
		want   error
	}{
		{"at once", 0, 0, nil},
		{"the default is a day", 0, 24 * time.Hour, nil},
		{"over a day", 0, 24*time.Hour + time.Second, ErrStale},
		{"at the limit", time.Minute, time.Minute, nil},
		{"over the limit", time.Minute, time.Minute + time.Second, ErrStale},
		{"no limit", -1, 10 * 365 * 24 * time.Hour, nil},
		{"another clock is a little ahead", 0, -time.Minute, nil},
		{"another clock is far ahead", 0, -time.Minute - time.Second, ErrStale},
		{"far ahead, no limit", -1, -time.Hour, ErrStale},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a')}, MaxAge: c.maxAge})
			got, err := k.Open(k.Sign(signToken, signTime), signTime.Add(c.age))
			if !errors.Is(err, c.want) || (err == nil) != (got == signToken) {
				t.Fatalf("%v, %v", got, err)
			}
		})
	}
	t.Run("not cut short by the fraction of a second", func(t *testing.T) {
		k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a')}, MaxAge: time.Second})
		at := signTime.Add(999 * time.Millisecond)
		if _, err := k.Open(k.Sign(signToken, at), at.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	})
}

// What a newer walwake has signed with the same key, this one says it cannot read.
func TestSignedTextsThatCannotBeRead(t *testing.T) {
	k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('a')}})
	first := k.keys()[0]
	if _, err := k.Open(first.sign(signedVersion+first.id+".0.v2.anything"), time.Unix(0, 0)); err == nil ||
		errors.Is(err, ErrForged) || !strings.Contains(err.Error(), "version v2") {
		t.Errorf("a token of the next version: %v", err)
	}
	for _, body := range []string{"", ".", "-1.v1.0.0.0-0", "zzzzzzzzz.v1.0.0.0-0", ".v1.0.0.0-0", "0"} {
		if tok, err := k.Open(first.sign(signedVersion+first.id+"."+body), time.Unix(0, 0)); err == nil || !tok.IsZero() {
			t.Errorf("%q: %v, %v", body, tok, err)
		}
	}
}

func TestNewKeysRefuses(t *testing.T) {
	for want, cfg := range map[string]KeysConfig{
		"KeysConfig.Secrets is empty":                          {},
		"KeysConfig.Secrets[1] has 31 bytes, want at least 32": {Secrets: []Secret{secretOf('a'), secretOf('b')[1:]}},
		"KeysConfig.Secrets[2] is Secrets[0] again":            {Secrets: []Secret{secretOf('a'), secretOf('b'), secretOf('a')}},
		"KeysConfig.MaxAge is 999ms, want at least 1s":         {Secrets: []Secret{secretOf('a')}, MaxAge: 999 * time.Millisecond},
		"KeysConfig.Secrets[0] has 0 bytes, want at least 32":  {Secrets: []Secret{nil}},
	} {
		if k, err := NewKeys(cfg); err == nil || k != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestLaterChangesOfTheSecretDoNotReachTheKeys(t *testing.T) {
	secret := secretOf('a')
	k := keysOf(t, KeysConfig{Secrets: []Secret{secret}})
	text := k.Sign(signToken, signTime)
	clear(secret)
	if _, err := k.Open(text, signTime); err != nil {
		t.Fatal(err)
	}
}

func TestNoOutputShowsTheSecret(t *testing.T) {
	secret := Secret("correct-horse-battery-staple-and-then-some")
	cfg := KeysConfig{Secrets: []Secret{secret, secretOf('x')}}
	k := keysOf(t, cfg)
	type holder struct{ keys Keys } // fmt asks no method of what is in an unexported field
	values := []any{secret, &secret, cfg, &cfg, k, *k, holder{*k}, &holder{*k}, []*Keys{k}, map[string]any{"k": cfg}, HTTPConfig{Keys: k}}

	var out strings.Builder
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v)
	}
	_, err := NewKeys(KeysConfig{Secrets: []Secret{secret, secret}})
	fmt.Fprintln(&out, err)
	_, err = NewKeys(KeysConfig{Secrets: []Secret{secret[:20]}})
	fmt.Fprintln(&out, err)
	_, err = k.Open(k.Sign(signToken, signTime)+"x", signTime)
	fmt.Fprintln(&out, err)

	for name, b := range map[string][]byte{"the secret": secret, "the derived key": sum(secret, "walwake signed token 1 for ")} {
		decimal := strings.Trim(fmt.Sprintf("%d", b[:6]), "[]")
		for _, text := range []string{
			string(b[:12]), hex.EncodeToString(b[:6]), strings.ToUpper(hex.EncodeToString(b[:6])),
			base64.StdEncoding.EncodeToString(b)[:10], decimal, strings.ReplaceAll(decimal, " ", ", "),
			strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", b[:4]), "[]byte{"), "}"),
		} {
			if strings.Contains(out.String(), text) {
				t.Errorf("%s is in the output as %q", name, text)
			}
		}
	}
	if !strings.Contains(out.String(), "ryw.Keys{2, ") {
		t.Error("Keys do not print at all")
	}
}

func FuzzOpen(f *testing.F) {
	k := keysOf(f, KeysConfig{Secrets: []Secret{secretOf('a'), secretOf('b')}, MaxAge: -1})
	first := k.keys()[0]
	text := k.Sign(signToken, signTime)
	for _, s := range []string{"", "s1.", text, text[:len(text)-1], "s1." + first.id + "...", signToken.String()} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := k.Open(s, signTime); err != nil && (!errors.Is(err, ErrForged) || !tok.IsZero()) || err == nil && s != text {
			t.Fatalf("%q: %v, %v", s, tok, err)
		}
		// The same behind a sum that is right: nothing but what Sign writes is a token.
		signed := first.sign(signedVersion + first.id + "." + s)
		tok, err := k.Open(signed, time.Unix(maxSigned, 0))
		if err != nil {
			if !tok.IsZero() {
				t.Fatalf("an error, and yet %v", tok)
			}
			return
		}
		if !strings.HasSuffix(s, "."+tok.String()) {
			t.Fatalf("%q is %v", s, tok)
		}
	})
}
