//go:build !linux

package main

import (
	"context"
	"net"
)

// ownersListener listens on a socket. That its owner alone may connect to it before its mode is set is for the umask to
// say here, which is one of the process, and for the folder.
func ownersListener(ctx context.Context, path string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "unix", path)
}
