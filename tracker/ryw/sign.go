package ryw

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/walwake/walwake/tracker"
)

var (
	// ErrForged says that a text is not one that these keys have signed: it was
	// changed or made up, its key is no longer among them, or it was signed for
	// another Audience.
	ErrForged = errors.New("ryw: token not signed by these keys")

	// ErrStale says that a text was signed longer ago than KeysConfig.MaxAge, or in
	// the future by more than a minute, which is a clock that is wrong.
	ErrStale = errors.New("ryw: token too old")
)

const (
	// MinSecretLen is the least number of bytes of a [Secret]: as many as the sum
	// that is made with it has.
	MinSecretLen = sha256.Size

	// MaxSignedLen is the length in bytes of the longest signed token. [Keys.Open]
	// refuses longer input unread.
	MaxSignedLen = len(signedVersion) + keyIDLen + len(".") + 8 + len(".") + tracker.MaxTokenLen + len(".") + 43

	signedVersion = "s1."
	keyIDLen      = 4
	maxSigned     = 1<<40 - 1 // seconds since 1970; 8 digits in base 36
	defaultMaxAge = 24 * time.Hour
	maxSkew       = time.Minute
)

// Secret is what tokens are signed with: at least [MinSecretLen] bytes that
// nobody can guess, from crypto/rand rather than from a person. It prints as
// [secret], by whatever verb.
type Secret []byte

const hidden = "[secret]"

// Format implements [fmt.Formatter] without the secret.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// MarshalText keeps the secret out of JSON and of structured logs. The error is
// always nil.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// KeysConfig configures [NewKeys].
type KeysConfig struct {
	// Secrets: the first signs, all verify. To change the secret without refusing
	// anybody's token append the new one in every process, then put it first in
	// every process, and drop the old one after MaxAge: each by [Keys.SetSecrets], or
	// by starting the processes anew.
	Secrets []Secret

	// MaxAge is how long after it was signed a token is taken: 24 hours when 0, at
	// least one second, without limit when negative. It also bounds for how long
	// somebody can use a token that is not his, which lets him wait for a write
	// that was made, and nothing else.
	MaxAge time.Duration

	// Audience is whom tokens are for, such as a service and its environment; it may
	// be empty. What was signed for one audience is forged to any other, so that
	// services may share Secrets. It is not meant for the name of a user: a token
	// outlives who is logged in, and it says nothing about anybody.
	Audience string
}

// Keys signs tokens that somebody else keeps, and opens them when they come
// back. The text is
//
//	s1.<key>.<time>.<token>.<sum>
//
// where key says which secret was used and is derived from it, time is the second
// of signing since 1970 in base 36, token the text of [tracker.Token], and sum the
// HMAC-SHA256 of all that comes before it: about 100 and at most [MaxSignedLen] of
// the characters that neither URLs nor cookies escape. It is signed, not secret.
//
// Keys may be used by several goroutines, also while [Keys.SetSecrets] changes the
// secrets, and prints without them. The zero Keys opens nothing and must not be used
// to sign.
type Keys struct {
	current  *atomic.Pointer[[]key] // the first signs; nil in the zero Keys
	audience string
	maxAge   time.Duration // 0: no limit
}

type key struct {
	id string // keyIDLen characters
	// sum is the HMAC-SHA256 of a text. It is a function, for fmt goes around the
	// methods of what is in somebody's unexported field, and even follows pointers
	// there when the verb is a wrong one.
	sum func(text string) []byte
}

// NewKeys returns Keys of cfg. The error says which field is wrong, and never
// what is in it.
func NewKeys(cfg KeysConfig) (*Keys, error) {
	if cfg.MaxAge > 0 && cfg.MaxAge < time.Second {
		return nil, fmt.Errorf("ryw: KeysConfig.MaxAge is %s, want at least 1s", cfg.MaxAge)
	}
	k := &Keys{current: new(atomic.Pointer[[]key]), audience: cfg.Audience, maxAge: max(cfg.MaxAge, 0)}
	if cfg.MaxAge == 0 {
		k.maxAge = defaultMaxAge
	}
	if err := k.SetSecrets(cfg.Secrets...); err != nil {
		return nil, err
	}
	return k, nil
}

