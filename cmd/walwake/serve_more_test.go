package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	walwakesidecar "github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/sidecar"
)

// certificate writes one for 127.0.0.1 with its key, and returns their names.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestServeWithTLSAndABearerTokenAndASocket(t *testing.T) {
	t.Parallel()
	primary, standby := cluster(t)
	cert, key := certificate(t)
	const bearer = "0123456789abcdef0123"
	dir := t.TempDir()
	bearerFile, socket := filepath.Join(dir, "bearer"), filepath.Join(dir, "http.sock")
	if err := os.WriteFile(bearerFile, []byte(bearer+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, env{"WALWAKE_REPLICA": role(standby, streamRole)}, "--listen", "unix:"+socket,
		"--tls-cert", cert, "--tls-key", key, "--bearer-file", bearerFile, "--log-level", "debug")
	pool := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	tok, err := tracker.ParseToken(write(t, primary))
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []sidecar.Config{
		{URL: "https://" + strings.TrimPrefix(s.url, "http://"), Bearer: bearer, TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
		{URL: "unix:" + socket, Bearer: bearer},
	} {
		if err := through(t, cfg).Wait(t.Context(), tok); err != nil {
			t.Errorf("%s: %v", cfg.URL, err)
		}
		client, err := sidecar.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Wait(t.Context(), tok); err != nil {
			t.Errorf("%s: %v", cfg.URL, err)
		}
		cfg.Bearer = "wrong" + bearer
		if client, err = sidecar.New(cfg); err != nil {
			t.Fatal(err)
		}
		if err := client.Wait(t.Context(), tok); err == nil || !strings.Contains(err.Error(), "bearer token is missing or wrong") || strings.Contains(err.Error(), bearer) {
			t.Errorf("%s: %v", cfg.URL, err)
		}
	}
	if _, err := new(net.Dialer).DialContext(t.Context(), "unix", socket); err != nil {
		t.Error(err)
	}
	if status, _ := s.get("/healthz"); status != http.StatusBadRequest { // net/http's own: it wants TLS
		t.Errorf("plain HTTP gets %d", status)
	}
	o := s.end().is(143)
	if strings.Contains(o.stderr, bearer) || strings.Contains(o.stderr, secret) || strings.Contains(o.stderr, "tls.key") {
		t.Errorf("a secret is told: %s", o)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// The socket of one that was killed is no obstacle, and that of one that runs is.
func TestASocketThatIsThere(t *testing.T) {
	t.Parallel()
	_, standby := cluster(t)
	socket := filepath.Join(t.TempDir(), "http.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	e := on(nil, standby)
	walwake(t, e, "serve", "--listen", "unix:"+socket).is(exitFailure).says("another sidecar answers there").alone()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(time.Millisecond) { // a process that another test starts has it open until it executes
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
		if err != nil {
			break
		}
		_ = conn.Close()
		if time.Since(began) > 20*time.Second {
			t.Fatal("the socket still answers")
		}
	}
	s := serve(t, e, "--listen", "unix:"+socket)
	walwake(t, e, "serve", "--listen", strings.TrimPrefix(s.url, "http://")).is(exitFailure).says("address already in use", "is another sidecar running there?").alone()
	file := configured(t, "x")
	walwake(t, e, "serve", "--listen", "unix:"+file).is(exitFailure).says("address already in use").alone()
}

func TestServeShowsTheLag(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	standby := c.Standbys[0]
	s := serve(t, on(c.Primary, standby), "--primary-interval", "20ms")
	lagged := func(want string) walwakesidecar.Position {
		t.Helper()
		for began := time.Now(); ; time.Sleep(time.Millisecond) {
			status, _ := s.get("/readyz?max_lag=0")
			if is := map[int]string{http.StatusOK: "level", http.StatusServiceUnavailable: "behind"}[status]; is == want {
				if p := got[walwakesidecar.Position](s, "/v1/position", http.StatusOK); p.Lag.Known && (*p.Lag.Bytes > 0) == (want == "behind") {
					return p
				}
			}
			if time.Since(began) > 30*time.Second {
				_, body := s.get("/v1/position")
				t.Fatalf("it is not %s: %s", want, body)
			}
		}
	}
	lagged("level")
	if err := standby.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	tok, err := tracker.ParseToken(write(t, c.Primary))
	if err != nil {
		t.Fatal(err)
	}
	p := lagged("behind")
	if *p.Lag.US <= 0 || p.Lag.Primary.LSN < tok.LSN || *p.Lag.PrimaryAgeUS < 0 {
		t.Errorf("got %+v", p.Lag)
	}
	if p := got[walwakesidecar.Problem](s, "/readyz?max_lag=1us", http.StatusServiceUnavailable); p.Reason != "lagging" {
		t.Errorf("got %+v", p)
	}
	if err := standby.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	lagged("level")
	_, body := s.get("/metrics")
	for _, name := range []string{"walwake_replay_lag_bytes", "walwake_sidecar_streams 0", `walwake_sidecar_answers_total{code="200"}`, "go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(string(body), name) {
			t.Errorf("no %s in %s", name, body)
		}
	}
	// A primary of another cluster says nothing about this replica.
	other := replicationtest.Start(t, replicationtest.Options{Standbys: -1}).Primary
	s = serve(t, on(other, standby), "--primary-interval", "20ms")
	isReady(t, s)
	for !strings.Contains(s.stderr.String(), "it is of another cluster") {
		time.Sleep(time.Millisecond)
	}
	if p := got[walwakesidecar.Position](s, "/v1/position", http.StatusOK); p.Lag.Known || p.Lag.Reason == "" {
		t.Errorf("got %+v", p.Lag)
	}
}

func TestSidecarsKnowOfEachOther(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{Standbys: 2})
	one := serve(t, on(c.Primary, c.Standbys[0]), "--fleet", "--name", "db2")
	serve(t, on(c.Primary, c.Standbys[1]), "--fleet", "--name", "db3")
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		f := got[walwakesidecar.FleetAnswer](one, "/v1/fleet", http.StatusOK)
		if !f.Configured || f.Reason != "" {
			t.Fatalf("got %+v", f)
		}
		if len(f.Members) == 2 && f.Members[0].Position != nil && f.Members[1].Position != nil {
			if f.Members[0].Name != "db2" || f.Members[1].Name != "db3" || f.Members[0].Silent || f.Members[1].Position.Timeline != 1 {
				t.Errorf("got %+v", f)
			}
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("got %+v", f)
		}
	}
	alone := serve(t, on(c.Primary, c.Standbys[0]))
	if f := got[walwakesidecar.FleetAnswer](alone, "/v1/fleet", http.StatusOK); f.Configured || !strings.Contains(f.Reason, "--fleet") || len(f.Members) != 0 {
		t.Errorf("got %+v", f)
	}
}

func TestAReplicaThatCannotBeReachedIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := serve(t, env{"WALWAKE_REPLICA": "host=127.0.0.1 port=1 password=" + secret})
	for !strings.Contains(s.stderr.String(), "cannot be followed") {
		time.Sleep(time.Millisecond)
	}
	for _, path := range []string{"/readyz", "/v1/position", "/v1/wait?token=0/1&timeout=10ms"} {
		if status, body := s.get(path); status != http.StatusServiceUnavailable || !strings.Contains(string(body), "unknown_position") || !strings.Contains(string(body), "connection refused: is PostgreSQL running there? Check host and port in WALWAKE_REPLICA") ||
			strings.Contains(string(body), secret) || strings.Contains(string(body), "failed to connect") || strings.Contains(string(body), "dial") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _ := s.get("/healthz"); status != http.StatusOK {
		t.Errorf("got %d", status)
	}
	if o := s.end().is(143); strings.Contains(o.stderr, secret) {
		t.Errorf("a secret is told: %s", o)
	}
}

// A bare LSN behind a page's header is where replay does not come to while nobody writes.
func TestABareLSNBehindAPageHeader(t *testing.T) {
	t.Parallel()
	c := replicationtest.Start(t, replicationtest.Options{})
	s := serve(t, on(nil, c.Standbys[0]))
	conn, err := c.Primary.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var lsn string
	for range 100 { // the server may write by itself, seldom
		if err := conn.QueryRow(t.Context(), `select pg_switch_wal()::text`).Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), `select pg_current_wal_insert_lsn()::text`).Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(lsn, "28") {
			break
		}
		if _, err := conn.Exec(t.Context(), `select pg_logical_emit_message(false, 'test', 'x')`); err != nil { // there is nothing to switch from otherwise
			t.Fatal(err)
		}
	}
	if !strings.HasSuffix(lsn, "28") {
		t.Fatalf("%s is behind no header", lsn)
	}
	got[walwakesidecar.WaitAnswer](s, "/v1/wait?timeout=5s&token="+lsn, http.StatusOK)
}

func TestTheHelpOfServe(t *testing.T) {
	t.Parallel()
	help := walwake(t, nil, "serve", "--help").is(exitOK).stdout
	for _, text := range []string{"WALWAKE_MAX_TIMEOUT", "/v1/stream", "--check", "Exit status:"} {
		if !strings.Contains(help, text) {
			t.Errorf("no %s in the help", text)
		}
	}
	if again := walwake(t, nil, "help", "serve").is(exitOK); again.stdout != help {
		t.Error("walwake help serve is not walwake serve --help")
	}
}
