package replication

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/walwake/walwake/tracker"
)

// A server that flushes once more, less than the token, and is idle from then on is made to flush as one that was idle
// from the start is: a flush that was under way when the token was taken is no sign of the next one.
func TestAServerThatBecomesIdleIsMadeToFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made, looks := false, 0
		query := func(sql string, to ...any) error {
			if strings.Contains(sql, "pg_logical_emit_message") {
				made = true
				return nil
			}
			looks++
			*to[0].(*string), *to[1].(*bool) = "0/1000", false // 0/0F00 was flushed first, and 0/2000 is wanted
			return nil
		}
		flush(t.Context(), query, tracker.LSN(0x2000), tracker.LSN(0xF00), 180000)
		if !made {
			t.Errorf("after %d looks, in 16 ms, at a server that flushes nothing it is left alone: no replica gets the WAL until somebody commits", looks)
		}
	})
}
