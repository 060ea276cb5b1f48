//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

const supported = true

// The ways in which a postmaster ends: see "Shutting Down the Server" in PostgreSQL's documentation.
const (
	fastShutdown      = syscall.SIGINT
	immediateShutdown = syscall.SIGQUIT
)

// account is the user under whom servers run; nil is the user under whom this process runs.
type account struct {
	name     string
	uid, gid int
}

func (a *account) String() string {
	if a == nil {
		return "the current user"
	}
	return "user " + a.name
}

// serverAccount picks the account: PostgreSQL refuses to run as root.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "_postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read the ids of user %s: %w", name, err)
		}
		return &account{name: name, uid: uid, gid: gid}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it: " +
		"make one, or run this as an ordinary user")
}

// apply lets cmd run as the account, in a session of its own: a Ctrl-C in the terminal does not reach it.
func (a *account) apply(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if a != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
}

// own gives a file or folder to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// ownedByUs tells whether nobody but this process's user could have put something into a folder.
func ownedByUs(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid() && info.Mode().Perm()&0o022 == 0
}

// signal sends s to a process; a process that is gone is no error.
func signal(pid int, s syscall.Signal) error {
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	return nil
}

// killServer kills a postmaster and its children with SIGKILL and waits until the children are gone. The
// postmaster is halted first, so that it cannot start another child behind the list's back. The caller
// is its parent and waits for it.
func killServer(ctx context.Context, pid int) error {
	if err := signal(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	// The signal takes effect a moment later. Where that cannot be seen, the moment has to do.
	err := poll(ctx, time.Millisecond, "the server is halted", func(context.Context) (bool, error) {
		return halted(pid), nil
	})
	if err != nil {
		return errors.Join(err, signal(pid, syscall.SIGKILL))
	}
	children, err := childrenOf(ctx, pid)
	if err := errors.Join(err, signal(pid, syscall.SIGKILL)); err != nil {
		return err
	}
	for _, child := range children {
		err = errors.Join(err, signal(child, syscall.SIGKILL))
	}
	if err != nil {
		return err
	}
	return poll(ctx, 2*time.Millisecond, "the killed server's children are gone", func(ctx context.Context) (bool, error) {
		for _, child := range children {
			if !gone(child) {
				return false, nil
			}
		}
		return true, nil
	})
}

// halted tells whether a process does nothing any more, as far as that can be seen.
func halted(pid int) bool {
	if state, _, err := processStat(pid); err == nil {
		return state != "R" && state != "S" && state != "D"
	}
	return true
}

// gone tells whether a process that is no child of ours has ended. One that nobody has waited for has.
func gone(pid int) bool {
	if state, _, err := processStat(pid); err == nil {
		return state == "Z" || state == "X"
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// lockFile waits for the exclusive lock on a file, which it makes. The lock ends with the process.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	err = poll(ctx, 50*time.Millisecond, "another process has fetched PostgreSQL", func(context.Context) (bool, error) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
