package replicationtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// PgBouncer runs one before the server that dsn leads to, until the test ends, and returns the DSN by way of it. mode
// is "session", "transaction" or "statement", and settings are lines of its configuration. Where it is not installed
// the test is skipped, or fails if WALWAKE_PGBOUNCER is set.
func PgBouncer(t testing.TB, dsn, mode string, settings ...string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	switch {
	case err != nil && os.Getenv("WALWAKE_PGBOUNCER") != "":
		t.Fatal("pgbouncer is not installed, and .ci/run installs it")
	case err != nil:
		t.Skip("pgbouncer is not installed: apt-get install pgbouncer")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "walwake-pooler") //nolint:usetesting // another user has to get there
	must(err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(os.Chmod(dir, 0o755)) //nolint:gosec // see above
	free, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	must(err)
	_, port, err := net.SplitHostPort(free.Addr().String())
	must(err)
	must(free.Close())
	at, err := url.Parse(dsn)
	must(err)
	password, _ := at.User.Password()
	config := fmt.Sprintf("[databases]\npostgres = host=%s port=%s user=%s password=%s\n"+
		"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %s\nunix_socket_dir =\nauth_type = any\npool_mode = %s\n%s\n",
		at.Hostname(), at.Port(), at.User.Username(), password, port, mode, strings.Join(settings, "\n"))
	file := filepath.Join(dir, "pgbouncer.ini")
	must(os.WriteFile(file, []byte(config), 0o644)) //nolint:gosec // see above
	args := []string{file}
	if os.Geteuid() == 0 { // it does not run as root
		args = append([]string{"-u", unprivileged(t)}, args...)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stderr = &log
	must(cmd.Start())
	var running sync.WaitGroup
	running.Go(func() { _ = cmd.Wait() })
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		running.Wait()
		if t.Failed() {
			t.Logf("pgbouncer's log:\n%s", log.String())
		}
	})
	at.Host = net.JoinHostPort("127.0.0.1", port)
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := pgx.Connect(t.Context(), at.String())
		if err == nil {
			_ = conn.Close(context.WithoutCancel(t.Context()))
			return at.String()
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("pgbouncer does not answer: %v", err)
		}
	}
}

func unprivileged(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		if _, err := user.Lookup(name); err == nil {
			return name
		}
	}
	t.Fatal("there is no user postgres or nobody to run pgbouncer as")
	return ""
}
