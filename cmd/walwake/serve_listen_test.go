package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever the umask, which made of 0777 what only the owner could write to.
func TestWhoMayConnectToASocketIsASetting(t *testing.T) {
	t.Parallel()
	replica := env{"WALWAKE_REPLICA": "host=127.0.0.1 port=1"}
	for _, c := range []struct {
		e    env
		args []string
		want os.FileMode
	}{
		{replica, nil, 0o660},
		{replica, []string{"--socket-mode", "0600"}, 0o600},
		{replica, []string{"--socket-mode=666"}, 0o666},
		{env{"WALWAKE_REPLICA": "host=127.0.0.1 port=1", "WALWAKE_SOCKET_MODE": "0666"}, nil, 0o666},
		{replica, []string{"--config", configured(t, "socket_mode: 0600\n")}, 0o600},
		{replica, []string{"--config", configured(t, "socket_mode: 0o666\n")}, 0o666},
	} {
		path := filepath.Join(t.TempDir(), "http.sock")
		s := serve(t, c.e, append(c.args, "--listen", "unix:"+path)...)
		if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|c.want {
			t.Errorf("%v: got %v, %v", c, info, err)
		}
		s.end()
	}
	for _, bad := range []string{"0060", "1660", "x", "888", "", "-1"} {
		walwake(t, replica, "serve", "--socket-mode="+bad).is(exitUsage).says("--socket-mode", "want 0600 (its user), 0660").alone()
	}
}

// Only who finds an address taken is asked for another sidecar.
func TestWhyItCannotListenAndWhatToDo(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	for _, c := range []struct {
		listen string
		code   int
		says   string
	}{
		{taken.Addr().String(), exitFailure, "address already in use: is another sidecar running there?"},
		{"127.0.0.1:99999", exitUsage, `there is no port "99999": want one from 1 to 65535`},
		{"127.0.0.1:nosuch", exitUsage, `there is no port "nosuch"`},
		{"192.0.2.1:7432", exitFailure, "cannot assign requested address: no address of this machine"},
		{"nowhere.invalid:7432", exitFailure, "there is no host nowhere.invalid: name an address of this machine"},
		{"unix:" + dir + "/none/x", exitFailure, "make the folder " + dir + "/none first"},
		{"unix:" + configured(t, "x"), exitFailure, "a file that is no socket is there"},
		{"unix:" + dir + "/" + strings.Repeat("x", 120), exitFailure, "the path of a socket is at most 107 bytes long"},
	} {
		o := walwake(t, env{"WALWAKE_REPLICA": "host=127.0.0.1 port=1"}, "serve", "--listen", c.listen).is(c.code).says(c.says).alone()
		if c.listen != taken.Addr().String() && strings.Contains(o.stderr, "another sidecar") {
			t.Errorf("%s: got %s", c.listen, o)
		}
	}
}
