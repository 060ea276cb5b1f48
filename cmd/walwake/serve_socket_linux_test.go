package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A socket whose queue of connections is full is one of a sidecar that runs. Other systems than Linux refuse a connection
// then, as they do where nobody listens.
func TestASocketWhoseQueueIsFullIsNotRemoved(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	path := filepath.Join(t.TempDir(), "http.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	var waits []net.Conn
	for full := false; !full; {
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
		if full = err != nil; !full {
			t.Cleanup(func() { _ = conn.Close() })
			waits = append(waits, conn)
		}
	}
	walwake(t, on(nil, standby), "serve", "--listen", "unix:"+path).is(exitFailure).says("temporarily unavailable", "is another sidecar running there?").alone()
	for range waits {
		conn, _, err := syscall.Accept(fd)
		if err != nil {
			t.Fatal(err)
		}
		_ = syscall.Close(conn)
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatalf("the socket of one that runs was removed: %v", err)
	}
	_ = conn.Close()
}

// Before its mode is set nobody but its owner may connect, though the umask of most machines would let others execute it,
// and that of some would let them write.
func TestASocketIsItsOwnersUntilItsModeIsSet(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "http.sock")
	l, err := ownersListener(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info, err)
	}
}
