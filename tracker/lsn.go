package tracker

import (
	"database/sql/driver"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"strconv"
)

// LSN is a position in PostgreSQL's write-ahead log: the number of bytes written before it since the cluster began. A
// record is at or below an LSN when it ends there or earlier, so a standby that has replayed up to an LSN has replayed
// every record whose end is not above it.
//
// LSNs compare as numbers, and only within one timeline of one cluster: a [Token] says which. Never compare their
// text: PostgreSQL 19 prints 0/0174FFB0 where 18 prints 0/174FFB0.
//
// An LSN scans from and binds to pg_lsn and text through database/sql and through pgx, in each of pgx's query execution
// modes. NULL wants a *LSN or a sql.Null[LSN], and is an error for an LSN.
//
// Arrays go through pgx as text[], because it does not know pg_lsn[]: scan a []LSN from lsns::text[], bind it as
// $1::text[]::pg_lsn[] (not in the modes exec and simple protocol, where pgx has no type for it). Do not give an LSN to
// pgx's CopyFrom for a pg_lsn column: it sends the text for the binary form, and a text of 8 bytes, such as 0/174FFB,
// is stored as another position without an error. Copy into a text column.
type LSN uint64

// maxLSNLen is the longest text of an LSN: two halves of eight hex digits and the slash.
const maxLSNLen = 17

// Length of the header at the beginning of a WAL page, and of the one at the beginning of a segment
// (src/include/access/xlog_internal.h: SizeOfXLogShortPHD, SizeOfXLogLongPHD, each aligned to 8 bytes).
const (
	shortPageHeader = 24
	longPageHeader  = 40
)

// ParseLSN reads an LSN as PostgreSQL's own pg_lsn input does (src/backend/utils/adt/pg_lsn.c): one to eight hex
// digits, a slash, one to eight hex digits, and nothing before, between or after them. Both 0/174FFB0 and
// 0/0174FFB0 are understood. The error quotes at most 64 bytes of s.
func ParseLSN(s string) (LSN, error) {
	l, ok := parseLSN(s)
	if !ok {
		return 0, lsnError(s)
	}
	return l, nil
}

func parseLSN[T string | []byte](s T) (LSN, bool) {
	if len(s) > maxLSNLen {
		return 0, false
	}
	var hi, lo uint64
	digits, slash := 0, false
	for i := range len(s) {
		if s[i] == '/' && digits > 0 && !slash {
			hi, lo = lo, 0
			digits, slash = 0, true
			continue
		}
		d, ok := hexDigit(s[i])
		if !ok || digits == 8 {
			return 0, false
		}
		lo = lo<<4 | d
		digits++
	}
	return LSN(hi<<32 | lo), slash && digits > 0
}

func hexDigit(c byte) (uint64, bool) {
	switch {
	case '0' <= c && c <= '9':
		return uint64(c - '0'), true
	case 'A' <= c && c <= 'F':
		return uint64(c-'A') + 10, true
	case 'a' <= c && c <= 'f':
		return uint64(c-'a') + 10, true
	}
	return 0, false
}

func lsnError[T string | []byte](s T) error {
	return fmt.Errorf("tracker: parse LSN %s: want 1 to 8 hex digits, a slash, 1 to 8 hex digits", quoteInput(s))
}

// quoteInput quotes what a client sent, cut to a length that a log line bears.
func quoteInput[T string | []byte](s T) string {
	const limit = 64
	if len(s) > limit {
		return strconv.Quote(string(s[:limit])) + "…"
	}
	return strconv.Quote(string(s))
}

// String returns the LSN as %X/%X, for instance 0/174FFB0: the form that servers of all versions read.
func (l LSN) String() string {
	var buf [maxLSNLen]byte
	return string(l.append(buf[:0], '/'))
}

func (l LSN) append(b []byte, sep byte) []byte {
	b = appendHex(b, uint32(l>>32))
	b = append(b, sep)
	return appendHex(b, uint32(l))
}

func appendHex(b []byte, v uint32) []byte {
	digits := max(1, (bits.Len32(v)+3)/4)
	for i := digits - 1; i >= 0; i-- {
		b = append(b, "0123456789ABCDEF"[v>>(4*i)&0xF])
	}
	return b
}

