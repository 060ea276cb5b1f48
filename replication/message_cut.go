package replication

import (
	"bufio"
	"encoding/binary"
	"io"

	"github.com/jackc/pgx/v5/pgproto3"
)

// cutting returns s with connections that cut what streams bring to the first
// maxMessage bytes of each message. Others than we may send what they like through
// the WAL, up to 1 GB: that must neither be held in memory nor end the stream.
func (s Server) cutting() Server {
	s.Config = s.Config.Copy()
	s.Config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(&cutter{in: bufio.NewReaderSize(r, 16<<10), most: maxMessage}, w)
	}
	return s
}

// cutter reads what a server sends, with CopyData longer than most cut off. It
// reads ahead no further than a Reader does: what has come in one go goes out so.
type cutter struct {
	in   *bufio.Reader
	most uint32

	header []byte // still to go out; of buf
	buf    [5]byte
	pass   uint32 // how much of the message goes out after it
	skip   uint32 // and how much does not after that
}

func (c *cutter) Read(p []byte) (n int, err error) {
	for n < len(p) && (n == 0 || c.in.Buffered() > 0) && err == nil {
		var m int
		switch {
		case len(c.header) > 0:
			m = copy(p[n:], c.header)
			c.header = c.header[m:]
		case c.pass > 0:
			m, err = c.in.Read(p[n:][:min(len(p)-n, int(c.pass))])
			c.pass -= uint32(m)
		case c.skip > 0:
			var skipped int
			skipped, err = c.in.Discard(min(max(c.in.Buffered(), 1), int(c.skip)))
			c.skip -= uint32(skipped)
		case n > 0 && c.in.Buffered() < len(c.buf):
			return n, nil
		default:
			err = c.next()
		}
		n += m
	}
	return n, err
}

// next reads the header of a message.
func (c *cutter) next() error {
	const copyData = 'd'
	if _, err := io.ReadFull(c.in, c.buf[:]); err != nil {
		return err
	}
	c.header = c.buf[:]
	size := binary.BigEndian.Uint32(c.buf[1:]) // with itself
	c.pass = max(size, 4) - 4
	if c.buf[0] == copyData && c.pass > c.most {
		c.pass, c.skip = c.most, c.pass-c.most
		binary.BigEndian.PutUint32(c.buf[1:], c.pass+4)
	}
	return nil
}
