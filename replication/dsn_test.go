package replication_test

import (
	"strings"
	"testing"

	"github.com/walwake/walwake/replication"
)

// What is malformed may hold a password anywhere.
func TestNoPasswordIsInAConfigError(t *testing.T) {
	const secret = "s3cr3tpw"
	for _, dsn := range []string{
		"postgres://u:" + secret + "@host/db?sslmode=nonsense",
		"postgres://u:" + secret + "@127.0.0.1:port/db",
		"postgres://u:" + secret + "/x@host/db",
		"postgres://u:1/" + secret + "@host/db",
		"postgres://u:" + secret + "%@host/db",
		"postgres://u:x@" + secret + "@host/db",
		"postgres://127.0.0.1:port/db?password=" + secret,
		"host=127.0.0.1 port=x password=" + secret,
		"host=127.0.0.1 port=1 password='" + secret,
		"host=127.0.0.1 port=1 pasword=my " + secret + " user=u",
		"password=" + secret + " =",
	} {
		_, err := replication.New(replication.Config{Replica: replication.Server{DSN: dsn}})
		if err == nil || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "Config.Replica: DSN") {
			t.Errorf("%q: %v", dsn, err)
		}
	}
}
