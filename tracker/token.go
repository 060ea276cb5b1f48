package tracker

import (
	"cmp"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// ErrWrongSystem is returned, wrapped, when a token of one PostgreSQL cluster is used with another cluster or merged
// with a token of another: both system identifiers are known and they differ. No wait can make such a token good.
var ErrWrongSystem = errors.New("tracker: token of another cluster")

// Token says where a write is: what a writer gets after its commit, and what a reader shows to see that write.
// Tokens are comparable, and the zero Token waits for nothing.
//
// The text form is v1.<system>.<timeline>.<lsn>, for instance v1.1kkqojsdcyw9u.1.0-174FFB0: the system identifier in
// base 36, the timeline in decimal, the LSN with a hyphen for its slash. It needs no escaping in a URL's path or
// query, in a cookie or in a header, and there is exactly one text for each token, so texts may be compared for
// equality. A token is not signed: who can send one can make a reader wait.
type Token struct {
	// System is the cluster's system identifier, as in pg_control_system(); 0 when not known. It never changes
	// in the life of a cluster, and its standbys have the same.
	System uint64
	// Timeline is the timeline on which the write was made, from 1 on; 0 when not known. Without it a write that
	// was lost in a failover cannot be told from one that was not.
	Timeline uint32
	// LSN is the position up to which a standby must have replayed to show the write.
	LSN LSN
}

// MaxTokenLen is the length in bytes of the longest token text. [ParseToken] refuses longer input unread.
const MaxTokenLen = len("v1.") + 13 + len(".") + 10 + len(".") + 8 + len("-") + 8

const (
	tokenVersion = "v1."
	tokenForm    = "v1.<system>.<timeline>.<lsn> as Token.String writes it"
)

// IsZero reports whether t is the zero Token, which waits for nothing.
func (t Token) IsZero() bool { return t == Token{} }

// ParseToken reads the text that [Token.String] writes, and only that: any other spelling of the same numbers is an
// error, and so is the empty string, because a token that cannot be read must never mean "no guarantee". The error
// quotes at most 64 bytes of s.
func ParseToken(s string) (Token, error) {
	if len(s) > MaxTokenLen {
		return Token{}, tokenTooLong(s)
	}
	rest, ok := strings.CutPrefix(s, tokenVersion)
	if !ok {
		return Token{}, tokenVersionError(s)
	}
	t, ok := parseTokenFields(rest)
	// Writing it again is what leaves each token with a single text.
	if !ok || string(t.append(make([]byte, 0, MaxTokenLen))) != s {
		return Token{}, fmt.Errorf("tracker: parse token %s: want %s", quoteInput(s), tokenForm)
	}
	return t, nil
}

// parseTokenFields may let other spellings through; its caller does not.
func parseTokenFields(s string) (Token, bool) {
	system, s, _ := strings.Cut(s, ".")
	timeline, s, _ := strings.Cut(s, ".")
	hi, lo, _ := strings.Cut(s, "-")
	sys, err1 := strconv.ParseUint(system, 36, 64)
	tli, err2 := strconv.ParseUint(timeline, 10, 32)
	h, err3 := strconv.ParseUint(hi, 16, 32)
	l, err4 := strconv.ParseUint(lo, 16, 32)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
		return Token{}, false
	}
	return Token{System: sys, Timeline: uint32(tli), LSN: LSN(h<<32 | l)}, true
}

func tokenTooLong[T string | []byte](s T) error {
	if v, ok := otherVersion(string(s[:MaxTokenLen])); ok {
		return fmt.Errorf("tracker: parse token %s: %s", quoteInput(s), v)
	}
	return fmt.Errorf("tracker: parse token %s: %d bytes, want at most %d", quoteInput(s), len(s), MaxTokenLen)
}

// tokenVersionError says why s, which is no longer than a token, does not begin like one.
func tokenVersionError(s string) error {
	if s == "" {
		return fmt.Errorf("tracker: parse token: empty, want %s", tokenForm)
	}
	if _, ok := parseLSN(s); ok {
		return fmt.Errorf("tracker: parse token %s: a bare LSN: use ParseLSN and Token{LSN: lsn}", quoteInput(s))
	}
	if v, ok := otherVersion(s); ok {
		return fmt.Errorf("tracker: parse token %s: %s", quoteInput(s), v)
	}
	return fmt.Errorf("tracker: parse token %s: want %s", quoteInput(s), tokenForm)
}

// otherVersion says, for what begins like a token of another version, that it is one.
func otherVersion(s string) (string, bool) {
	v, _, _ := strings.Cut(s, ".")
	if n, err := strconv.ParseUint(strings.TrimPrefix(v, "v"), 10, 32); err != nil || v != fmt.Sprintf("v%d", n) || n == 1 {
		return "", false
	}
	return "version " + v + ", and this version of walwake reads v1", true
}

