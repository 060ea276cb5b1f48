//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication/replicationtest"
)

// goesOn are the commands that end only when they are interrupted, and what they have printed by then.
var goesOn = map[string]string{
	"listen":        "orders",
	"serve":         `"message":"listening"`,
	"watch":         "standby",
	"watch --json":  "failed",
	"listen --coun": "", // ends by itself
	"serve --check": "",
}

// exampleHost is where the examples run: a cluster whose servers they call db1 and db2, with the role and the database
// that they name, and a folder with the files.
type exampleHost struct {
	*replicationtest.Cluster
	dir   string
	stand *strings.Replacer // what stands in for what examples name
	env   []string

	without string // what this PostgreSQL has not
}

func newExampleHost(t *testing.T) *exampleHost {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	h := &exampleHost{Cluster: replicationtest.Start(t, replicationtest.Options{}), dir: t.TempDir()}
	primary, standby := h.Primary, h.Standbys[0]
	for _, sql := range []string{
		fmt.Sprintf("create role app login replication password '%s' in role pg_monitor", secret),
		"create role reader login in role pg_monitor", "create database app owner app",
	} {
		if err := primary.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	h.exec(t, primary, `create publication walwake`)
	if err := h.WaitForReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	db1, db2 := primary.DSNFor("app", secret, "app"), standby.DSNFor("app", secret, "app")
	h.env = append(os.Environ(), "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH"), "PGPASSWORD="+secret,
		"WALWAKE_PRIMARY="+db1, "WALWAKE_REPLICA="+db2, "WALWAKE_LISTEN=127.0.0.1:0")
	h.env = append(h.env, "token="+strings.TrimSpace(walwake(t, on(primary, nil), "token").is(exitOK).stdout))

	cert, key := certificate(t)
	file := func(name, text string) string {
		path := filepath.Join(h.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bearer := file("bearer", "0123456789abcdef")
	config := file("walwake.yaml", "replica: "+db2+"\nprimary: "+db1+"\n")
	sidecar := exec.CommandContext(t.Context(), path, "serve", "--listen", "unix:"+filepath.Join(h.dir, "http.sock"), "--bearer-file", bearer)
	sidecar.Env = h.env
	if err := sidecar.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sidecar.Wait() }) // the test's context has ended it
	pg := fmt.Sprintf("--pg %d", h.Version)
	port := func(host string, n *replicationtest.Node) []string {
		return []string{"host=" + host, fmt.Sprintf("host=127.0.0.1 port=%d", n.Port()), "@" + host + "/", fmt.Sprintf("@127.0.0.1:%d/", n.Port())}
	}
	switch {
	case h.Version < 16:
		h.without = " --messages"
	case h.Version < 19:
		h.without = "wait-for-lsn,"
	}
	h.stand = strings.NewReplacer(slices.Concat(port("db1", primary), port("db2", standby), port("localhost", standby), []string{
		"v1.1kkqojsdcyw9u.1.0-174FFB0", "$token", "0/174FFB0", "0/1",
		"/etc/walwake.yaml", config, "127.0.0.1:7432", "127.0.0.1:0", "0.0.0.0:7432", "127.0.0.1:0", "--listen unix:/run/walwake/", "--listen unix:" + h.dir + "/another-", "/run/walwake/", h.dir + "/",
		"/run/secrets/walwake", bearer, "/etc/walwake/bearer", bearer, "tls.crt", cert, "tls.key", key,
		"--pg 17", pg, "--pg 19", pg, "--rounds 50", "--rounds 5", "--rates 0,3000", "--rates 0", "--duration 10m", "--duration 1s", "--duration 10s", "--duration 1s",
	})...)
	return h
}

