package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5/pgconn"
)

// explain says in one line which server failed, how, and what to do. It unwraps to err.
func explain(s *server, err error) error {
	return &serverError{s.String() + ": " + s.advise(err), err}
}

// advise says how the server failed, and what to do.
func (s *server) advise(err error) string {
	what, todo := diagnose(err)
	if todo != "" {
		what += ": " + strings.ReplaceAll(todo, "$FROM", s.from)
	}
	return what
}

// failure is advise on one line, and of which kind the failure is, which names neither role, database nor address.
func (s *server) failure(err error) (text, kind string) {
	return oneLine(s.advise(err)), kindOf(err)
}

func kindOf(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		if e.Code == invalidAuthorization || e.Code == invalidPassword {
			return "the replica refuses the role or its password"
		}
		if e.Code == cannotConnectNow {
			return "the replica does not accept connections yet"
		}
		return "the replica answers with an error"
	}
	_, refused := errors.AsType[*pgconn.ConnectError](err)
	_, broken := errors.AsType[*net.OpError](err)
	if refused || broken || pgconn.Timeout(err) || errors.Is(err, context.DeadlineExceeded) {
		return "the replica cannot be reached"
	}
	return "the replica cannot be followed"
}

type serverError struct {
	text string
	err  error
}

func (e *serverError) Error() string { return e.text }
func (e *serverError) Unwrap() error { return e.err }

// SQLSTATEs that a person can do something about (PostgreSQL's errcodes.txt).
const (
	invalidAuthorization = "28000"
	invalidPassword      = "28P01"
	invalidCatalog       = "3D000"
	insufficientRights   = "42501"
	tooManyConnections   = "53300"
	cannotConnectNow     = "57P03"
)

var sqlstateAdvice = map[string]string{
	invalidAuthorization: "check the role, and pg_hba.conf on the server",
	invalidPassword:      "check user and password in $FROM, PGPASSWORD or the password file",
	invalidCatalog:       "name a database that exists in $FROM",
	insufficientRights:   "grant it to the role in $FROM",
	tooManyConnections:   "end sessions, or raise max_connections",
	cannotConnectNow:     "try again when it accepts connections",
}

// diagnose says what went wrong and, where that is known, what to do.
func diagnose(err error) (what, todo string) {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Message + " (SQLSTATE " + e.Code + ")", sqlstateAdvice[e.Code]
	}
	dns, isDNS := errors.AsType[*net.DNSError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	switch {
	case isDNS && dns.IsNotFound:
		return "there is no host " + dns.Name, "check $FROM"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused", "is PostgreSQL running there? Check host and port in $FROM"
	case pgconn.Timeout(err), errors.Is(err, context.DeadlineExceeded):
		return "no answer in time", "check host and port in $FROM, and firewalls between"
	case isOp:
		return plain(op.Err.Error()), "check $FROM"
	}
	if e, ok := errors.AsType[*pgconn.ConnectError](err); ok { // whose text has role, database, and each attempt
		return plain(lastAttempt(e.Unwrap()).Error()), "check $FROM"
	}
	return plain(err.Error()), ""
}

// lastAttempt is the last of several errors, as of the ways in which pgx has tried to connect.
func lastAttempt(err error) error {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		if all := several.Unwrap(); len(all) > 0 {
			return all[len(all)-1]
		}
	}
	return err
}

// plain takes the package names out of an error of this project: they help who reads Go, and nobody else.
func plain(s string) string {
	parts := strings.Split(s, ": ")
	kept := parts[:0]
	for _, p := range parts {
		if p != "tracker" && p != "replication" && p != "replicationtest" {
			kept = append(kept, p)
		}
	}
	return strings.ReplaceAll(strings.Join(kept, ": "), "(replication: ", "(")
}

// oneLine puts a text of several lines on one, and takes what a terminal would obey out of it.
func oneLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	kept := lines[:0]
	for _, l := range lines {
		l = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, l)
		if l = strings.TrimSpace(l); l != "" {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "; ")
}

// short writes a duration as it is worth reading.
func short(d time.Duration) string {
	switch {
	case d < 100*time.Microsecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d.Microseconds())/1e3)
	case d < 100*time.Second:
		return fmt.Sprintf("%.3g s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func micros(us int64) string { return short(time.Duration(us) * time.Microsecond) }
