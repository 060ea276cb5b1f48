package tracker_test

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx" of database/sql

	"github.com/walwake/walwake/tracker"
)

var pgxModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// scanFunc runs a query that returns one row of one column.
type scanFunc func(dst any, query string, args ...any) error

func TestPgxScansAndBindsInEveryMode(t *testing.T) {
	dsn := startPrimary(t)
	for _, mode := range pgxModes {
		t.Run(mode.String(), func(t *testing.T) {
			conn := connectIn(t, dsn, mode)
			scan := func(dst any, query string, args ...any) error {
				return conn.QueryRow(t.Context(), query, args...).Scan(dst)
			}
			if err := errors.Join(checkLSN(scan), checkToken(scan)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDatabaseSQLScansAndBinds(t *testing.T) {
	db, err := sql.Open("pgx", startPrimary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	scan := func(dst any, query string, args ...any) error {
		return db.QueryRowContext(t.Context(), query, args...).Scan(dst)
	}
	if err := errors.Join(checkLSN(scan), checkToken(scan)); err != nil {
		t.Error(err)
	}
}

// checkLSN scans and binds an LSN and no LSN in all the ways there are, as pg_lsn and as text.
func checkLSN(scan scanFunc) error {
	const in = tracker.LSN(0x1_0174FFB0)
	var errs []error
	check := func(ok bool, err error, format string, args ...any) {
		if err != nil || !ok {
			errs = append(errs, fmt.Errorf(format+": %w", append(args, err)...))
		}
	}
	for _, query := range []string{"select $1::pg_lsn", "select $1::pg_lsn::text", "select $1::text::pg_lsn"} {
		var l tracker.LSN
		err := scan(&l, query, in)
		check(l == in, err, "%s: %v became %v", query, in, l)

		p := &l
		err = scan(&p, query, (*tracker.LSN)(nil))
		check(p == nil, err, "%s: nil became %v", query, p)
		err = scan(&p, query, new(in))
		check(p != nil && *p == in, err, "%s: %v became %v", query, in, p)

		null := sql.Null[tracker.LSN]{V: 1, Valid: true}
		err = scan(&null, query, sql.Null[tracker.LSN]{})
		check(!null.Valid, err, "%s: NULL became %v", query, null)
		err = scan(&null, query, sql.Null[tracker.LSN]{V: in, Valid: true})
		check(null.Valid && null.V == in, err, "%s: %v became %v", query, in, null)

		err = scan(&l, query, nil)
		check(err != nil && strings.Contains(err.Error(), "sql.Null[LSN]"), nil, "%s: NULL into an LSN: %v, %v", query, l, err)
	}
	for _, number := range []string{"5::int4", "5::int8", "5::numeric", "5::oid", "5::float8", "true"} {
		l := in
		err := scan(&l, "select "+number)
		check(err != nil && l == in, nil, "%s into an LSN: %v, %v", number, l, err)
	}
	var ahead bool
	err := scan(&ahead, "select '1/174FFB1' > $1", in)
	check(ahead, err, "an LSN whose type is inferred compares wrongly")
	return errors.Join(errs...)
}

// checkToken scans and binds a token and no token.
func checkToken(scan scanFunc) error {
	in := tracker.Token{System: 7446648400156243938, Timeline: 1, LSN: 0x174FFB0}
	var tok tracker.Token
	if err := scan(&tok, "select $1::text", in); err != nil || tok != in {
		return fmt.Errorf("token %v became %v, %w", in, tok, err)
	}
	p := &tok
	if err := scan(&p, "select $1::text", (*tracker.Token)(nil)); err != nil || p != nil {
		return fmt.Errorf("no token became %v, %w", p, err)
	}
	for _, bad := range []string{"null::text", "''", "'0/0'", "5"} {
		if err := scan(&tok, "select "+bad); err == nil {
			return fmt.Errorf("%s became token %v", bad, tok)
		}
	}
	return nil
}

// Holds the comment of LSN to what it says of arrays.
func TestPgxArraysGoThroughText(t *testing.T) {
	dsn := startPrimary(t)
	in := []tracker.LSN{0, 0x174FFB0, 1<<64 - 1}
	for _, mode := range pgxModes {
		t.Run(mode.String(), func(t *testing.T) {
			conn := connectIn(t, dsn, mode)
			var out []tracker.LSN
			if err := conn.QueryRow(t.Context(), "select $1::text::pg_lsn[]::text[]",
				"{0/0,0/174FFB0,FFFFFFFF/FFFFFFFF}").Scan(&out); err != nil || !slices.Equal(out, in) {
				t.Errorf("scan from text[]: %v, %v", out, err)
			}
			if mode != pgx.QueryExecModeExec && mode != pgx.QueryExecModeSimpleProtocol {
				if err := conn.QueryRow(t.Context(), "select $1::text[]::pg_lsn[]::text[]",
					in).Scan(&out); err != nil || !slices.Equal(out, in) {
					t.Errorf("bind as text[]: %v, %v", out, err)
				}
			}
			lsn := &pgtype.Type{Name: "pg_lsn", OID: 3220, Codec: &pgtype.TextFormatOnlyCodec{Codec: pgtype.TextCodec{}}}
			conn.TypeMap().RegisterType(lsn)
			conn.TypeMap().RegisterType(&pgtype.Type{Name: "_pg_lsn", OID: 3221, Codec: &pgtype.ArrayCodec{ElementType: lsn}})
			conn.TypeMap().RegisterDefaultPgType(in, "_pg_lsn")
			if err := conn.QueryRow(t.Context(), "select $1::pg_lsn[]", in).Scan(&out); err != nil || !slices.Equal(out, in) {
				t.Errorf("pg_lsn[] registered: %v, %v", out, err)
			}
		})
	}
}
