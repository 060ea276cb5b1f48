package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// grace is how long requests may take to end when the sidecar shuts down.
const grace = 5 * time.Second

// Serve answers on the listeners, which it closes, until ctx ends; on those that are not
// Unix sockets with TLS where a configuration is given. It returns nil when every request has
// been answered, and why a listener failed otherwise. It is called once.
func (s *Server) Serve(ctx context.Context, listeners []net.Listener, tlsConfig *tls.Config) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler:           s.Handler(),
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		TLSConfig:         tlsConfig,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: s.cfg.Waiters + s.cfg.Streams, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		BaseContext:       s.base,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug), // what clients do wrong
	}
	defer s.shut(errShutdown)
	run, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { s.cfg.Hub.run(run, s) })
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		limited := s.limit(l) // here, or a Serve that ends at once would not wait for what it starts
		running.Go(func() {
			var err error
			if tlsConfig != nil && l.Addr().Network() != "unix" {
				err = srv.ServeTLS(limited, "", "")
			} else {
				err = srv.Serve(limited)
			}
			if !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.shut(errShutdown)
	late, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if srv.Shutdown(late) != nil {
		_ = srv.Close()
	}
	s.parked.Wait()
	s.tellRefusals()
	return err
}

func (s *Server) base(l net.Listener) context.Context {
	if l.Addr().Network() == "unix" {
		return context.WithValue(s.ctx, socketKey{}, true)
	}
	return s.ctx
}
