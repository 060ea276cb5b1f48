package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/walwake/walwake/tracker"
)

// decoder reads what the plugin pgoutput sends, protocol 1, as far as messages go
// (src/backend/replication/logical/proto.c). The server sends a transaction when
// it has decoded the commit, whose position comes first.
type decoder struct {
	wants  func(prefix string) bool
	commit tracker.LSN // where the commit record of the open transaction begins; 0: none is open
	xid    uint32      // of the open transaction
}

// maxPrefix is how long a prefix may be that somebody wants.
const maxPrefix = 63

var errShort = errors.New("it ends too early")

// take reads one message of the stream; ok: it is one that is wanted.
func (d *decoder) take(data []byte) (it item, ok bool, err error) {
	if len(data) == 0 {
		return it, false, errors.New("an empty message of pgoutput")
	}
	kind, rest := data[0], data[1:]
	switch kind {
	case 'B':
		err = d.begin(rest)
	case 'C':
		err = d.end(rest)
	case 'M':
		it, ok, err = d.message(rest)
	}
	if err != nil {
		return item{}, false, fmt.Errorf("message %q of pgoutput: %w", kind, err)
	}
	return it, ok, nil
}

func (d *decoder) begin(b []byte) error {
	if len(b) < 20 {
		return errShort
	}
	commit := tracker.LSN(binary.BigEndian.Uint64(b))
	if d.commit != 0 || commit == 0 || commit+1 == 0 {
		return fmt.Errorf("a transaction committed at %s within one committed at %s", commit, d.commit)
	}
	d.commit, d.xid = commit, binary.BigEndian.Uint32(b[16:])
	return nil
}

func (d *decoder) end(b []byte) error {
	if len(b) < 25 {
		return errShort
	}
	commit, end := tracker.LSN(binary.BigEndian.Uint64(b[1:])), tracker.LSN(binary.BigEndian.Uint64(b[9:]))
	if d.commit == 0 || commit != d.commit || end <= commit {
		return fmt.Errorf("a commit from %s to %s of a transaction committed at %s", commit, end, d.commit)
	}
	d.commit = 0
	return nil
}

// message reads one that somebody sent: flags, position, prefix, size, payload.
func (d *decoder) message(b []byte) (it item, ok bool, err error) {
	const transactional = 1
	if len(b) < 9 {
		return it, false, errShort
	}
	flags, b := b[0], b[9:]
	if flags&transactional == 0 {
		return it, false, nil // it comes whether or not anything is committed
	}
	if d.commit == 0 {
		return it, false, errors.New("it is of no transaction")
	}
	n := bytes.IndexByte(b[:min(len(b), maxPrefix+1)], 0)
	switch {
	case n < 0 && len(b) > maxPrefix:
		return it, false, nil // nobody wants one that long
	case n < 0 || len(b) < n+5:
		return it, false, errShort
	}
	prefix := string(b[:n])
	if !d.wants(prefix) {
		return it, false, nil
	}
	size, b := binary.BigEndian.Uint32(b[n+1:]), b[n+5:]
	it = item{xid: d.xid, m: Message{Prefix: prefix, Size: int(size), Token: tracker.Token{LSN: d.commit + 1}}}
	switch {
	case size > MaxMessage:
		return it, true, nil // the rest was cut off
	case len(b) < int(size):
		return it, false, errShort
	}
	it.m.Payload = string(b[:size])
	return it, true, nil
}
