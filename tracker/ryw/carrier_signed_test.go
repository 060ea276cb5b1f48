package ryw_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

func TestASignedMessageSaysWhatItsSenderHasSeen(t *testing.T) {
	k := keys(t, "a")
	for name, c := range map[string]ryw.Carrier{
		"http.Header": http.Header{}, "metadata": ryw.MetadataCarrier{}, "map": ryw.MapCarrier{},
	} {
		t.Run(name, func(t *testing.T) {
			var got ryw.Session
			k.Inject(new(ryw.Session), c)
			if v := c.Values(ryw.TokenKey); len(v) != 0 {
				t.Fatalf("who has seen nothing puts in %q", v)
			}
			if err := k.Extract(&got, c); err != nil || !got.Token().IsZero() {
				t.Fatalf("nothing in it: %v, %v", got.Token(), err)
			}
			for _, tok := range []tracker.Token{token(5), {}} {
				for _, alone := range []bool{false, true} {
					if tok.IsZero() && !alone {
						continue
					}
					sender, got := ryw.NewSession(tok), new(ryw.Session)
					if alone {
						sender.RequirePrimary()
					}
					k.Inject(sender, c)
					if err := k.Extract(got, c); err != nil || got.Token() != tok || got.OnPrimary() != alone {
						t.Errorf("%v, %t: %v, %t, %v", tok, alone, got.Token(), got.OnPrimary(), err)
					}
					r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
					r.Header["Walwake-Token"] = c.Values(ryw.TokenKey)
					wrap(t, ryw.HTTPConfig{Keys: k, Reject: true}, func(_ http.ResponseWriter, r *http.Request) {
						got = session(r)
					}).ServeHTTP(httptest.NewRecorder(), r)
					if got.Token() != tok || got.OnPrimary() != alone {
						t.Errorf("another service, %v, %t: %v, %t", tok, alone, got.Token(), got.OnPrimary())
					}
				}
			}
		})
	}
}

func TestASignedMessageThatIsBadChangesNothing(t *testing.T) {
	k, err := ryw.NewKeys(ryw.KeysConfig{Secrets: []ryw.Secret{ryw.Secret(strings.Repeat("a", 32))}, MaxAge: time.Hour, Audience: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	good := k.Sign(token(5), now)
	unsigned := ryw.MapCarrier{}
	ryw.Inject(ryw.NewSession(token(5)), unsigned)
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"another secret":   {keys(t, "b").Sign(token(5), now), ryw.ErrForged},
		"another audience": {keys(t, "a").Sign(token(5), now), ryw.ErrForged},
		"changed":          {strings.Replace(good, "0-5", "0-6", 1), ryw.ErrForged},
		"cut off":          {good[:len(good)-1], ryw.ErrForged},
		"unsigned":         {unsigned[ryw.TokenKey], ryw.ErrForged},
		"primary":          {"primary", ryw.ErrForged},
		"stale":            {k.Sign(token(5), now.Add(-time.Hour-time.Minute)), ryw.ErrStale},
		"of the future":    {k.Sign(token(5), now.Add(time.Hour)), ryw.ErrStale},
		"too long":         {good + strings.Repeat("x", 1<<20), ryw.ErrForged},
		"empty":            {"", ryw.ErrForged},
		"beside a good":    {good + ", x", ryw.ErrForged},
		"nine":             {strings.Repeat(good+",", 8) + good, errAny},
	} {
		t.Run(name, func(t *testing.T) {
			s := ryw.NewSession(token(3))
			err := k.Extract(s, ryw.MapCarrier{ryw.TokenKey: c.text})
			if err == nil || !errors.Is(c.want, errAny) && !errors.Is(err, c.want) || len(err.Error()) > 300 {
				t.Errorf("%v, want %v", err, c.want)
			}
			if s.Token() != token(3) || s.OnPrimary() {
				t.Errorf("the session has %v, %t", s.Token(), s.OnPrimary())
			}
		})
	}
	if err := ryw.Extract(new(ryw.Session), ryw.MapCarrier{ryw.TokenKey: good}); err == nil {
		t.Error("who opens nothing takes a signed one")
	}
}

// A worker reads what its message is about, or from the primary.
func TestAWorkerReadsWhatItsMessageIsAbout(t *testing.T) {
	c := cluster(t)
	k := keys(t, "a")
	r := router(t, c, ryw.Options{Budget: time.Minute})
	for _, n := range c.Standbys[1:] {
		if err := n.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sender := fresh(t)
	id, err := write(sender, r)
	if err != nil {
		t.Fatal(err)
	}
	message := ryw.MapCarrier{}
	k.Inject(ryw.FromContext(sender), message)
	worker := new(ryw.Session)
	if err := k.Extract(worker, message); err != nil {
		t.Fatal(err)
	}
	if is, err := there(ryw.NewContext(t.Context(), worker), r, id); err != nil || !is {
		t.Errorf("row %d: %v %v", id, is, err)
	}
	if s := r.Stats(); s.Primary != 0 || s.Replicas[0].Reads != 1 {
		t.Errorf("%+v", s)
	}

	foreign := worker.Token()
	foreign.System++
	k.Inject(ryw.NewSession(foreign), message)
	worker = new(ryw.Session)
	if err := k.Extract(worker, message); err != nil {
		t.Fatal(err)
	}
	if is, err := there(ryw.NewContext(t.Context(), worker), r, id); err != nil || !is {
		t.Errorf("row %d, by a token of another cluster: %v %v", id, is, err)
	}
	if s := r.Stats(); s.Primary != 1 {
		t.Errorf("by a token of another cluster: %+v", s)
	}
}
