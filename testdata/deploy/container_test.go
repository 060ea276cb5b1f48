//go:build linux

package deploy_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

// container stands for one of a service: a process with the service's command line, environment, files and user. A path
// within it is another one on this machine, and so is the address of a service; nothing else is changed.
type container struct {
	stack   *stack
	service types.ServiceConfig
	root    string     // for what is mounted
	mounts  []mount    // longest path first
	port    int        // that it listens at, on 127.0.0.1
	cmd     *exec.Cmd  // nil while it does not run
	exited  chan error // gets how it ended
	out     log
}

// mount is a path within the container, and what is there.
type mount struct{ path, at string }

// log collects what a process prints.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// create makes what docker compose create does: the files, and empty volumes.
func (s *stack) create(service types.ServiceConfig) *container {
	t := s.t
	c := &container{stack: s, service: service, root: filepath.Join(s.dir, service.Name), port: freePort(t)}
	s.folder(c.root, 0o755)
	for _, v := range service.Volumes {
		at := filepath.Join(s.dir, "volumes", v.Source)
		if v.Type == types.VolumeTypeBind { // copied, since the user of the container may not get at the working tree
			at = filepath.Join(c.root, v.Target)
			text, err := os.ReadFile(v.Source)
			must(t, err)
			info, err := os.Stat(v.Source)
			must(t, err)
			s.folder(filepath.Dir(at), 0o755)
			must(t, os.WriteFile(at, text, info.Mode()))
			must(t, os.Chmod(at, info.Mode()))
		} else if _, err := os.Stat(at); err != nil {
			s.folder(at, 0o755)
			if v.Target == "/var/lib/postgresql" { // a new volume belongs to whom the image's folder of that path does
				own := account(t, service.User)
				must(t, os.Chown(at, int(own.Uid), int(own.Gid)))
			}
		}
		c.mounts = append(c.mounts, mount{v.Target, at})
	}
	if service.Build != nil {
		c.mounts = append(c.mounts, mount{"/walwake", binary(t)})
	}
	slices.SortFunc(c.mounts, func(a, b mount) int { return len(b.path) - len(a.path) })
	return c
}

// account is the user that a container runs as: the name of one, or numbers. Only root may choose it.
func account(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	me := &syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid()), NoSetGroups: true} //nolint:gosec // are not negative
	if os.Geteuid() != 0 || name == "root" {
		return me
	}
	uid, gid, numbers := strings.Cut(name, ":")
	if !numbers {
		u, err := user.Lookup(name)
		must(t, err)
		uid, gid = u.Uid, u.Gid
	}
	u, err := strconv.ParseUint(uid, 10, 32)
	must(t, err)
	g, err := strconv.ParseUint(gid, 10, 32)
	must(t, err)
	return &syscall.Credential{Uid: uint32(u), Gid: uint32(g)}
}

var (
	absolute = regexp.MustCompile(`(^|[= ])(/[^ =]*)`)
	hosts    = regexp.MustCompile(`\bhost=([a-z][a-z0-9]*)`)
	ports    = regexp.MustCompile(`\b(?:0\.0\.0\.0|127\.0\.0\.1):7432\b`)
)

// translate puts paths and addresses of this machine in the place of those of the container.
func (c *container) translate(text string) string {
	text = absolute.ReplaceAllStringFunc(text, func(found string) string {
		m := absolute.FindStringSubmatch(found)
		for _, mount := range c.mounts {
			if m[2] == mount.path || strings.HasPrefix(m[2], mount.path+"/") {
				return m[1] + mount.at + strings.TrimPrefix(m[2], mount.path)
			}
		}
		c.stack.t.Errorf("%s: there is no %s", c.service.Name, m[2])
		return found
	})
	text = hosts.ReplaceAllStringFunc(text, func(found string) string {
		name := hosts.FindStringSubmatch(found)[1]
		to, ok := c.stack.containers[name]
		if !ok {
			c.stack.t.Errorf("%s: there is no service %s", c.service.Name, name)
			return found
		}
		return fmt.Sprintf("host=127.0.0.1 port=%d", to.port)
	})
	return ports.ReplaceAllString(text, fmt.Sprintf("127.0.0.1:%d", c.port))
}

func (c *container) translateAll(words []string) []string {
	all := make([]string, 0, len(words))
	for _, w := range words {
		all = append(all, c.translate(w))
	}
	return all
}

// environment is that of the container, and of its image; of PostgreSQL's image what stands for it: PATH, and where it
// listens.
func (c *container) environment() []string {
	env := []string{"PATH=" + c.stack.path, "LANG=C.UTF-8"}
	if c.isPostgres() {
		env = append(env, "PGPORT="+strconv.Itoa(c.port), "PGHOST="+c.socket())
	}
	if c.service.Build != nil {
		env = append(env, c.translateAll(readDockerfile(c.stack.t).env)...)
	}
	for key, value := range c.service.Environment {
		env = append(env, key+"="+c.translate(*value))
	}
	return env
}

func (c *container) isPostgres() bool { return strings.HasPrefix(c.service.Image, "postgres:") }

