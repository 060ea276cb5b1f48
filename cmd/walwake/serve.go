package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/cmd/walwake/internal/page"
	"github.com/walwake/walwake/cmd/walwake/internal/sidecar"
	"github.com/walwake/walwake/tracker"
)

// defaultListen is where the sidecar answers: loopback, and PostgreSQL's port with the first digits swapped for none
// that is in common use.
const defaultListen = "127.0.0.1:7432"

type serveCommand struct {
	*app
	primary, replica serverFlag
	config           string
	source           choice
	listen           []string
	socketMode       fileMode
	name             string
	bearerFile       string
	tlsCert, tlsKey  string
	hosts            []string
	fleet            bool
	timeout, longest period
	waiters, streams int
	interval         period
	primaryEvery     period
	check            bool

	file *configFile // nil: none was named
}

func (a *app) serveCommand() *cobra.Command {
	_, c := a.newServe()
	return c
}

func (a *app) newServe() (*serveCommand, *cobra.Command) {
	s := &serveCommand{
		app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag(),
		timeout: period(tracker.DefaultTimeout), longest: period(sidecar.DefaultMaxTimeout),
		interval: period(sidecar.DefaultInterval), primaryEvery: period(time.Second), socketMode: defaultSocketMode,
	}
	c := &cobra.Command{
		Use:   "serve --replica DSN [--primary DSN]",
		Short: "Answer over HTTP beside a replica: the sidecar",
		Long: `Follows the replica and answers over HTTP, for programs that are not written in Go and for many processes
that share one connection to the replica:

  GET /v1/wait?token=TOKEN&timeout=3s   200 when the token, or a bare LSN, is replayed; 504 the time was up,
                                        409 a lost write or another cluster, 503 position unknown
  GET /v1/position                      position, timeline, lag, source and why not a better one
  GET /v1/stream                        the same as server-sent events, when something changes
  GET /v1/fleet                         all replicas that say where they are (--fleet)
  GET /healthz, /readyz?max_lag=16MB    for probes and load balancers; max_lag in bytes or time
  GET /metrics                          for Prometheus
  GET /v1/openapi.yaml                  what each takes and answers
  GET /                                 a page to look at, in a browser

With --primary it asks the primary once in --primary-interval how far it is: without, the lag is not known.

Every flag has an environment variable, WALWAKE_ and its name in capitals (--max-timeout: WALWAKE_MAX_TIMEOUT),
and a key in the file that --config names, in YAML (max_timeout: 10s). A flag counts before the variable, and
that before the file. The token that callers must show comes from --bearer-file or $WALWAKE_BEARER, never from
an argument.

The files of --bearer-file, --tls-cert and --tls-key may be replaced while it runs: they are looked at once a
second while requests come, and read again when they have changed. Where the new ones cannot be read, or do not
belong together, it goes on with the old ones and says so once in its log. A token that was replaced counts no
more; streams that are open go on.

Without such a token everybody who reaches the listener may ask, so it is loopback by default. A request whose
Host header is a name must name localhost or one of --hosts, or a web page could have a browser on this machine
ask. A Unix socket lets its user and group connect, or whom --socket-mode says, if its folder lets them through.

It runs until it is interrupted or terminated, and answers everybody who waits before it ends; a second signal
ends it at once. Its log is of level info, unless --log-level says otherwise.

With --check it starts nothing: it asks /healthz of the sidecar that has the same settings, at each of its
listeners, and exits 0, or 1 with what is wrong, within 3 s: for containers in which there is no curl. A
sidecar whose replica is down answers, and need not be restarted: ask /readyz whether to send it readers.

` + exitStatuses,
		Example: `  walwake serve --replica 'host=localhost user=app dbname=app' --primary 'host=db1 user=app dbname=app'
  walwake serve --config /etc/walwake.yaml --listen 127.0.0.1:7432 --listen unix:/run/walwake/http.sock
  WALWAKE_LISTEN=0.0.0.0:7432 walwake serve --bearer-file /run/secrets/walwake --tls-cert tls.crt --tls-key tls.key
  walwake serve --config /etc/walwake.yaml --check`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return s.run(c) },
	}
	s.replica.add(c, "the replica")
	s.primary.add(c, "the primary, to show the lag, and for --fleet")
	f := c.Flags()
	f.StringVar(&s.config, "config", "", "`file` with what no flag and no variable says, in YAML")
	f.Var(&s.source, "source", sourceUsage)
	complete(c, "source", s.source.of...)
	f.StringSliceVar(&s.listen, "listen", []string{defaultListen}, "`address` to listen on, host:port or unix:/path; may be given several times")
	f.Var(&s.socketMode, "socket-mode", "who may connect to the sockets of unix:/path: the `mode` of their files")
	f.StringVar(&s.name, "name", "", "what the replica is called in the log, the metrics and the fleet (default: its host and port)")
	f.StringVar(&s.bearerFile, "bearer-file", "", "`file` with the token that callers must show (default: $WALWAKE_BEARER, or none)")
	f.StringVar(&s.tlsCert, "tls-cert", "", "`file` with the certificate, and those above it")
	f.StringVar(&s.tlsKey, "tls-key", "", "`file` with its key")
	f.StringSliceVar(&s.hosts, "hosts", nil, "`names` under which the sidecar is called, beside addresses and localhost; *: any")
	f.BoolVar(&s.fleet, "fleet", false, "say on the primary where the replica is, and hear where the others are (NOTIFY)")
	f.Var(&s.timeout, "timeout", "how long a wait takes that names no timeout")
	f.Var(&s.longest, "max-timeout", "how long a wait may take")
	f.IntVar(&s.waiters, "max-waiters", sidecar.DefaultWaiters, "`number` of waits at once")
	f.IntVar(&s.streams, "max-streams", sidecar.DefaultStreams, "`number` of streams at once")
	f.Var(&s.interval, "interval", "least time between two positions in a stream that nobody waits for")
	f.Var(&s.primaryEvery, "primary-interval", "how often the primary is asked how far it is")
	f.BoolVar(&s.check, "check", false, "ask the sidecar with these settings whether it answers")
	for _, name := range []string{"listen", "socket-mode", "name", "hosts", "max-waiters", "max-streams"} {
		complete(c, name)
	}
	return s, c
}

