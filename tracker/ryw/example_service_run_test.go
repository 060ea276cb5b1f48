package ryw_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walwake/walwake/tracker/ryw"
)

// crowd is users of the service of the example, all at once.
type crowd struct {
	users     int
	turns     int // each is a write and a read
	transport *http.Transport
	url       string
	seen      func(reads int64) // called after each read
	reads     atomic.Int64
	stale     atomic.Int64
}

// run has every user write and read, and returns when all are through.
func (c *crowd) run(t *testing.T) {
	t.Helper()
	var users sync.WaitGroup
	for i := range c.users {
		users.Go(func() {
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Error(err)
				return
			}
			client := &http.Client{Transport: c.transport, Jar: jar, Timeout: 2 * time.Minute}
			page := fmt.Sprintf("%s/profiles/user-%d", c.url, i)
			for turn := range c.turns {
				if err := c.turn(t.Context(), client, page, turn); err != nil {
					t.Errorf("user %d, turn %d: %v", i, turn, err)
					return
				}
			}
		})
	}
	users.Wait()
	if got, want := c.reads.Load(), int64(c.users*c.turns); got != want {
		t.Fatalf("%d reads, want %d", got, want)
	}
}

// turn writes in one of three ways, and reads what must then be there.
func (c *crowd) turn(ctx context.Context, client *http.Client, page string, turn int) (err error) {
	var status int
	var body string
	about := fmt.Sprintf("is in turn %d", turn)
	switch turn % 3 {
	case 0: // the answer is 303, and the client follows it to the page
		status, body, err = ask(ctx, client, http.MethodPost, page, url.Values{"about": {about}}.Encode())
		return c.check(status, body, about, err)
	case 1:
		err = tell(ctx, client, http.MethodPut, page, about, http.StatusOK)
	case 2:
		about = ""
		err = tell(ctx, client, http.MethodDelete, page, "", http.StatusNoContent)
	}
	if err != nil {
		return err
	}
	status, body, err = ask(ctx, client, http.MethodGet, page, "")
	return c.check(status, body, about, err)
}

// check counts a read, and whether it was stale; want is empty when nothing may be there.
func (c *crowd) check(status int, body, want string, err error) error {
	switch {
	case err != nil:
		return err
	case status == http.StatusOK && body == want && want != "", status == http.StatusNotFound && want == "":
	case status == http.StatusOK, status == http.StatusNotFound:
		c.stale.Add(1)
	default:
		return fmt.Errorf("read: %d %q", status, body)
	}
	if reads := c.reads.Add(1); c.seen != nil {
		c.seen(reads)
	}
	return nil
}

// tell is an ask whose answer is that status.
func tell(ctx context.Context, client *http.Client, method, page, body string, want int) error {
	status, text, err := ask(ctx, client, method, page, body)
	if err == nil && status != want {
		err = fmt.Errorf("%s: %d %q", method, status, text)
	}
	return err
}

func ask(ctx context.Context, client *http.Client, method, page, body string) (status int, text string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, page, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// listen serves h on a port of its own, and returns the crowd's way to it: as many
// connections as one program keeps to one host, shared by its users.
func listen(t *testing.T, h http.Handler) (url string, transport *http.Transport) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	transport = &http.Transport{MaxConnsPerHost: 64, MaxIdleConnsPerHost: 64}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return "http://" + l.Addr().String(), transport
}

// share is of what was read from where.
func share(s ryw.Stats) (all int64, text string) {
	all = s.Primary
	for _, r := range s.Replicas {
		all += r.Reads
	}
	percent := func(n int64) float64 { return 100 * float64(n) / float64(max(all, 1)) }
	text = fmt.Sprintf("primary %.1f %%", percent(s.Primary))
	for _, r := range s.Replicas {
		text += fmt.Sprintf(", %s %.1f %%", r.Name, percent(r.Reads))
	}
	return all, text + fmt.Sprintf("; %.1f %% waited", percent(s.Waited))
}

