package replication

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// FuzzDecoder: what pgoutput sends is an error, nothing that is wanted, or a
// message that was in it, of the transaction that is open.
func FuzzDecoder(f *testing.F) {
	f.Add(begins(200, 7), message(1, "ours", "payload"), commits(200, 240))
	f.Add(begins(200, 7), message(0, "ours", ""), commits(200, 200))
	f.Add(begins(200, 7), begins(300, 8), []byte("I\x00\x00\x00\x01N"))
	f.Add(begins(1<<64-1, 7), message(1, "ours", "x"), []byte{})
	f.Add(begins(0, 7), commits(0, 1), []byte("M"))
	f.Add([]byte("B"), []byte("C"), message(1, strings.Repeat("p", 100), "x"))
	f.Add(begins(1, 1), message(1, "ours", "x")[:15], []byte("M\x010000000\x00ours\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, first, second, third []byte) {
		d := decoder{wants: func(prefix string) bool { return prefix != "others" }}
		for _, data := range [][]byte{first, second, third} {
			before := d
			it, ok, err := d.take(data)
			switch {
			case err != nil && ok:
				t.Fatalf("%q: %v and a message", data, err)
			case err != nil:
				return // it ends the stream
			case !ok:
				continue
			}
			lsn := it.m.Token.LSN
			if data[0] != 'M' || before.commit == 0 || lsn != before.commit+1 || lsn == 0 || it.xid != before.xid || it.began {
				t.Errorf("%q: %+v of %+v", data, it, before)
			}
			if len(it.m.Prefix) > maxPrefix || it.m.Prefix == "others" || strings.ContainsRune(it.m.Prefix, 0) {
				t.Errorf("%q: prefix %q", data, it.m.Prefix)
			}
			if it.m.Size > MaxMessage {
				if it.m.Payload != "" {
					t.Errorf("%d bytes have a payload", it.m.Size)
				}
				continue
			}
			if it.m.Size != len(it.m.Payload) || !bytes.HasPrefix(data[10:], message(0, it.m.Prefix, it.m.Payload)[10:]) {
				t.Errorf("%q: %+v", data, it)
			}
		}
	})
}

// FuzzCutter: what comes out is what went in, with the long messages cut, however
// it comes.
func FuzzCutter(f *testing.F) {
	f.Add([]byte("abcdefghijklmnop"), uint8(3), uint8(0), uint16(7))
	f.Add(bytes.Repeat([]byte("x"), 300), uint8(1), uint8(1), uint16(16))
	f.Add([]byte{}, uint8(0), uint8(2), uint16(5))
	f.Fuzz(func(t *testing.T, content []byte, step, how uint8, most uint16) {
		if most == 0 {
			most = 1
		}
		var in, want []byte
		for i, at := 0, 0; at < len(content); i++ {
			body := content[at:min(at+int(step)*i+1, len(content))]
			at += len(body)
			kind := "dZSd"[i%4]
			in = binary.BigEndian.AppendUint32(append(in, kind), uint32(len(body)+4))
			in = append(in, body...)
			if kind == 'd' {
				body = body[:min(len(body), int(most))]
			}
			want = binary.BigEndian.AppendUint32(append(want, kind), uint32(len(body)+4))
			want = append(want, body...)
		}
		var r io.Reader = bytes.NewReader(in)
		switch how % 3 {
		case 1:
			r = iotest.OneByteReader(r)
		case 2:
			r = iotest.HalfReader(r)
		}
		var cut io.Reader = &cutter{in: bufio.NewReaderSize(r, 16), most: uint32(most)}
		if how%2 == 1 {
			cut = iotest.OneByteReader(cut)
		}
		got, err := io.ReadAll(cut)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%q came out as %q, want %q", in, got, want)
		}
	})
}

// A burst that has come in one go is not taken apart, or each part would be a hint.
func TestCutterKeepsABurstTogether(t *testing.T) {
	var in []byte
	for range 50 {
		in = append(in, 'd', 0, 0, 0, 8, 1, 2, 3, 4)
	}
	c := &cutter{in: bufio.NewReader(bytes.NewReader(in)), most: 100}
	p := make([]byte, 8192)
	if n, err := c.Read(p); err != nil || !bytes.Equal(p[:n], in) {
		t.Errorf("%d of %d bytes: %v", n, len(in), err)
	}
}

func TestSnapshotSees(t *testing.T) {
	const epoch = 5 << 32
	for _, c := range []struct {
		text string
		xid  uint32
		sees bool
	}{
		{"100:100:", 99, true},
		{"100:100:", 100, false},
		{"100:100:", 101, false},
		{"97:100:97,98", 96, true},
		{"97:100:97,98", 97, false},
		{"97:100:97,98", 98, false},
		{"97:100:97,98", 99, true},
		{"21474836485:21474836490:21474836486", 6, false}, // epoch 5
		{"21474836485:21474836490:21474836486", 7, true},
		{"21474836485:21474836490:21474836486", 4294967295, true}, // of epoch 4
		{"21474836478:21474836479:", 3, false},                    // of epoch 5 still to come
	} {
		sn, err := parseSnapshot(c.text)
		if err != nil || sn.sees(c.xid) != c.sees {
			t.Errorf("%s sees %d: %t, %v", c.text, c.xid, !c.sees, err)
		}
	}
	if epoch+10 != 21474836490 {
		t.Error("the epoch is another")
	}
	for _, text := range []string{"", "1:2", "1:2:3:4", "a:b:", "1:x:", "1:9:2,x", "1:-9:"} {
		if sn, err := parseSnapshot(text); err == nil {
			t.Errorf("%q: %+v", text, sn)
		}
	}
}
