package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// defaultSocketMode lets the sidecar's user and group connect to its sockets. A service has a group of its own; what a
// person's group can learn is where a replica is.
const defaultSocketMode fileMode = 0o660

// fileMode is a flag that takes the mode of a socket's file, in octal.
type fileMode os.FileMode

func (m *fileMode) String() string { return fmt.Sprintf("%04o", uint32(*m)) }
func (m *fileMode) Type() string   { return "mode" }

func (m *fileMode) Set(s string) error {
	const owner = 0o600 // or not even --check could connect
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	if err != nil || n > 0o777 || n&owner != owner {
		return errors.New("want 0600 (its user), 0660 (its group too) or 0666 (everybody who gets to its folder)")
	}
	*m = fileMode(n)
	return nil
}

// listenOn opens the listeners.
func listenOn(ctx context.Context, addresses []string, socketMode os.FileMode) (all []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	if len(addresses) == 0 {
		return nil, usagef("--listen: name an address, such as %s", defaultListen)
	}
	for _, a := range addresses {
		l, err := listenAt(ctx, a, socketMode)
		if err != nil {
			return all, err
		}
		all = append(all, l)
	}
	return all, nil
}

func listenAt(ctx context.Context, address string, socketMode os.FileMode) (net.Listener, error) {
	if path, is := strings.CutPrefix(address, "unix:"); is {
		return listenUnix(ctx, path, socketMode)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, usagef("--listen %q: want host:port, such as %s, or unix:/path", address, defaultListen)
	}
	if _, err := net.DefaultResolver.LookupPort(ctx, "tcp", port); err != nil {
		return nil, usagef("--listen %q: there is no port %q: want one from 1 to 65535, such as in %s", address, port, defaultListen)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, notListening(address, err)
	}
	return l, nil
}

// listenUnix listens on a socket to which only who may by its mode ever could connect.
func listenUnix(ctx context.Context, path string, mode os.FileMode) (net.Listener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := ownersListener(ctx, path)
	if err != nil {
		return nil, notListening("unix:"+path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("--socket-mode %04o: %w", mode, err)
	}
	return l, nil
}

// notListening says why there is no listener at an address, and what to do.
func notListening(address string, err error) error {
	path, isSocket := strings.CutPrefix(address, "unix:")
	why := reason(err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	todo := ""
	switch {
	case isSocket && errors.Is(err, syscall.EADDRINUSE): // a socket would have been removed, or found in use
		todo = "a file that is no socket is there: remove it, or name another"
	case errors.Is(err, syscall.EADDRINUSE):
		todo = "is another sidecar running there?"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		todo = "no address of this machine: name one of its own, or 0.0.0.0 for all"
	case isDNS:
		why, todo = fmt.Errorf("there is no host %s", dns.Name), "name an address of this machine"
	case errors.Is(err, fs.ErrNotExist):
		todo = "make the folder " + filepath.Dir(path) + " first"
	case isSocket && errors.Is(err, fs.ErrPermission):
		todo = "its user may not write to " + filepath.Dir(path)
	case errors.Is(err, fs.ErrPermission):
		todo = "take a port from 1024 on, or let it have lower ones (CAP_NET_BIND_SERVICE)"
	case isSocket && errors.Is(err, syscall.EINVAL):
		todo = "the path of a socket is at most 107 bytes long, on some systems 103"
	}
	if todo == "" {
		return fmt.Errorf("--listen %s: %w", address, why)
	}
	return fmt.Errorf("--listen %s: %w: %s", address, why, todo)
}

// removeStale removes the socket of a sidecar that was killed.
func removeStale(ctx context.Context, path string) error {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeSocket {
		return nil //nolint:nilerr // there is none, or what listening there complains of
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("--listen unix:%s: another sidecar answers there", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) { // such as that as many connections as may be wait for one that runs
		return fmt.Errorf("--listen unix:%s: %w: is another sidecar running there? Remove the socket if none is", path, reason(err))
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("--listen unix:%s: the socket of one that has ended: %w", path, err)
	}
	return nil
}

// reason is what is worth reading of an error of package net.
func reason(err error) error {
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Err
	}
	return err
}

func closeAll(all []net.Listener) {
	for _, l := range all {
		_ = l.Close()
	}
}
