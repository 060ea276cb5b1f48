//go:build unix

package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// check runs "walwake serve --check".
func check(t *testing.T, e env, args ...string) *outcome {
	t.Helper()
	return walwake(t, e, append([]string{"serve", "--check"}, args...)...)
}

func (o *outcome) answers(address string) {
	o.t.Helper()
	if want := address + ": walwake serve answers\n"; o.code != exitOK || o.stdout != want || o.stderr != "" {
		o.t.Errorf("want %q, got %s", want, o)
	}
}

// It finds the sidecar by the settings that the sidecar was started with, wherever they stand, and says nothing of the
// replica, which is down.
func TestServeCheckFindsTheSidecarByItsSettings(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	dir := t.TempDir()
	bearer, socket := filepath.Join(dir, "bearer"), "unix:"+filepath.Join(dir, "http.sock")
	if err := os.WriteFile(bearer, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	replica := "host=127.0.0.1 port=1"
	for name, listens := range map[string]func(port string) []string{
		"all of IPv4": func(port string) []string { return []string{"--listen", "0.0.0.0:" + port} },
		"all":         func(port string) []string { return []string{"--listen", ":" + port} },
		"a name":      func(port string) []string { return []string{"--listen", "localhost:" + port} },
		"with TLS, twice": func(port string) []string {
			return []string{"--listen", "127.0.0.1:" + port, "--listen", socket, "--tls-cert", cert, "--tls-key", key}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			same := []string{"--bearer-file", bearer, "--replica", replica}
			p, port := serveWith(t, slices.Concat(same, listens("0"))...)
			args := slices.Concat(same, listens(port))
			address := args[5]
			if len(args) > 6 {
				address += ", " + socket
			}
			check(t, nil, args...).answers(address)
			if _, tail := end(t, p.cmd, p.rest, syscall.SIGTERM); strings.Contains(tail, `"level":"error"`) {
				t.Errorf("it logs %s", tail)
			}
			check(t, nil, args...).is(exitFailure).says("--check: "+args[5], "nothing listens there: is walwake serve running, with the same settings?").alone().atOnce()
		})
	}
	t.Run("in the environment and the file", func(t *testing.T) {
		t.Parallel()
		settings := "replica: " + replica + "\nlisten: [127.0.0.1:%s]\ntls_cert: " + cert + "\ntls_key: " + key + "\n"
		_, port := serveWith(t, "--config", configured(t, fmt.Sprintf(settings, "0")))
		file := configured(t, fmt.Sprintf(settings, port))
		check(t, nil, "--config", file).answers("127.0.0.1:" + port)
		check(t, env{"WALWAKE_CONFIG": file}).answers("127.0.0.1:" + port)
		check(t, env{"WALWAKE_LISTEN": "127.0.0.1:" + port, "WALWAKE_TLS_CERT": cert, "WALWAKE_TLS_KEY": key}).answers("127.0.0.1:" + port)
		check(t, env{"WALWAKE_LISTEN": "127.0.0.1:" + port}).is(exitFailure).says("wants TLS: give --tls-cert and --tls-key, as the sidecar has them").alone()
	})
}

// serveWith runs the binary until it listens, and returns its port. The test's end kills it.
func serveWith(t *testing.T, args ...string) (p process, port string) {
	t.Helper()
	cmd, rest, seen := start(t, t.TempDir(), `"message":"listening"`, append([]string{"serve"}, args...)...)
	address := logged(t, seen, "listening", "address")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return process{cmd, rest, address}, port
}

// stop is kill -STOP, which each thread of the process has heard of then.
func (p process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || !status.Stopped() {
			t.Fatalf("it is not stopped: %v, %v", status, err)
		}
		return
	}
}

// A process that hangs has a listener still.
func TestServeCheckFindsOutAHangingSidecar(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	p := serveProcess(t, standby, "--listen", "127.0.0.1:0")
	check(t, nil, "--listen", p.address).answers(p.address)
	p.stop(t)
	o := check(t, nil, "--listen", p.address).is(exitFailure).says("--check: " + p.address + ": no answer within 3s: walwake serve hangs").alone()
	if o.took < checkWithin || o.took > checkWithin+10*time.Second {
		t.Errorf("it took %s", o.took)
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	check(t, nil, "--listen", p.address).answers(p.address)
	p.kill(t)
	check(t, nil, "--listen", p.address).is(exitFailure).says("nothing listens there").alone()
}

func TestServeCheckSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>ok</html>")) }))
	t.Cleanup(other.Close)
	cert, key := certificate(t)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"--listen " + strings.TrimPrefix(other.URL, "http://"), exitFailure, "what answers there, with status 200, is no walwake serve"},
		{"--listen " + strings.TrimPrefix(other.URL, "http://") + " --tls-cert " + cert + " --tls-key " + key, exitFailure, "speaks no TLS: leave out --tls-cert and --tls-key"},
		{"--listen unix:/nowhere/x", exitFailure, "--check: unix:/nowhere/x: nothing listens there"},
		{"--listen 127.0.0.1:0", exitUsage, "--check: --listen 127.0.0.1:0: the port is another each time"},
		{"--listen nonsense", exitUsage, "want host:port"},
		{"--listen=", exitUsage, "name an address"},
		{"--config /nowhere/x", exitUsage, "no such file or directory"},
		{"--config " + configured(t, "listen: [127.0.0.1:1]\ncheck: true\n"), exitUsage, `there is no setting "check"`},
		{"now", exitUsage, "unexpected argument"},
	} {
		check(t, nil, strings.Fields(c.args)...).is(c.code).says(c.says).alone().atOnce()
	}
}
