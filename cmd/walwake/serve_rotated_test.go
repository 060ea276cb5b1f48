package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// put has a file with a content, from one moment to the next.
func put(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// pair is a certificate with its key.
type pair struct {
	cert, key []byte // as they stand in their files
	der       []byte // of the certificate
}

func newPair(t *testing.T) (p pair) {
	t.Helper()
	cert, key := certificate(t)
	var err error
	if p.cert, err = os.ReadFile(cert); err != nil {
		t.Fatal(err)
	}
	if p.key, err = os.ReadFile(key); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(p.cert)
	p.der = block.Bytes
	return p
}

// mounted is a folder of files as Kubernetes mounts a secret: each is a link into ..data, which is a link that another one
// replaces.
type mounted struct {
	t   *testing.T
	dir string
	n   byte
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mounted) replace(files map[string][]byte) {
	m.t.Helper()
	m.n++
	data := "..data_" + string('a'+m.n)
	err := os.Mkdir(m.path(data), 0o700)
	for name, content := range files {
		if err == nil {
			err = os.WriteFile(filepath.Join(m.dir, data, name), content, 0o600)
		}
		if _, missing := os.Lstat(m.path(name)); err == nil && missing != nil {
			err = os.Symlink(filepath.Join("..data", name), m.path(name))
		}
	}
	if err == nil {
		err = os.Symlink(data, m.path("..data_tmp"))
	}
	if err == nil {
		err = os.Rename(m.path("..data_tmp"), m.path("..data"))
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// until calls until it is so, which takes a second and more: files are looked at once a second.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for began := time.Now(); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("not so after 30 s: %s", what)
		}
	}
}

// presented is the certificate that a sidecar shows to who trusts it alone.
func presented(t *testing.T, address string, trusted ...pair) []byte {
	t.Helper()
	pool := x509.NewCertPool()
	for _, p := range trusted {
		pool.AppendCertsFromPEM(p.cert)
	}
	d := &tls.Dialer{Config: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, NetDialer: &net.Dialer{Timeout: 10 * time.Second}}
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw
}

func TestServeTakesACertificateThatIsRenewed(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	one, two, three := newPair(t), newPair(t), newPair(t)
	m := &mounted{t: t, dir: t.TempDir()}
	m.replace(map[string][]byte{"tls.crt": one.cert, "tls.key": one.key})
	s := serve(t, on(nil, standby), "--tls-cert", m.path("tls.crt"), "--tls-key", m.path("tls.key"))
	address := strings.TrimPrefix(s.url, "http://")
	shows := func(p pair) bool { return bytes.Equal(presented(t, address, one, two, three), p.der) }
	if !shows(one) {
		t.Fatal("it shows another certificate")
	}

	m.replace(map[string][]byte{"tls.crt": two.cert, "tls.key": two.key}) // as Kubernetes does
	until(t, "it shows the second", func() bool { return shows(two) })

	// One file after the other, as most others do; and one that is written while it is read.
	const refused = `"what":"certificate","err":"--tls-cert and --tls-key: tls: `
	for n, half := range [][2][]byte{{two.cert, three.key}, {three.cert[:len(three.cert)/2], three.key}, {three.cert, nil}} {
		put(t, m.path("tls.crt"), half[0])
		put(t, m.path("tls.key"), half[1])
		until(t, "the log says that it cannot be read", func() bool {
			if !shows(two) {
				t.Fatal("it does not go on with the one that it has")
			}
			return strings.Count(s.stderr.String(), refused) > n
		})
	}
	put(t, m.path("tls.crt"), three.cert)
	put(t, m.path("tls.key"), three.key)
	until(t, "it shows the third", func() bool { return shows(three) })
	o := s.end().is(143)
	if n := strings.Count(o.stderr, `"what":"certificate","time"`); n != 2 || strings.Contains(o.stderr, "PRIVATE") {
		t.Errorf("read again %d times: %s", n, o)
	}
}

func TestServeTakesABearerTokenThatIsReplaced(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	const one, two = "0123456789abcdef-1", "0123456789abcdef-2"
	m := &mounted{t: t, dir: t.TempDir()}
	m.replace(map[string][]byte{"bearer": []byte(one)})
	s := serve(t, on(nil, standby), "--bearer-file", m.path("bearer"))
	status := func(bearer string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/openapi.yaml", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if got, other := status(one), status(two); got != http.StatusOK || other != http.StatusUnauthorized {
		t.Fatalf("got %d and %d", got, other)
	}
	m.replace(map[string][]byte{"bearer": []byte(two + "\n")})
	until(t, "the new token counts", func() bool { return status(two) == http.StatusOK })
	if got := status(one); got != http.StatusUnauthorized {
		t.Errorf("the old one gets %d", got)
	}
	for n, bad := range []string{"", "short"} { // nobody is let in without one
		m.replace(map[string][]byte{"bearer": []byte(bad)})
		until(t, "the log says that it cannot be used", func() bool {
			if got, none := status(two), status(bad); got != http.StatusOK || none != http.StatusUnauthorized {
				t.Fatalf("%q: got %d and %d", bad, got, none)
			}
			return strings.Count(s.stderr.String(), `"what":"bearer token","err":`) > n
		})
	}
	if o := s.end().is(143); strings.Contains(o.stderr, one) || strings.Contains(o.stderr, two) {
		t.Errorf("a secret is told: %s", o)
	}
}

// counted counts what is logged.
type counted struct {
	slog.Handler

	mu  sync.Mutex
	all []string // guarded by mu
}

func (c *counted) Enabled(context.Context, slog.Level) bool { return true }

func (c *counted) Handle(_ context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, r.Level.String()+" "+r.Message)
	return nil
}

func TestFilesAreReadAgainWhenTheyHaveChangedAndFailuresAreToldOfOnce(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	put(t, name, []byte("one"))
	synctest.Test(t, func(t *testing.T) {
		log, reads := new(counted), 0
		r, err := newRotated("file", slog.New(log), func() (string, error) {
			reads++
			b, err := os.ReadFile(name)
			return string(b), err
		}, name)
		if err != nil || r.now() != "one" {
			t.Fatal(err)
		}
		hour := func(want string, told ...string) {
			t.Helper()
			for range 7200 {
				time.Sleep(rotatedEvery / 2)
				r.now()
			}
			if got := r.now(); got != want || strings.Join(log.all, "|") != strings.Join(told, "|") {
				t.Errorf("want %q, got %q; the log: %q", want, got, log.all)
			}
			log.all = nil
		}
		hour("one")
		if reads != 1 {
			t.Errorf("it was read %d times", reads)
		}
		put(t, name, []byte("two")) // as long as the one before
		hour("two", "INFO read again")
		if reads != 2 {
			t.Errorf("it was read %d times", reads)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		hour("two", "WARN cannot be read again: the one before stays in use")
		put(t, name, []byte("two"))
		hour("two", "INFO read again")

		// Who comes while another one looks does not wait for the disk.
		r.mu.Lock()
		if got := r.now(); got != "two" {
			t.Errorf("got %q", got)
		}
		r.mu.Unlock()
		if _, err := newRotated("file", slog.New(log), func() (string, error) { return "", os.ErrNotExist }, name); err == nil {
			t.Error("at the start a file that cannot be read is no error")
		}
	})
}
