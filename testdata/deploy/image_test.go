package deploy_test

import (
	"debug/elf"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mattn/go-shellwords"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// dockerfile is what the tests need of testdata/docker/Dockerfile.
type dockerfile struct {
	build  []string // the arguments of go in its last RUN
	user   string
	env    []string // KEY=value
	health []string // the health check's command
	lines  []string // of the last stage
}

func readDockerfile(t *testing.T) (d dockerfile) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, "testdata/docker/Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	joined := strings.ReplaceAll(string(text), "\\\n", " ")
	m := regexp.MustCompile(`CGO_ENABLED=0 GOOS=\S+ GOARCH=\S+ go (build .*) -o /walwake (\S+)\n`).FindStringSubmatch(joined)
	if m == nil {
		t.Fatal("the Dockerfile does not build a static binary")
	}
	if d.build, err = shellwords.Parse(m[1] + " " + m[2]); err != nil {
		t.Fatal(err)
	}
	_, last, _ := strings.Cut(joined, "\nFROM scratch\n")
	d.lines = strings.Split(strings.TrimSpace(last), "\n")
	for _, line := range d.lines {
		if user, ok := strings.CutPrefix(line, "USER "); ok {
			d.user = user
		}
		if variable, ok := strings.CutPrefix(line, "ENV "); ok {
			d.env = append(d.env, variable)
		}
		if _, words, ok := strings.Cut(line, " CMD "); ok && strings.HasPrefix(line, "HEALTHCHECK ") {
			if err := json.Unmarshal([]byte(words), &d.health); err != nil {
				t.Fatalf("%s: %v: without a shell it has to be a list", line, err)
			}
		}
	}
	return d
}

// buildContext copies what .dockerignore lets into the build.
func buildContext(t *testing.T) string {
	t.Helper()
	f, err := os.Open(filepath.Join(top, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	into := t.TempDir()
	err = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == top {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if rel == ".git" {
				return fs.SkipDir
			}
			return nil // something below may be wanted
		}
		if out, err := ignored.MatchesOrParentMatches(rel); err != nil || out {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(into, filepath.Dir(rel)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(into, rel), text, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return into
}

var (
	building sync.Mutex
	built    string // the binary; guarded by building
)

// binary is the command as the Dockerfile builds it, from what .dockerignore leaves. It is built once.
func binary(t *testing.T) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	if built != "" {
		return built
	}
	dir, err := os.MkdirTemp("", "walwake-image") //nolint:usetesting // the tests that follow use it too
	if err != nil {
		t.Fatal(err)
	}
	cleanup = append(cleanup, func() error { return os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // another user runs it
		t.Fatal(err)
	}
	path := filepath.Join(dir, "walwake")
	args := slices.Clone(readDockerfile(t).build)
	args = slices.Insert(args, len(args)-1, "-o", path, "-buildvcs=false")
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = buildContext(t), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %q: %v\n%s", args, err, out)
	}
	built = path
	return path
}

// cleanup is run when all tests have been.
var cleanup []func() error

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range cleanup {
		if err := f(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

func TestTheImageHoldsAStaticBinaryAndRunsAsNobody(t *testing.T) {
	t.Parallel()
	f, err := elf.Open(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it wants a loader: %v", p.Type)
		}
	}
	d := readDockerfile(t)
	if !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(d.user) {
		t.Errorf("USER %s: want numbers, which Kubernetes can tell from root", d.user)
	}
	for _, line := range d.lines {
		word, _, _ := strings.Cut(line, " ")
		if !slices.Contains([]string{"COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}, word) {
			t.Errorf("the image has no shell: %s", line)
		}
	}
}

func TestTheBuildSeesNoTestsAndNoHistory(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"docker-compose.yml", "README.md", ".git", "testdata", "cmd/walwake/main_test.go"} {
		if _, err := os.Stat(filepath.Join(buildContext(t), path)); err == nil {
			t.Errorf("%s is sent to the build", path)
		}
	}
}
