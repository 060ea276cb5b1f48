package replication

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A history that could not be read four times in a row, while connections were
// dropped, was read again 2 to 4 s later, and waits for tokens of older timelines
// lasted that long.
func TestAHistoryIsReadAgainSoonWhereItMayBe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err     error
		longest time.Duration
	}{
		{errors.New("connection reset"), time.Second},
		{&pgconn.PgError{Code: "53300"}, time.Second},
		{&pgconn.PgError{Code: insufficientPrivilege}, time.Minute},
	} {
		var h histories
		var last time.Duration
		for range 20 {
			if last = h.pause(tt.err); last <= 0 || last > tt.longest {
				t.Errorf("%v: %s, want at most %s", tt.err, last, tt.longest)
			}
		}
		if last < tt.longest/2 {
			t.Errorf("%v: after 20 failures %s, want about %s", tt.err, last, tt.longest)
		}
	}
}
