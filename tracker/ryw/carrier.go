package ryw

import (
	"fmt"
	"iter"
	"strings"

	"github.com/walwake/walwake/tracker"
)

// TokenKey is the key under which [Inject] puts a token: in an [http.Header], the
// header Walwake-Token.
const TokenKey = "walwake-token"

// maxTexts bounds how many tokens one message or request may show.
const maxTexts = 8

// onlyPrimary stands beside, or in place of, the token of a Session whose reads must
// go to the primary. Whoever does not know it, such as a Middleware, takes it for a
// bad token, and that is safe.
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
// time; where that is otherwise, c.Set(TokenKey, keys.Sign(s.Token(), time.Now()))
// signs it.
func Inject(s *Session, c Carrier) {
	var texts []string
	if tok := s.Token(); !tok.IsZero() {
		texts = append(texts, tok.String())
	}
	if s.OnPrimary() {
		texts = append(texts, onlyPrimary)
	}
	if texts != nil {
		c.Set(TokenKey, strings.Join(texts, ","))
	}
}

// Extract notes in s what [Inject] put into c: the token, or the last of several,
// and whether to read from the primary. Where there is nothing it does nothing. The
// error is that of [tracker.ParseToken], or says that there are more than 8: s is
// then as it was, and who goes on with it may read what is older than the message,
// unless s is told to RequirePrimary.
func Extract(s *Session, c Carrier) error {
	var seen Session
	n := 0
	for text := range listed(c.Values(TokenKey)) {
		if n++; n > maxTexts {
			return errTooManyTexts
		}
		if text == onlyPrimary {
			seen.RequirePrimary()
			continue
		}
		tok, err := tracker.ParseToken(text)
		if err != nil {
			return fmt.Errorf("ryw: extract token: %w", err)
		}
		seen.Advance(tok)
	}
	s.Merge(&seen)
	return nil
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
