package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/replication/replicationtest"
)

// leastRights reads from SECURITY.md the statements that a source needs.
func leastRights(t *testing.T, source string) []string {
	t.Helper()
	text, err := os.ReadFile("../../.github/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```sql\n-- ([^\n]*)\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if slices.Contains(strings.Split(block[1], ", "), source) {
			return strings.Split(strings.TrimSpace(strings.ReplaceAll(block[2], ";\n", "\n")), "\n")
		}
	}
	t.Fatalf("SECURITY.md has no rights for %s", source)
	return nil
}

// The role has what SECURITY.md says and nothing more; then each right is taken from it, and it does not work.
func TestASourceNeedsWhatIsSaidAndNothingMore(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	exec := func(statements ...string) {
		t.Helper()
		for _, sql := range statements {
			if err := c.Primary.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		if err := c.WaitForReplay(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	e := env{"WALWAKE_PRIMARY": role(c.Primary, "walwake"), "WALWAKE_REPLICA": role(c.Standbys[0], "walwake")}
	for _, s := range []struct {
		source string
		from   int
		take   [][3]string // a statement that takes a right, what is said then, and one that gives it back
	}{
		{"poll", 14, [][3]string{{`REVOKE pg_read_all_stats FROM walwake`, "pg_read_all_stats", `GRANT pg_read_all_stats TO walwake`}}},
		{"waitfor", 19, [][3]string{{`REVOKE pg_read_all_stats FROM walwake`, "pg_read_all_stats", `GRANT pg_read_all_stats TO walwake`}}},
		{"physical", 14, [][3]string{{`ALTER ROLE walwake NOREPLICATION`, "REPLICATION", `ALTER ROLE walwake REPLICATION`}}},
		{"logical", 16, [][3]string{
			{`ALTER ROLE walwake NOREPLICATION`, "REPLICATION", `ALTER ROLE walwake REPLICATION`},
			{`DROP PUBLICATION walwake`, "publication", `CREATE PUBLICATION walwake`},
			{`REVOKE EXECUTE ON FUNCTION pg_log_standby_snapshot() FROM walwake`, "pg_log_standby_snapshot", `GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO walwake`},
		}},
	} {
		if c.Version < s.from {
			continue
		}
		exec(leastRights(t, s.source)...)
		exec(`ALTER ROLE walwake PASSWORD '` + secret + `'`)

		// It is in use, and a token is satisfied. A slot may take longer to make than status looks at the sources.
		status := func() (a statusAnswer, text string) {
			o := walwake(t, e, "status", "--json", "--source", s.source).is(exitOK)
			return decode[statusAnswer](o), o.stdout
		}
		for began := time.Now(); ; {
			a, text := status()
			if a.Source == s.source {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("%s does not work with what SECURITY.md gives it: %s", s.source, text)
			}
		}
		token := strings.TrimSpace(walwake(t, e, "token").is(exitOK).stdout)
		walwake(t, e, "wait", "--source", s.source, token).is(exitOK)

		for _, right := range s.take {
			exec(right[0])
			d := decode[doctorAnswer](walwake(t, e, "doctor", "--json"))
			lacks := func(n doctorNeeds) bool {
				of := n.Of == s.source || s.source == "poll" && n.Of == "timeline"
				return of && !n.OK && strings.Contains(n.Needs, right[1])
			}
			if !slices.ContainsFunc(d.Needs, lacks) {
				t.Errorf("%s: after %s the doctor says %+v", s.source, right[0], d.Needs)
			}
			switch {
			case right[1] == "pg_read_all_stats": // no token is satisfied while the timeline is not known
				walwake(t, e, "wait", "--source", s.source, "--timeout", "300ms", token).is(exitTimeout).says("pg_read_all_stats")
			case strings.Contains(right[0], "snapshot"): // the slot is made when the server says so by itself
			default:
				if a, text := status(); a.Source == s.source {
					t.Errorf("%s works after %s: %s", s.source, right[0], text)
				}
			}
			exec(right[2])
		}
		exec(`DROP PUBLICATION IF EXISTS walwake`)
		if c.Version >= 16 {
			exec(`REVOKE EXECUTE ON FUNCTION pg_log_standby_snapshot() FROM walwake`)
		}
		exec(`DROP ROLE walwake`)
	}
}

// What SECURITY.md says of the sidecar's limits is what they are.
func TestTheLimitsAreThoseOfSecurityMD(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../.github/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	thousands := func(n int) string { return fmt.Sprintf("%d,%03d", n/1000, n%1000) }
	for _, want := range []string{
		"`--max-waiters` (" + thousands(sidecar.DefaultWaiters) + ")",
		"`--max-streams` (" + thousands(sidecar.DefaultStreams) + ")",
		fmt.Sprintf("`--max-timeout` (%.0f m)", sidecar.DefaultMaxTimeout.Minutes()),
		fmt.Sprintf("%.0f s to take an answer", sidecar.DefaultWriteTimeout.Seconds()),
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("it does not say %s", want)
		}
	}
	short := env{"WALWAKE_REPLICA": "host=h", "WALWAKE_BEARER": strings.Repeat("x", 15)}
	walwake(t, short, "serve").is(exitUsage).says("at least 16")
	if !strings.Contains(string(text), "at least 16 bytes") {
		t.Error("it does not say how long a bearer token is")
	}
}
