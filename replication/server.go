package replication

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Server says how to reach one PostgreSQL server, and how long each step may
// take. It is copied by the constructors that take it.
type Server struct {
	// DSN is a connection string as libpq reads it: keywords and values, or a
	// URL; PG* variables and the password file fill what it leaves out.
	DSN string

	// Config is used instead of DSN when it is set: for a dialer or TLS of
	// one's own.
	Config *pgx.ConnConfig

	// BeforeConnect, if set, may change each connection's Config just before it
	// is made: for passwords that expire.
	BeforeConnect func(context.Context, *pgx.ConnConfig) error

	// ConnectTimeout bounds making a connection to each host of the DSN, where that
	// has no connect_timeout; QueryTimeout bounds each query.
	// 0 means DefaultConnectTimeout and DefaultQueryTimeout.
	ConnectTimeout, QueryTimeout time.Duration
}

// What a zero field of Server means.
const (
	DefaultConnectTimeout = 5 * time.Second
	DefaultQueryTimeout   = 5 * time.Second
)

// closeTimeout bounds saying goodbye to a server that may be gone.
const closeTimeout = 250 * time.Millisecond

// SQLSTATEs that matter here.
const (
	queryCanceled         = "57014" // what interrupt, or an administrator, ends
	insufficientPrivilege = "42501"
	tooManyConnections    = "53300" // or walsenders
)

func (s Server) isZero() bool { return s.DSN == "" && s.Config == nil }

// Checked returns s as Connect needs it: with its defaults filled in and its DSN
// parsed, or an error that says what is wrong. It does no I/O.
func (s Server) Checked() (Server, error) {
	if s.ConnectTimeout == 0 {
		s.ConnectTimeout = DefaultConnectTimeout
	}
	if s.QueryTimeout == 0 {
		s.QueryTimeout = DefaultQueryTimeout
	}
	if s.ConnectTimeout < 0 || s.QueryTimeout < 0 {
		return s, fmt.Errorf("ConnectTimeout %s and QueryTimeout %s: want neither below 0", s.ConnectTimeout, s.QueryTimeout)
	}
	if s.Config != nil {
		s.Config = s.Config.Copy()
		return s, nil
	}
	if s.DSN == "" {
		return s, errors.New("neither DSN nor Config is set: say which server to connect to")
	}
	cfg, err := ParseDSN(s.DSN)
	if err != nil {
		return s, fmt.Errorf("DSN: %w", err)
	}
	s.Config = cfg
	return s, nil
}

// Connect makes a connection for queries to a server that is Checked. change, if
// it is not nil, may change the connection's Config before BeforeConnect does. It
// ends with ctx, and at the latest after ConnectTimeout for each host; a peer that
// is gone without a word later is found out in some 4 s.
func (s Server) Connect(ctx context.Context, change func(*pgx.ConnConfig)) (*pgx.Conn, error) {
	if change != nil {
		s.Config = s.Config.Copy()
		change(s.Config)
	}
	return s.connect(ctx, false)
}

// connect makes a connection. With walsender it is a replication connection
// that also takes queries, in the simple protocol: IDENTIFY_SYSTEM and
// TIMELINE_HISTORY need one. It uses up one of max_wal_senders.
func (s Server) connect(ctx context.Context, walsender bool) (*pgx.Conn, error) {
	cfg := s.Config.Copy()
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = s.ConnectTimeout // for each host, or the first that is silent uses up the time of all
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(1+len(cfg.Fallbacks))*max(s.ConnectTimeout, cfg.ConnectTimeout))
	defer cancel()
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = map[string]string{}
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "walwake"
	}
	if walsender {
		cfg.RuntimeParams["replication"] = "database"
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	}
	if s.BeforeConnect != nil {
		if err := s.BeforeConnect(ctx, cfg); err != nil {
			return nil, fmt.Errorf("replication: Server.BeforeConnect: %w", err)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, refusal(err, cfg, walsender)
	}
	keepAlive(conn.PgConn().Conn())
	return conn, nil
}

// keepAlive has a peer that is gone without a word found out in some 4 s also
// while nothing is asked, which is what a position may outlive its server by.
func keepAlive(c net.Conn) {
	if t, is := c.(*tls.Conn); is {
		c = t.NetConn()
	}
	if t, is := c.(*net.TCPConn); is {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3})
	}
}

// refusal says why a connection could not be made, and what mends it.
func refusal(err error, cfg *pgx.ConnConfig, walsender bool) error {
	said, is := errors.AsType[*pgconn.PgError](err)
	if !is || !walsender {
		return fmt.Errorf("replication: %w", err)
	}
	switch said.Code {
	case insufficientPrivilege:
		err = fmt.Errorf("%w: ALTER ROLE %s REPLICATION on the primary", said, quoted(cfg.User))
	case tooManyConnections:
		err = fmt.Errorf("%w: raise max_wal_senders and max_connections, or close what needs none", said)
	}
	return fmt.Errorf("replication: open a replication connection: %w", err)
}

// disconnect closes conn whether or not the server still listens.
func disconnect(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // nothing was left to lose
}
