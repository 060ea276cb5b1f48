package replication

import (
	"errors"
	"fmt"
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
	if lower := strings.ToLower(dsn); !ok || strings.Contains(lower, "pas") || strings.Contains(lower, "pw") {
		return errors.New("this is no connection string (why is not shown, as that may hold the password): " + want)
	}
	return fmt.Errorf("this is no connection string (%s): %s", detail, want)
}

// parseDetail is what a *pgconn.ParseConfigError says beside the string itself.
func parseDetail(err error) (string, bool) {
	e, ok := errors.AsType[*pgconn.ParseConfigError](err)
	if !ok {
		return "", false
	}
	return strings.CutPrefix(e.Error(), pgconn.NewParseConfigError(e.ConnString, "", nil).Error())
}
