package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
)

// A probe shows no bearer, and learns neither role, database nor address.
func TestAProbeLearnsOnlyTheKindOfAFailure(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	const bearer = "0123456789abcdef"
	for kind, c := range map[string]struct{ dsn, inFull string }{
		"the replica refuses the role or its password": {standby.DSNFor("postgres", secret, "postgres"), `password authentication failed for user "postgres" (SQLSTATE 28P01): check user and password in WALWAKE_REPLICA`},
		"the replica cannot be reached":                {"postgres://u:" + secret + "@" + closed + "/db?sslmode=prefer", "connection refused: is PostgreSQL running there?"},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := serve(t, env{"WALWAKE_REPLICA": c.dsn, "WALWAKE_BEARER": bearer})
			for !strings.Contains(s.stderr.String(), "cannot be followed") {
				time.Sleep(time.Millisecond)
			}
			if p := got[sidecar.Problem](s, "/readyz", http.StatusServiceUnavailable); p.Detail != kind || p.Reason != "unknown_position" {
				t.Errorf("without the bearer: %+v", p)
			}
			with := newCaller(s.url, "", "", bearer, nil)
			defer with.close()
			for _, path := range []string{"/readyz", "/v1/position", "/v1/wait?token=0/1&timeout=10ms"} {
				status, body, err := with.get(t.Context(), path)
				text := strings.ReplaceAll(string(body), `\"`, `"`)
				if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(text, c.inFull) || strings.Contains(text, secret) || strings.Contains(text, "failed to connect") {
					t.Errorf("%s: %d %s, %v", path, status, body, err)
				}
			}
		})
	}
}
