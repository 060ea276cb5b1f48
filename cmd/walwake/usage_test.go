package main

import (
	"errors"
	"strings"
	"testing"
)

// None of these reaches a server: there is none.
func TestBadUsageIsOneLineAndStatus2(t *testing.T) {
	t.Parallel()
	nowhere := env{"WALWAKE_PRIMARY": "host=127.0.0.1 port=1", "WALWAKE_REPLICA": "host=127.0.0.1 port=1"}
	for _, c := range []struct {
		args string
		says string
	}{
		{"wait", "want one TOKEN or LSN"},
		{"wait 0/1 0/2", "want one TOKEN or LSN"},
		{"wait ''", "the token is empty"},
		{"wait garbage", "or an LSN such as 0/174FFB0"},
		{"wait 0/174FFB0garbage", "parse LSN"},
		{"wait 0/1FFFFFFFF", "parse LSN"},
		{"wait 0/", "parse LSN"},
		{"wait 0/0", "names no position"},
		{"wait v1.0.0.0-0", "names no position"},
		{"wait v1.1kkqojsdcyw9u.1.0-174ffb0", "parse token"},
		{"wait v1.1kkqojsdcyw9u.1", "parse token"},
		{"wait v2.1kkqojsdcyw9u.1.0-174FFB0", "version v2"},
		{"wait " + strings.Repeat("x", 1000), "parse token"},
		{"wait 0/1 --timeout 0", "above 0 with its unit"},
		{"wait 0/1 --timeout 0s", "above 0 with its unit"},
		{"wait 0/1 --timeout -1s", "above 0 with its unit"},
		{"wait 0/1 --timeout 3", "above 0 with its unit"},
		{"wait 0/1 --timeout soon", "above 0 with its unit"},
		{"wait 0/1 --source tea-leaves", "want auto, physical, logical, waitfor, poll"},
		{"wait 0/1 --frobnicate", "unknown flag"},
		{"wait 0/1 --replica host=h\xa0port", "--replica"},
		{"wait 0/1 --replica gibberish", "--replica"},
		{"wait 0/1 --primary gibberish", "--primary"},
		{"token now", "unexpected argument"},
		{"token --timeout 0", "above 0 with its unit"},
		{"status now", "unexpected argument"},
		{"status --timeout -5s", "above 0 with its unit"},
		{"demo now", "unexpected argument"},
		{"demo --pg 13", "want 14 or newer"},
		{"demo --pg latest", "want a version such as 18"},
		{"listen", "no CHANNEL given"},
		{"listen a b a", "given twice"},
		{"listen a --count -1", "want 0 or more"},
		{"listen a --count x", "--count"},
		{"listen a --at-once --messages", "a message comes with its replay"},
		{"listen a --source tea-leaves", "want auto, physical, logical, waitfor, poll"},
		{"bench now", "unexpected argument"},
		{"bench --pg 13", "want 14 or newer"},
		{"bench --pg latest", "want a version such as 18"},
		{"bench --rates -1", "--rates: want one or more, none below 0"},
		{"bench --rates x", "--rates"},
		{"bench --rates 1.5", "--rates"},
		{"bench --rates=", "--rates"},
		{"bench --waiters -1", "--waiters: want one or more, each from 0 to 100000"},
		{"bench --waiters 1,1000000", "--waiters: want one or more, each from 0 to 100000"},
		{"bench --waiters many", "--waiters"},
		{"bench --rounds 0", "--rounds: want 1 or more"},
		{"bench --rounds x", "--rounds"},
		{"bench --sessions 0", "--sessions: want 1 or more"},
		{"bench --slice 0", "above 0 with its unit"},
		{"bench --slice -1s", "above 0 with its unit"},
		{"bench --slice 200", "above 0 with its unit"},
		{"bench --ways nonsense", `--ways: there is no "nonsense", want one of poll-100ms, `},
		{"bench --ways walwake,", `--ways: there is no ""`},
		{"bench --primary gibberish", "--primary"},
		{"bench --replica gibberish", "--replica"},
		{"bench --replica=", "name both --primary and --replica, or neither"},
		{"bench --primary=", "name both --primary and --replica, or neither"},
		{"bench --pg 18", "--pg is for servers of its own"},
		{"bench --svg /nowhere/x.svg", "--svg: open /nowhere/x.svg: no such file or directory"},
		{"bench --svg /tmp/x.svg --waiters 0", "--svg is of waits"},
		{"bench --waiters 0 --ways tight-loop", "nothing to measure of these ways"},
		{"bench --svg /", "--svg: open /: is a directory"},
		{"bench-load", "--rate 0: want 1 or more"},
		{"bench-load --rate -5", "--rate -5: want 1 or more"},
		{"wiat 0/1", "did you mean wait?"},
		{"frobnicate", "see walwake --help"},
		{"help frobnicate", "no command"},
		{"frobnicate --help", `unknown command "frobnicate": see walwake --help`},
		{"--log-level info frobnicate -h", `unknown command "frobnicate"`},
		{"--help wiat", "did you mean wait?"},
		{"--log-level shout status", "want debug, info, warn, error"},
	} {
		t.Run(c.args[:min(40, len(c.args))], func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(c.args)
			for i := range args {
				args[i] = strings.ReplaceAll(strings.Trim(args[i], "'"), "\xa0", " ")
			}
			walwake(t, nowhere, args...).is(exitUsage).says(c.says).alone()
		})
	}
}

