package tracker_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
)

// startPrimary starts a server without standbys and returns its DSN.
func startPrimary(t *testing.T) string {
	t.Helper()
	return replicationtest.Start(t, replicationtest.Options{Standbys: -1}).Primary.DSN()
}

func connectIn(t *testing.T, dsn string, mode pgx.QueryExecMode) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = mode
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// The server says what it makes of some thousand strings. A function that catches the error stands in for
// pg_input_is_valid, which PostgreSQL has from 16 on.
func TestParseLSNAgreesWithTheServer(t *testing.T) {
	conn := connectIn(t, startPrimary(t), pgx.QueryExecModeCacheStatement)
	if _, err := conn.Exec(t.Context(), `create function pg_temp.try_lsn(s text) returns pg_lsn language plpgsql as
		$$ begin return s::pg_lsn; exception when invalid_text_representation then return null; end $$`); err != nil {
		t.Fatal(err)
	}
	inputs := lsnInputs(5000)
	rows, err := conn.Query(t.Context(), `select s, l, (l - '0/0'::pg_lsn)::text
		from (select s, i, pg_temp.try_lsn(s) l from unnest($1::text[]) with ordinality x(s, i)) y order by i`, inputs)
	if err != nil {
		t.Fatal(err)
	}
	var (
		input  string
		lsn    *tracker.LSN
		number *string
	)
	valid, seen := 0, 0
	_, err = pgx.ForEachRow(rows, []any{&input, &lsn, &number}, func() error {
		seen++
		got, err := tracker.ParseLSN(input)
		switch {
		case lsn == nil:
			if err == nil {
				t.Errorf("%q: ParseLSN says %v, the server refuses it", input, got)
			}
		case err != nil:
			t.Errorf("%q: ParseLSN: %v, the server says %v", input, err, *lsn)
		case got != *lsn || strconv.FormatUint(uint64(got), 10) != *number:
			t.Errorf("%q: ParseLSN says %v (%d), the server %v (%s)", input, got, uint64(got), *lsn, *number)
		default:
			valid++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(inputs) || valid < seen/10 || valid > seen*9/10 {
		t.Errorf("%d inputs, %d answers, %d of them valid: not much of a test", len(inputs), seen, valid)
	}
}

// lsnInputs returns LSN texts of all lengths, many of them damaged, without the bytes that no text value can hold.
func lsnInputs(n int) []string {
	rnd := rand.New(rand.NewPCG(1, 2))
	half := func() string {
		s := strconv.FormatUint(rnd.Uint64()>>(8*rnd.IntN(8)), 16)
		s = s[:min(len(s), 1+rnd.IntN(9))]
		if rnd.IntN(2) == 0 {
			s = fmt.Sprintf("%08s", s)
		}
		if rnd.IntN(2) == 0 {
			s = string(bytes.ToUpper([]byte(s)))
		}
		return s
	}
	damage := []rune("0Ff/ +-xXgG_.,;:\t\n\r\v\f'\"\\%é٣")
	inputs := append([]string{}, badLSNs...)
	for len(inputs) < n {
		s := []rune(half() + "/" + half())
		for range rnd.IntN(3) {
			at, with := rnd.IntN(len(s)), damage[rnd.IntN(len(damage))]
			switch rnd.IntN(4) {
			case 0:
				s[at] = with
			case 1:
				s = append(s[:at], append([]rune{with}, s[at:]...)...)
			case 2:
				s = append(s, with)
			case 3:
				s = append(s[:at], s[min(at+1, len(s)-1):]...)
			}
		}
		inputs = append(inputs, string(s))
	}
	return inputs
}

func TestLSNBinaryFormIsTheServers(t *testing.T) {
	conn := connectIn(t, startPrimary(t), pgx.QueryExecModeCacheStatement)
	for _, l := range []tracker.LSN{0, 0x01020304_05060708, 1<<64 - 1} {
		var wire []byte
		if err := conn.QueryRow(t.Context(), "select pg_lsn_send($1)", l).Scan(&wire); err != nil {
			t.Fatal(err)
		}
		var got tracker.LSN
		if bin, _ := l.MarshalBinary(); !bytes.Equal(bin, wire) || got.UnmarshalBinary(wire) != nil || got != l {
			t.Errorf("%v: binary % x, the server sends % x, read as %v", l, bin, wire, got)
		}
	}
}

// WAL records are made to end exactly at the end of a segment and of a page. The server's own processes write now and
// then too, so a try may miss.
func TestNormalizeIsWhereTheLastRecordEnded(t *testing.T) {
	conn := connectIn(t, startPrimary(t), pgx.QueryExecModeCacheStatement)
	var block, segment uint64
	if err := conn.QueryRow(t.Context(), `select current_setting('wal_block_size')::int8,
		pg_size_bytes(current_setting('wal_segment_size'))`).Scan(&block, &segment); err != nil {
		t.Fatal(err)
	}
	lsn := func(query string, args ...any) (l tracker.LSN) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), query, args...).Scan(&l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	const message = "select pg_logical_emit_message(false, 'x', repeat('x', $1))"
	for _, c := range []struct {
		name   string
		header uint64
		record func() (end tracker.LSN)
	}{
		{"segment", 40, func() tracker.LSN { return lsn("select pg_switch_wal()") }},
		{"page", 24, func() tracker.LSN {
			before := lsn("select pg_current_wal_insert_lsn()")
			after := lsn(message, 300)
			// The same record again, with as much more payload as the page has room for.
			room := int(block - uint64(after)%block)
			return lsn(message, max(0, 300+room-int(after-before)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 100 {
				end := c.record()
				insert := lsn("select pg_current_wal_insert_lsn()")
				if got := end.Normalize(block, segment); got != end {
					t.Fatalf("a record ended at %v, and Normalize made it %v", end, got)
				}
				if uint64(end)%block != 0 || uint64(insert-end) != c.header {
					continue
				}
				if got := insert.Normalize(block, segment); got != end {
					t.Fatalf("%v became %v, but the record ended at %v", insert, got, end)
				}
				return
			}
			t.Error("in 100 tries no record ended there")
		})
	}
}
