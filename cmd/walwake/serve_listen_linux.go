package main

import (
	"context"
	"net"
	"syscall"
)

// ownersListener listens on a socket that its owner alone may connect to, whatever the umask: the file that binding makes
// has the mode of the socket before.
func ownersListener(ctx context.Context, path string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
		if failed != nil {
			return failed
		}
		return err
	}}
	return config.Listen(ctx, "unix", path)
}
