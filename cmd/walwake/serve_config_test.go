package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func configured(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "walwake.yaml")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// None of these reaches a server, or listens.
func TestBadSettingsOfServeAreRefused(t *testing.T) {
	t.Parallel()
	nowhere := env{"WALWAKE_REPLICA": "host=127.0.0.1 port=1"}
	for _, c := range []struct{ args, says string }{
		{"now", "unexpected argument"},
		{"--listen nonsense", "want host:port"},
		{"--listen=", "name an address"},
		{"--listen 192.0.2.1:1", "--listen 192.0.2.1:1: bind: cannot assign requested address"},
		{"--listen unix:/nowhere/x", "no such file or directory"},
		{"--name db\xff", `--name "db\xff": it is not UTF-8`},
		{"--max-waiters 0", "want 1 or more"},
		{"--max-waiters x", "--max-waiters"},
		{"--timeout 2m", "want at most --max-timeout, 1m0s"},
		{"--max-timeout 0", "above 0 with its unit"},
		{"--interval never", "above 0 with its unit"},
		{"--source tea-leaves", "want auto, physical, logical, waitfor, poll"},
		{"--fleet", "name it in --primary"},
		{"--bearer-file /nowhere/x", "no such file or directory"},
		{"--tls-cert /nowhere/x", "name both, or neither"},
		{"--tls-cert /nowhere/x --tls-key /nowhere/y", "no such file or directory"},
		{"--config /nowhere/x", "no such file or directory"},
		{"--primary gibberish", "--primary"},
		{"--bearer secret", "unknown flag"},
	} {
		o := walwake(t, nowhere, append([]string{"serve"}, strings.Fields(c.args)...)...).says(c.says).alone()
		if o.code != exitUsage && !strings.HasPrefix(c.says, "--listen 192") && !strings.HasPrefix(c.args, "--listen unix") {
			t.Errorf("%s: got %s", c.args, o)
		}
	}
	walwake(t, nil, "serve").is(exitUsage).says("--replica", "WALWAKE_REPLICA").alone()
	walwake(t, env{"WALWAKE_REPLICA": "host=h", "WALWAKE_MAX_STREAMS": "many"}, "serve").is(exitUsage).says("WALWAKE_MAX_STREAMS", "want a whole number").alone()
	walwake(t, env{"WALWAKE_REPLICA": "host=h", "WALWAKE_FLEET": "perhaps"}, "serve").is(exitUsage).says("WALWAKE_FLEET", "want true or false").alone()
	walwake(t, env{"WALWAKE_REPLICA": "host=h", "WALWAKE_BEARER": "short"}, "serve").is(exitUsage).says("want at least 16").alone()
	walwake(t, env{"WALWAKE_REPLICA": "host=h", "WALWAKE_CONFIG": "/nowhere/x"}, "serve").is(exitUsage).says("/nowhere/x").alone()
}

func TestABadConfigFileIsRefusedWithItsLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ content, says string }{
		{"replica: host=h\nlitsen: x\n", `:2: there is no setting "litsen"`},
		{"# comment\n\nmax-waiters: 3\n", `:3: there is no "max-waiters": write max_waiters`},
		{"replica: host=h\nbearer: " + secret + "\n", ":2: bearer: put the token into a file"},
		{"replica: host=h\nmax_waiters: lots\n", `:2: max_waiters: "lots": want a whole number`},
		{"replica: host=h\nfleet: perhaps\n", ":2: fleet: \"perhaps\": want true or false"},
		{"replica: host=h\ntimeout: 3\n", ":2: timeout: \"3\": want a duration above 0"},
		{"replica: host=h password=" + secret + "\nname: x\nreplica: host=i password=" + secret + "\n", `:3: "replica" is given twice, in lines 1 and 3: keep one of them`},
		{"{name: x, name: y}\n", `:1: "name" is given twice`},
		{"replica: host=h\nhosts:\n  a: b\n", `:2: "hosts": want a single value, or a list`},
		{"replica: host=h\nhosts: [[a]]\n", `:2: "hosts": want a single value, or a list`},
		{"replica: host=h\n---\nname: x\n", ":3: a second document"},
		{"- replica\n", ":1: want settings"},
		{"replica: gibberish\n", ":1: replica: "},
		{"replica: 'host=h password=" + secret + "\n", "this is no YAML"},
		{"replica: [host=h password=" + secret + "\nfleet\n", "this is no YAML"},
		{"replica: host=h password=" + secret + " port=x\n", ":1: replica: "},
		{"name: x\n", "no replica given"},
		{"config: x\n", `there is no setting "config"`},
		{"help: true\n", `there is no setting "help"`},
		{"log_level: shout\nreplica: host=h\n", ":1: log_level: \"shout\": want debug"},
		{strings.Repeat("#", maxConfig+1), "want at most"},
		{"a: &x [*x]\n", ""},
	} {
		o := walwake(t, nil, "serve", "--config", configured(t, c.content)).is(exitUsage).says(c.says).alone()
		if c.says != "no replica given" && !strings.Contains(o.stderr, "walwake.yaml:") {
			t.Errorf("it does not say where: %s", o)
		}
		if strings.Contains(o.stderr, secret) {
			t.Errorf("it tells a secret: %s", o)
		}
	}
}