// String returns the token's text, which [ParseToken] reads.
func (t Token) String() string {
	var buf [MaxTokenLen]byte
	return string(t.append(buf[:0]))
}

func (t Token) append(b []byte) []byte {
	b = append(b, tokenVersion...)
	b = strconv.AppendUint(b, t.System, 36)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(t.Timeline), 10)
	b = append(b, '.')
	return t.LSN.append(b, '-')
}

// Compare returns -1, 0 or +1 as t sorts before, with or after o: by system, then timeline, then LSN. Within one
// system, and where both timelines are known, the greater is the later.
func (t Token) Compare(o Token) int {
	return cmp.Or(
		cmp.Compare(t.System, o.System),
		cmp.Compare(t.Timeline, o.Timeline),
		cmp.Compare(t.LSN, o.LSN),
	)
}

// Merge returns the token that waits for t and for o: the later one.
//
// Of two known timelines the larger wins with its LSN, for a timeline begins where its ancestor ends. On the same
// timeline, or where one is not known, the larger LSN wins. System and timeline are filled in from the token that
// knows them; when the LSN was bare and of a later timeline, waiting for the result can then fail as if the write had
// been lost, but it cannot succeed too early. The error wraps [ErrWrongSystem] when both systems are known and differ.
//
// Merge does not know the cluster's history. A write that a failover has lost is forgotten when its token is merged
// with one of a later timeline.
//
// Merge is commutative and idempotent, the zero Token changes nothing, and where every timeline is known (or none is)
// the order of many merges does not matter. Where some are known and some are not it does: merge bare LSNs last, or
// a later timeline displaces them together with the timeline that they were filled into.
func (t Token) Merge(o Token) (Token, error) {
	if t.System != 0 && o.System != 0 && t.System != o.System {
		return Token{}, fmt.Errorf("%w: merge of systems %d and %d", ErrWrongSystem, t.System, o.System)
	}
	m := Token{System: max(t.System, o.System), Timeline: max(t.Timeline, o.Timeline)}
	switch {
	case t.Timeline == o.Timeline || t.Timeline == 0 || o.Timeline == 0:
		m.LSN = max(t.LSN, o.LSN)
	case t.Timeline > o.Timeline:
		m.LSN = t.LSN
	default:
		m.LSN = o.LSN
	}
	return m, nil
}

// AppendText appends the text of [Token.String] to b. It allocates nothing where b has room for [MaxTokenLen] bytes.
// The error is always nil.
func (t Token) AppendText(b []byte) ([]byte, error) {
	return t.append(b), nil
}

// MarshalText returns the text of [Token.String]. The error is always nil. In JSON a token is a string of this text.
func (t Token) MarshalText() ([]byte, error) {
	return t.append(make([]byte, 0, MaxTokenLen)), nil
}

// UnmarshalText is [ParseToken] into t, which an error leaves as it was.
func (t *Token) UnmarshalText(text []byte) error {
	if len(text) > MaxTokenLen {
		return tokenTooLong(text)
	}
	v, err := ParseToken(string(text))
	if err != nil {
		return err
	}
	*t = v
	return nil
}

// UnmarshalJSON reads a JSON string as [ParseToken] does. Anything else is an error, null too, which encoding/json
// would otherwise skip in silence. A *Token takes null.
func (t *Token) UnmarshalJSON(data []byte) error {
	s, err := jsonString(data)
	if err != nil {
		return fmt.Errorf("tracker: parse token: %w", err)
	}
	return t.UnmarshalText([]byte(s))
}

// Scan implements [database/sql.Scanner] for text values, which it reads as [ParseToken] does. NULL is an error.
func (t *Token) Scan(src any) error {
	switch src := src.(type) {
	case string:
		return t.UnmarshalText([]byte(src))
	case []byte:
		return t.UnmarshalText(src)
	case nil:
		return errors.New("tracker: scan token: NULL wants a *Token or a sql.Null[Token]")
	}
	return fmt.Errorf("tracker: scan token: type %T, want text (NULL wants a *Token or a sql.Null[Token])", src)
}

// Value implements [database/sql/driver.Valuer]: the text of [Token.String]. The error is always nil.
func (t Token) Value() (driver.Value, error) {
	return t.String(), nil
}

// LogValue implements [log/slog.LogValuer]: the group system, timeline and lsn.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Uint64("system", t.System),
		slog.Uint64("timeline", uint64(t.Timeline)),
		slog.String("lsn", t.LSN.String()),
	)
}
