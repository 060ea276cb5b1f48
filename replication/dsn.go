package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ParseDSN reads a connection string as libpq does: keywords and values, or a
// URL; PG* variables and the password file fill what it leaves out. Nothing of
// the string that may be part of a password is in the error: pgx masks what it
// recognizes, and what is malformed cannot be recognized for sure.
func ParseDSN(dsn string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, dsnError(dsn, err)
	}
	if strayAt(dsn) {
		return nil, errEncode
	}
	return config, nil
}

// strayAt reports whether a URL has an @ where none belongs. A password with an
// unencoded @ or / makes one, and its rest is then taken for a host or database,
// whose names are shown in errors.
func strayAt(dsn string) bool {
	_, rest, ok := strings.Cut(dsn, "://")
	if !ok {
		return false
	}
	if i := strings.IndexAny(rest, "@/?"); i >= 0 && rest[i] == '@' {
		rest = rest[i+1:]
	}
	rest, _, _ = strings.Cut(rest, "?")
	return strings.Contains(rest, "@")
}

var errEncode = errors.New("this is no URL that can be read: write special characters in user and password as %XX, such as %2F for / and %40 for @")

func dsnError(dsn string, err error) error {
	const want = "want postgres://user@host:5432/database or 'host=… port=5432 user=… dbname=…'"
	if scheme, rest, ok := strings.Cut(dsn, "://"); ok {
		if i := strings.LastIndexByte(rest, '@'); i >= 0 {
			// What is left without user and password can be shown.
			dsn = scheme + "://" + rest[i+1:]
			if _, err = pgx.ParseConfig(dsn); err == nil {
				return errEncode
			}
		}
	}
	detail, ok := parseDetail(err)
	if ok {
		if why := parameterError(detail, err); why != "" {
			return errors.New("this connection string cannot be used: " + why)
		}
	}
	if lower := strings.ToLower(dsn); !ok || strings.Contains(lower, "pas") || strings.Contains(lower, "pw") {
		return errors.New("this is no connection string (why is not shown, as that may hold the password): " + want)
	}
	return fmt.Errorf("this is no connection string (%s): %s", detail, want)
}

// parameterErrors are the errors of pgx, by how their details begin, for a string
// that it could read and a parameter in it that it cannot use.
var parameterErrors = []struct{ detail, parameter, want string }{
	{"failed to configure TLS (sslmode is", "sslmode", "want disable, allow, prefer, require, verify-ca or verify-full"},
	{"failed to configure TLS (unable to read CA file", "sslrootcert", "the file cannot be read"},
	{"failed to configure TLS (unable to add CA", "sslrootcert", "there is no certificate in the file"},
	{"failed to configure TLS (unable to load system", "sslrootcert", "the system's certificates cannot be read"},
	{"failed to configure TLS (both", "sslcert and sslkey", "want both, or neither"},
	{"failed to configure TLS (unable to read sslkey", "sslkey", "the file cannot be read"},
	{"failed to configure TLS (failed to decode sslkey", "sslkey", "there is no key in the file"},
	{"failed to configure TLS (unable to find sslpassword", "sslpassword", "the key is encrypted: want its password"},
	{"failed to configure TLS (unable to decrypt key", "sslpassword", "it is not that of the key"},
	{"failed to configure TLS (unable to read cert", "sslcert", "the file cannot be read"},
	{"failed to configure TLS (unable to load cert", "sslcert", "it is no certificate of the key"},
	{"invalid sslcertmode", "sslcertmode", "want disable, allow or require"},
	{"invalid port", "port", "want a number from 1 to 65535"},
	{"could not match", "port", "want one for all hosts, or one for each"},
	{"invalid connect_timeout", "connect_timeout", "want a number of seconds"},
	{"unknown target_session_attrs", "target_session_attrs", "want any, read-write, read-only, primary, standby or prefer-standby"},
	{"unknown channel_binding", "channel_binding", "want disable, prefer or require"},
	{"invalid min_protocol_version", "min_protocol_version", "want 3.0, 3.2 or latest"},
	{"invalid max_protocol_version", "max_protocol_version", "want 3.0, 3.2 or latest"},
	{"min_protocol_version cannot", "min_protocol_version", "want at most max_protocol_version"},
	{"invalid require_auth", "require_auth", "want methods that libpq knows"},
	{"failed to read service", "service", "there is no such one in a service file that can be read"},
}

// parameterError says what is wrong with a parameter, in words of its own and of
// the operating system: nothing of the string, in which a password is for sure
// only where it was meant, is in it. It is empty where it is something else.
func parameterError(detail string, err error) string {
	for _, e := range parameterErrors {
		if !strings.HasPrefix(detail, e.detail) {
			continue
		}
		if file, ok := errors.AsType[*fs.PathError](err); ok {
			return e.parameter + ": " + file.Err.Error()
		}
		return e.parameter + ": " + e.want
	}
	return ""
}

// parseDetail is what a *pgconn.ParseConfigError says beside the string itself.
func parseDetail(err error) (string, bool) {
	e, ok := errors.AsType[*pgconn.ParseConfigError](err)
	if !ok {
		return "", false
	}
	return strings.CutPrefix(e.Error(), pgconn.NewParseConfigError(e.ConnString, "", nil).Error())
}
