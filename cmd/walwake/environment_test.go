package main

import (
	"fmt"
	"testing"
)

func TestAVariableThatIsMisspeltIsFound(t *testing.T) {
	t.Parallel()
	got := misspelt([]string{
		"WALWAKE_MAX_TIMOUT=1s", "WALWAKE_MAX_TIMEOUT=1s", "WALWAKE_REPLCA=host=h", "WALWAKE_SOCKET_MODE=0600", "WALWAKE_LOG_LEVEL=info", "WALWAKE_PG=18",
		"WALWAKE_PORT_WALWAKE1=7432", "WALWAKE_PORT_PRIMARY=5440", "WALWAKE_PORT_GRAFANA=3000", "WALWAKE_PORT=tcp://10.0.0.1:7432", "WALWAKE_SERVICE_HOST=10.0.0.1", "WALWAKE_PORT_7432_TCP_PORT=7432", "PATH=/", "WALWAKE=x", "WALWAKE_SIDECAR=http://h",
	})
	if want := "[[WALWAKE_MAX_TIMOUT WALWAKE_MAX_TIMEOUT] [WALWAKE_REPLCA WALWAKE_REPLICA]]"; fmt.Sprint(got) != want {
		t.Errorf("want %s, got %s", want, got)
	}
}
