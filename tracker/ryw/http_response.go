package ryw

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/walwake/walwake/tracker"
)

// response is a ResponseWriter that puts the Session's token into the headers
// right before they are sent. Like any ResponseWriter it is for one goroutine at a
// time.
type response struct {
	http.ResponseWriter
	request *http.Request
	session *Session
	alone   bool // whether the Session had to read from the primary to begin with
	unknown int  // and what it did not know of: see Session.unknown
	m       *middleware
	sent    bool          // whether the headers are
	has     bool          // whether they have a token
	given   tracker.Token // which
	cookie  string        // the line that gives it
}

// due returns the token that the headers should have, and whether there is one that
// they do not have. The zero token is that the client must read from the primary: it
// comes before one that the Session has moved to, which may be of an earlier write.
func (w *response) due() (tracker.Token, bool) {
	alone := w.session.OnPrimary() // asked before the token: what a write covers meanwhile the token then has
	tok, moved := w.session.Moved()
	if alone && (!w.alone || moved || w.session.unknown() > w.unknown) {
		tok, moved = tracker.Token{}, true
	}
	return tok, moved && (!w.has || tok != w.given)
}

// give puts the token that is due into the headers.
func (w *response) give() {
	tok, due := w.due()
	if w.sent || !due {
		return
	}
	h, now := w.Header(), time.Now()
	if w.m.Cookie != "" {
		if w.cookie != "" { // what was given before, and not sent
			h["Set-Cookie"] = slices.DeleteFunc(h["Set-Cookie"], func(line string) bool { return line == w.cookie })
		}
		w.cookie = w.m.newCookie(encode(w.m.cookie, tok, now)).String()
		h.Add("Set-Cookie", w.cookie)
	}
	if w.m.Header != "" {
		h.Set(w.m.Header, encode(w.m.header, tok, now))
	}
	onlyForOne(h)
	w.has, w.given = true, tok
}

// send gives the token, for the headers are sent now.
func (w *response) send() {
	w.give()
	w.sent = true
}

// finish is called when the handler has returned, or panics.
func (w *response) finish() {
	w.give()
	tok, due := w.due()
	if !due {
		return
	}
	w.m.Logger.WarnContext(w.request.Context(), "walwake: the session moved after the response's headers were sent: its client does not get the token",
		"token", tok, "method", w.request.Method, "pattern", w.request.Pattern)
	if w.m.OnLate != nil {
		w.m.OnLate(w.request, tok)
	}
}

// WriteHeader implements [http.ResponseWriter].
func (w *response) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.send()
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *response) Write(b []byte) (int, error) {
	w.send()
	return w.ResponseWriter.Write(b)
}

// WriteString implements [io.StringWriter].
func (w *response) WriteString(s string) (int, error) {
	w.send()
	return io.WriteString(w.ResponseWriter, s)
}

// FlushError is what [http.ResponseController] calls. Without it a Flush deeper down, which
// it finds by Unwrap, would send the headers behind our back.
func (w *response) FlushError() error {
	w.give()
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.sent = w.sent || !errors.Is(err, http.ErrNotSupported)
	return err
}

// Unwrap is for [http.ResponseController].
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// The optional interfaces, each by a type of its own so that wrap can leave it out.
type (
	flusher    struct{ *response }
	hijacker   struct{ *response }
	readerFrom struct{ *response }
)

// Flush implements [http.Flusher].
func (w flusher) Flush() { _ = w.FlushError() }

// Hijack implements [http.Hijacker].
func (w hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := w.ResponseWriter.(http.Hijacker).Hijack() //nolint:forcetypeassert // wrap has looked
	if err == nil {
		w.send() // nobody sends them but who hijacked, if he wants to
	}
	return conn, rw, err
}

// ReadFrom implements [io.ReaderFrom].
func (w readerFrom) ReadFrom(r io.Reader) (int64, error) {
	w.send()
	return w.ResponseWriter.(io.ReaderFrom).ReadFrom(r) //nolint:forcetypeassert // wrap has looked
}

// wrap returns w with those optional interfaces that its ResponseWriter has, and
// without the others: handlers ask for them, and choose.
func (w *response) wrap() http.ResponseWriter {
	_, canFlush := w.ResponseWriter.(http.Flusher)
	_, canHijack := w.ResponseWriter.(http.Hijacker)
	_, canRead := w.ResponseWriter.(io.ReaderFrom)
	p, canPush := w.ResponseWriter.(http.Pusher)
	f, h, r := flusher{w}, hijacker{w}, readerFrom{w}

	type (
		F = http.Flusher
		H = http.Hijacker
		R = io.ReaderFrom
		P = http.Pusher
	)
	const yes, no = true, false
	switch [4]bool{canFlush, canHijack, canRead, canPush} {
	case [4]bool{yes, yes, yes, yes}:
		return struct {
			*response
			F
			H
			R
			P
		}{w, f, h, r, p}
	case [4]bool{yes, yes, yes, no}:
		return struct {
			*response
			F
			H
			R
		}{w, f, h, r}
	case [4]bool{yes, yes, no, yes}:
		return struct {
			*response
			F
			H
			P
		}{w, f, h, p}
	case [4]bool{yes, yes, no, no}:
		return struct {
			*response
			F
			H
		}{w, f, h}
	case [4]bool{yes, no, yes, yes}:
		return struct {
			*response
			F
			R
			P
		}{w, f, r, p}
	case [4]bool{yes, no, yes, no}:
		return struct {
			*response
			F
			R
		}{w, f, r}
	case [4]bool{yes, no, no, yes}:
		return struct {
			*response
			F
			P
		}{w, f, p}
	case [4]bool{yes, no, no, no}:
		return struct {
			*response
			F
		}{w, f}
	case [4]bool{no, yes, yes, yes}:
		return struct {
			*response
			H
			R
			P
		}{w, h, r, p}
	case [4]bool{no, yes, yes, no}:
		return struct {
			*response
			H
			R
		}{w, h, r}
	case [4]bool{no, yes, no, yes}:
		return struct {
			*response
			H
			P
		}{w, h, p}
	case [4]bool{no, yes, no, no}:
		return struct {
			*response
			H
		}{w, h}
	case [4]bool{no, no, yes, yes}:
		return struct {
			*response
			R
			P
		}{w, r, p}
	case [4]bool{no, no, yes, no}:
		return struct {
			*response
			R
		}{w, r}
	case [4]bool{no, no, no, yes}:
		return struct {
			*response
			P
		}{w, p}
	}
	return w
}
