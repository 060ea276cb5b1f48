package ryw_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker/ryw"
)

func BenchmarkMiddleware(b *testing.B) {
	k := keys(b, "a")
	bench := func(h http.Handler, shown string) func(*testing.B) {
		return func(b *testing.B) {
			r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/", http.NoBody)
			if shown != "" {
				r.Header.Set("Cookie", "a=b; walwake="+shown)
			}
			p := plain{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(p.h)
				h.ServeHTTP(p, r)
			}
		}
	}
	shown := k.Sign(token(5), time.Now())
	read := wrap(b, ryw.HTTPConfig{Keys: k}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	write := wrap(b, ryw.HTTPConfig{Keys: k}, func(w http.ResponseWriter, r *http.Request) {
		session(r).Advance(token(6))
		w.WriteHeader(http.StatusOK)
	})
	b.Run("no token", bench(read, ""))
	b.Run("read", bench(read, shown))
	b.Run("write", bench(write, shown))
}