func TestAFlagCountsBeforeItsVariableAndThatBeforeTheFile(t *testing.T) {
	t.Parallel()
	file := configured(t, `
replica: "host=from.file user=app"
primary: host=from.file
listen:
  - 127.0.0.1:1
  - 127.0.0.1:2
name: from file
hosts: [a, b]
timeout: 1s
max_timeout: 10s
max_waiters: 1
max_streams: 1
fleet: true
source: poll
log_level: error
`)
	for _, c := range []struct {
		e    env
		args []string
		want serveCommand
		host string
	}{
		{nil, nil, serveCommand{name: "from file", waiters: 1, streams: 1, fleet: true, listen: []string{"127.0.0.1:1", "127.0.0.1:2"}}, "from.file"},
		{
			env{"WALWAKE_NAME": "from env", "WALWAKE_MAX_WAITERS": "2", "WALWAKE_FLEET": "false", "WALWAKE_LISTEN": "127.0.0.1:3", "WALWAKE_REPLICA": "host=from.env"},
			nil,
			serveCommand{name: "from env", waiters: 2, streams: 1, listen: []string{"127.0.0.1:3"}},
			"from.env",
		},
		{
			env{"WALWAKE_NAME": "from env", "WALWAKE_MAX_WAITERS": "2", "WALWAKE_REPLICA": "host=from.env"},
			[]string{"--name=from flag", "--max-waiters=3", "--replica=host=from.flag", "--listen=127.0.0.1:4"},
			serveCommand{name: "from flag", waiters: 3, streams: 1, fleet: true, listen: []string{"127.0.0.1:4"}},
			"from.flag",
		},
	} {
		a := newApp(nil, new(output), func(name string) string { return c.e[name] })
		s, cmd := a.newServe()
		a.rootCommand().AddCommand(cmd) // whose flags count too
		if err := cmd.ParseFlags(append(c.args, "--config", file)); err != nil {
			t.Fatal(err)
		}
		if err := s.settings(cmd); err != nil {
			t.Fatal(err)
		}
		r, err := s.named(s.replica)
		if err != nil || s.name != c.want.name || s.waiters != c.want.waiters || s.streams != c.want.streams || s.fleet != c.want.fleet ||
			strings.Join(s.listen, " ") != strings.Join(c.want.listen, " ") || strings.Join(s.hosts, " ") != "a b" ||
			s.timeout.String() != "1s" || s.longest.String() != "10s" || s.source.value != "poll" || r.config.Host != c.host {
			t.Errorf("%v %v: got %+v, %+v, %v", c.e, c.args, s, r, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		"replica: host=h\nlisten: [127.0.0.1:1, unix:/x]\n", "a: 1\nb: 2.5\nc: true\nd: null\ne: |\n  x\n  y\n", "a: &x b\nc: *x\n", "<<: {a: b}\n", "? a\n: b\n",
		"a: !!str b\n", "---\n...\n---\n", "\xff\xfe", "a: [b, {c: d}]", "{a: b", "\t", "a:\n - b\n -c", "'", "a: .inf\nb: .nan\nc: 0x1F\nd: 2001-01-01\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		values, err := parseConfig(content)
		if err != nil {
			line, is := errors.AsType[*lineError](err)
			if !is || line.line < 1 || line.line > strings.Count(strings.ReplaceAll(string(content), "\r", "\n"), "\n")+1 || strings.ContainsAny(oneLine(err.Error()), "\n") {
				t.Errorf("%q: %v", content, err)
			}
			return
		}
		for key, v := range values {
			if v.line < 1 {
				t.Errorf("%q: %s at line %d", content, key, v.line)
			}
		}
	})
}
