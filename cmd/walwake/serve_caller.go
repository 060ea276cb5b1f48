package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
)

// caller asks a sidecar over HTTP.
type caller struct {
	base   string // what requests' URLs begin with
	bearer string // empty: none is shown
	http   *http.Client
}

// newCaller returns one that connects where base says or, if network is not empty, to address.
func newCaller(base, network, address, bearer string, config *tls.Config) *caller {
	dialer := new(net.Dialer)
	t := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: config, DisableCompression: true}
	if network != "" {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		}
	}
	return &caller{base, bearer, &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for nobody else
	}}
}

// maxAnswer bounds what is read of an answer, in bytes: a position with a history of 65,536 timelines fits.
const maxAnswer = 4 << 20

// get asks for a path, until ctx ends.
func (c *caller) get(ctx context.Context, path string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	if c.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok { // whose text repeats method and address
			err = e.Err
		}
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, body, err
}

// close closes connections that are kept for later.
func (c *caller) close() { c.http.CloseIdleConnections() }
