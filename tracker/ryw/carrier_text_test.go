package ryw_test

import (
	"encoding"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

var (
	_ encoding.TextMarshaler   = (*ryw.Session)(nil)
	_ encoding.TextUnmarshaler = (*ryw.Session)(nil)
)

func TestTheTextOfASession(t *testing.T) {
	for _, c := range []struct {
		token tracker.Token
		alone bool
		want  string
	}{
		{tracker.Token{}, false, "v1.0.0.0-0"},
		{tracker.Token{}, true, "primary"},
		{token(5), false, "v1.7.1.0-5"},
		{token(5), true, "v1.7.1.0-5,primary"},
	} {
		s, got := ryw.NewSession(c.token), new(ryw.Session)
		if c.alone {
			s.RequirePrimary()
		}
		text, err := s.MarshalText()
		if err != nil || string(text) != c.want {
			t.Errorf("%v, %t: %s, %v", c.token, c.alone, text, err)
		}
		if err := got.UnmarshalText(text); err != nil || got.Token() != c.token || got.OnPrimary() != c.alone {
			t.Errorf("%s: %v, %t, %v", text, got.Token(), got.OnPrimary(), err)
		}
		if err := ryw.Extract(got, ryw.MapCarrier{ryw.TokenKey: c.want}); err != nil || got.Token() != c.token || got.OnPrimary() != c.alone {
			t.Errorf("%s: extracted %v, %t, %v", text, got.Token(), got.OnPrimary(), err)
		}
	}
	for _, text := range []string{"", ",", "x", "v1.made.up", "Primary", token(5).String() + ",", "s1." + token(5).String(), strings.Repeat("1", 1<<20), strings.Repeat("primary,", 8) + "primary"} {
		s := ryw.NewSession(token(3))
		if err := s.UnmarshalText([]byte(text)); err == nil || len(err.Error()) > 300 || s.Token() != token(3) || s.OnPrimary() {
			t.Errorf("%.40q: %v, %t, %v", text, s.Token(), s.OnPrimary(), err)
		}
	}
	later := ryw.NewSession(token(6))
	if err := later.UnmarshalText([]byte(token(5).String())); err != nil || later.Token() != token(6) {
		t.Errorf("it went back: %v, %v", later.Token(), err)
	}
}

// Whatever text a Session has at the moment, who reads by it sees what was written
// before: from the token, or from the primary.
func TestNoTextIsOlderThanTheSession(t *testing.T) {
	var s ryw.Session
	var written atomic.Int64
	var writing sync.WaitGroup
	defer writing.Wait()
	const writes = 100_000
	writing.Go(func() {
		for n := range int64(writes) {
			s.RequirePrimary() // a write whose token is not known, and one that covers it
			written.Store(n)
			s.Wrote(token(tracker.LSN(n)))
		}
	})
	for n := written.Load(); n < writes-1; n = written.Load() {
		text, _ := s.MarshalText()
		var got ryw.Session
		if err := got.UnmarshalText(text); err != nil {
			t.Fatal(err)
		}
		if int64(got.Token().LSN) < n && !got.OnPrimary() {
			t.Fatalf("%s after %d was written", text, n)
		}
		var merged ryw.Session
		n = written.Load()
		merged.Merge(&s)
		if int64(merged.Token().LSN) < n && !merged.OnPrimary() {
			t.Fatalf("merged %s after %d was written", merged.Token(), n)
		}
	}
}

// A message in JSON says what its sender has seen, and whether that is known.
func ExampleSession_MarshalText() {
	type orderCreated struct {
		Order int
		Seen  *ryw.Session
	}
	sender := ryw.NewSession(tracker.Token{System: 7, Timeline: 1, LSN: 0x174FFB0})
	body, _ := json.Marshal(orderCreated{12, sender})
	fmt.Println(string(body))

	var message orderCreated
	if err := json.Unmarshal(body, &message); err != nil {
		fmt.Println(err) // to the dead letters, or read from the primary
	}
	fmt.Println(message.Seen.Token())
	// Output:
	// {"Order":12,"Seen":"v1.7.1.0-174FFB0"}
	// v1.7.1.0-174FFB0
}
