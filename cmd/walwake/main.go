package main

import (
	"cmp"
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := interruptible(context.Background())
	for _, name := range misspelt(os.Environ()) {
		newApp(os.Stdout, os.Stderr, os.Getenv).note("there is no variable %s: did you mean %s?", name[0], name[1])
	}
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}

// interruptible returns a context that the first SIGINT or SIGTERM ends, with an *interruptedError as its cause. The
// second one ends the process as if nobody had listened.
func interruptible(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(&interruptedError{s})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// run is the whole command, but for its process: it reads no other environment than PostgreSQL's own PG* variables and
// what getenv gives, leaves nothing running, and returns the exit status. When ctx ends it cleans up and returns.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	a := newApp(stdout, stderr, getenv)
	root := a.rootCommand()
	root.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	return a.finish(ctx, cmp.Or(root.ExecuteContext(ctx), a.unhelped))
}
