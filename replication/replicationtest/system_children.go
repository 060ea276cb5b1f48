//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// childrenOf lists the processes whose parent is pid. Children of a postmaster lead sessions of their own,
// so a signal to its process group would not reach them.
func childrenOf(ctx context.Context, pid int) ([]int, error) {
	if _, _, err := processStat(os.Getpid()); err != nil {
		return childrenFromPS(ctx, pid)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var children []int
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent, err := processStat(child); err == nil && parent == pid {
			children = append(children, child)
		}
	}
	return children, nil
}

// processStat reads a process's state and parent where the system has Linux's /proc.
func processStat(pid int) (state string, parent int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, err
	}
	// The name stands in parentheses and may hold anything, spaces too.
	i := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[i+1:]))
	if i < 0 || len(fields) < 2 {
		return "", 0, errors.New("/proc/…/stat is not Linux's")
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err
}

func childrenFromPS(ctx context.Context, pid int) ([]int, error) {
	out, err := exec.CommandContext(ctx, "ps", "-A", "-o", "pid=", "-o", "ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("list processes with ps: %w", err)
	}
	var children []int
	for line := range strings.Lines(string(out)) {
		var child, parent int
		if _, err := fmt.Sscan(line, &child, &parent); err == nil && parent == pid {
			children = append(children, child)
		}
	}
	return children, nil
}
