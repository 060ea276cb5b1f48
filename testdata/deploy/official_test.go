//go:build linux

package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// officialEntrypoint does what docker-entrypoint.sh of the image postgres does before it runs the server: with an empty
// PGDATA it makes the cluster, starts a server on the socket only, and runs what is in /docker-entrypoint-initdb.d in the
// order of names; otherwise nothing. server is the server's command line.
func (c *container) officialEntrypoint(server []string) {
	t := c.stack.t
	env := map[string]string{}
	for _, e := range c.environment() {
		key, value, _ := strings.Cut(e, "=")
		env[key] = value
	}
	data := env["PGDATA"]
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err == nil {
		return
	}
	run := func(words ...string) {
		t.Helper()
		cmd := c.process(t.Context(), words...)
		cmd.Stdout, cmd.Stderr = &c.out, &c.out
		cmd.Env = append(cmd.Env, "PGUSER=postgres")
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %q: %v\n%s", c.service.Name, words, err, c.out.String())
		}
	}
	run("mkdir", "-p", data)
	run("chmod", "0700", data)
	password, err := os.ReadFile(env["POSTGRES_PASSWORD_FILE"])
	must(t, err)
	passwords := filepath.Join(c.root, "pwfile") // the image has it in a pipe
	must(t, os.WriteFile(passwords, append(password, '\n'), 0o600))
	own := account(t, c.user())
	must(t, os.Chown(passwords, int(own.Uid), int(own.Gid)))
	run("initdb", "--username=postgres", "--pwfile="+passwords, "--no-sync")
	must(t, os.Remove(passwords))
	run(append([]string{"postgres", "-C", "password_encryption"}, server[1:]...)...)

	quoted := make([]string, 0, len(server))
	for _, word := range append(slices.Clone(server[1:]), "-c", "listen_addresses=", "-p", env["PGPORT"]) {
		quoted = append(quoted, "'"+word+"'")
	}
	run("pg_ctl", "-D", data, "-o", strings.Join(quoted, " "), "-l", filepath.Join(data, "init.log"), "-w", "start")
	psql := []string{"psql", "-v", "ON_ERROR_STOP=1", "--username", "postgres", "--no-password", "--no-psqlrc"}
	run(append(slices.Clone(psql), "--dbname", "postgres", "-c", `CREATE DATABASE "`+env["POSTGRES_DB"]+`"`)...)
	for _, file := range c.initFiles() {
		switch filepath.Ext(file) {
		case ".sql":
			run(append(slices.Clone(psql), "--dbname", env["POSTGRES_DB"], "-f", file)...)
		case ".sh":
			run(file)
		default:
			t.Errorf("the image ignores %s", file)
		}
	}
	run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
}

// initFiles are those of /docker-entrypoint-initdb.d, in the order of names.
func (c *container) initFiles() (files []string) {
	for _, m := range c.mounts {
		if filepath.Dir(m.path) == "/docker-entrypoint-initdb.d" {
			files = append(files, m.at)
		}
	}
	slices.Sort(files)
	return files
}
