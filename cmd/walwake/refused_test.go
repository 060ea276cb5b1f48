package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// ways are all ways in which a command connects.
func ways(dsn string) map[string][]string {
	return map[string][]string{
		"token":         {"token", "--primary", dsn},
		"status":        {"status", "--replica", dsn, "--timeout", "10m"},
		"doctor":        {"doctor", "--replica", dsn, "--timeout", "10m"},
		"wait":          {"wait", "--replica", dsn, "--timeout", "10m", "0/1"},
		"wait raw":      {"wait", "--replica", dsn, "--timeout", "10m", "0/2000028"},
		"wait, checked": {"wait", "--primary", dsn, "--replica", dsn, "--timeout", "10m", "0/1"},
	}
}

// closed refuses connections: nobody listens on a port so low without being asked to.
const closed = "127.0.0.1:1"

func TestAServerThatDoesNotLetUsInIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	for _, c := range []struct {
		name, dsn string
		says      []string
	}{
		{"nobody listens", "postgres://u:" + secret + "@" + closed + "/db", []string{"connection refused", "is PostgreSQL running there?"}},
		{"no such host", "postgres://u:" + secret + "@nowhere.invalid/db", []string{"nowhere.invalid"}},
		{"wrong password, standby", standby.DSNFor("postgres", secret, "postgres"), []string{"password authentication failed", "28P01", "check user and password in --"}},
		{"wrong password, primary", primary.DSNFor("postgres", secret, "postgres"), []string{"password authentication failed", "28P01", "check user and password in --"}},
		{"no such role", standby.DSNFor("nobody", secret, "postgres"), []string{"28P01"}},
		{"no such database", role(standby, plainRole) + "&dbname=nowhere", []string{`database "nowhere" does not exist`, "name a database that exists"}},
	} {
		for way, args := range ways(c.dsn) {
			t.Run(c.name+"/"+way, func(t *testing.T) {
				t.Parallel()
				o := walwake(t, nil, args...).is(exitFailure).says(c.says...).alone().atOnce()
				if strings.Contains(o.String(), secret) {
					t.Errorf("the password is shown: %s", o)
				}
			})
		}
	}
}

// Some of these are malformed, some are understood otherwise than they were meant.
func TestNoPasswordIsEverShown(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://u:" + secret + "@" + closed + "/db",
		"postgres://u:" + secret + "@" + closed + "/db?sslmode=nonsense",
		"postgres://u:" + secret + "@127.0.0.1:port/db",
		"postgres://u:" + secret + "/x@" + closed + "/db",
		"postgres://u:1/" + secret + "@" + closed + "/db",
		"postgres://u:" + secret + "?x@" + closed + "/db",
		"postgres://u:" + secret + "#x@" + closed + "/db",
		"postgres://u:" + secret + "%@" + closed + "/db",
		"postgres://u:%zz" + secret + "@" + closed + "/db",
		"postgres://u:" + secret + " x@" + closed + "/db",
		"postgres://u:x@" + secret + "@" + closed + "/db",
		"postgres://u:x@" + secret + "/y@" + closed + "/db",
		"postgres://u:1/x?" + secret + "=y@" + closed + "/db",
		"postgres://u:" + secret,
		"postgres://127.0.0.1:port/db?password=" + secret,
		"postgres://[::1/db?user=u&password=" + secret,
		"postgres:/u:" + secret + "@" + closed + "/db",
		"host=127.0.0.1 port=1 password=" + secret,
		"host=127.0.0.1 port=x password=" + secret,
		"host=127.0.0.1 port=1 password='" + secret,
		"host=127.0.0.1 port=1 password = " + secret + " sslmode=nonsense",
		"host=127.0.0.1 port=1 password=my " + secret + " user=u",
		"host=127.0.0.1 port=1 password " + secret,
		"host=127.0.0.1 port=1 pasword=my " + secret + " user=u",
		"password=" + secret + " =",
	} {
		for way, args := range ways(dsn) {
			t.Run(way, func(t *testing.T) {
				t.Parallel()
				for _, more := range []string{"--json=false", "--json"} {
					o := walwake(t, nil, append(args, "--log-level", "debug", more)...)
					if o.code == exitOK || strings.Contains(o.String(), secret) {
						t.Errorf("%q: %s", dsn, o)
					}
					o.says("").atOnce()
				}
			})
		}
	}
}

// silent accepts connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func TestASilentServerEndsWithTheTimeout(t *testing.T) {
	t.Parallel()
	for way, args := range ways("postgres://u@" + silent(t) + "/db") {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			o := walwake(t, nil, append(args, "--timeout", "4s")...).is(exitTimeout).says("timeout after", "no answer from").alone()
			if o.took < 200*time.Millisecond {
				t.Errorf("it was not waited for: %s", o)
			}
			o.atOnce()
		})
	}
}

func TestAContextThatEndsEndsTheCommand(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	for _, args := range [][]string{
		{"wait", "--timeout", "1h", "--log-level", "debug", "FFFFFFFF/1"},
		{"status", "--timeout", "1h", "--replica", "postgres://u@" + silent(t) + "/db"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		stderr := watchFor(`"message":"position"`)
		ended := make(chan *outcome, 1)
		go func() { ended <- walwakeUntil(ctx, t, on(nil, standby), stderr, args...) }()
		if args[0] == "wait" {
			<-stderr.found
		}
		cancel(errors.New("enough of it"))
		(<-ended).is(exitFailure).says("enough of it").atOnce()
	}
}

func TestATokenComesFromThePrimaryAlone(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	walwake(t, nil, "token", "--primary", standby.DSN()).is(exitFailure).says("is a standby", "--primary").alone()
	walwake(t, env{"WALWAKE_PRIMARY": standby.DSN()}, "token").is(exitFailure).says("is a standby", "WALWAKE_PRIMARY").alone()
}

func TestARoleThatMayNotSeeTheTimelineIsToldWhatToGrant(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	token := strings.TrimSpace(walwake(t, nil, "token", "--primary", role(primary, plainRole)).is(exitOK).stdout)
	wait := func(dsn, target string) *outcome {
		return walwake(t, nil, "wait", "--json", "--replica", dsn, "--timeout", "5s", target)
	}
	o := wait(role(standby, plainRole), token).is(exitTimeout).says("GRANT pg_read_all_stats", plainRole)
	if a := decode[waitAnswer](o); a.Result != "timeout" || a.Timeline != nil || a.Replayed == nil || *a.Replayed < *a.Target {
		t.Errorf("got %s", o)
	}
	wait(role(standby, plainRole), "0/1").is(exitOK) // a bare LSN asks for no timeline
	wait(role(standby, streamRole), token).is(exitOK)

	status := walwake(t, nil, "status", "--json", "--replica", role(standby, plainRole)).is(exitOK)
	if a := decode[statusAnswer](status); a.Timeline != nil || !strings.Contains(a.Note, "GRANT pg_read_all_stats") {
		t.Errorf("got %s", status)
	}
}
