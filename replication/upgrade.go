package replication

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// upgrade makes a session over a replication connection, for a role that sees
// the timeline on no other. It is made beside the plain one, which is asked
// until then: where none is let in, nothing is lost.
type upgrade struct {
	server Server

	mu     sync.Mutex // guards what follows
	trying bool
	err    error     // why there was none
	again  time.Time // when to try again
}

// errUpgraded ends a run whose session has been replaced by a better one.
var errUpgraded = errors.New("replication: a replication connection takes over")

// want returns why there is no replication connection yet, nil while that is
// not known. spawn runs what opens one; got is called with it.
func (u *upgrade) want(ctx context.Context, spawn func(func()) bool, got func(*session)) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.trying || time.Now().Before(u.again) {
		return u.err
	}
	u.trying = spawn(func() {
		s, err := openSession(ctx, u.server, true, nil)
		u.mu.Lock()
		u.trying, u.err, u.again = false, err, time.Now().Add(refusedFor(err))
		u.mu.Unlock()
		if err == nil {
			got(s)
		}
	})
	return u.err
}

// refusedFor is how long a replication connection is not tried again: a minute
// where the role may not have one, and less where it failed for another reason.
func refusedFor(err error) time.Duration {
	const forbidden, soon = time.Minute, time.Second
	said, is := errors.AsType[*pgconn.PgError](err)
	if is && (said.Code == insufficientPrivilege || strings.HasPrefix(said.Code, "28")) {
		return forbidden
	}
	return soon
}
