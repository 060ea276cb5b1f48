package ryw

import (
	"cmp"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/walwake/walwake/tracker"
)

// TokenKey is the key under which [Inject] puts a token: in an [http.Header], the
// header Walwake-Token.
const TokenKey = "walwake-token"

// maxTexts bounds how many tokens one message or request may show.
const maxTexts = 8

// onlyPrimary stands beside, or in place of, the token of a Session whose reads must
// go to the primary. Whoever does not know it takes it for a bad token, and that is
// safe.
const onlyPrimary = "primary"

var errTooManyTexts = fmt.Errorf("ryw: more than %d tokens", maxTexts)

// Carrier is the headers of a message. [http.Header] is one as it stands;
// [MapCarrier] and [MetadataCarrier] make one of other maps.
type Carrier interface {
	// Values returns all that is under key; nil: nothing.
	Values(key string) []string
	// Set puts value under key, in place of what was there.
	Set(key, value string)
}

// MapCarrier makes a [Carrier] of a map with one value for each key, such as the
// attributes of a message in a queue.
type MapCarrier map[string]string

// Values implements [Carrier].
func (m MapCarrier) Values(key string) []string {
	if v, ok := m[key]; ok {
		return []string{v}
	}
	return nil
}

// Set implements [Carrier].
func (m MapCarrier) Set(key, value string) { m[key] = value }

// MetadataCarrier makes a [Carrier] of a map like gRPC's metadata.MD, whose keys
// are in lower case.
type MetadataCarrier map[string][]string

// Values implements [Carrier].
func (m MetadataCarrier) Values(key string) []string { return m[strings.ToLower(key)] }

// Set implements [Carrier].
func (m MetadataCarrier) Set(key, value string) { m[strings.ToLower(key)] = []string{value} }

// Inject puts the token of s, unsigned, under [TokenKey] of c: of a message to be
// sent, of a request to another service, or of a response, and whether s must read
// from the primary. When there is neither it leaves c alone. Whoever receives it
// calls [Extract], or has a [Middleware] with UnsignedHeader.
//
// A message is for whoever the sender trusts, and may wait in its queue for any
// time; where that is otherwise, [Keys.Inject] signs it.
func Inject(s *Session, c Carrier) { inject(s, c, nil) }

// Inject is [Inject] with a signed text, for messages that others can write or
// change. Whoever receives it calls [Keys.Extract], or has a [Middleware] with these
// Keys. A message that waits for longer than [KeysConfig.MaxAge] is refused: a queue
// in which they may has Keys of its own.
func (k *Keys) Inject(s *Session, c Carrier) { inject(s, c, k) }

func inject(s *Session, c Carrier, keys *Keys) {
	if text := join(s, keys); text != "" {
		c.Set(TokenKey, text)
	}
}

// join returns the text of s, empty when it has seen nothing.
func join(s *Session, keys *Keys) string {
	now := time.Now()
	var texts []string
	// Asked before the token: what a write covers meanwhile the token then has.
	alone := s.OnPrimary()
	if tok := s.Token(); !tok.IsZero() {
		texts = append(texts, encode(keys, tok, now))
	}
	if alone {
		texts = append(texts, encode(keys, tracker.Token{}, now))
	}
	return strings.Join(texts, ",")
}

// Extract notes in s what [Inject] put into c: the token, or the last of several,
// and whether to read from the primary. Where there is nothing it does nothing. The
// error is that of [tracker.ParseToken], or says that there are more than 8: s is
// then as it was, and who goes on with it may read what is older than the message,
// unless s is told to RequirePrimary.
func Extract(s *Session, c Carrier) error { return extract(s, c.Values(TokenKey), nil) }

// Extract is [Extract] of what [Keys.Inject] put into c. The error is that of
// [Keys.Open].
func (k *Keys) Extract(s *Session, c Carrier) error { return extract(s, c.Values(TokenKey), k) }

func extract(s *Session, values []string, keys *Keys) error {
	now := time.Now()
	var seen Session
	n := 0
	for text := range listed(values) {
		if n++; n > maxTexts {
			return errTooManyTexts
		}
		tok, alone, err := decode(keys, text, now)
		if err != nil {
			return fmt.Errorf("ryw: extract token: %w", err)
		}
		if seen.Advance(tok); alone {
			seen.RequirePrimary()
		}
	}
	s.Merge(&seen)
	return nil
}

// MarshalText returns the text that [Inject] puts under [TokenKey], for a message
// whose headers are no [Carrier], and for JSON, where a field *Session is a string.
// There is always one, also of a Session that has seen nothing; the error is nil.
func (s *Session) MarshalText() ([]byte, error) {
	return []byte(cmp.Or(join(s, nil), tracker.Token{}.String())), nil
}

// UnmarshalText notes in s what [Session.MarshalText] wrote, and fails, as [Extract]
// does: with an error s is as it was. The empty text is an error.
func (s *Session) UnmarshalText(text []byte) error { return extract(s, []string{string(text)}, nil) }

// encode returns the text for somebody else to keep. The zero token, which no write
// has, stands for a Session that must read from the primary.
func encode(keys *Keys, tok tracker.Token, now time.Time) string {
	switch {
	case keys != nil:
		return keys.Sign(tok, now)
	case tok.IsZero():
		return onlyPrimary // to other programs too: to those the zero token waits for nothing
	}
	return tok.String()
}

// decode returns what encode made a text of: a token, or that the Session must read
// from the primary.
func decode(keys *Keys, text string, now time.Time) (tok tracker.Token, alone bool, err error) {
	switch {
	case keys != nil:
		tok, err = keys.Open(text, now)
		return tok, err == nil && tok.IsZero(), err
	case text == onlyPrimary:
		return tracker.Token{}, true, nil
	}
	tok, err = tracker.ParseToken(text)
	return tok, false, err
}

// listed yields the elements of lists with commas, which is what whoever passes
// several headers of one name on may make of them. An empty list has one that is empty.
func listed(values []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, v := range values {
			for text := range strings.SplitSeq(v, ",") {
				if !yield(strings.Trim(text, " \t")) {
					return
				}
			}
		}
	}
}
