package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/tracker"
	client "github.com/walwake/walwake/tracker/sidecar"
)

const (
	sidecarVariable = "WALWAKE_SIDECAR"
	sidecarURLs     = "want http://127.0.0.1:7432, https://host:port or unix:/path"
	otherToken      = "it wants to see another bearer token"
	askWithin       = time.Second // is how long a sidecar is given to answer at each look
)

// watchedSidecar is the sidecar that a replica is watched through. Its stream brings positions, sources and notes; what
// else it knows, it is asked for at each look.
type watchedSidecar struct {
	*caller
	server *server // what it is called in errors

	// guarded by watched.mu
	name    string        // what it calls its replica; empty: not known yet
	heard   time.Time     // when the primary was where the sidecar last said
	known   time.Time     // when it said that the lag is known; zero: it said last that it is not
	primary bool          // whether it ever said where
	late    time.Duration // of the replica, as it last said
	source  string        // in use there; empty: not known yet
	changes uint64        // of source
}

// sidecarNamed returns the URL of the sidecar to watch, and what has named it; empty: none is.
func (w *watchCommand) sidecarNamed(c *cobra.Command) (at, from string, err error) {
	given, other := c.Flags().Changed("sidecar"), ""
	for _, name := range []string{"replica", "primary", "source", "stream"} {
		if c.Flags().Changed(name) {
			other = name
		}
	}
	at, from = strings.TrimSpace(w.sidecar), "--sidecar"
	if !given && other == "" { // a flag counts before the variable
		at, from = strings.TrimSpace(w.getenv(sidecarVariable)), sidecarVariable
	}
	switch {
	case at == "" && w.bearerFile != "":
		err = usagef("--bearer-file: what a sidecar wants to see: name one in --sidecar")
	case at != "" && other != "":
		err = usagef("--sidecar and --%s: a sidecar has a replica, a primary and sources of its own: leave one of the two out", other)
	case at != "" && !given && w.getenv(w.replica.env) != "":
		err = usagef("%s and %s are both set: say by --sidecar or --replica which is meant", from, w.replica.env)
	}
	return at, from, err
}