func TestAServerMustBeNamed(t *testing.T) {
	t.Parallel()
	walwake(t, nil, "token").is(exitUsage).says("--primary", "WALWAKE_PRIMARY").alone()
	walwake(t, nil, "status").is(exitUsage).says("--replica", "WALWAKE_REPLICA").alone()
	walwake(t, nil, "wait", "0/1").is(exitUsage).says("--replica", "WALWAKE_REPLICA").alone()
	walwake(t, env{"WALWAKE_REPLICA": "host=h"}, "wait", "--replica=", "0/1").is(exitUsage).says("no replica given").alone()
	walwake(t, env{"WALWAKE_REPLICA": " "}, "wait", "0/1").is(exitUsage).says("WALWAKE_REPLICA").alone()
}

func TestBadUsageIsAJSONObjectToo(t *testing.T) {
	t.Parallel()
	o := walwake(t, nil, "wait", "--json", "garbage").is(exitUsage).says("parse token")
	if a := decode[waitAnswer](o); a.Result != "error" || !strings.Contains(a.Error, "parse token") || a.Target != nil {
		t.Errorf("got %+v", a)
	}
	for _, args := range [][]string{{"wait", "--json"}, {"token", "--json"}, {"status", "--json"}, {"doctor", "--json"}, {"doctor", "--json", "--replica=host=h", "--role="}, {"demo", "--json", "--pg=1"}, {"bench", "--json", "--rounds=0"}} {
		o := walwake(t, nil, args...).is(exitUsage)
		if a := decode[struct{ Result, Error string }](o); a.Result != "error" || a.Error == "" {
			t.Errorf("%q: got %s", args, o)
		}
	}
}

func TestHelpOfEachCommandHasExamples(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"demo", "token", "wait", "status", "doctor", "verify", "bench", "listen"} {
		help := walwake(t, nil, name, "--help").is(exitOK)
		for _, text := range []string{"Examples:", "  walwake ", "--json", "Usage:"} {
			if !strings.Contains(help.stdout, text) {
				t.Errorf("%s: no %q in %s", name, text, help)
			}
		}
		if again := walwake(t, nil, "help", name).is(exitOK); again.stdout != help.stdout {
			t.Errorf("walwake help %s is not walwake %[1]s --help", name)
		}
	}
	// A variable's value is no default of a flag: it may hold a password.
	e := env{"WALWAKE_REPLICA": "host=h password=" + secret}
	if o := walwake(t, e, "wait", "--help"); strings.Contains(o.stdout, secret) {
		t.Error("the help shows a password")
	}
}

func TestWithoutACommandItShowsWhatThereIs(t *testing.T) {
	t.Parallel()
	o := walwake(t, nil).is(exitUsage).says("no command given")
	if o.stdout != "" || !strings.Contains(o.stderr, "Available Commands:") {
		t.Errorf("got %s", o)
	}
	if o := walwake(t, nil, "--version").is(exitOK); !strings.HasPrefix(o.stdout, "walwake ") || !strings.Contains(o.stdout, "go1.") {
		t.Errorf("got %s", o)
	}
}

func TestCompletionKnowsTheWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ args, want string }{
		{"wait --source", "auto\nphysical\nlogical\nwaitfor\npoll\n"},
		{"status --source", "auto\nphysical\nlogical\nwaitfor\npoll\n"},
		{"demo --pg", "14\n15\n16\n17\n18\n19\n"},
		{"bench --pg", "14\n15\n16\n17\n18\n19\n"},
		{"bench --ways", "poll-100ms\n"},
		{"bench --rates", ":4"},
		{"--log-level", "debug\ninfo\nwarn\nerror\n"},
		{"wait --replica", ":4"},
	} {
		args := append([]string{"__complete"}, strings.Fields(c.args)...)
		if o := walwake(t, nil, append(args, "")...).is(exitOK); !strings.HasPrefix(o.stdout, c.want) {
			t.Errorf("%s: want %q, got %s", c.args, c.want, o)
		}
	}
	if o := walwake(t, nil, "completion", "bash").is(exitOK); !strings.Contains(o.stdout, "walwake") {
		t.Error("no completion for bash")
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAResultThatCannotBeWrittenIsAnError(t *testing.T) {
	t.Parallel()
	primary, _ := cluster(t)
	var stderr output
	code := run(t.Context(), []string{"token"}, brokenPipe{}, &stderr, func(string) string { return primary.DSN() })
	(&outcome{t: t, code: code, stderr: stderr.String()}).is(exitFailure).says("write the result: no space left on device")
}
