package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/walwake/walwake/replication"
)

// choice is a flag that takes one of a few words.
type choice struct {
	value string
	of    []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return "word" }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("want %s", strings.Join(c.of, ", "))
	}
	c.value = s
	return nil
}

// period is a flag that takes a duration above 0.
type period time.Duration

func (p *period) String() string { return time.Duration(*p).String() }
func (p *period) Type() string   { return "duration" }

func (p *period) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return errors.New("want a duration above 0 with its unit, such as 500ms, 3s or 1m")
	}
	*p = period(d)
	return nil
}

// serverFlag is a flag that takes the connection string of a server, and the environment variable that stands in for it.
type serverFlag struct {
	role string // "primary" or "replica": the flag's name without dashes
	env  string
	dsn  string

	given func() bool // whether the flag was; set by add
}

func primaryFlag() serverFlag { return serverFlag{role: "primary", env: "WALWAKE_PRIMARY"} }
func replicaFlag() serverFlag { return serverFlag{role: "replica", env: "WALWAKE_REPLICA"} }

// add gives c the flag. The variable is no default of it, or the help would print a password.
func (f *serverFlag) add(c *cobra.Command, what string) {
	c.Flags().StringVar(&f.dsn, f.role, "", fmt.Sprintf("%s: a libpq `connection string` (default: $%s)", what, f.env))
	f.given = func() bool { return c.Flags().Changed(f.role) }
	complete(c, f.role)
}

// complete offers words for a flag, and no file names.
func complete(c *cobra.Command, flag string, words ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag, or it has completions
	}
}

// required returns the server that the flag or its variable names.
func (a *app) required(f serverFlag) (*server, error) {
	s, err := a.optional(f)
	if err == nil && s == nil {
		err = usagef("no %s given: use --%[1]s 'host=… user=… dbname=…', or set %s", f.role, f.env)
	}
	return s, err
}

// optional is required, and returns nil when no server is named. An empty flag names none, whatever its variable says.
func (a *app) optional(f serverFlag) (*server, error) {
	dsn, from := f.dsn, "--"+f.role
	if !f.given() {
		dsn, from = a.getenv(f.env), f.env
	}
	if strings.TrimSpace(dsn) == "" {
		return nil, nil
	}
	config, err := replication.ParseDSN(dsn)
	if err != nil {
		return nil, usagef("%s: %w", from, err)
	}
	return &server{role: f.role, from: from, config: config, address: address(config)}, nil
}

// pgFlag adds --pg, the PostgreSQL for servers of the command's own.
func pgFlag(c *cobra.Command, pg *string) {
	c.Flags().StringVar(pg, "pg", "", "PostgreSQL `version` to run, such as 18, or the folder of one (default: $WALWAKE_PG, or the newest found)")
	err := c.RegisterFlagCompletionFunc("pg", cobra.FixedCompletions(
		[]string{"14", "15", "16", "17", "18", "19"}, cobra.ShellCompDirectiveDefault))
	if err != nil {
		panic(err) // there is no such flag
	}
}

// checkPG looks at --pg before anything is started.
func checkPG(pg string) error {
	if pg == "" {
		return nil
	}
	if n, err := strconv.Atoi(pg); err == nil {
		if n < 14 {
			return usagef("--pg %d: want 14 or newer", n)
		}
		return nil
	}
	if info, err := os.Stat(pg); err != nil || !info.IsDir() {
		return usagef("--pg %q: want a version such as 18, or a folder that holds bin/postgres", pg)
	}
	return nil
}