// Every example of every command's help runs as it stands, in a shell, but for the names of servers and files.
func TestTheExamplesOfAllCommandsRun(t *testing.T) {
	t.Parallel()
	h := newExampleHost(t)
	_, commands, _ := strings.Cut(walwake(t, nil, "--help").is(exitOK).stdout, "Available Commands:")
	names := regexp.MustCompile(`(?m)^  ([a-z]+) `).FindAllStringSubmatch(commands, -1)
	if len(names) < 12 {
		t.Fatalf("%d commands in %s", len(names), commands)
	}
	for _, name := range append(names, []string{"", ""}) {
		help := walwake(t, nil, append(strings.Fields(name[1]), "--help")...).is(exitOK).stdout
		_, examples, _ := strings.Cut(help, "Examples:\n")
		examples, _, _ = strings.Cut(examples, "\n\n")
		if examples == "" && name[1] != "completion" && name[1] != "help" {
			t.Errorf("%s has no example", name[1])
		}
		for line := range strings.Lines(examples) {
			h.example(t, name[1], strings.TrimSpace(line))
		}
	}
}

// example runs one.
func (h *exampleHost) example(t *testing.T, name, line string) {
	t.Helper()
	t.Logf("%s: %s", name, line)
	script := strings.Replace(h.stand.Replace(line), h.without, "", 1)
	if name == "bench" { // all of it takes minutes, and its own servers are not those of the environment
		script = "unset WALWAKE_PRIMARY WALWAKE_REPLICA; " + script
		for _, flag := range []string{"--rounds 5", "--rates 0", "--waiters 1", "--ways tight-loop,walwake"} {
			if name, _, _ := strings.Cut(flag, " "); !strings.Contains(script, name) {
				script += " " + flag
			}
		}
	}
	if strings.Contains(line, "--check") {
		script = "WALWAKE_LISTEN=unix:" + h.dir + "/http.sock " + script
	}
	until, endless := printsThen(line)
	out := &output{want: until, found: make(chan struct{})}
	cmd := exec.Command("sh", "-c", script)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = h.env, h.dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func(s syscall.Signal) { _ = syscall.Kill(-cmd.Process.Pid, s) }
	defer kill(syscall.SIGKILL) // unless it has ended
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for late, found := time.After(time.Minute), out.found; ; {
		select {
		case err := <-ended:
			if stop := regexp.MustCompile(`kill -QUIT .*`).FindString(out.String()); strings.Contains(line, "--keep") {
				if err := exec.CommandContext(t.Context(), "sh", "-c", stop).Run(); stop == "" || err != nil {
					t.Fatalf("%s: %q: %v", line, stop, err)
				}
			}
			if found == nil || err == nil && !endless {
				return
			}
			t.Fatalf("%s: it ended (%v) after %s", line, err, out)
		case <-found:
			if found = nil; endless {
				kill(syscall.SIGINT)
			}
		case <-tick.C:
			if text, err := os.ReadFile(filepath.Join(h.dir, "lag.txt")); err == nil {
				_, _ = out.Write(text)
			}
			h.happens(t, line)
		case <-late:
			t.Fatalf("%s: no %q, or no end, after a minute: %s", line, until, out)
		}
	}
}

// printsThen returns what an example prints, and whether it then goes on.
func printsThen(line string) (text string, goes bool) {
	_, args, _ := strings.Cut(line, "walwake ")
	best := ""
	for start := range goesOn {
		name, flag, _ := strings.Cut(start, " ")
		if strings.HasPrefix(args, name) && strings.Contains(args, flag) && len(start) > len(best) {
			best = start
		}
	}
	return goesOn[best], goesOn[best] != ""
}

// happens has what an example waits for happen: notifications and messages, and that sessions on the standby fail.
func (h *exampleHost) happens(t *testing.T, line string) {
	t.Helper()
	node, sql := h.Primary, "select pg_notify('orders', 'x'), pg_logical_emit_message(true, 'orders', 'x')"
	switch {
	case strings.Contains(line, "failed"):
		node, sql = h.Standbys[0], "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app' and pid <> pg_backend_pid()"
	case !strings.Contains(line, "listen"):
		return
	}
	h.exec(t, node, sql)
}

// exec runs SQL in the database of the examples.
func (h *exampleHost) exec(t *testing.T, node *replicationtest.Node, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), node.DSNFor("app", secret, "app"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}
