package sidecar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walwake/walwake/tracker"
)

// server is a sidecar that says what the test says, over pipes.
type server struct {
	conns   chan net.Conn
	closed  chan struct{}
	streams chan *served
	wait    func(w http.ResponseWriter, r *http.Request)
}

// served is one stream, from the server's side.
type served struct {
	r       *http.Request
	texts   chan string // what to write
	demands chan string // lines of the body
	end     chan struct{}
	once    sync.Once
}

func (s *server) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}
func (s *server) Close() error   { return nil }
func (s *server) Addr() net.Addr { return &net.TCPAddr{} }

// begin runs a scripted sidecar and a tracker that follows it.
func begin(t *testing.T, cfg Config) (*server, *tracker.Tracker) {
	t.Helper()
	s, c := connect(t, cfg)
	tr, err := tracker.New(tracker.Config{Source: c, Name: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(context.Background()) })
	t.Cleanup(func() {
		tr.Close()
		running.Wait()
	})
	return s, tr
}

func connect(t *testing.T, cfg Config) (*server, *Client) {
	t.Helper()
	s := &server{conns: make(chan net.Conn), closed: make(chan struct{}), streams: make(chan *served, 100)}
	cfg.URL = "http://sidecar"
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	transport, is := c.http.Transport.(*http.Transport)
	if !is {
		t.Fatal("another transport")
	}
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case s.conns <- there:
			return here, nil
		case <-s.closed:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/stream", s.stream)
	mux.HandleFunc("/v1/wait", func(w http.ResponseWriter, r *http.Request) { s.wait(w, r) })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	var running sync.WaitGroup
	running.Go(func() { _ = srv.Serve(s) })
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		close(s.closed)
		_ = srv.Close()
		running.Wait()
	})
	return s, c
}

func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	one := &served{r: r, texts: make(chan string, 100), demands: make(chan string, 100), end: make(chan struct{})}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			one.demands <- lines.Text()
		}
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	_ = rc.Flush()
	s.streams <- one
	for going := true; going; {
		select {
		case text := <-one.texts:
			_, _ = io.WriteString(w, text) // the client may be gone
			_ = rc.Flush()
		case <-one.end:
			going = false
		case <-read: // the client is gone
			going = false
		}
	}
	_ = rc.SetReadDeadline(time.Now())
	<-read
}

func (o *served) send(text string) { o.texts <- text }

func (o *served) finish() { o.once.Do(func() { close(o.end) }) }

// state sends an event of that name: a position of an epoch on timeline 2, which left 1 at 0/32.
func (o *served) state(epoch uint64, lsn tracker.LSN) {
	o.send(fmt.Sprintf("id: x-1\nevent: state\ndata: "+`{"boot":"x","epoch":%d,"known":true,"role":"standby","position":"%s","timeline":2,"system":"7","history":[{"timeline":1,"end":"0/32"}],"source":"poll","ladder":[{"source":"physical","up":false,"resting":true,"reason":"starts when a wait lasts","since":"2026-01-01T00:00:00Z"},{"source":"poll","up":true,"resting":false,"reason":"","since":"2026-01-01T00:00:00Z"}],"note":""}`+"\n\n", epoch, lsn))
}

func (o *served) unknown(failure string) {
	o.send(`event: state` + "\n" + `data: {"boot":"x","epoch":null,"known":false,"role":null,"position":null,"timeline":null,"system":null,"history":null,"ladder":[],"note":"","failure":"` + failure + `"}` + "\n\n")
}

func (o *served) position(epoch uint64, lsn tracker.LSN) {
	o.send(fmt.Sprintf("id: x-2\nevent: position\ndata: {\"epoch\":%d,\"lsn\":\"%s\"}\n\n", epoch, lsn))
}

func at(timeline uint32, lsn tracker.LSN) tracker.Token {
	return tracker.Token{System: 7, Timeline: timeline, LSN: lsn}
}

func TestALongStallAsksForNoLongerKeepaliveThanThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := begin(t, Config{Stall: time.Hour})
		if got := (<-s.streams).r.URL.Query().Get("keepalive"); got != "30s" {
			t.Errorf("it asks for %s, which a sidecar refuses", got)
		}
	})
}

func TestAnEpochOfTheSidecarIsOneHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tr := begin(t, Config{Bearer: "secret"})
		o := <-s.streams
		if o.r.Header.Get("Authorization") != "Bearer secret" || o.r.URL.Query().Get("keepalive") != "500ms" || o.r.Method != http.MethodPost {
			t.Errorf("got %+v", o.r)
		}
		o.send("retry: 1000\n\n")
		o.state(5, 100)
		synctest.Wait()
		was, known := tr.LastReplay()
		if !known || was.LSN != 100 || was.System != 7 || was.Timeline != 2 || len(was.History) != 1 || was.Primary {
			t.Errorf("got %+v, %t", was, known)
		}
		if !tr.Replayed(at(2, 100)) || !tr.Replayed(at(1, 50)) || tr.Replayed(at(2, 101)) {
			t.Error("tokens are judged otherwise than there")
		}
		if err := tr.Wait(t.Context(), at(1, 51)); !errors.Is(err, tracker.ErrDiverged) {
			t.Errorf("got %v", err)
		}
		if st := tr.State(); st.Source != "sidecar/poll" || len(st.Ladder) != 2 || st.Ladder[0].Source != "sidecar/physical" || !st.Ladder[0].Resting {
			t.Errorf("got %+v", st)
		}
		o.position(5, 120)
		o.position(4, 900) // of an epoch that is over
		synctest.Wait()
		if is, _ := tr.LastReplay(); is.LSN != 120 || is.Epoch != was.Epoch {
			t.Errorf("got %+v", is)
		}
		o.unknown("the standby has crashed")
		o.position(5, 950) // it was on its way
		synctest.Wait()
		if is, known := tr.LastReplay(); known || tr.Replayed(at(2, 1)) {
			t.Errorf("a position outlived its epoch: %+v", is)
		}
		if note := tr.State().Note; !strings.Contains(note, "the standby has crashed") {
			t.Errorf("the note is %q", note)
		}
		o.state(6, 60) // lower
		synctest.Wait()
		if is, known := tr.LastReplay(); !known || is.LSN != 60 || is.Epoch == was.Epoch {
			t.Errorf("got %+v", is)
		}
		o.state(7, 40) // another epoch, without a word between
		synctest.Wait()
		if is, known := tr.LastReplay(); !known || is.LSN != 40 {
			t.Errorf("got %+v", is)
		}
		if e := tr.Stats().Epochs; e != 3 {
			t.Errorf("%d epochs", e)
		}
	})
}

func TestAStreamThatEndsEndsTheEpoch(t *testing.T) {
	for name, c := range map[string]struct {
		how  func(o *served)
		says string
	}{
		"it is closed": {func(o *served) { o.finish() }, "ended without a word"},
		"it says that it ends": {func(o *served) {
			o.send("event: end\ndata: {\"reason\":\"shutting_down\",\"detail\":\"come again\"}\n\n")
		}, "ended the stream: come again"},
		"it is silent":            {func(*served) { time.Sleep(DefaultStall) }, "silent for too long"},
		"no JSON":                 {func(o *served) { o.send("event: position\ndata: {\n\n") }, "cannot be read"},
		"a position that is none": {func(o *served) { o.send("event: position\ndata: {\"epoch\":5}\n\n") }, "it has no LSN"},
		"a state without a system": {func(o *served) {
			o.send("event: state\ndata: {\"known\":true,\"epoch\":5,\"position\":\"0/1\",\"system\":\"x\"}\n\n")
		}, "it has no position, or system"},
		"a state without an epoch":  {func(o *served) { o.send("event: state\ndata: {\"known\":true,\"position\":\"0/1\"}\n\n") }, "it has no position, or system"},
		"a line that is too long":   {func(o *served) { o.send("data: " + strings.Repeat("x", maxLine)) }, "token too long"},
		"a bad LSN in the position": {func(o *served) { o.send("event: position\ndata: {\"epoch\":5,\"lsn\":\"0/1FFFFFFFF\"}\n\n") }, "parse LSN"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, tr := begin(t, Config{})
				o := <-s.streams
				o.state(5, 100)
				synctest.Wait()
				waits := make(chan error, 1)
				go func() { waits <- tr.Wait(t.Context(), at(2, 200)) }()
				synctest.Wait()
				c.how(o)
				time.Sleep(100 * time.Millisecond) // net/http tells of a response's proper end after 50 ms, while the request goes on
				synctest.Wait()
				if is, known := tr.LastReplay(); known {
					t.Errorf("a position outlived its stream: %+v", is)
				}
				if err := tr.State().Failure; err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v", err)
				}
				next := <-s.streams // it comes back, and says again what is waited for
				next.state(1, 150)
				if lsn := <-next.demands; lsn != "0/C8" {
					t.Errorf("it waits for %s", lsn)
				}
				next.position(1, 200)
				if err := <-waits; err != nil {
					t.Error(err)
				}
				o.finish()
			})
		})
	}
}

func TestKeepalivesKeepTheEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tr := begin(t, Config{})
		o := <-s.streams
		o.state(5, 100)
		for range 20 {
			time.Sleep(DefaultStall - time.Millisecond)
			o.send(":\n\n")
			synctest.Wait()
		}
		if is, known := tr.LastReplay(); !known || is.LSN != 100 {
			t.Errorf("got %+v, %t", is, known)
		}
	})
}

func TestWhatIsWaitedForIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tr := begin(t, Config{Stall: time.Hour})
		early := tr.Request(at(2, 150)) // before there is a stream
		o := <-s.streams
		said := func(want ...string) {
			t.Helper()
			synctest.Wait()
			for _, line := range want {
				select {
				case got := <-o.demands:
					if got != line {
						t.Errorf("it says %s, want %s", got, line)
					}
				default:
					t.Errorf("it does not say %s", line)
				}
			}
			select {
			case more := <-o.demands:
				t.Errorf("it says %s too", more)
			default:
			}
		}
		said("0/96")
		o.state(5, 100)
		said("0/96") // again: an epoch has begun
		lower, higher := tr.Request(at(2, 140)), tr.Request(at(2, 300))
		said("0/8C")
		o.position(5, 145)
		<-lower.Done()
		said("0/96")
		o.position(5, 160)
		<-early.Done()
		said("0/12C")
		time.Sleep(sayAgain)
		said("0/12C")
		higher.Cancel()
		said("0/0")
		time.Sleep(3 * sayAgain)
		said()
		ahead := tr.Request(at(3, 120)) // it has the position, and misses the timeline
		said("0/A1")
		o.position(5, 170)
		said("0/AB")
		ahead.Cancel()
		said("0/0")
		tr.Refresh()
		said("0/AB", "0/0")
	})
}

func TestASidecarThatRefusesSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			status int
			kind   string
			body   string
			says   string
		}{
			{401, "application/problem+json", `{"status":401,"title":"No token","detail":"send it","reason":"unauthorized"}`, "sidecar: No token: send it"},
			{502, "text/html", "<h1>Bad gateway</h1>", "sidecar: status 502"},
			{307, "text/plain", "", "sidecar: status 307"},
			{429, "application/problem+json", strings.Repeat("x", 2*maxProblem), "sidecar: status 429"},
		} {
			_, client := connect(t, Config{})
			client.http.Transport = answers(func(*http.Request) *http.Response {
				return &http.Response{StatusCode: c.status, Header: http.Header{"Content-Type": {c.kind}, "Location": {"http://evil.example/"}}, Body: io.NopCloser(strings.NewReader(c.body))}
			})
			tr, err := tracker.New(tracker.Config{Source: client, RetryMin: time.Hour, RetryMax: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			var running sync.WaitGroup
			running.Go(func() { _ = tr.Run(context.Background()) })
			synctest.Wait()
			if err := tr.State().Failure; err == nil || err.Error() != c.says {
				t.Errorf("got %v, want %s", err, c.says)
			}
			tr.Close()
			running.Wait()
		}
	})
}

// answers is a transport without a network.
type answers func(*http.Request) *http.Response

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return a(r), nil
}

func TestBadConfigsAreRefused(t *testing.T) {
	for _, c := range []Config{
		{},
		{URL: "127.0.0.1:7432"},
		{URL: "ftp://h"},
		{URL: "http://"},
		{URL: "http://user:s3cr3t@h"},
		{URL: "http://h/path"},
		{URL: "http://h?q=1"},
		{URL: "unix:"},
		{URL: "http://h:s3cr3t:x\x7f"},
		{URL: "http://h", Stall: time.Millisecond},
		{URL: "http://h", Stall: -1},
		{URL: "http://h", Bearer: "s3cr3t\nx"},
	} {
		if _, err := New(c); err == nil || !strings.HasPrefix(err.Error(), "sidecar: Config.") || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, url := range []string{"http://127.0.0.1:7432", "http://[::1]:7432/", "https://h", "unix:/run/x", "unix:x"} {
		if c, err := New(Config{URL: url}); err != nil || c.Name() != "sidecar" {
			t.Errorf("%s: %v", url, err)
		}
	}
}
