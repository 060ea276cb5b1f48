package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// app is one run of the command.
type app struct {
	stdout io.Writer
	stderr io.Writer // may be written to by several goroutines
	getenv func(string) string
	log    *slog.Logger // set before a command runs

	logLevel choice
	json     bool  // --json of the command that runs
	answered bool  // whether it has written its JSON object
	unhelped error // --help of a command that there is not
}

func newApp(stdout, stderr io.Writer, getenv func(string) string) *app {
	return &app{
		stdout:   stdout,
		stderr:   &lockedWriter{w: stderr, terminal: isTerminal(stderr)},
		getenv:   getenv,
		log:      slog.New(slog.DiscardHandler),
		logLevel: choice{value: "warn", of: []string{"debug", "info", "warn", "error"}},
	}
}

const rootLong = `walwake waits until a PostgreSQL replica has replayed a write, so that whoever wrote to the primary
reads the write from the replica, and no stale row.

--primary and --replica take any libpq connection string, a URL or keywords and values, and default to
the environment variables WALWAKE_PRIMARY and WALWAKE_REPLICA. PG* variables and the password file fill
in what is left out. A password on the command line can be seen by other users of the machine: prefer
the variables or the password file.`

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "walwake",
		Short: "Read your own writes from PostgreSQL replicas",
		Long:  rootLong + "\n\n" + exitStatuses,
		Example: `  walwake demo
  token=$(walwake token --primary 'host=db1 user=app dbname=app')
  walwake wait --replica 'host=db2 user=app dbname=app' --timeout 3s "$token"`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          a.unknownCommand,
		RunE: func(c *cobra.Command, _ []string) error {
			c.SetOut(a.stderr)
			if err := c.Help(); err != nil {
				return err
			}
			return usagef("no command given: name one of those above")
		},
		PersistentPreRun: func(*cobra.Command, []string) { a.log = newLogger(a.stderr, a.logLevel.value, a.getenv) },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w: see %s --help", err, c.CommandPath())
	})
	root.PersistentFlags().Var(&a.logLevel, "log-level", "what the log on stderr tells: debug, info, warn or error")
	complete(root, "log-level", a.logLevel.of...)
	root.SetHelpCommand(helpCommand(root))
	help := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		if c == root {
			if a.unhelped = a.unknownCommand(c, words(c, args)); a.unhelped != nil {
				return
			}
		}
		help(c, args)
	})
	root.AddCommand(a.demoCommand(), a.tokenCommand(), a.waitCommand(), a.statusCommand(), a.watchCommand(), a.doctorCommand(), a.verifyCommand(),
		a.listenCommand(), a.serveCommand(), a.benchCommand(), a.benchLoadCommand())
	return root
}

// words are the arguments that are no flags, wherever --help stands.
func words(c *cobra.Command, args []string) []string {
	args = slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return arg == "--help" || arg == "-h" })
	_ = c.ParseFlags(args) // it was parsed before, as far as --help
	return c.Flags().Args()
}

// unknownCommand is the error for arguments that name no command, in one line.
func (a *app) unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "see walwake --help"
	c.SuggestionsMinimumDistance = 2
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "did you mean " + strings.Join(like, " or ") + "?"
	}
	return usagef("unknown command %q: %s", args[0], hint)
}

// helpCommand is cobra's own, but for the error that an unknown command is.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:               "help [command]",
		Short:             "Show the help of a command",
		Example:           "  walwake help wait",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err == nil && len(rest) > 0 {
				err = usagef("there is no command %q to help with: see walwake --help", strings.Join(args, " "))
			}
			if err != nil {
				return err
			}
			c.InitDefaultHelpFlag()
			c.InitDefaultVersionFlag()
			return c.Help()
		},
	}
}

// noArgs is the check of the arguments for a command that takes none.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q: see %s --help", args[0], c.CommandPath())
	}
	return nil
}

// jsonFlag adds --json to a command.
func (a *app) jsonFlag(c *cobra.Command) {
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object on stdout")
}

// answer writes a command's result: v as a JSON object, or what a person reads.
func (a *app) answer(v any, text string) error {
	if a.json {
		a.answered = true
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
		text = string(b) + "\n"
	}
	if _, err := io.WriteString(a.stdout, text); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// columns aligns rows.
func columns(rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = io.WriteString(w, strings.Join(row, "\t")+"\n") // a strings.Builder takes all
	}
	_ = w.Flush()
	return b.String()
}

// note tells a person something that is no error. Nobody is left to tell when that fails.
func (a *app) note(format string, args ...any) {
	_, _ = fmt.Fprintf(a.stderr, "walwake: note: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// finish tells how the command ended.
func (a *app) finish(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	text := message(ctx, err)
	if a.json && !a.answered {
		_ = a.answer(struct {
			Result string `json:"result"`
			Error  string `json:"error"`
		}{"error", text}, "")
	}
	_, _ = fmt.Fprintf(a.stderr, "walwake: %s\n", text)
	return exitStatus(ctx, err)
}

// lockedWriter is a writer for several goroutines.
type lockedWriter struct {
	terminal bool // whether a person looks at it

	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
