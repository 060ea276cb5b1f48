package tracker_test

import (
	"errors"
	"fmt"

	"github.com/walwake/walwake/tracker"
)

func ExampleParseLSN() {
	lsn, err := tracker.ParseLSN("0/0174FFB0") // as PostgreSQL 19 prints it
	fmt.Println(lsn, err)

	_, err = tracker.ParseLSN("0/16B3748garbage")
	fmt.Println(err)
	// Output:
	// 0/174FFB0 <nil>
	// tracker: parse LSN "0/16B3748garbage": want 1 to 8 hex digits, a slash, 1 to 8 hex digits
}

func ExampleLSN_Behind() {
	replayed, target := tracker.LSN(0x174FF00), tracker.LSN(0x174FFB0)
	fmt.Println(replayed.Behind(target), target.Behind(replayed))
	// Output: 176 0
}

func ExampleLSN_Normalize() {
	// What pg_current_wal_insert_lsn() says after pg_switch_wal(): the place behind the next segment's header.
	insert := tracker.LSN(0x2000028)
	fmt.Println(insert.Normalize(8<<10, 16<<20))
	// Output: 0/2000000
}

func ExampleToken() {
	written := tracker.Token{System: 7446648400156243938, Timeline: 1, LSN: 0x174FFB0}
	cookie := written.String()
	fmt.Println(cookie)

	shown, err := tracker.ParseToken(cookie)
	fmt.Println(shown == written, err)

	_, err = tracker.ParseToken("")
	fmt.Println(err)
	// Output:
	// v1.1kkqojsdcyw9u.1.0-174FFB0
	// true <nil>
	// tracker: parse token: empty, want v1.<system>.<timeline>.<lsn> as Token.String writes it
}

func ExampleToken_Merge() {
	session := tracker.Token{System: 7, Timeline: 1, LSN: 0x174FFB0}
	written := tracker.Token{System: 7, Timeline: 1, LSN: 0x1750008}
	merged, err := session.Merge(written)
	fmt.Println(merged, err)

	_, err = merged.Merge(tracker.Token{System: 8, Timeline: 1, LSN: 0x1750010})
	fmt.Println(errors.Is(err, tracker.ErrWrongSystem))
	// Output:
	// v1.7.1.0-1750008 <nil>
	// true
}

func ExampleParseHistory() {
	history, err := tracker.ParseHistory([]byte("1\t0/1787320\tno recovery target specified\n"))
	fmt.Println(history, err)

	// Of what was written on timeline 1, only what is not past this point is still there.
	fmt.Println(history.End(1))
	// Output:
	// [{1 0/1787320}] <nil>
	// 0/1787320 true
}
