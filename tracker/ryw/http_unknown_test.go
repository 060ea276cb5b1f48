package ryw_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// What a client made up in an unsigned header is not signed and given back.
func TestAMadeUpHeaderIsNotSigned(t *testing.T) {
	k := keys(t, "k")
	mw, err := ryw.Middleware(ryw.HTTPConfig{Keys: k, UnsignedHeader: true, System: 7})
	if err != nil {
		t.Fatal(err)
	}
	wrote := tracker.Token{System: 7, Timeline: 1, LSN: 0x1000}
	h := mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ryw.FromContext(r.Context()).Wrote(wrote) }))
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
	req.Header.Set("Walwake-Token", tracker.Token{LSN: 0xFFFFFFFFFFFFFFFF}.String())
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	for _, c := range rec.Result().Cookies() {
		tok, err := k.Open(c.Value, time.Now())
		if err != nil || tok != wrote {
			t.Errorf("signed for the client: %v, want %v (%v)", tok, wrote, err)
		}
	}
}

// A write whose token is not known is given back also when one of the request's tokens was bad.
func TestAnUnknownWriteIsGivenBackAfterABadToken(t *testing.T) {
	k := keys(t, "k")
	mw, err := ryw.Middleware(ryw.HTTPConfig{Keys: k})
	if err != nil {
		t.Fatal(err)
	}
	old := tracker.Token{System: 7, Timeline: 1, LSN: 0x1000}
	unknown := mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ryw.FromContext(r.Context()).RequirePrimary() // what Write does with ErrNoToken
	}))
	cookie := &http.Cookie{Name: "walwake", Value: k.Sign(old, time.Now())}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
	req.AddCookie(cookie)
	req.Header.Set("Walwake-Token", "bad")
	rec := httptest.NewRecorder()
	unknown.ServeHTTP(rec, req)

	req = httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	for _, c := range rec.Result().Cookies() {
		cookie = c
	}
	req.AddCookie(cookie)
	mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s := ryw.FromContext(r.Context()); !s.OnPrimary() {
			t.Errorf("the write is forgotten: the session reads at %v", s.Token())
		}
	})).ServeHTTP(httptest.NewRecorder(), req)
}
