package sidecar

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/walwake/walwake/tracker"
)

// Config configures a Client. It is copied by New.
type Config struct {
	// URL is where the sidecar answers: http://127.0.0.1:7432, https://host:port, or
	// unix:/path for a Unix socket. Required.
	URL string

	// Bearer is the token that the sidecar wants to see. Empty: none.
	Bearer string

	// TLS is for https. nil: the system's certificates.
	TLS *tls.Config

	// Stall is how long the stream may be silent before it counts as lost, and
	// connecting may take. The sidecar says something four times as often. At least
	// 400 ms. 0 means DefaultStall.
	Stall time.Duration
}

// DefaultStall is what a zero Config.Stall means.
const DefaultStall = 2 * time.Second

const minStall = 400 * time.Millisecond

// A Client asks a sidecar. It is a tracker.Source.
type Client struct {
	cfg  Config
	base string // what requests' URLs begin with
	http *http.Client
}

var _ tracker.Source = (*Client)(nil)

// New returns a Client. It does no I/O; an error names the field that is wrong.
func New(cfg Config) (*Client, error) {
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.Stall < minStall {
		return nil, fmt.Errorf("sidecar: Config.Stall %s: want at least %s", cfg.Stall, minStall)
	}
	if strings.ContainsAny(cfg.Bearer, "\r\n") {
		return nil, errors.New("sidecar: Config.Bearer has several lines: trim what was read from a file")
	}
	c := &Client{cfg: cfg}
	dialer := &net.Dialer{Timeout: cfg.Stall}
	dial := dialer.DialContext
	if path, is := strings.CutPrefix(cfg.URL, "unix:"); is {
		if path == "" {
			return nil, errors.New("sidecar: Config.URL: unix: without a path")
		}
		c.base = "http://localhost"
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
	} else {
		u, err := url.Parse(cfg.URL)
		switch {
		case err != nil: // whose text has the URL, and so perhaps a password
			return nil, errors.New("sidecar: Config.URL cannot be read: want http://127.0.0.1:7432, https://host:port or unix:/path")
		case u.User != nil:
			return nil, errors.New("sidecar: Config.URL has a user: put the token into Config.Bearer")
		case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			return nil, fmt.Errorf("sidecar: Config.URL %.100q: want http://127.0.0.1:7432, https://host:port or unix:/path", cfg.URL)
		}
		c.base = u.Scheme + "://" + u.Host
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: dial, TLSClientConfig: cfg.TLS, TLSHandshakeTimeout: cfg.Stall,
			DisableCompression: true, MaxIdleConnsPerHost: 100, IdleConnTimeout: time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for nobody else
	}
	return c, nil
}

// Name is the source's: "sidecar".
func (c *Client) Name() string { return "sidecar" }

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("sidecar: %w", err)
	}
	if c.cfg.Bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Bearer)
	}
	return req, nil
}

// reached takes the method and the address out of what package net/http says.
func reached(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// problem is an answer that is no success.
type problem struct {
	Status   int          `json:"status"`
	Title    string       `json:"title"`
	Detail   string       `json:"detail"`
	Reason   string       `json:"reason"`
	Replayed *tracker.LSN `json:"replayed"`
	Timeline uint32       `json:"timeline"`
	Behind   uint64       `json:"behind_bytes"`
	ETA      int64        `json:"eta_us"`
	Source   string       `json:"source"`
}

func (p *problem) Error() string {
	if p.Detail == "" {
		return fmt.Sprintf("sidecar: status %d", p.Status)
	}
	return "sidecar: " + p.Title + ": " + p.Detail
}

// maxProblem bounds what is read of an answer that is no stream, in bytes.
const maxProblem = 64 << 10

func readProblem(resp *http.Response) *problem {
	p := &problem{}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil || resp.Header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(body, p) != nil {
		*p = problem{} // somebody else's answer
	}
	p.Status = resp.StatusCode
	return p
}
