//go:build linux

package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// get asks a sidecar. host is what it is called.
func (s *stack) get(sidecar, host, path string) (status int, body string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", s.containers[sidecar].port, path), nil)
	must(s.t, err)
	r.Host = host
	answer, err := http.DefaultClient.Do(r)
	must(s.t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(s.t, err)
	return answer.StatusCode, string(text)
}

// write commits a row as the application and returns its number, and a token for it from a sidecar's container.
func (s *stack) write() (row, token string) {
	s.t.Helper()
	row, err := s.as(s.t.Context(), "primary", "app", "app", "",
		`CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS IDENTITY); INSERT INTO orders DEFAULT VALUES RETURNING id`)
	must(s.t, err)
	token, err = s.containers["walwake1"].exec(s.t.Context(), "/walwake", "token")
	must(s.t, err)
	return strings.TrimSpace(row), strings.TrimSpace(token)
}

var sidecars = map[string]string{"walwake1": "standby1", "walwake2": "standby2"}

// works checks that what is written can be waited for beside each standby, and is read there.
func (s *stack) works() {
	s.t.Helper()
	row, token := s.write()
	for sidecar, standby := range sidecars {
		if status, body := s.get(sidecar, "127.0.0.1", "/v1/wait?timeout=20s&token="+token); status != http.StatusOK {
			s.t.Errorf("%s: %d %s", sidecar, status, body)
		}
		got, err := s.as(s.t.Context(), standby, "app", "app", "", `SELECT max(id) FROM orders`)
		if err != nil || strings.TrimSpace(got) != row {
			s.t.Errorf("%s: want row %s, got %s, %v", standby, row, got, err)
		}
	}
}

func TestComposeUp(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.up()
	s.works()

	t.Run("each standby streams, by its own slot", func(t *testing.T) {
		got := s.sql("primary", `SELECT string_agg(slot_name || ' ' || active || ' ' || application_name, ', ' ORDER BY slot_name)
			FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid`)
		if got != "standby1 true standby1, standby2 true standby2" {
			t.Errorf("got %s", got)
		}
	})

	t.Run("every source has what it needs", func(t *testing.T) {
		for sidecar := range sidecars {
			out, err := s.containers[sidecar].exec(t.Context(), "/walwake", "doctor", "--json")
			must(t, err)
			var answer struct {
				OK    bool
				Works []struct {
					Of string
					OK bool
				}
				Needs []struct {
					Of, Needs, Has string
					OK             bool
				}
			}
			must(t, json.Unmarshal([]byte(out), &answer))
			tooOld := func(of string) bool { return of == "logical" && s.version < 16 || of == "waitfor" && s.version < 19 }
			for _, w := range answer.Works {
				if w.OK == tooOld(w.Of) {
					t.Errorf("%s: %s: %t", sidecar, w.Of, w.OK)
				}
			}
			for _, n := range answer.Needs {
				if !n.OK && !tooOld(n.Of) {
					t.Errorf("%s: %+v", sidecar, n)
				}
			}
		}
	})

	t.Run("the sidecar answers what is asked of it", func(t *testing.T) {
		for sidecar, standby := range sidecars {
			for _, path := range []string{"/healthz", "/readyz?max_lag=16MB", "/metrics", "/v1/position"} {
				// Prometheus asks by the name of the service, a browser on this machine by address.
				for _, host := range []string{sidecar, "127.0.0.1:7432"} {
					if status, body := s.get(sidecar, host, path); status != http.StatusOK {
						t.Errorf("%s as %s: %s: %d %s", sidecar, host, path, status, body)
					}
				}
				if status, _ := s.get(sidecar, "evil.example", path); status == http.StatusOK && path == "/v1/position" {
					t.Errorf("%s: %s: %d for a page of another site", sidecar, path, status)
				}
			}
			if _, body := s.get(sidecar, sidecar, "/v1/position"); !strings.Contains(body, standby) {
				t.Errorf("%s is called %s", sidecar, body)
			}
		}
		for began := time.Now(); ; { // each tells the other by way of the primary
			_, body := s.get("walwake1", "walwake1", "/v1/fleet")
			if strings.Contains(body, "standby1") && strings.Contains(body, "standby2") {
				break
			}
			if time.Since(began) > 30*time.Second {
				t.Fatalf("the fleet: %s", body)
			}
		}
	})

	t.Run("nobody may do more than he needs", func(t *testing.T) {
		for _, c := range []struct {
			on, role, database, replication, query string
			may                                    bool
		}{
			{"primary", "app", "app", "", "SELECT count(*) FROM orders", true},
			{"standby1", "app", "app", "", "SELECT count(*) FROM orders", true},
			{"standby1", "walwake", "app", "database", "IDENTIFY_SYSTEM", true},
			{"primary", "replicator", "app", "true", "IDENTIFY_SYSTEM", true},
			{"primary", "walwake", "app", "", "SELECT count(*) FROM orders", false}, // reads no table
			{"primary", "walwake", "app", "", "CREATE TABLE mine ()", false},
			{"primary", "walwake", "app", "", "CREATE TEMP TABLE mine ()", false}, // makes none
			{"primary", "walwake", "app", "true", "IDENTIFY_SYSTEM", false},       // copies no cluster,
			{"standby1", "walwake", "app", "true", "IDENTIFY_SYSTEM", false},      // nor here
			{"primary", "walwake", "postgres", "", "SELECT 1", false},             // one database
			{"standby1", "replicator", "app", "true", "IDENTIFY_SYSTEM", false},   // of the primary alone
			{"primary", "replicator", "app", "", "SELECT 1", false},               // asks nothing
			{"primary", "app", "app", "true", "IDENTIFY_SYSTEM", false},           // replicates nothing
			{"primary", "app", "app", "", "SELECT pg_promote()", false},           // governs nothing
			{"primary", "app", "app", "", "COPY orders TO PROGRAM 'cat'", false},  // runs nothing
			{"primary", "superuser", "app", "", "SELECT 1", false},                // comes in by the socket alone
		} {
			role := c.role
			_, err := s.as(t.Context(), c.on, role, c.database, c.replication, c.query)
			if (err == nil) != c.may {
				t.Errorf("%+v: %v", c, err)
			}
		}
	})

	t.Run("no password is where it need not be", func(t *testing.T) {
		var secrets []string
		files, err := filepath.Glob(filepath.Join(s.dir, "volumes/secrets/*"))
		must(t, err)
		owners := map[string]uint32{}
		for _, file := range files {
			info, err := os.Stat(file)
			must(t, err)
			if info.Mode().Perm() != 0o400 {
				t.Errorf("%s: %s", file, info.Mode())
			}
			owners[filepath.Base(file)] = info.Sys().(*syscall.Stat_t).Uid
			if !strings.HasSuffix(file, ".pgpass") {
				text := s.secret(filepath.Base(file))
				if len(text) != 64 {
					t.Errorf("%s: %d characters", file, len(text))
				}
				secrets = append(secrets, text)
			}
		}
		if len(secrets) != 5 {
			t.Errorf("there are %d", len(secrets))
		}
		if os.Geteuid() == 0 && (owners["walwake.pgpass"] != 65532 || owners["grafana"] != 472 || owners["superuser"] != account(t, "postgres").Uid) {
			t.Errorf("they belong to %v", owners)
		}
		seen := ""
		for name, c := range s.containers {
			seen += c.out.String()
			if c.cmd != nil {
				args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.cmd.Process.Pid))
				must(t, err)
				seen += string(args)
			}
			if strings.HasPrefix(name, "standby") {
				seen += s.sql(name, `SHOW primary_conninfo`)
			}
		}
		_, metrics := s.get("walwake1", "walwake1", "/metrics")
		_, position := s.get("walwake1", "walwake1", "/v1/position")
		for _, secret := range secrets {
			if strings.Contains(seen+metrics+position, secret) {
				t.Error("a password is shown")
			}
		}
	})

	t.Run("it may be stopped and started, and the set-up run again", func(t *testing.T) {
		system := s.sql("primary", `SELECT system_identifier FROM pg_control_system()`)
		before := s.secret("walwake.pgpass")
		must(t, s.down())
		// A run of secrets.sh was interrupted: a password is not in its place, and a file is left of it.
		secrets := filepath.Join(s.dir, "volumes/secrets")
		must(t, os.Rename(filepath.Join(secrets, "grafana"), filepath.Join(secrets, "grafana.new")))
		s.up()
		s.works()
		if after := s.sql("primary", `SELECT system_identifier FROM pg_control_system()`); after != system || s.secret("walwake.pgpass") != before {
			t.Errorf("another cluster, or other passwords: %s, %s", system, after)
		}
		if len(s.secret("grafana")) != 64 {
			t.Error("there is no password for Grafana")
		}
		for _, file := range s.containers["primary"].initFiles() {
			_, err := s.containers["primary"].exec(t.Context(), "psql", "-X", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "app", "-f", s.inside("primary", file))
			must(t, err)
		}
		s.works()
	})

	t.Run("a copy that was interrupted is made anew", func(t *testing.T) {
		must(t, s.containers["walwake2"].stop())
		c := s.containers["standby2"]
		must(t, c.stop())
		data := c.translate(*c.service.Environment["PGDATA"])
		must(t, os.Rename(data, data+".new")) // pg_basebackup was killed
		must(t, os.Remove(filepath.Join(data+".new", "global/pg_control")))
		s.up()
		s.works()
		if _, err := os.Stat(data + ".new"); err == nil {
			t.Error("the rest of it is still there")
		}
	})

	t.Run("the health check finds out a sidecar that hangs, and blames none for its standby", func(t *testing.T) {
		c := s.containers["walwake2"]
		check := func() error {
			_, err := c.exec(t.Context(), c.service.HealthCheck.Test[1:]...)
			return err
		}
		must(t, c.cmd.Process.Signal(syscall.SIGSTOP))
		var status syscall.WaitStatus
		for !status.Stopped() { // each of its threads
			if _, err := syscall.Wait4(c.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil && !errors.Is(err, syscall.EINTR) {
				t.Fatal(err)
			}
		}
		if err := check(); err == nil || !strings.Contains(err.Error(), "no answer within 3s") {
			t.Errorf("it hangs: %v", err)
		}
		must(t, c.cmd.Process.Signal(syscall.SIGCONT))
		must(t, check())
		must(t, s.containers["standby2"].stop())
		for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if status, body := s.get("walwake2", "walwake2", "/readyz"); status == http.StatusServiceUnavailable {
				break
			} else if time.Since(began) > 30*time.Second {
				t.Fatalf("without its standby: %d %s", status, body)
			}
		}
		must(t, check())
		must(t, c.stop())
		if err := check(); err == nil || !strings.Contains(err.Error(), "nothing listens there") {
			t.Errorf("it is stopped: %v", err)
		}
		s.up()
		s.works()
	})

	t.Run("a sidecar that is killed is missed by nobody once it is back", func(t *testing.T) {
		c := s.containers["walwake1"]
		must(t, c.cmd.Process.Kill())
		if err := <-c.exited; err == nil {
			t.Error("it was killed, and ended well")
		}
		c.cmd = nil
		s.up()
		s.works()
	})
}
