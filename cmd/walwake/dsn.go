package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// server is a server that a flag or variable names.
type server struct {
	role    string // "primary" or "replica"
	from    string // the flag or variable, for errors
	address string // host:port, or several, without user and password
	config  *pgx.ConnConfig
}

// String names the server in errors, notes and logs.
func (s *server) String() string { return s.role + " " + s.address }

// address lists the hosts that a configuration leads to, each once: pgx lists one once for each way of TLS.
func address(c *pgx.ConnConfig) string {
	all := []string{net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))}
	for _, f := range c.Fallbacks {
		if a := net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))); !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return strings.Join(all, ",")
}

// usable reports whether a server answers and is what it was named as.
func usable(ctx context.Context, s *server) error {
	var standby bool
	err := s.query(ctx, connectTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby)
	})
	switch {
	case err != nil:
		return err
	case standby && s.role == "primary":
		return fmt.Errorf("%s is a standby: name its primary in %s", s, s.from)
	case !standby && s.role == "replica":
		return fmt.Errorf("%s is a primary, no replica: name a standby in %s", s, s.from)
	}
	return nil
}
