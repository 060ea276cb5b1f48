package pgnotify_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication/replicationtest"
)

// With one server process it is the same one that answers always; with several
// it is another one at times.
func TestAPoolerInTransactionModeCannotListen(t *testing.T) {
	c := cluster(t)
	for name, more := range map[string]string{"one process": "default_pool_size = 1", "several": "default_pool_size = 5\nserver_round_robin = 1", "as it comes": ""} {
		t.Run(name, func(t *testing.T) {
			dsn := replicationtest.PgBouncer(t, c.Primary.DSN(), "transaction", more)
			if name == "several" { // so that there are some
				var used []*pgx.Conn
				for range 4 {
					conn, err := pgx.Connect(t.Context(), dsn)
					must(t, err)
					defer conn.Close(t.Context())
					simply(t, conn, `BEGIN`)
					used = append(used, conn)
				}
				for _, conn := range used {
					simply(t, conn, `COMMIT`)
				}
			}
			l, ended := start(t, quickly(dsn, follow(t, c.Standbys[0].DSN()), pgnotify.Channel{Name: "c", Handler: pgnotify.HandlerFunc(nothing)}))
			err := ends(t, l, ended)
			if !errors.Is(err, pgnotify.ErrCannotListen) || !strings.Contains(err.Error(), "pooler in transaction mode") {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
}

func simply(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	must(t, err)
}

func TestAPoolerInSessionModeWillDo(t *testing.T) {
	c := cluster(t)
	dsn := replicationtest.PgBouncer(t, c.Primary.DSN(), "session")
	book := newLedger(t, c.Primary, c.Standbys[0])
	l := listen(t, quickly(dsn, follow(t, c.Standbys[0].DSN()), book.channel()))
	book.write(c.Primary, 1, 2, 3)
	if got := told(book.heard(3)); got != "1 2 3" {
		t.Errorf("got %s", got)
	}
	eventually(t, "it was probed", func() bool { return l.Stats().Connected })
}
