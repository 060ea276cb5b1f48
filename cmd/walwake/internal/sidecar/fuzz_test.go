package sidecar

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker"
)

// What comes in as a query is understood as it was meant, or refused with a reason.
func FuzzWaitParameters(f *testing.F) {
	for _, seed := range []string{
		"token=0/174FFB0", "token=v1.1kkqojsdcyw9u.1.0-174FFB0&timeout=3s", "token=0%2F1&timeout=0", "token=&timeout=", "timeout=1h", "token=0/1&token=0/2",
		"token=0/1;timeout=1s", "%zz", "token=0/1&x=1", "token=0/0", "token=v2.a.1.0-1", "token=0/1&timeout=1e9s", "token=0/1&timeout=-1ns", "&&&", "token=\x00",
	} {
		f.Add(seed)
	}
	s := &Server{cfg: Config{Timeout: 3 * time.Second, MaxTimeout: time.Minute, Text: func(s string) string { return s }}}
	f.Fuzz(func(t *testing.T, query string) {
		target, timeout, p := s.parseWait(query)
		if p != nil {
			if p.Status != 400 || p.Detail == "" || len(p.Detail) > 500 {
				t.Errorf("%q: %+v", query, p)
			}
			return
		}
		values, err := url.ParseQuery(query)
		if err != nil || len(values["token"]) != 1 || len(values["timeout"]) > 1 || len(values) > 2 {
			t.Fatalf("%q is taken", query)
		}
		text := values.Get("token")
		lsn, isLSN := tracker.ParseLSN(text)
		if bare := (tracker.Token{LSN: lsn}); isLSN == nil && target != bare || isLSN != nil && target.String() != text || target.LSN == 0 {
			t.Errorf("%q is taken for %v", text, target)
		}
		if timeout < 0 || timeout > time.Minute {
			t.Errorf("%q: a timeout of %s", query, timeout)
		}
	})
}

func FuzzReadyParameters(f *testing.F) {
	for _, seed := range []string{"", "max_lag=16MB", "max_lag=0", "max_lag=1kB&max_lag=2", "max_lag=500ms", "max_lag=-1", "max_lag=1.5s", "max_lag=18446744073709551615", "max_lag=18446744073709551615TB", "max_lag=+1", "max_lag= 1", "max_lag=MB", "max_lag=1mb", "%", "x=1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		most, limited, err := parseReady(query)
		values, bad := url.ParseQuery(query)
		if err != nil {
			return
		}
		text := values.Get("max_lag")
		switch {
		case bad != nil || limited != (len(values) == 1):
			t.Fatalf("%q is taken", query)
		case !limited:
		case most.InTime:
			if d, err := time.ParseDuration(text); err != nil || d != most.Time || d < 0 {
				t.Errorf("%q is taken for %s", text, most)
			}
		case strings.Trim(text, "0123456789kMGTB") != "" || text == "":
			t.Errorf("%q is taken for %s", text, most)
		}
	})
}

// The lines of a stream's body are client input too.
func FuzzDemands(f *testing.F) {
	for _, seed := range []string{"0/1\n", "0/1\r\n0/0\n", "\n", "x", strings.Repeat("0", 64), "0/1\n0/2\n0/3\nx\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		c := make(chan tracker.LSN, 1)
		err := readDemands(strings.NewReader(body), c)
		if err == nil {
			t.Fatal("it ended without a reason")
		}
		lines := strings.SplitAfter(body, "\n")
		select {
		case lsn := <-c:
			for _, line := range lines {
				if got, err := tracker.ParseLSN(strings.TrimRight(line, "\r\n")); err == nil && got == lsn {
					return
				}
			}
			t.Errorf("%q: %s is not in it", body, lsn)
		default:
		}
	})
}