// socket is the folder of the server's socket, which the image has at a path that is compiled in.
func (c *container) socket() string { return filepath.Join(c.stack.dir, "run", c.service.Name) }

// user is that of the service, or of its image.
func (c *container) user() string {
	if c.service.Build != nil {
		return readDockerfile(c.stack.t).user
	}
	return c.service.User
}

// process is a command in the container, not started yet.
func (c *container) process(ctx context.Context, words ...string) *exec.Cmd {
	if !strings.Contains(words[0], "/") {
		words[0] = c.lookPath(words[0])
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = c.root, c.environment(), 10*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: account(c.stack.t, c.user()), Setpgid: true}
	if c.service.Build != nil && os.Geteuid() == 0 { // an image from scratch: there is nothing else
		c.imprison(cmd)
	}
	return cmd
}

func (c *container) lookPath(name string) string {
	for _, dir := range filepath.SplitList(c.stack.path) {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 {
			return filepath.Join(dir, name)
		}
	}
	c.stack.t.Fatalf("%s: there is no program %s", c.service.Name, name)
	return ""
}

// imprison lets a command see nothing but the image and its volumes, whose files are linked to where they are mounted.
func (c *container) imprison(cmd *exec.Cmd) {
	t := c.stack.t
	for _, m := range c.mounts {
		info, err := os.Stat(m.at)
		must(t, err)
		files := []string{""}
		if info.IsDir() {
			entries, err := os.ReadDir(m.at)
			must(t, err)
			files = nil
			for _, e := range entries {
				files = append(files, e.Name())
			}
		}
		for _, name := range files {
			to := filepath.Join(c.root, m.path, name)
			c.stack.folder(filepath.Dir(to), 0o755)
			if _, err := os.Stat(to); err != nil {
				must(t, os.Link(filepath.Join(m.at, name), to))
			}
		}
		restore := func(text string) string { return strings.ReplaceAll(text, m.at, m.path) }
		for i := range cmd.Args {
			cmd.Args[i] = restore(cmd.Args[i])
		}
		for i := range cmd.Env {
			cmd.Env[i] = restore(cmd.Env[i])
		}
		cmd.Path = restore(cmd.Path)
	}
	cmd.SysProcAttr.Chroot, cmd.Dir = c.root, "/"
}

// exec runs a command in the container to its end.
func (c *container) exec(ctx context.Context, words ...string) (stdout string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := c.process(ctx, c.translateAll(words)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %q: %w\n%s%s", c.service.Name, words, err, out.String(), errs.String())
	}
	return out.String(), nil
}

// launch starts the container's own process.
func (c *container) launch() {
	t := c.stack.t
	words := slices.Concat(c.service.Entrypoint, c.service.Command)
	switch {
	case c.service.Build != nil:
		words = slices.Concat(types.ShellCommand{"/walwake"}, words)
	case c.isPostgres() && len(c.service.Command) > 0: // what the image has at other places
		c.stack.ownFolder(c.socket(), c.user())
		words = append(words, "-c", "unix_socket_directories="+path.Base(c.socket()), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")
	}
	words = c.translateAll(words)
	for i, word := range words { // after the paths of the container are
		if word == "unix_socket_directories="+path.Base(c.socket()) {
			words[i] = "unix_socket_directories=" + c.socket()
		}
	}
	if c.isPostgres() && len(c.service.Entrypoint) == 0 {
		c.officialEntrypoint(words)
	}
	cmd := c.process(context.Background(), words...)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT // the tests leave nothing behind, however they end
	cmd.Stdout, cmd.Stderr = &c.out, &c.out
	must(t, cmd.Start())
	c.cmd, c.exited = cmd, make(chan error, 1)
	go func() { c.exited <- cmd.Wait() }()
}

// healthy waits until the health check says so.
func (c *container) healthy() {
	t := c.stack.t
	var last error
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(50 * time.Millisecond) { // as docker does
		if _, last = c.exec(t.Context(), c.service.HealthCheck.Test[1:]...); last == nil {
			return
		}
		select {
		case err := <-c.exited:
			t.Fatalf("%s ended: %v\n%s", c.service.Name, err, c.out.String())
		default:
		}
	}
	t.Fatalf("%s is not healthy: %v\n%s", c.service.Name, last, c.out.String())
}

// stop ends the container as docker compose stop does.
func (c *container) stop() error {
	if c.cmd == nil {
		return nil
	}
	how := syscall.SIGTERM
	if c.service.StopSignal == "SIGINT" {
		how = syscall.SIGINT
	}
	if err := c.cmd.Process.Signal(how); err != nil {
		return fmt.Errorf("%s: %w", c.service.Name, err)
	}
	select {
	case err := <-c.exited:
		orderly := c.cmd.ProcessState.ExitCode() == 128+int(syscall.SIGTERM) // of walwake
		c.cmd = nil
		if err != nil && !orderly {
			return fmt.Errorf("%s: %w", c.service.Name, err)
		}
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%s does not stop", c.service.Name)
	}
}
