//go:build linux

package deploy_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// stack is docker-compose.yml without its profiles, run as processes of this machine, by PostgreSQL as WALWAKE_PG says.
type stack struct {
	t          *testing.T
	version    int
	dir        string // for volumes and mounted files, within the reach of every user
	path       string // of programs
	containers map[string]*container
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newStack(t *testing.T) *stack {
	t.Helper()
	dir, err := os.MkdirTemp("", "stack") //nolint:usetesting // other users have to get there, and socket paths are short
	must(t, err)
	s := &stack{t: t, dir: dir, containers: map[string]*container{}}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755)) //nolint:gosec // see above
	s.version, s.path = programs(t)
	p := compose(t)
	for name, service := range p.Services {
		if len(service.Profiles) == 0 {
			s.containers[name] = s.create(service)
		}
	}
	t.Cleanup(func() {
		if err := s.down(); err != nil {
			t.Error(err)
		}
		for name, c := range s.containers {
			if t.Failed() {
				t.Logf("%s:\n%s", name, c.out.String())
			}
		}
	})
	return s
}

// folder makes one that all users can read, whatever the umask.
func (s *stack) folder(path string, mode os.FileMode) {
	if _, err := os.Stat(path); err == nil {
		return
	}
	s.folder(filepath.Dir(path), mode)
	must(s.t, os.Mkdir(path, mode))
	must(s.t, os.Chmod(path, mode))
}

func (s *stack) ownFolder(path, user string) {
	s.folder(path, 0o755)
	own := account(s.t, user)
	must(s.t, os.Chown(path, int(own.Uid), int(own.Gid)))
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// up starts what does not run, each service when those that it depends on are as it says.
func (s *stack) up() {
	ready := map[string]bool{}
	for len(ready) < len(s.containers) {
		progress := false
		for name, c := range s.containers {
			waits := slices.ContainsFunc(c.service.GetDependencies(), func(on string) bool { return !ready[on] })
			if ready[name] || waits {
				continue
			}
			s.run(c)
			ready[name], progress = true, true
		}
		if !progress {
			s.t.Fatal("services wait for each other")
		}
	}
}

func (s *stack) run(c *container) {
	if c.cmd != nil {
		return
	}
	c.launch()
	if c.service.HealthCheck != nil {
		c.healthy()
		return
	}
	if err := <-c.exited; err != nil {
		s.t.Fatalf("%s: %v\n%s", c.service.Name, err, c.out.String())
	}
	c.cmd = nil
}

// down stops all, those first on which nobody depends.
func (s *stack) down() error {
	for {
		name := ""
		for n, c := range s.containers {
			used := func(other *container) bool {
				return other.cmd != nil && slices.Contains(other.service.GetDependencies(), n)
			}
			if c.cmd != nil && !slices.ContainsFunc(values(s.containers), used) {
				name = n
			}
		}
		if name == "" {
			return nil
		}
		if err := s.containers[name].stop(); err != nil {
			return err
		}
	}
}

func values(m map[string]*container) (all []*container) {
	for _, c := range m {
		all = append(all, c)
	}
	return all
}

// sql asks a server as its superuser, from within the container.
func (s *stack) sql(name, query string) string {
	s.t.Helper()
	out, err := s.containers[name].exec(s.t.Context(), "psql", "-X", "-At", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "app", "-c", query)
	must(s.t, err)
	return strings.TrimSpace(out)
}

// secret is a password that secrets.sh made.
func (s *stack) secret(name string) string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "volumes/secrets", name))
	must(s.t, err)
	return string(text)
}

// as tries a statement on a server by TCP, as some role; replication is "", "true" or "database".
func (s *stack) as(ctx context.Context, name, role, database, replication, query string) (string, error) {
	c := s.containers[name]
	dsn := fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=%s password=%s connect_timeout=10", c.port, role, database, s.secret(role))
	if replication != "" {
		dsn += " replication=" + replication
	}
	return s.containers["primary"].exec(ctx, "psql", "-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-c", query)
}

// inside is the path within the container of what is at a path here.
func (s *stack) inside(name, at string) string {
	for _, m := range s.containers[name].mounts {
		if m.at == at {
			return m.path
		}
	}
	return at
}
