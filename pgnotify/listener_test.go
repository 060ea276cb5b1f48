package pgnotify_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/replication"
)

func TestANotificationComesWhenTheReplicaShowsIt(t *testing.T) {
	c := cluster(t)
	standby := c.Standbys[0]
	t.Cleanup(func() { _ = standby.Resume(context.Background()) })
	reader := connect(t, standby)
	shows := func(id string) (there bool, err error) {
		err = reader.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM rows WHERE id = $1::bigint)`, pgx.QueryExecModeExec, id).Scan(&there)
		return there, err
	}
	type heard struct {
		pgnotify.Notification
		there bool
	}
	got := make(chan heard, 100)
	early := make(chan string, 100)
	listen(t, pgnotify.Config{
		Primary: replication.Server{DSN: c.Primary.DSN()},
		Replica: follow(t, standby.DSN()),
		Channels: []pgnotify.Channel{
			{Name: "rows", Handler: pgnotify.HandlerFunc(func(_ context.Context, e pgnotify.Event) error {
				n := e.(pgnotify.Notification)
				there, err := shows(n.Payload)
				got <- heard{n, there}
				return err
			})},
			{Name: "Early ones", AtOnce: true, Handler: pgnotify.HandlerFunc(func(_ context.Context, e pgnotify.Event) error {
				early <- e.(pgnotify.Notification).Payload
				return nil
			})},
		},
	})
	writer := connect(t, c.Primary)
	for i := range 10 {
		if err := standby.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint(time.Now().UnixNano())
		exec(t, writer, fmt.Sprintf(`BEGIN; INSERT INTO rows VALUES (%s); NOTIFY rows, '%[1]s'; NOTIFY "Early ones", '%[1]s'; COMMIT`, id))
		if at := <-early; at != id {
			t.Errorf("%d: at once came %s", i, at)
		}
		if len(got) > 0 {
			t.Errorf("%d: %+v while replay is paused", i, <-got)
		}
		if err := standby.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		n := <-got
		if n.Payload != id || n.Channel != "rows" || n.PID != writer.PgConn().PID() || n.Token.LSN == 0 || n.Token.System == 0 || n.Token.Timeline == 0 {
			t.Errorf("%d: %+v", i, n.Notification)
		}
		if !n.there {
			t.Errorf("%d: the replica does not show the row", i)
		}
	}
}
