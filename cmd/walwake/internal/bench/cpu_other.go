//go:build !linux

package bench

import "time"

// Elsewhere CPU is not counted.
func clientCPU() time.Duration            { return 0 }
func serverCPU(int) map[int]time.Duration { return nil }
