package pgnotify

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
)

// Execer runs a statement: a *pgx.Conn, a *pgxpool.Pool or a pgx.Tx.
type Execer interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// ExecerSQL runs a statement: a *sql.DB, *sql.Conn or *sql.Tx.
type ExecerSQL interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// MaxPayload is how many bytes a payload of Emit may have.
const MaxPayload = replication.MaxMessage

// emitQuery needs the two types: the function is there for text and for bytea,
// which is kept as it is.
const emitQuery = `SELECT pg_logical_emit_message(true, $1::text, $2::bytea)`

// Emit sends a message through the WAL, as part of the transaction that tx is in:
// all [Messages] that have a channel named prefix, of any replica and this database,
// get it when their replica has replayed the transaction. It never comes when the
// transaction is rolled back. Outside of a transaction it is one of its own.
//
// Other than NOTIFY it takes no lock that commits of others wait for, and the same
// message may be sent many times. Like NOTIFY it is not kept for who is away: they
// get a [Resync].
//
// prefix has 1 to 63 bytes and is not "walwake", which is ours; payload has up to
// MaxPayload bytes, of any kind. Emit takes a round trip, on the primary. Any role
// may emit.
func Emit(ctx context.Context, tx Execer, prefix, payload string) error {
	if err := checkMessage(prefix, payload); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, emitQuery, prefix, []byte(payload)); err != nil {
		return fmt.Errorf("pgnotify: emit a message: %w", err)
	}
	return nil
}

// EmitSQL is Emit for package database/sql.
func EmitSQL(ctx context.Context, tx ExecerSQL, prefix, payload string) error {
	if err := checkMessage(prefix, payload); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, emitQuery, prefix, []byte(payload)); err != nil {
		return fmt.Errorf("pgnotify: emit a message: %w", err)
	}
	return nil
}

func checkMessage(prefix, payload string) error {
	if err := checkPrefix(prefix); err != nil {
		return fmt.Errorf("pgnotify: emit a message: prefix %.70q: %w", prefix, err)
	}
	if len(payload) > MaxPayload {
		return fmt.Errorf("pgnotify: emit a message: a payload of %d bytes, want at most %d: put it into a table, and its key into the message", len(payload), MaxPayload)
	}
	return nil
}

// ourPrefix is that of what replication.Capture writes to have a server flush.
const ourPrefix = "walwake"

func checkPrefix(prefix string) error {
	switch {
	case prefix == "" || len(prefix) > 63:
		return errors.New("want 1 to 63 bytes")
	case prefix == ourPrefix:
		return errors.New("this one is walwake's own")
	case strings.ContainsRune(prefix, 0):
		return errors.New("want no zero byte")
	}
	return nil
}
