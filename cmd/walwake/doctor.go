package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/walwake/walwake/replication"
)

type doctorCommand struct {
	*app
	primary, replica serverFlag
	timeout          period
	source           choice
	role             string
}

// doctorAnswer is what --json prints.
type doctorAnswer struct {
	Server   string        `json:"server"`
	Postgres string        `json:"postgres"`
	Role     string        `json:"role"`
	Database string        `json:"database"`
	Standby  bool          `json:"standby"`
	Platform string        `json:"platform,omitempty"` // a service that runs PostgreSQL for others
	Pooler   string        `json:"pooler,omitempty"`   // that stands before the replica
	Notes    []string      `json:"notes,omitempty"`    // what to know of both
	OK       bool          `json:"ok"`                 // whether polling works with the timeline visible
	Works    []doctorWorks `json:"works"`
	Needs    []doctorNeeds `json:"needs"`
	NewRole  []doctorFix   `json:"new_role"`

	admin string // who may run the SQL
}

// doctorWorks says whether a source, the timeline or its history has all that it cannot do without.
type doctorWorks struct {
	Of string `json:"of"`
	OK bool   `json:"ok"`
}

type doctorNeeds struct {
	Of       string      `json:"of"`
	Needs    string      `json:"needs"`
	Has      string      `json:"has"`
	OK       bool        `json:"ok"`
	Optional bool        `json:"optional"`
	Mend     []doctorFix `json:"mend"`
}

// doctorFix is a statement, or what has to be done where none will do.
type doctorFix struct {
	On       string `json:"on"` // primary or replica
	Database string `json:"database,omitempty"`
	SQL      string `json:"sql,omitempty"`
	Do       string `json:"do,omitempty"`
	Then     string `json:"then,omitempty"`
}

var errUnfit = errors.New("polling does not work, or the timeline is not visible, without which no token is satisfied")

func (a *app) doctorCommand() *cobra.Command {
	d := &doctorCommand{app: a, primary: primaryFlag(), replica: replicaFlag(), source: sourceFlag(), timeout: period(connectTimeout)}
	c := &cobra.Command{
		Use:   "doctor --replica DSN",
		Short: "Show what each source needs, what is there, and the SQL that mends it",
		Long: `Shows for each source (physical, logical, waitfor, poll), for the timeline and for its history what it
needs, what the replica has of that, and the SQL or setting that mends it, with where to run it. At the
end stands the SQL of a role that may do no more than is needed.

It asks with plain queries and with a replication connection, and changes nothing. With --primary it
also looks at what source logical needs there. Any one source will do, and poll is always the last
resort; a token needs the timeline too, and after a failover, one of before needs the history.

The SQL is for a superuser. What is run on the primary counts on the replica when it is replayed there.

Amazon RDS and Aurora, Google Cloud SQL, Azure, Neon and Supabase are recognised by the names of their
roles and settings: who may run the SQL, how a role may replicate and where settings are changed is
then said as it is there. A pooler between, such as PgBouncer or Pgpool-II, is told of.

With --json: server, postgres, role, database, standby, platform, pooler, notes, ok, works (of, ok),
needs (of, needs, has, ok, optional, mend) and new_role; mend and new_role list on, database, sql or do,
then.

Exit status: 0 polling works and the timeline is visible, 2 usage, 3 no answer in time, 130 interrupted,
143 terminated, 1 anything else.`,
		Example: `  walwake doctor --replica 'host=db2 user=app dbname=app'
  walwake doctor --primary 'host=db1 user=app dbname=app' --replica 'host=db2 user=app dbname=app' --json
  walwake doctor --replica 'host=db2 user=app dbname=app' --source logical --role reader`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			answer, err := d.run(c.Context())
			if err == nil {
				err = d.answer(answer, answer.text(d.role))
			}
			if err == nil && !answer.OK {
				err = fmt.Errorf("%s: %w: see what mends it", answer.Server, errUnfit)
			}
			return err
		},
	}
	d.replica.add(c, "the replica")
	d.primary.add(c, "the primary, to look there too")
	c.Flags().Var(&d.timeout, "timeout", "bound on each connection and on each question, with its unit")
	c.Flags().Var(&d.source, "source", "what the new role is for: auto (all that the server can), physical, logical, waitfor or poll")
	complete(c, "source", d.source.of...)
	c.Flags().StringVar(&d.role, "role", "walwake", "`name` of the new role")
	complete(c, "role")
	a.jsonFlag(c)
	return c
}