// Behind returns by how many bytes l is short of target: 0 when l has reached it.
func (l LSN) Behind(target LSN) uint64 {
	if l >= target {
		return 0
	}
	return uint64(target - l)
}

// Normalize takes a position read with pg_current_wal_insert_lsn() back to the end of the last record before it.
// That function names the place where the next record will begin, and when the last record ended exactly at the end
// of a WAL page it has stepped over the header of the next page already. Replay stops before that header, so a waiter
// for the higher number would hang until somebody writes.
//
// blockSize and segmentSize are the server's wal_block_size and wal_segment_size in bytes; one that is 0 is not looked
// at. No record ends inside a page header, so Normalize changes no position at which a record ends.
func (l LSN) Normalize(blockSize, segmentSize uint64) LSN {
	if segmentSize > 0 && uint64(l)%segmentSize == longPageHeader {
		return l - longPageHeader
	}
	if blockSize > 0 && uint64(l)%blockSize == shortPageHeader {
		return l - shortPageHeader
	}
	return l
}

// AppendText appends the text of [LSN.String] to b. The error is always nil.
func (l LSN) AppendText(b []byte) ([]byte, error) {
	return l.append(b, '/'), nil
}

// MarshalText returns the text of [LSN.String]. The error is always nil. In JSON an LSN is a string of this text.
func (l LSN) MarshalText() ([]byte, error) {
	return l.append(make([]byte, 0, maxLSNLen), '/'), nil
}

// UnmarshalText is [ParseLSN] into l, which an error leaves as it was.
func (l *LSN) UnmarshalText(text []byte) error {
	v, ok := parseLSN(text)
	if !ok {
		return lsnError(text)
	}
	*l = v
	return nil
}

// UnmarshalJSON reads a JSON string as [ParseLSN] does. Anything else is an error, null too, which encoding/json would
// otherwise skip in silence: a position that is not there must not become "no position needed". A *LSN takes null.
func (l *LSN) UnmarshalJSON(data []byte) error {
	s, err := jsonString(data)
	if err != nil {
		return fmt.Errorf("tracker: parse LSN: %w", err)
	}
	return l.UnmarshalText([]byte(s))
}

// jsonString decodes a JSON string, and refuses every other JSON value.
func jsonString(data []byte) (string, error) {
	if len(data) == 0 || data[0] != '"' {
		return "", fmt.Errorf("JSON value %s is not a string", quoteInput(data))
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return "", fmt.Errorf("JSON string: %w", err)
	}
	return s, nil
}

// AppendBinary appends the LSN as 8 bytes, most significant first: the binary form of pg_lsn on the wire. The error is
// always nil.
func (l LSN) AppendBinary(b []byte) ([]byte, error) {
	return binary.BigEndian.AppendUint64(b, uint64(l)), nil
}

// MarshalBinary returns the 8 bytes of [LSN.AppendBinary]. The error is always nil.
func (l LSN) MarshalBinary() ([]byte, error) {
	return l.AppendBinary(make([]byte, 0, 8))
}

// UnmarshalBinary reads the 8 bytes of [LSN.AppendBinary]. Any other length is an error.
func (l *LSN) UnmarshalBinary(data []byte) error {
	if len(data) != 8 {
		return fmt.Errorf("tracker: parse binary LSN: %d bytes, want 8", len(data))
	}
	*l = LSN(binary.BigEndian.Uint64(data))
	return nil
}

// Scan implements [database/sql.Scanner] for pg_lsn and text values, which it reads as [ParseLSN] does. NULL is an
// error, and so are numbers.
func (l *LSN) Scan(src any) error {
	switch src := src.(type) {
	case string:
		return l.UnmarshalText([]byte(src))
	case []byte:
		return l.UnmarshalText(src)
	case nil:
		return errors.New("tracker: scan LSN: NULL wants a *LSN or a sql.Null[LSN]")
	}
	return fmt.Errorf("tracker: scan LSN: type %T, want text or pg_lsn (NULL wants a *LSN or a sql.Null[LSN])", src)
}

// Value implements [database/sql/driver.Valuer]: the text of [LSN.String]. The error is always nil.
func (l LSN) Value() (driver.Value, error) {
	return l.String(), nil
}

// LogValue implements [log/slog.LogValuer]: the text of [LSN.String], which is otherwise logged as a number.
func (l LSN) LogValue() slog.Value {
	return slog.StringValue(l.String())
}
