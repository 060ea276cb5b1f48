//go:build linux

package deploy_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var listening = regexp.MustCompile(`"address":"(127\.0\.0\.1:\d+)"`)

// serves runs the command with the arguments and the environment of an example, on a free port and beside a server that
// does not answer, until it answers its health check. Its error is what the command printed.
func serves(t *testing.T, args []string, env ...string) error {
	t.Helper()
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "0.0.0.0:7432", "127.0.0.1:0")
	}
	program := binary(t) // which may have to be built
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out log
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, append([]string{"PATH=/nowhere"}, env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if m := listening.FindStringSubmatch(out.String()); m != nil {
			if answer, err := http.Get("http://" + m[1] + "/healthz"); err == nil { //nolint:noctx // the process ends in time
				must(t, answer.Body.Close())
				check, err := checked(ctx, program, args, m[1], cmd.Env)
				must(t, cmd.Process.Signal(syscall.SIGTERM))
				<-ended //nolint:errcheck // by the signal
				switch {
				case answer.StatusCode != http.StatusOK:
					return fmt.Errorf("/healthz: %s", answer.Status)
				case err != nil:
					return fmt.Errorf("--check: %w: %s", err, check)
				}
				return nil
			}
		}
		select {
		case <-ended: //nolint:errcheck // what it printed says why
			return fmt.Errorf("%q: %s", args, out.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// checked runs the health check by command for a sidecar with these arguments, which listens at an address.
func checked(ctx context.Context, program string, args []string, at string, env []string) (out []byte, err error) {
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "127.0.0.1:0", at)
	}
	if !slices.Contains(args, "--listen") { // it is in a file, without the port
		args = append(args, "--listen", at)
	}
	cmd := exec.CommandContext(ctx, program, append(args, "--check")...)
	cmd.Env = env
	return cmd.CombinedOutput()
}

// parses checks a command line's flags with the command itself.
func parses(t *testing.T, args []string) error {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary(t), append(slices.Clone(args), "--help")...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "Usage:\n  walwake "+args[0]) {
		return fmt.Errorf("walwake %q: %w: %s", args, err, out.String())
	}
	return nil
}

// commands are those that the comments of a file tell people to type.
var commands = regexp.MustCompile(`(?m)^#.*\s/walwake ((?:token|wait|status|doctor|serve|listen)\b.*)$`)

func TestEachCommandLineIsOneOfTheCommands(t *testing.T) {
	t.Parallel()
	p := compose(t)
	checked := 0
	check := func(where string, args []string) {
		t.Helper()
		checked++
		if err := parses(t, args); err != nil {
			t.Errorf("%s: %v", where, err)
		}
	}
	for name, s := range p.Services {
		if s.Build == nil {
			continue
		}
		check(name, s.Command)
		if s.HealthCheck.Test[1] != "/walwake" {
			t.Errorf("%s: there is no %s in the image", name, s.HealthCheck.Test[1])
		}
		check(name, s.HealthCheck.Test[2:])
		if health := readDockerfile(t).health; !slices.Equal(s.HealthCheck.Test[1:], health) {
			t.Errorf("%s is checked by %q, the image by %q", name, s.HealthCheck.Test[1:], health)
		}
	}
	text, err := os.ReadFile(filepath.Join(top, "docker-compose.yml"))
	must(t, err)
	for _, m := range commands.FindAllStringSubmatch(string(text), -1) {
		check("docker-compose.yml", strings.Fields(m[1]))
	}
	if checked < 6 {
		t.Errorf("only %d were found", checked)
	}
	for _, wrong := range [][]string{{"serve", "--listn", "x"}, {"status", "--timeout", "soon"}, {"sreve"}} {
		if parses(t, wrong) == nil {
			t.Errorf("%q will do", wrong)
		}
	}
}
