package ryw_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/walwake/walwake/tracker/ryw"
)

// fileConn counts the bytes that the kernel sends from a file by itself: net/http
// hands the file to the connection's ReadFrom, and that is sendfile for TCP.
type fileConn struct {
	*net.TCPConn
	sent *atomic.Int64
}

func (c fileConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.TCPConn.ReadFrom(r)
	if l, ok := r.(*io.LimitedReader); ok && is[*os.File](l.R) {
		c.sent.Add(n)
	}
	return n, err
}

type fileListener struct {
	net.Listener
	sent *atomic.Int64
}

func (l fileListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return fileConn{conn.(*net.TCPConn), l.sent}, nil
}

func TestFilesAreSentBySendfile(t *testing.T) {
	const size = 1 << 20
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	srv := httptest.NewUnstartedServer(wrap(t, ryw.HTTPConfig{Unsigned: true}, func(w http.ResponseWriter, r *http.Request) {
		session(r).Advance(token(5))
		http.ServeFile(w, r, name)
	}))
	srv.Listener = fileListener{srv.Listener, &sent}
	srv.Start()
	defer srv.Close()
	resp := get(t, srv.Client(), srv.URL)
	if len(resp.body) != size || resp.header.Get("Walwake-Token") != token(5).String() {
		t.Fatalf("%d bytes, headers %v", len(resp.body), resp.header)
	}
	srv.Close()                         // the handler has returned
	if n := sent.Load(); n < size-512 { // net/http reads the first 512 to see what they are
		t.Fatalf("%d of %d bytes by sendfile", n, size)
	}
}
