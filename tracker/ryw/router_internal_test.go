package ryw

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
)

// stopping is a source whose position is known until it is told to forget.
type stopping struct {
	feed chan *tracker.Epoch
}

func (stopping) Name() string { return "stopping" }

func (s stopping) Observe(ctx context.Context, feed *tracker.Feed) error {
	e := feed.Begin()
	e.Observe(tracker.Observation{LSN: 100, System: 7, Timeline: 1})
	s.feed <- e
	<-ctx.Done()
	return ctx.Err()
}

type noLink struct {
	link
	m mark
}

func (l *noLink) mark() *mark { return &l.m }
func (l *noLink) release()    {}

// The position is forgotten and the context ends just when a connection was taken:
// a read whose function was not called must not look like one that has succeeded.
func TestAReadThatDidNotTakePlaceIsAnError(t *testing.T) {
	t.Parallel()
	s := stopping{feed: make(chan *tracker.Epoch, 1)}
	tr, err := tracker.New(tracker.Config{Source: s})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.Run(t.Context()) }()
	defer tr.Close()
	<-tr.Ready()
	e := <-s.feed
	ctx, cancel := context.WithCancel(t.Context())
	r := &replica{tracker: tr, source: new(replication.Ladder), take: func(context.Context) (link, error) {
		e.End()
		cancel()
		return &noLink{m: mark{readOnly: true}}, nil
	}}
	c, err := newCore(Options{}, nil, []*replica{r})
	if err != nil {
		t.Fatal(err)
	}
	called := false
	err = c.read(ctx, func(link) error { called = true; return nil })
	if called || !errors.Is(err, context.Canceled) {
		t.Errorf("called %v, %v", called, err)
	}
}

func TestWhatIsUnknownIsNotCoveredByAnEarlierToken(t *testing.T) {
	t.Parallel()
	var s Session
	s.RequirePrimary()
	before := s.unknown()
	s.RequirePrimary() // another goroutine's write, whose token could not be had
	if s.covered(tracker.Token{System: 7, Timeline: 1, LSN: 5}, before); !s.OnPrimary() {
		t.Error("a token that was captured before covers it")
	}
	if s.Wrote(tracker.Token{System: 7, Timeline: 1, LSN: 6}); s.OnPrimary() {
		t.Error("a token that was captured after does not cover it")
	}
}

// The word for an error is in the server's language.
func TestACommitThatTheServerRefusedIsNotUncertain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err       error
		uncertain bool
	}{
		{&pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: "ERROR", Code: "23505"}, false},
		{&pgconn.PgError{Severity: "SCHWERWIEGEND", SeverityUnlocalized: "FATAL", Code: "57P01"}, true},
		{errors.New("connection reset"), true},
	} {
		var s Session
		err := failed(NewContext(t.Context(), &s), tt.err, true)
		if errors.Is(err, ErrUncertain) != tt.uncertain || s.OnPrimary() != tt.uncertain || !errors.Is(err, tt.err) {
			t.Errorf("%v: got %v, on the primary: %v", tt.err, err, s.OnPrimary())
		}
	}
}

// database/sql may hand a connection that it opened for nobody to a session.
func TestAPrimarysConnectionForNobodyIsNotASessions(t *testing.T) {
	t.Parallel()
	s := new(Session)
	ctx := NewContext(t.Context(), s)
	if err := (&readConn{lease: lease{}}).shows(ctx); !errors.Is(err, driver.ErrBadConn) {
		t.Errorf("opened for nobody, and not shown to lead to the primary: %v", err)
	}
	if err := (&readConn{lease: lease{session: s}}).shows(ctx); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := (&readConn{lease: lease{session: new(Session)}}).shows(ctx); !errors.Is(err, driver.ErrBadConn) {
		t.Errorf("another's: %v", err)
	}
}
