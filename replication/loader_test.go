package replication_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// loaderEnv makes the test binary a loader: a process of its own, so that its CPU
// is not counted as the tracker's.
const loaderEnv = "WALWAKE_BENCH_LOAD"

func runLoader() bool {
	dsn, rate, ok := strings.Cut(os.Getenv(loaderEnv), " ")
	if !ok {
		return false
	}
	n, _ := strconv.Atoi(rate)
	const writers = 8
	start := time.Now()
	for range writers {
		go func() {
			conn, err := pgx.Connect(context.Background(), dsn)
			if err != nil {
				os.Exit(1)
			}
			for i := 0; ; i++ {
				if due := time.Duration(i) * time.Second * writers / time.Duration(n); time.Since(start) < due {
					time.Sleep(due - time.Since(start))
				}
				if _, err := conn.Exec(context.Background(), `INSERT INTO load VALUES (1, 'a row of some length')`); err != nil {
					os.Exit(0)
				}
			}
		}()
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // ends with its parent
	return true
}
