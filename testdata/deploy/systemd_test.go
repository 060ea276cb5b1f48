//go:build linux

package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// unit is walwake.service with the paths of a machine on which it is installed at dir.
func unit(t *testing.T, dir string) (file, start string) {
	t.Helper()
	text, err := os.ReadFile("systemd/walwake.service")
	must(t, err)
	there := strings.NewReplacer("/usr/local/bin/walwake", binary(t), "/etc/walwake", dir).Replace(string(text))
	for line := range strings.Lines(there) {
		if command, ok := strings.CutPrefix(line, "ExecStart="); ok {
			start = strings.TrimSpace(command)
		}
	}
	file = filepath.Join(dir, "walwake.service")
	must(t, os.WriteFile(file, []byte(there), 0o600))
	return file, start
}

func TestTheUnitRunsTheSidecar(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config, err := os.ReadFile("systemd/walwake.yaml")
	must(t, err)
	there := strings.NewReplacer("127.0.0.1:7432", "127.0.0.1:0", "/run/walwake", dir, "host=localhost", "host=127.0.0.1 port=1").Replace(string(config))
	must(t, os.WriteFile(filepath.Join(dir, "walwake.yaml"), []byte(there), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "bearer"), []byte(strings.Repeat("0", 64)), 0o600))
	_, start := unit(t, dir)
	words := strings.Fields(strings.ReplaceAll(start, "${CREDENTIALS_DIRECTORY}", dir))
	if err := serves(t, words[1:]); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile("systemd/walwake.service")
	must(t, err)
	m := regexp.MustCompile(`(?m)^# +walwake (serve .*--check)\b`).FindStringSubmatch(string(text))
	if m == nil || !strings.Contains(string(text), "\nExecStart=/usr/local/bin/walwake "+strings.TrimSuffix(m[1], " --check")) {
		t.Errorf("the check in the unit's head is not of what is started: %q", m)
	} else if err := parses(t, strings.Fields(m[1])); err != nil {
		t.Error(err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "walwake.yaml"), []byte(there+"\nlisten_on: x\n"), 0o600))
	if err := serves(t, words[1:]); err == nil || !strings.Contains(err.Error(), "listen_on") {
		t.Errorf("a setting that is none: %v", err)
	}
}

func TestSystemdFindsNothingWrongWithTheUnit(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		missing(t, "there is no systemd-analyze: install systemd")
	}
	file, _ := unit(t, t.TempDir())
	for _, args := range [][]string{
		{"verify", "--man=no", "--recursive-errors=no", file},
		{"security", "--offline=yes", "--no-pager", "--threshold=15", file}, // 1.5 of 10, where 10 is most exposed
	} {
		out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %q: %v\n%s", args, err, out)
		}
	}
}

// Workers are in the group that the service runs as: the folder, the socket and the bearer token let it in, and nobody else.
func TestTheUnitLetsItsWorkersIn(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("systemd/walwake.service")
	must(t, err)
	config, err := os.ReadFile("systemd/walwake.yaml")
	must(t, err)
	m := regexp.MustCompile(`(?m)^Group=(\S+)$`).FindSubmatch(text)
	if m == nil {
		t.Fatal("it runs as a group that nobody else can be in")
	}
	group := string(m[1])
	for _, want := range []string{"\nRuntimeDirectoryMode=0750\n", "\n#   groupadd --system " + group + " ", "\n#   install -m 640 -g " + group + " -D bearer "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q", want)
		}
	}
	if !regexp.MustCompile(`(?m)^socket_mode: 0660\b`).Match(config) {
		t.Error("the socket does not let the group in")
	}
}
