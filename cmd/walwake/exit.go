package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/walwake/walwake/tracker"
)

// The exit status: see the package's documentation.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitTimeout = 3
	exitLost    = 4
	exitSignal  = 128 // and the signal's number
)

// exitStatuses is the part of a command's help that names them.
const exitStatuses = `Exit status: 0 done, 1 failure, 2 usage, 3 the time was up, 4 the write was lost in a failover
or belongs to another cluster, 130 interrupted, 143 terminated.`

// usageError says that the command was called in a way that cannot work.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// interruptedError is the cause of a context that a signal has ended.
type interruptedError struct{ signal os.Signal }

func (e *interruptedError) Error() string {
	if e.signal == syscall.SIGTERM {
		return "terminated"
	}
	return "interrupted"
}

func (e *interruptedError) status() int {
	if s, ok := e.signal.(syscall.Signal); ok {
		return exitSignal + int(s)
	}
	return exitFailure
}

// exitStatus is what a command that ended with err exits with.
func exitStatus(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	if e, ok := errors.AsType[*interruptedError](context.Cause(ctx)); ok {
		return e.status()
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	switch {
	case errors.Is(err, tracker.ErrTimeout):
		return exitTimeout
	case errors.Is(err, tracker.ErrDiverged), errors.Is(err, tracker.ErrWrongSystem):
		return exitLost
	}
	return exitFailure
}

// message is what a person is told of err, in one line.
func message(ctx context.Context, err error) string {
	if e, ok := errors.AsType[*interruptedError](context.Cause(ctx)); ok && !errors.Is(err, errCleanUp) {
		return e.Error()
	}
	return oneLine(plain(err.Error()))
}

// errCleanUp says that something may be left behind, which is told in any case.
var errCleanUp = errors.New("clean up")
