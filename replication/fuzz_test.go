package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walwake/walwake/tracker"
)

// FuzzField: hostile bytes are an error or a part of the record.
func FuzzField(f *testing.F) {
	f.Add(binaryRecord([]byte("streaming"), uint64Bytes(1), uint32Bytes(1)), 2)
	f.Add(binaryRecord(nil, nil), 2)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, 1)
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 25, 0x80, 0, 0, 0}, 1)
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 25, 0x7f, 0xff, 0xff, 0xff, 1}, 1)
	f.Add([]byte{}, -1)
	f.Fuzz(func(t *testing.T, record []byte, n int) {
		got, err := field(record, n)
		if err != nil && got != nil {
			t.Errorf("%q and %v", got, err)
		}
		if n >= 1 && err == nil && got != nil && !bytes.Contains(record, got) {
			t.Errorf("field %d of %q is %q", n, record, got)
		}
		if n < 1 && got != nil {
			t.Errorf("field %d of %q is %q: fields are counted from 1", n, record, got)
		}
	})
}

// FuzzFastpath: a reading comes of results that hold it, and of no others.
func FuzzFastpath(f *testing.F) {
	record := binaryRecord([]byte("streaming"), uint64Bytes(200), uint32Bytes(1))
	f.Add(uint64Bytes(100), record, true, 0, 3)
	f.Add(record, []byte{}, false, 2, 3)
	f.Add([]byte{}, record[:9], true, 1, 1)
	f.Add(record, record, false, -1, 0)
	f.Fuzz(func(t *testing.T, first, second []byte, apart bool, lsnAt, timeAt int) {
		p := &fastpath{record: recordFunction, lsnAt: lsnAt, timeAt: timeAt}
		results := [][]byte{first}
		if apart {
			p.position, p.lsnAt = positionFunction, 0
			results = append(results, second)
		}
		var rd reading
		for _, result := range results {
			if err := p.take(result, &rd); err != nil {
				return
			}
		}
		last := results[len(results)-1]
		if rd.known && !bytes.Contains(results[0], uint64Bytes(uint64(rd.lsn))) {
			t.Errorf("position %s of %q", rd.lsn, results[0])
		}
		if rd.timeline != 0 && !bytes.Contains(last, uint32Bytes(rd.timeline)) {
			t.Errorf("timeline %d of %q", rd.timeline, last)
		}
		if !rd.standby || !rd.fast {
			t.Errorf("%+v", rd)
		}
	})
}

// FuzzStream: what a stream brings is an error or a position that only grows.
func FuzzStream(f *testing.F) {
	f.Add(keepalive(100, true), xlogData(100, "wal"))
	f.Add(keepalive(100, false), keepalive(50, false))
	f.Add(xlogData(1<<64-1, "wraps around"), []byte{})
	f.Add([]byte("k"), []byte("w"))
	f.Add([]byte("z123"), bytes.Repeat([]byte{'w'}, 25))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s := &walStream{reply: make(chan struct{}, 1)}
		s.received.Store(75)
		for _, data := range [][]byte{first, second} {
			before := s.received.Load()
			s.news = false
			err := s.take(data)
			after := s.received.Load()
			if after < before || s.news != (after > before) || err != nil && after != before {
				t.Errorf("%q: from %d to %d, news %v: %v", data, before, after, s.news, err)
			}
			if asks := len(data) == 18 && data[0] == 'k' && data[17] != 0; asks && len(s.reply) == 0 {
				t.Errorf("%q asks for a reply", data)
			}
		}
	})
}