// through prepares seen for the replica of a sidecar, which has answered then.
func (w *watchCommand) through(ctx context.Context, seen *watched, at, from string) (following, error) {
	base, network, path := at, "", ""
	if p, is := strings.CutPrefix(at, "unix:"); is {
		base, network, path = "http://localhost", "unix", p
	} else if u, err := url.Parse(at); err == nil {
		base = u.Scheme + "://" + u.Host
	}
	bearer, err := w.readBearer(w.bearerFile)
	if err != nil {
		return following{}, err
	}
	source, err := client.New(client.Config{URL: at, Bearer: bearer})
	switch { // err names fields, and may show a password
	case err == nil:
	case strings.ContainsAny(bearer, "\r\n"):
		return following{}, usagef("the bearer token has several lines: want one, in --bearer-file or WALWAKE_BEARER")
	case strings.Contains(at, "@"):
		return following{}, usagef("%s: %s, without a user: the token that it wants to see goes into --bearer-file or WALWAKE_BEARER", from, sidecarURLs)
	default:
		return following{}, usagef("%s: %s", from, sidecarURLs)
	}
	s := &watchedSidecar{
		caller: newCaller(base, network, path, bearer, nil),
		server: &server{role: "sidecar", from: from, address: at},
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	p, err := s.position(ctx)
	if err != nil {
		s.close()
		return following{}, s.explain(err)
	}
	s.name = p.Server
	seen.side = s
	return following{server: s.server, from: source}, nil
}

// refusedError is an answer of a sidecar, or of what else is there, that has no position.
type refusedError struct {
	status int
	text   string
}

func (e *refusedError) Error() string { return e.text }

// position asks what the sidecar knows. It does not know the position where that is not Known.
func (s *watchedSidecar) position(ctx context.Context) (p sidecar.Position, err error) {
	status, body, err := s.get(ctx, "/v1/position")
	if err != nil {
		return p, err
	}
	var not sidecar.Problem
	switch {
	case status == http.StatusOK && json.Unmarshal(body, &p) == nil && (!p.Known || p.Position != nil):
		return p, nil
	case status == http.StatusOK, json.Unmarshal(body, &not) != nil, not.Title == "":
		return p, &refusedError{status, fmt.Sprintf("what answers there, with status %d, is no walwake serve", status)}
	case status == http.StatusServiceUnavailable:
		return p, nil // it says why in its stream
	}
	return p, &refusedError{status, not.Title + ": " + not.Detail}
}

// explain says in one line what went wrong with the sidecar, and what to do. It unwraps to err.
func (s *watchedSidecar) explain(err error) error {
	what, todo := diagnose(err)
	refused, is := errors.AsType[*refusedError](err)
	switch {
	case is && refused.status == http.StatusUnauthorized:
		what, todo = otherToken, "name the file that has it in --bearer-file, or set WALWAKE_BEARER"
	case is && strings.HasSuffix(what, "walwake serve"):
		todo = "check $FROM"
	case is:
		todo = ""
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		todo = "is walwake serve running there? Check $FROM"
	case todo == "":
		todo = "check $FROM"
	}
	if todo != "" {
		what += ": " + strings.ReplaceAll(todo, "$FROM", s.server.from)
	}
	return &serverError{s.server.String() + ": " + strings.TrimPrefix(what, "sidecar: "), err}
}

// end ends what follows the replica.
func (w *watched) end() {
	w.stop()
	if w.side != nil {
		w.side.close()
	}
}

// explain says what went wrong with the server, or with the sidecar, that is followed.
func (w *watched) explain(s *server, err error) error {
	if w.side != nil {
		return w.side.explain(err)
	}
	return explain(s, err)
}

// askSidecar asks the sidecar, and returns when the stream has brought what it answered, or some time has passed.
func (w *watched) askSidecar(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	p, err := w.side.position(ctx)
	if refused, is := errors.AsType[*refusedError](err); is && w.State().Known { // the stream goes on, as after another token was made
		text := refused.text
		if refused.status == http.StatusUnauthorized {
			text = otherToken + ": start again with that"
		}
		w.unheard(oneLine(text))
		return
	}
	if err != nil || !p.Known || !w.State().Known {
		return // the stream says why
	}
	// The primary is told of no sooner than the position: it would seem to be ahead.
	if w.Wait(ctx, tracker.Token{LSN: *p.Position}) != nil {
		return
	}
	w.heard(&p, time.Now()) // before there is a lag that this belongs to
	if p.Lag.Primary != nil {
		w.PrimaryAt(*p.Lag.Primary)
	}
}

// heard keeps what the sidecar has said.
func (w *watched) heard(p *sidecar.Position, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, lag := w.side, p.Lag
	s.name, s.late, s.known = p.Server, 0, time.Time{}
	if lag.Known {
		s.known = now
	}
	if lag.Primary != nil && lag.PrimaryAgeUS != nil {
		s.primary, s.heard = true, now.Add(-time.Duration(*lag.PrimaryAgeUS)*time.Microsecond)
	}
	if lag.US != nil {
		s.late = time.Duration(*lag.US) * time.Microsecond
	}
	said := oneLine(plain(lag.Reason))
	switch {
	case said == w.said:
	case said != "" && s.primary:
		w.tellLocked("primary", "sidecar: "+said)
	case said == "" && s.primary && w.said != "":
		w.tellLocked("primary", "the lag is known")
	}
	w.said = said
}

// unheard says why nothing is heard of the primary any more.
func (w *watched) unheard(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if why != w.said {
		w.said = why
		w.tellLocked("primary", "sidecar: "+why)
	}
}

// adaptLocked puts into a state what the sidecar knows better than who listens to it, and takes from its names that it
// is one.
func (w *watched) adaptLocked(st *tracker.State) {
	s := w.side
	if s == nil {
		return
	}
	st.Source = sourceThere(st.Source)
	ladder := make([]tracker.Rung, 0, len(st.Ladder))
	for _, r := range st.Ladder {
		r.Source = sourceThere(r.Source)
		ladder = append(ladder, r)
	}
	st.Ladder = ladder
	if !st.Primary.IsZero() {
		st.PrimaryHeard = s.heard
	}
	if st.Behind > 0 {
		st.BehindFor = max(st.BehindFor, s.late)
	}
}

// heardLocked is when the lag was last known by what the primary said. A sidecar knows how seldom it asks the primary, and
// so for how long that counts.
func (w *watched) heardLocked(st tracker.State) time.Time {
	if w.side != nil {
		return w.side.known
	}
	return st.PrimaryHeard
}

// sourceThere is what the sidecar calls a source; empty: it has said of none that it is in use.
func sourceThere(source string) string {
	_, name, _ := strings.Cut(source, "/")
	return name
}

// sourceThereChanged is called with the source that is in use, and the state then.
func (w *watched) sourceThereChanged(to string, state tracker.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.side.source
	if to = sourceThere(to); to == "" || to == was {
		return
	}
	w.side.source = to
	if was != "" {
		w.side.changes++
		w.adaptLocked(&state)
		w.tellLocked("source", sourceText(was, to, state))
	}
}

// failureText says what went wrong, for the screen and the lines.
func (w *watched) failureText(err error) string { return failureText(err, w.side != nil) }

func failureText(err error, ofSidecar bool) string {
	what, _ := diagnose(err)
	if ofSidecar {
		what = "sidecar: " + strings.TrimPrefix(what, "sidecar: ")
	}
	return oneLine(what)
}
