//go:build unix

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication/replicationtest"
)

// proxied runs a pooler before a node until the test ends, and returns the DSN by way of it. write makes its files in a
// folder and returns its arguments.
func proxied(t *testing.T, n *replicationtest.Node, program string, write func(dir string, at *url.URL, port int) []string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	switch {
	case err != nil && os.Getenv("WALWAKE_"+strings.ToUpper(program)) != "":
		t.Fatalf("%s is not installed", program)
	case err != nil:
		t.Skipf("%s is not installed", program)
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
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	must(err)
	port := free.Addr().(*net.TCPAddr).Port
	must(free.Close())
	at, err := url.Parse(n.DSN())
	must(err)
	cmd := exec.Command(path, write(dir, at, port)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 { // neither runs as root
		u, err := user.Lookup("postgres")
		if err != nil {
			u, err = user.Lookup("nobody")
		}
		must(err)
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)} //nolint:gosec // are not negative
		must(filepath.Walk(dir, func(path string, _ os.FileInfo, _ error) error { return os.Chown(path, uid, gid) }))
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	must(cmd.Start())
	var running sync.WaitGroup
	running.Go(func() { _ = cmd.Wait() })
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its children too
		running.Wait()
		if t.Failed() {
			t.Logf("%s's log:\n%s", program, log.String())
		}
	})
	dsn := strings.Replace(n.DSN(), ":"+at.Port(), ":"+strconv.Itoa(port), 1)
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := pgx.Connect(t.Context(), dsn)
		if err == nil {
			must(conn.Close(t.Context()))
			return dsn
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%s does not answer: %v", program, err)
		}
	}
}

func TestTheDoctorSeesPgBouncer(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	for _, mode := range []string{"session", "transaction"} {
		dsn := replicationtest.PgBouncer(t, standby.DSN(), mode)
		if mode == "session" {
			o := walwake(t, env{"WALWAKE_REPLICA": dsn}, "doctor", "--json").is(exitOK)
			if a := decode[doctorAnswer](o); a.Pooler != "PgBouncer" || len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "Name the server itself") {
				t.Errorf("got %s", o)
			}
		}
		// In transaction mode an old one may not let all questions through: the error tells of it too.
		if o := walwake(t, env{"WALWAKE_REPLICA": dsn}, "doctor"); !strings.Contains(o.stdout+o.stderr, "PgBouncer stands between") {
			t.Errorf("%s mode: got %s", mode, o)
		}
	}
}

func TestTheDoctorSeesPgpool(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	dsn := proxied(t, standby, "pgpool", func(dir string, at *url.URL, port int) []string {
		config := fmt.Sprintf(`listen_addresses = '127.0.0.1'
port = %d
pcp_listen_addresses = ''
unix_socket_directories = '%[2]s'
socket_dir = '%[2]s'
pcp_socket_dir = '%[2]s'
wd_ipc_socket_dir = '%[2]s'
work_dir = '%[2]s'
logdir = '%[2]s'
pid_file_name = '%[2]s/pid'
backend_clustering_mode = 'streaming_replication'
backend_hostname0 = '127.0.0.1'
backend_port0 = %[3]s
backend_weight0 = 1
backend_flag0 = 'DISALLOW_TO_FAILOVER'
enable_pool_hba = off
allow_clear_text_frontend_auth = on
sr_check_period = 0
health_check_period = 0
num_init_children = 4
use_watchdog = off
`, port, dir, at.Port())
		for name, text := range map[string]string{"pgpool.conf": config, "pool_hba.conf": "", "pcp.conf": ""} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return []string{"-n", "-f", filepath.Join(dir, "pgpool.conf"), "-a", filepath.Join(dir, "pool_hba.conf"), "-F", filepath.Join(dir, "pcp.conf")}
	})
	o := walwake(t, env{"WALWAKE_REPLICA": dsn}, "doctor", "--json")
	if a := decode[doctorAnswer](o); !strings.HasPrefix(a.Pooler, "Pgpool-II ") || len(a.Notes) != 1 {
		t.Errorf("got %s", o)
	}
}

func TestTheDoctorSeesThatNobodyStandsBetween(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	if a := decode[doctorAnswer](walwake(t, on(nil, standby), "doctor", "--json").is(exitOK)); a.Pooler != "" || len(a.Notes) != 0 {
		t.Errorf("got %+v", a)
	}
}