func (s *serveCommand) run(c *cobra.Command) error {
	if s.check {
		return s.runCheck(c)
	}
	set, err := s.prepare(c)
	if err != nil {
		return err
	}
	return set.serve(c.Context())
}

// served is a sidecar whose settings are checked, and whose listeners are open.
type served struct {
	*serveCommand
	replica, primary *server       // primary: nil where none was named
	bearer           func() string // nil: none is wanted
	tls              *tls.Config
	listeners        []net.Listener
}

// prepare checks all that can be checked before anything runs.
func (s *serveCommand) prepare(c *cobra.Command) (*served, error) {
	if !c.Flag("log-level").Changed {
		s.logLevel.value = "info" // what an operator of a service wants to know
	}
	if err := s.settings(c); err != nil {
		return nil, err
	}
	s.log = newLogger(s.stderr, s.logLevel.value, s.getenv)
	v := &served{serveCommand: s}
	var err error
	if v.replica, err = s.named(s.replica); err != nil {
		return nil, err
	}
	if v.primary, err = s.named(s.primary); err != nil {
		return nil, err
	}
	switch {
	case v.replica == nil:
		return nil, usagef("no replica given: use --replica 'host=… user=… dbname=…', or set WALWAKE_REPLICA")
	case !utf8.ValidString(s.name):
		return nil, usagef("--name %q: it is not UTF-8", s.name)
	case s.fleet && v.primary == nil:
		return nil, usagef("--fleet: replicas tell of themselves on the primary: name it in --primary")
	case s.timeout > s.longest:
		return nil, usagef("--timeout %s: want at most --max-timeout, %s", &s.timeout, &s.longest)
	case s.waiters < 1 || s.streams < 1:
		return nil, usagef("--max-waiters and --max-streams: want 1 or more")
	}
	if v.bearer, err = s.bearerToken(); err != nil {
		return nil, err
	}
	if v.tls, err = s.readTLS(); err != nil {
		return nil, err
	}
	v.listeners, err = listenOn(c.Context(), s.listen, os.FileMode(s.socketMode))
	return v, err
}

