package replicationtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// superuser is the name of the role that owns everything in a cluster.
const superuser = "postgres"

// makeFolder makes the folder of a cluster, within the one of the options, or within one for temporary files
// that the servers' account can reach, and starts the watchdog that removes it.
func (c *Cluster) makeFolder(ctx context.Context) error {
	parents := []string{c.options.Dir}
	if c.options.Dir == "" {
		parents = []string{os.TempDir(), "/tmp", "/var/tmp"}
	}
	var failed error
	for _, parent := range parents {
		parent, err := filepath.Abs(parent)
		if err == nil {
			err = reachable(ctx, parent, c.account)
		}
		if err == nil {
			err = c.makeFolderIn(parent)
		}
		if err == nil {
			return c.account.own(c.Dir)
		}
		failed = errors.Join(failed, err)
	}
	return fmt.Errorf("make the cluster's folder: %w", failed)
}

// makeFolderIn starts the watchdog first: there is no moment in which the folder is there and nobody
// would remove it.
func (c *Cluster) makeFolderIn(parent string) error {
	var random [16]byte
	rand.Read(random[:]) // never fails
	dir := filepath.Join(parent, "walwake-"+hex.EncodeToString(random[:]))
	w, err := startWatchdog(dir)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return errors.Join(err, w.finish(true))
	}
	c.Dir, c.watchdog = dir, w
	return nil
}

// reachable tells whether the account can enter a folder.
func reachable(ctx context.Context, dir string, as *account) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `test -x "$1"`, "sh", dir)
	cmd.Dir = "/"
	as.apply(cmd)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s cannot enter %s (%w): name another folder in Options.Dir or TMPDIR", as, dir, err)
	}
	return nil
}

// initialise makes the primary's data with initdb, with a random password for all ways in: other users of
// this machine could reach the port too.
func (c *Cluster) initialise(ctx context.Context, found installation) error {
	pwfile := filepath.Join(c.Dir, "password")
	if err := c.write(pwfile, c.password+"\n"); err != nil {
		return err
	}
	defer os.Remove(pwfile)
	if err := c.write(c.passfile(), "*:*:*:"+superuser+":"+c.password+"\n"); err != nil {
		return err
	}
	err := c.run(ctx, found.initdb(), "--pgdata", c.Primary.data, "--username", superuser, "--pwfile", pwfile,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	if err != nil {
		return err
	}
	if err := c.Primary.include(); err != nil {
		return err
	}
	if !c.options.touchesRequired() {
		return nil
	}
	// The control file has initdb's max_connections and the like, and a standby with lower ones would not
	// start. Starting once and stopping writes the configured ones into it.
	if err := c.Primary.configure(); err != nil {
		return err
	}
	return c.run(ctx, found.postgres(), "--single", "-D", c.Primary.data, "template1")
}

// passfile is the file from which the standbys take the password, so that it stands in no configuration
// and no log.
func (c *Cluster) passfile() string { return filepath.Join(c.Dir, "pgpass") }

// write makes a file that only the servers' account can read.
func (c *Cluster) write(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := c.account.own(path); err != nil {
		return fmt.Errorf("give %s to %s: %w", filepath.Base(path), c.account, err)
	}
	return nil
}

// run runs one of PostgreSQL's programs to its end. Its error holds the end of what the program printed.
func (c *Cluster) run(ctx context.Context, program string, args ...string) error {
	var out bytes.Buffer
	cmd, err := c.watchdog.start(c.account, c.Dir, func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = &out, &out }, program, args...)
	if err != nil {
		return err
	}
	// The whole group: initdb runs postgres. An error means that all have ended.
	stop := context.AfterFunc(ctx, func() { _ = signal(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop()
	err = cmd.Wait()
	c.watchdog.forget(cmd.Process.Pid)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		said := strings.ReplaceAll(lastLines(out.String(), 15), c.password, "********")
		return fmt.Errorf("run %s: %w. It printed:\n%s", filepath.Base(program), err, said)
	}
	return nil
}
