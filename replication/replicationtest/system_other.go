//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package replicationtest

import (
	"context"
	"os"
	"os/exec"
	"syscall"
)

// Nothing below is ever reached: New returns errUnsupported first.
const (
	supported         = false
	fastShutdown      = syscall.SIGINT
	immediateShutdown = syscall.SIGQUIT
)

type account struct{}

func (a *account) String() string           { return "the current user" }
func (a *account) apply(*exec.Cmd)          {}
func (a *account) own(string) error         { return errUnsupported }
func serverAccount() (*account, error)      { return nil, errUnsupported }
func ownedByUs(os.FileInfo) bool            { return false }
func signal(int, syscall.Signal) error      { return errUnsupported }
func killServer(context.Context, int) error { return errUnsupported }

func lockFile(context.Context, string) (func(), error) { return nil, errUnsupported }