// FuzzAnswer: whatever a server sends, an answer is an error, or a reading whose
// position the server wrote.
func FuzzAnswer(f *testing.F) {
	encode := func(msgs ...pgproto3.BackendMessage) []byte {
		var out []byte
		for _, m := range msgs {
			var err error
			if out, err = m.Encode(out); err != nil {
				f.Fatal(err)
			}
		}
		return out
	}
	columns := func(values ...string) pgproto3.BackendMessage {
		m := &pgproto3.DataRow{}
		for _, v := range values {
			if v == "NULL" {
				m.Values = append(m.Values, nil)
				continue
			}
			m.Values = append(m.Values, []byte(v))
		}
		return m
	}
	ready := &pgproto3.ReadyForQuery{TxStatus: 'I'}
	call := func(result []byte) pgproto3.BackendMessage { return &pgproto3.FunctionCallResponse{Result: result} }
	refused := &pgproto3.ErrorResponse{Severity: "ERROR", Code: "57014", Message: "canceling statement"}
	for _, answer := range [][]byte{
		encode(columns("1", "t", "0/C8", "1", "not paused", "t", "NULL", "NULL"), ready),
		encode(columns("1", "t", "0/C8", "", "paused", "f", "1min", "33 Lock relation -1 on 77"), ready),
		encode(columns("1", "t", "0/C8", "", "NULL", "NULL", "", " "), ready),
		encode(columns("1", "t", "NULL", "NULL"), ready),
		encode(columns("1", "t", "0/1FFFFFFFF", "1"), ready),
		encode(columns("1", "f", "0/C8", "000000010000000000000001"), ready),
		encode(columns("1", "f", "0/C8", "NULL"), ready),
		encode(columns("success"), ready, columns("1", "t", "0/C8", "1"), ready),
		encode(columns(), ready, columns("NULL"), ready),
		encode(refused, ready, refused, ready),
		encode(columns("1", "t", "0/C8", "1"), ready, columns("7", "1"), ready),
		encode(columns("1", "t", "0/C8", "1"), columns("7"), ready),
		encode(call(uint64Bytes(200)), ready, call(binaryRecord(nil, uint32Bytes(1))), ready),
		encode(call(nil), ready, call(nil), ready),
		{'D', 0x7f, 0xff, 0xff, 0xff, 0, 1},
		{'D', 0, 0, 0, 6, 0xff, 0xff},
		{'Z', 0, 0, 0, 3},
		[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
	} {
		for mode := range uint8(16) {
			f.Add(answer, mode)
		}
	}
	script := &scripted{version: "17.5"}
	server, err := script.server().Checked()
	if err != nil {
		f.Fatal(err)
	}
	conn, err := server.connect(f.Context(), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte, mode uint8) {
		s := fuzzed(server, conn, answer, mode)
		for range 100 {
			a := s.receive()
			if a.err != nil {
				if errors.Is(a.err, errPromoted) {
					continue
				}
				return
			}
			if a.canceled || !a.known {
				continue
			}
			fast := binary.BigEndian.AppendUint64(nil, uint64(a.lsn))
			if s.standby && !bytes.Contains(answer, fast) && !writes(answer, a.lsn) {
				t.Errorf("position %s of %q", a.lsn, answer)
			}
		}
	})
}

// writes reports whether text has an LSN that is lsn.
func writes(text []byte, lsn tracker.LSN) bool {
	for i, c := range text {
		if c != '/' {
			continue
		}
		for from := max(i-8, 0); from < i; from++ {
			for to := i + 2; to <= min(i+9, len(text)); to++ {
				if got, err := tracker.ParseLSN(string(text[from:to])); err == nil && got == lsn {
					return true
				}
			}
		}
	}
	return false
}

// fuzzed is a session that gets answer; mode says what it asked.
func fuzzed(server Server, conn *pgx.Conn, answer []byte, mode uint8) *session {
	front := pgproto3.NewFrontend(bytes.NewReader(answer), nil)
	front.SetMaxBodyLen(maxAnswer)
	s := &session{
		server: server, conn: conn, link: &pgconn.HijackedConn{Frontend: front},
		backend: "1", system: 7, standby: mode&1 == 0, sizes: walSizes{8192, 16 << 20}, deadline: newDeadline(func() {}),
	}
	if mode&2 != 0 {
		s.walsender = true
	} else if s.standby {
		s.fast = &fastpath{position: positionFunction, record: recordFunction, timeAt: 2}
	}
	s.parts.Store(1)
	if mode&4 != 0 {
		s.parts.Add(1)
	}
	s.waiting.Store(mode&8 != 0)
	return s
}