// serve answers until ctx ends.
func (v *served) serve(ctx context.Context) error {
	if v.getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(sidecar.GCPercent))
	}
	hub, shown, failures := sidecar.NewHub(), newServeMetrics(), repeats{}
	r, err := v.follow(following{
		server: v.replica, primary: v.primary, name: v.name, source: v.source.value,
		timeout: time.Duration(v.timeout), maxWaiters: v.waiters + v.streams, observer: hub.Observer(), make: shown.trackers.NewTracker,
		logger:  slog.New(lowered{v.log.Handler(), slog.LevelWarn - slog.LevelDebug}), // what fails is told below
		changed: func(from, to string, st tracker.State) { v.log.Info("source changed", "from", from, "to", to) },
		failed: func(err error, _ bool) {
			why := oneLine(v.replica.advise(err))
			if times := failures.again(why, time.Now()); times > 0 {
				v.log.Warn("replica cannot be followed: trying again", "replica", v.replica.address, "err", why, "times", times)
			}
		},
	})
	if err != nil {
		closeAll(v.listeners)
		return err
	}
	defer r.stop()
	cfg := sidecar.Config{
		Tracker: r.Tracker, Hub: hub, Server: cmp.Or(v.name, v.replica.address),
		PrimaryNamed: v.primary != nil, PrimaryInterval: time.Duration(v.primaryEvery),
		NoFleet: "start the sidecar with --fleet and --primary",
		Failure: v.replica.failure, Text: func(s string) string { return oneLine(plain(s)) },
		Bearer: v.bearer, Hosts: lowerAll(v.hosts), Waiters: v.waiters, Streams: v.streams,
		Timeout: time.Duration(v.timeout), MaxTimeout: time.Duration(v.longest), Interval: time.Duration(v.interval),
		Logger: v.log, Metrics: shown.handler(v.log), Page: page.Handler(),
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	asking, stop := context.WithCancel(context.WithoutCancel(ctx)) // for as long as somebody may wait for the answer
	defer stop()
	cfg.RecordEnd = (&recordEnds{server: v.replica, ctx: asking, running: &beside}).of
	if v.primary != nil {
		tell := func(text string, _ bool) { hub.Tell("primary", text) }
		watch := &primaryWatch{app: v.app, server: v.primary, tracker: r.Tracker, tell: tell, every: time.Duration(v.primaryEvery)}
		beside.Go(func() { watch.run(ctx) })
	}
	if v.fleet {
		if cfg.Fleet, err = v.joinFleet(ctx, &beside, r.Tracker); err != nil {
			closeAll(v.listeners)
			return err
		}
	}
	server, err := sidecar.New(cfg)
	if err != nil {
		closeAll(v.listeners)
		return err
	}
	shown.show(server.Stats)
	for _, l := range v.listeners {
		v.log.Info("listening", "network", l.Addr().Network(), "address", l.Addr().String(), "tls", v.tls != nil && l.Addr().Network() != "unix", "bearer", v.bearer != nil)
	}
	if err := server.Serve(ctx, v.listeners, v.tls); err != nil {
		return err
	}
	v.log.Info("shut down: all that waited were answered")
	return context.Cause(ctx)
}

// readBearer returns the token that callers of a sidecar must show, from a file, or from the environment where none is
// named; empty: none.
func (a *app) readBearer(file string) (string, error) {
	bearer := strings.TrimSpace(a.getenv("WALWAKE_BEARER"))
	if file != "" {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", usagef("--bearer-file: %w", err)
		}
		if bearer = strings.TrimSpace(string(content)); bearer == "" {
			return "", usagef("--bearer-file %s is empty: want a token, such as that of openssl rand -hex 16", file)
		}
	}
	const shortest = 16
	if bearer != "" && len(bearer) < shortest {
		return "", usagef("the bearer token has %d bytes: want at least %d, such as those of openssl rand -hex 16", len(bearer), shortest)
	}
	return bearer, nil
}

func lowerAll(names []string) []string {
	lower := make([]string, len(names))
	for i, n := range names {
		lower[i] = strings.ToLower(strings.TrimSpace(n))
	}
	return lower
}
