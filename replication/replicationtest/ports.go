package replicationtest

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports come from below the ranges from which Linux (32768 up) and macOS (49152 up) take the ports of
// outgoing connections and of listeners on port 0, so that nobody is given a node's port while it is down.
const firstPort, lastPort = 15000, 32000

// ports are those that nodes of this process have; other processes are kept off by chance and by retrying.
var ports = struct {
	mu   sync.Mutex
	used map[int]bool // guarded by mu
}{used: map[int]bool{}}

func takePort() (int, error) {
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		ports.mu.Lock()
		mine := !ports.used[port]
		if mine {
			ports.used[port] = true
		}
		ports.mu.Unlock()
		if !mine {
			continue
		}
		if portFree(port) {
			return port, nil
		}
		freePort(port)
	}
	return 0, errors.New("find a free port: 200 tries on 127.0.0.1 failed")
}

func freePort(port int) {
	ports.mu.Lock()
	delete(ports.used, port)
	ports.mu.Unlock()
}

// portFree tells whether somebody could listen there now.
func portFree(port int) bool {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
