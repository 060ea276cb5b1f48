//go:build linux

package deploy_test

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// installation is a folder with programs of PostgreSQL.
type installation struct {
	bin     string
	major   int
	pre     bool // not released yet
	clients bool // psql and pg_basebackup are there, which prebuilt servers come without
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) (\d+)(rc|beta|devel)?`)

// installations are those that packages and testdata/postgres/provide.sh make, and the folder that WALWAKE_PG may name,
// which is the first.
func installations() (all []installation) {
	globs := []string{filepath.Join(os.Getenv("WALWAKE_PG"), "bin"), "/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"}
	home, _ := os.UserHomeDir()
	for _, cache := range []string{"/var/cache/walwake/postgresql", filepath.Join(home, ".cache/walwake/postgresql"), os.Getenv("WALWAKE_PG_CACHE")} {
		markers, _ := filepath.Glob(filepath.Join(cache, "*/provided"))
		for _, marker := range markers {
			if prefix, err := os.ReadFile(marker); err == nil {
				globs = append(globs, filepath.Join(filepath.Dir(marker), strings.TrimSpace(string(prefix)), "bin"))
			}
		}
	}
	for _, glob := range globs {
		bins, _ := filepath.Glob(glob)
		for _, bin := range bins {
			out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
			if m := versionText.FindStringSubmatch(string(out)); err == nil && m != nil {
				major, _ := strconv.Atoi(m[1])
				all = append(all, installation{bin, major, m[2] != "", has(bin, "psql") && has(bin, "pg_basebackup")})
			}
		}
	}
	return all
}

func has(bin, program string) bool {
	_, err := os.Stat(filepath.Join(bin, program))
	return err == nil
}

// programs finds the server that WALWAKE_PG chooses, as for the other tests: a folder, a version, or the newest that is
// released. Its clients may be of a newer version. It returns the server's version and a PATH.
func programs(t *testing.T) (major int, path string) {
	t.Helper()
	all, asked := installations(), os.Getenv("WALWAKE_PG")
	newest := func(a, b installation) int { return cmp.Compare(b.major, a.major) }
	servers := slices.DeleteFunc(slices.Clone(all), func(i installation) bool {
		return asked == "" && i.pre || asked != "" && i.bin != filepath.Join(asked, "bin") && strconv.Itoa(i.major) != asked
	})
	slices.SortStableFunc(servers, newest)
	if len(servers) == 0 {
		missing(t, "there is no PostgreSQL %s: testdata/postgres/provide.sh %[1]s", cmp.Or(asked, "18"))
	}
	server := servers[0]
	clients := slices.DeleteFunc(slices.Clone(all), func(i installation) bool { return !i.clients || i.major < server.major })
	if len(clients) == 0 {
		missing(t, "there is no pg_basebackup of PostgreSQL %d or newer: testdata/postgres/provide.sh 19", server.major)
	}
	slices.SortStableFunc(clients, func(a, b installation) int { return newest(b, a) })
	return server.major, strings.Join([]string{server.bin, clients[0].bin, "/usr/bin", "/bin"}, ":")
}

// missing skips a test, where it is not that all have to be run.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
