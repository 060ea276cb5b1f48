package pgnotify

import (
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/walwake/walwake/tracker"
)

// member is what a Publisher says of a replica, as "r1 " and JSON. Later versions
// may add to it.
type member struct {
	Name     string        `json:"name"`
	Instance string        `json:"instance"`
	At       tracker.Token `json:"at"` // zero when not known
	Known    bool          `json:"known"`
	Source   string        `json:"source"`
	Waiting  int           `json:"waiting"`
	Left     bool          `json:"left,omitempty"` // it is not published any more
}

const (
	memberV1 = "r1 "
	maxName  = 100 // bytes of a name, an instance or a source
	// maxMember is more than a member's payload may have, in bytes: JSON writes some
	// characters with six.
	maxMember = 2048
)

func (m member) payload() string {
	text, _ := json.Marshal(m) //nolint:errchkjson // nothing in it can fail
	return memberV1 + string(text)
}

// parseMember returns false for what no Publisher says.
func parseMember(payload string) (m member, ok bool) {
	text, is := strings.CutPrefix(payload, memberV1)
	if !is || len(payload) > maxMember {
		return member{}, false
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return member{}, false
	}
	ok = presentable(m.Name) && presentable(m.Instance) && (m.Source == "" || presentable(m.Source)) &&
		m.Waiting >= 0 && m.Known == (m.At.LSN != 0)
	if !ok {
		return member{}, false
	}
	return m, true
}

// presentable reports whether a name is fit to be shown: 1 to maxName bytes, with
// nothing that a terminal would act on.
func presentable(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) &&
		strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// cut makes a source's name, which is its author's, presentable.
func cut(source string) string {
	source = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(source, ""))
	for len(source) > maxName {
		_, size := utf8.DecodeLastRuneInString(source)
		source = source[:len(source)-size]
	}
	return source
}

// has reports whether a replica at a position shows tok, as far as the two alone
// can tell: of a token of an earlier timeline they cannot.
func has(at, tok tracker.Token) bool {
	return at.LSN >= tok.LSN && (tok.System == 0 || tok.System == at.System) && (tok.Timeline == 0 || tok.Timeline == at.Timeline)
}