func (d *doctorCommand) run(ctx context.Context) (*doctorAnswer, error) {
	if strings.TrimSpace(d.role) == "" {
		return nil, usagef("--role is empty: name the role to create")
	}
	replica, err := d.required(d.replica)
	if err != nil {
		return nil, err
	}
	primary, err := d.optional(d.primary)
	if err != nil {
		return nil, err
	}
	cfg := replication.Config{Replica: d.reach(replica)}
	if primary != nil {
		cfg.Primary = d.reach(primary)
	}
	around, err := replica.look(ctx, time.Duration(d.timeout))
	if err != nil {
		return nil, err
	}
	if primary != nil {
		if err := primary.query(ctx, time.Duration(d.timeout), func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }); err != nil {
			return nil, err
		}
	}
	found, err := replication.Diagnose(ctx, cfg)
	if err != nil {
		err = explain(replica, err)
		for _, note := range around.notes() {
			err = fmt.Errorf("%w (%s)", err, note)
		}
		return nil, err
	}
	return d.tell(replica, found, around), nil
}

func (d *doctorCommand) reach(s *server) replication.Server {
	return replication.Server{Config: s.config, ConnectTimeout: time.Duration(d.timeout), QueryTimeout: time.Duration(d.timeout)}
}

func (d *doctorCommand) tell(s *server, found *replication.Diagnosis, around surroundings) *doctorAnswer {
	p := around.platform
	a := &doctorAnswer{
		Pooler: around.pooler, Notes: around.notes(), admin: "a superuser",
		Server: s.address, Postgres: found.Release, Role: found.Role, Database: found.Database, Standby: found.Standby,
		OK: found.Works(string(replication.Poll)) && found.Works(replication.OfTimeline),
	}
	if p != nil {
		a.Platform, a.admin = p.name, p.admin
	}
	for _, r := range found.Requirements {
		if n := len(a.Works); n == 0 || a.Works[n-1].Of != r.Of {
			a.Works = append(a.Works, doctorWorks{r.Of, found.Works(r.Of)})
		}
		a.Needs = append(a.Needs, doctorNeeds{r.Of, r.Needs, oneLine(plain(r.Has)), r.OK, r.Optional, p.adapt(fixes(r.Remedies))})
	}
	kinds := replication.Kinds()
	if d.source.value != "auto" {
		kinds = []replication.Kind{replication.Kind(d.source.value)}
	}
	a.NewRole = p.adapt(fixes(found.LeastRole(d.role, kinds)))
	return a
}

func fixes(remedies []replication.Remedy) []doctorFix {
	all := make([]doctorFix, 0, len(remedies))
	for _, r := range remedies {
		all = append(all, doctorFix{On: r.On, Database: r.Database, SQL: r.SQL, Then: r.Then})
	}
	return all
}

// text is what a person reads.
func (a *doctorAnswer) text(role string) string {
	var b strings.Builder
	kind := map[bool]string{true: "standby", false: "primary"}[a.Standby]
	fmt.Fprintf(&b, "%s, a %s, PostgreSQL %s, as role %s in database %s\n\n", a.Server, kind, a.Postgres, a.Role, a.Database)
	for _, note := range a.Notes {
		fmt.Fprintf(&b, "note: %s\n\n", note)
	}
	rows := [][]string{{"FOR", "", "NEEDS", "", "HERE"}}
	i := 0
	for _, w := range a.Works {
		of, works := w.Of, map[bool]string{true: "works", false: "no"}[w.OK]
		for ; i < len(a.Needs) && a.Needs[i].Of == w.Of; i++ {
			n := a.Needs[i]
			rows = append(rows, []string{of, works, n.Needs, n.state(), n.Has})
			of, works = "", ""
		}
	}
	b.WriteString(columns(rows))
	if mend := a.mend(); len(mend) > 0 {
		fmt.Fprintf(&b, "\nTo mend what is missing, as %s:\n", a.admin)
		b.WriteString(script(mend))
	}
	fmt.Fprintf(&b, "\nA role that may do no more than is needed (%s), as %s:\n", role, a.admin)
	b.WriteString(script(a.NewRole))
	return b.String()
}

func (n doctorNeeds) state() string {
	switch {
	case n.OK:
		return "ok"
	case n.Optional:
		return "better"
	}
	return "MISSING"
}

// mend lists what mends, each once.
func (a *doctorAnswer) mend() []doctorFix {
	var all []doctorFix
	seen := map[doctorFix]bool{}
	for _, n := range a.Needs {
		for _, f := range n.Mend {
			if !seen[f] {
				seen[f] = true
				all = append(all, f)
			}
		}
	}
	return all
}

// script writes statements to be pasted into psql.
func script(fixes []doctorFix) string {
	rows := make([][]string, 0, len(fixes))
	for _, f := range fixes {
		where := "on the " + f.On
		if f.Database != "" {
			where += ", in database " + f.Database
		}
		if f.Then != "" {
			where += "; then " + f.Then
		}
		if f.SQL == "" {
			rows = append(rows, []string{"  -- " + where + ": " + f.Do})
			continue
		}
		rows = append(rows, []string{"  " + f.SQL + ";", "-- " + where})
	}
	return columns(rows)
}