// SetSecrets puts secrets in place of [KeysConfig.Secrets], for whoever uses these
// Keys, such as a [Middleware] that runs. What is signed from now on is signed with
// the first; what a secret that is not among them has signed is forged from now on.
// When it returns an error, which is as that of NewKeys, nothing has changed.
func (k *Keys) SetSecrets(secrets ...Secret) error {
	if len(secrets) == 0 {
		return errors.New("ryw: KeysConfig.Secrets is empty, want at least one")
	}
	if k.current == nil {
		return errors.New("ryw: Keys that NewKeys has not made")
	}
	var keys []key
	for i, secret := range secrets {
		if len(secret) < MinSecretLen {
			return fmt.Errorf("ryw: KeysConfig.Secrets[%d] has %d bytes, want at least %d", i, len(secret), MinSecretLen)
		}
		next := newKey(secret, k.audience)
		for j, o := range keys {
			if hmac.Equal(o.sum(""), next.sum("")) {
				return fmt.Errorf("ryw: KeysConfig.Secrets[%d] is Secrets[%d] again", i, j)
			}
		}
		keys = append(keys, next)
	}
	k.current.Store(&keys)
	return nil
}

// keys are those of the last SetSecrets.
func (k *Keys) keys() []key {
	if k.current == nil {
		return nil
	}
	return *k.current.Load()
}

// newKey derives a key of its own for this use and audience, so that the secret
// may have other uses.
func newKey(secret Secret, audience string) key {
	derived := sum(secret, "walwake signed token 1 for "+audience)
	id := sum(derived, "key id") // no signed text begins like this
	return key{
		id:  base64.RawURLEncoding.EncodeToString(id)[:keyIDLen],
		sum: func(text string) []byte { return sum(derived, text) },
	}
}

func sum(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, text)
	return h.Sum(nil)
}

// sign appends the sum of text to it.
func (k key) sign(text string) string {
	return text + "." + base64.RawURLEncoding.EncodeToString(k.sum(text))
}

// Sign returns the signed text of tok, which [Keys.Open] reads from now on. To a
// [Middleware] and to [Keys.Extract] the zero token, which no write has, says that the
// client must read from the primary.
func (k *Keys) Sign(tok tracker.Token, now time.Time) string {
	first := k.keys()[0]
	seconds := min(max(now.Unix(), 0), maxSigned)
	return first.sign(signedVersion + first.id + "." + strconv.FormatInt(seconds, 36) + "." + tok.String())
}

// Open returns the token in a text that Sign made, and only of such a text. The
// error wraps [ErrForged] or [ErrStale]; it is that of [tracker.ParseToken] when
// the text was signed by a newer walwake, with tokens that this one cannot read.
// It takes the same time wherever the sum is wrong, and quotes nothing of text.
func (k *Keys) Open(text string, now time.Time) (tracker.Token, error) {
	if len(text) > MaxSignedLen {
		return tracker.Token{}, forged(fmt.Sprintf("%d bytes, want at most %d", len(text), MaxSignedLen))
	}
	rest, ok := strings.CutPrefix(text, signedVersion)
	dot := strings.LastIndexByte(rest, '.')
	if !ok || dot < 0 {
		return tracker.Token{}, forged("want " + signedVersion + "<key>.<time>.<token>.<sum>")
	}
	id, signed, _ := strings.Cut(rest[:dot], ".")
	if err := k.verify(id, text[:len(signedVersion)+dot], text); err != nil {
		return tracker.Token{}, err
	}
	// From here on it is what some Sign has written.
	at, token, _ := strings.Cut(signed, ".")
	if err := k.checkAge(at, now); err != nil {
		return tracker.Token{}, err
	}
	return tracker.ParseToken(token)
}

// verify says whether a key of that id makes text out of signed.
func (k *Keys) verify(id, signed, text string) error {
	why := "no key of this id"
	for _, key := range k.keys() {
		if key.id != id {
			continue
		}
		if hmac.Equal([]byte(key.sign(signed)), []byte(text)) {
			return nil
		}
		why = "its sum is wrong"
	}
	return forged(why)
}

func (k *Keys) checkAge(at string, now time.Time) error {
	seconds, err := strconv.ParseInt(at, 36, 64)
	if err != nil || seconds < 0 || seconds > maxSigned {
		return forged("no time of signing")
	}
	age := now.Sub(time.Unix(seconds, 0))
	switch {
	case k.maxAge > 0 && age >= k.maxAge+time.Second: // the second of signing had begun earlier
		return fmt.Errorf("%w: signed %s ago, want at most %s", ErrStale, age.Round(time.Second), k.maxAge)
	case age < -maxSkew:
		return fmt.Errorf("%w: signed %s in the future", ErrStale, -age.Round(time.Second))
	}
	return nil
}

func forged(why string) error { return fmt.Errorf("%w: %s", ErrForged, why) }

// Format implements [fmt.Formatter]: how many keys, and the id of the one that
// signs.
func (k Keys) Format(f fmt.State, _ rune) {
	keys := k.keys()
	if len(keys) == 0 {
		_, _ = io.WriteString(f, "ryw.Keys{}")
		return
	}
	_, _ = fmt.Fprintf(f, "ryw.Keys{%d, %s signs}", len(keys), keys[0].id)
}
