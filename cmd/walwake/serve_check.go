package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// checkWithin is how long --check takes at most.
const checkWithin = 3 * time.Second

// runCheck asks the sidecar that has the same settings whether it answers, at each of its listeners.
//
// It asks /healthz. What a container's health check is for is to restart who hangs, and to start who depends on it: a
// sidecar whose replica is down must not be restarted, which would end the waits that it keeps for when the replica is back.
// Whether to send it readers is a load balancer's question, which asks /readyz.
func (s *serveCommand) runCheck(c *cobra.Command) error {
	if err := s.settings(c); err != nil {
		return err
	}
	if len(s.listen) == 0 {
		return usagef("--listen: name an address, such as %s", defaultListen)
	}
	ctx, cancel := context.WithTimeout(c.Context(), checkWithin)
	defer cancel()
	for _, address := range s.listen {
		sidecar, err := s.callerOf(address)
		if err != nil {
			return err
		}
		err = sidecar.healthy(ctx)
		sidecar.close()
		if err != nil {
			return fmt.Errorf("--check: %s: %w", address, err)
		}
	}
	return s.answer(nil, strings.Join(s.listen, ", ")+": walwake serve answers\n")
}

// callerOf returns who asks the sidecar that listens on an address: on all of the machine's is on its loopback too, as
// package net has it. The token is not needed for /healthz, and is not shown.
func (s *serveCommand) callerOf(address string) (*caller, error) {
	const base = "localhost" // a name that each sidecar goes by
	if path, is := strings.CutPrefix(address, "unix:"); is {
		return newCaller("http://"+base, "unix", path, "", nil), nil
	}
	_, port, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		return nil, usagef("--listen %q: want host:port, such as %s, or unix:/path", address, defaultListen)
	case port == "0" || port == "":
		return nil, usagef("--check: --listen %s: the port is another each time: name one", address)
	case s.tlsCert == "" && s.tlsKey == "":
		return newCaller("http://"+base, "tcp", address, "", nil), nil
	}
	// The certificate is for the names that others call the sidecar by.
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12} //nolint:gosec // nothing secret is sent or believed
	return newCaller("https://"+base, "tcp", address, "", config), nil
}

// healthy asks for /healthz, and says what to look at where that is not as it should be.
func (c *caller) healthy(ctx context.Context) error {
	status, body, err := c.get(ctx, "/healthz")
	var answer struct{ Status string }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("nothing listens there: is walwake serve running, with the same settings? (%w)", reason(err))
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %s: walwake serve hangs", checkWithin)
	case errors.Is(err, http.ErrSchemeMismatch):
		return errors.New("what answers there speaks no TLS: leave out --tls-cert and --tls-key, which the sidecar has not got")
	case err != nil:
		return err
	case status == http.StatusBadRequest && strings.Contains(string(body), "HTTP request to an HTTPS server"): // net/http's own
		return errors.New("what answers there wants TLS: give --tls-cert and --tls-key, as the sidecar has them")
	case status != http.StatusOK || json.Unmarshal(body, &answer) != nil || answer.Status != "ok":
		return fmt.Errorf("what answers there, with status %d, is no walwake serve with these settings", status)
	}
	return nil
}