// 1,000 users of the example's service write and read at once, one standby does not
// replay for most of the time, and everybody sees what he wrote last. Without the
// middleware they do not.
func TestAThousandUsersSeeWhatTheyWrote(t *testing.T) {
	c := cluster(t)
	ctx := t.Context()
	if err := c.Primary.Exec(ctx, `DROP TABLE IF EXISTS profiles;`+profilesTable); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitForReplay(ctx); err != nil {
		t.Fatal(err)
	}
	slow := c.Standbys[1]
	open := func() *ryw.Router {
		router, shut, err := connect(ctx, c.Primary.DSN(), c.Standbys[0].DSN(), slow.DSN())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(shut)
		unknown := func(r ryw.ReplicaStats) bool { return !r.Known }
		for slices.ContainsFunc(router.Stats().Replicas, unknown) && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return router
	}

	t.Run("with the middleware", func(t *testing.T) {
		router := open()
		service, err := newProfiles(router, keys(t, "a"))
		if err != nil {
			t.Fatal(err)
		}
		users := &crowd{users: 1000, turns: 3}
		users.url, users.transport = listen(t, service)
		all := int64(users.users * users.turns)
		var paused, resumed ryw.Stats
		users.seen = func(reads int64) {
			switch reads {
			case all / 6:
				if err := slow.Pause(ctx); err != nil {
					t.Error(err)
				}
				paused = router.Stats()
			case all * 5 / 6:
				resumed = router.Stats()
				if err := slow.Resume(ctx); err != nil {
					t.Error(err)
				}
			}
		}
		users.run(t)
		s := router.Stats()
		counted, text := share(s)
		t.Logf("%d users, %d reads, %d stale: %s", users.users, counted, users.stale.Load(), text)
		if n := users.stale.Load(); n != 0 || counted != all {
			t.Errorf("%d stale reads, %d of %d counted", n, counted, all)
		}
		fast, lagged := s.Replicas[0], s.Replicas[1]
		if fast.Reads == 0 || lagged.Reads == 0 || s.Primary > all/2 || s.Waited > all/2 || fast.Strange+lagged.Strange != 0 {
			t.Errorf("%+v", s)
		}
		// Each read follows a write of its user: only one whose write was there before
		// replay stopped may be read from the standby that has stopped.
		meanwhile := resumed.Replicas[1].Reads - paused.Replicas[1].Reads
		elsewhere := resumed.Primary + resumed.Replicas[0].Reads - paused.Primary - paused.Replicas[0].Reads
		t.Logf("while %s did not replay: %d reads from it, %d from the others", lagged.Name, meanwhile, elsewhere)
		if meanwhile > int64(users.users) || elsewhere < int64(users.users)/2 || resumed.Replicas[1].Position.LSN >= resumed.Replicas[0].Position.LSN {
			t.Errorf("%+v, and then %+v", paused, resumed)
		}

		// Nobody replays: who has written waits, and reads from the primary.
		for _, n := range c.Standbys {
			if err := n.Pause(ctx); err != nil {
				t.Fatal(err)
			}
		}
		one := &crowd{users: 1, turns: 1, url: users.url, transport: users.transport}
		one.run(t)
		if now := router.Stats(); one.stale.Load() != 0 || now.Primary != s.Primary+1 || now.Waited != s.Waited+1 {
			t.Errorf("%d stale, %+v and then %+v", one.stale.Load(), s, now)
		}
		for _, n := range c.Standbys {
			if err := n.Resume(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.WaitForReplay(ctx); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("without", func(t *testing.T) {
		router := open()
		users := &crowd{users: 1000, turns: 1}
		users.url, users.transport = listen(t, profiles{router}.routes())
		if err := slow.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		users.run(t)
		counted, text := share(router.Stats())
		t.Logf("%d users, %d reads, %d (%.1f %%) stale: %s", users.users, counted, users.stale.Load(), 100*float64(users.stale.Load())/float64(counted), text)
		if users.stale.Load() == 0 {
			t.Error("no stale read although a standby did not replay")
		}
	})
}
