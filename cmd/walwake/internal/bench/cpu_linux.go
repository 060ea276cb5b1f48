package bench

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clientCPU is what this process has used.
func clientCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // it cannot fail for one's own
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// serverCPU is what each process of a postmaster has used, itself included.
func serverCPU(postmaster int) map[int]time.Duration {
	used := map[int]time.Duration{}
	if postmaster == 0 {
		return used
	}
	processes, _ := os.ReadDir("/proc")
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + p.Name() + "/stat")
		if err != nil {
			continue // it has just ended
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(after); pid != postmaster && (len(f) < 2 || f[1] != strconv.Itoa(postmaster)) {
			continue
		}
		schedstat, _ := os.ReadFile("/proc/" + p.Name() + "/schedstat") // in ns, where stat has ticks of 10 ms
		running, _, _ := strings.Cut(string(schedstat), " ")
		ns, _ := strconv.ParseInt(running, 10, 64)
		used[pid] = time.Duration(ns)
	}
	return used
}
