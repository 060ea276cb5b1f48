package ryw_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

func token(lsn tracker.LSN) tracker.Token { return tracker.Token{System: 7, Timeline: 1, LSN: lsn} }

func TestExtractReadsWhatInjectPut(t *testing.T) {
	header, metadata, attributes := http.Header{}, map[string][]string{}, map[string]string{}
	for name, c := range map[string]ryw.Carrier{
		"http.Header": header, "metadata": ryw.MetadataCarrier(metadata), "map": ryw.MapCarrier(attributes),
	} {
		t.Run(name, func(t *testing.T) {
			var got ryw.Session
			ryw.Inject(new(ryw.Session), c)
			if v := c.Values(ryw.TokenKey); len(v) != 0 {
				t.Fatalf("who has seen nothing puts in %q", v)
			}
			if err := ryw.Extract(&got, c); err != nil || !got.Token().IsZero() {
				t.Fatalf("nothing in it: %v, %v", got.Token(), err)
			}
			ryw.Inject(ryw.NewSession(token(5)), c)
			ryw.Inject(ryw.NewSession(token(4)), c)
			if v := c.Values(ryw.TokenKey); len(v) != 1 {
				t.Fatalf("put twice: %q", v)
			}
			if err := ryw.Extract(&got, c); err != nil || got.Token() != token(4) {
				t.Fatalf("%v, %v", got.Token(), err)
			}
		})
	}
	if _, ok := header["Walwake-Token"]; !ok || metadata["walwake-token"] == nil || attributes["walwake-token"] == "" {
		t.Fatalf("keys: %v, %v, %v", header, metadata, attributes)
	}
}

// Who must read from the primary says so to whom it asks.
func TestThePrimaryIsRequiredOfWhoeverReceives(t *testing.T) {
	for _, tok := range []tracker.Token{{}, token(5)} {
		sender, c := ryw.NewSession(tok), http.Header{}
		sender.RequirePrimary()
		ryw.Inject(sender, c)
		var got ryw.Session
		if err := ryw.Extract(&got, c); err != nil || got.Token() != tok || !got.OnPrimary() {
			t.Errorf("%v: %v, %t, %v", tok, got.Token(), got.OnPrimary(), err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header = c
		wrap(t, ryw.HTTPConfig{Unsigned: true}, func(_ http.ResponseWriter, r *http.Request) {
			if s := session(r); s.Token() != tok || !s.OnPrimary() {
				t.Errorf("another service: %v, %t", s.Token(), s.OnPrimary())
			}
		}).ServeHTTP(httptest.NewRecorder(), r)
	}
}

func TestExtractTakesTheLastAndNeverGoesBack(t *testing.T) {
	const refused = ^tracker.LSN(0)
	for _, c := range []struct {
		has    tracker.LSN
		values []string
		want   tracker.LSN
	}{
		{3, []string{token(5).String()}, 5},
		{6, []string{token(5).String()}, 6},
		{3, []string{token(4).String(), token(5).String(), token(2).String()}, 5},
		{3, []string{token(4).String() + ", "}, refused},
		{3, []string{token(4).String() + "\t, " + token(5).String()}, 5},
		{3, []string{token(5).String(), "v1.made.up"}, refused},
		{3, []string{""}, refused},
		{3, strings.Split(strings.Repeat(token(5).String()+" ", 8), " ")[:8], 5},
		{3, strings.Split(strings.Repeat(token(5).String()+" ", 9), " ")[:9], refused},
		{3, []string{strings.Repeat(",", 1<<20)}, refused},
	} {
		s := ryw.NewSession(token(c.has))
		err := ryw.Extract(s, ryw.MetadataCarrier{ryw.TokenKey: c.values})
		if c.want == refused {
			if err == nil || len(err.Error()) > 300 || s.Token() != token(c.has) {
				t.Errorf("%.60q: %v, %v", c.values, s.Token(), err)
			}
		} else if err != nil || s.Token() != token(c.want) {
			t.Errorf("%.60q: %v, %v", c.values, s.Token(), err)
		}
	}
}

// A worker reads what its message is about.
func ExampleExtract() {
	// The sender, after its commit:
	sender := ryw.NewSession(tracker.Token{System: 7, Timeline: 1, LSN: 0x174FFB0})
	attributes := map[string]string{"type": "order.created"}
	ryw.Inject(sender, ryw.MapCarrier(attributes))
	fmt.Println(attributes)

	// The worker, before it reads:
	session := new(ryw.Session)
	if err := ryw.Extract(session, ryw.MapCarrier(attributes)); err != nil {
		fmt.Println(err) // to the dead letters, or read from the primary
	}
	fmt.Println(session.Token())
	// Output:
	// map[type:order.created walwake-token:v1.7.1.0-174FFB0]
	// v1.7.1.0-174FFB0
}
