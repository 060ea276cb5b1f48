package replication_test

import (
	"os"
	"path/filepath"
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
		"host=127.0.0.1 sslrootcert=/nowhere/" + secret + " password=" + secret,
		"host=127.0.0.1 sslmode=" + secret + " password=" + secret,
		"host=127.0.0.1 target_session_attrs=" + secret + " password=x",
		"host=127.0.0.1 connect_timeout=" + secret + " password=x",
		"postgres://u:" + secret + ":ret@host:x/db",
	} {
		_, err := replication.New(replication.Config{Replica: replication.Server{DSN: dsn}})
		if err == nil || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "Config.Replica: DSN") {
			t.Errorf("%q: %v", dsn, err)
		}
	}
}

// A string that was read, with a parameter that cannot be used, is told of by the parameter's name.
func TestWhatIsWrongWithAParameterIsSaidBesideAPassword(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3tpw"
	empty := filepath.Join(t.TempDir(), "root.crt")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for parameters, want := range map[string]string{
		"sslmode=x": "sslmode: want disable, allow, prefer, require, verify-ca or verify-full",
		"sslmode=verify-full sslrootcert=/nowhere": "sslrootcert: no such file or directory",
		"sslmode=verify-full sslrootcert=" + empty: "sslrootcert: there is no certificate in the file",
		"sslcert=/nowhere":                         "sslcert and sslkey: want both, or neither",
		"sslcert=/nowhere sslkey=/nowhere":         "sslkey: no such file or directory",
		"sslcert=/nowhere sslkey=" + empty:         "sslkey: there is no key in the file",
		"sslcertmode=x":                            "sslcertmode: want disable, allow or require",
		"port=x":                                   "port: want a number from 1 to 65535",
		"port=5432,5433,5434":                      "port: want one for all hosts, or one for each",
		"connect_timeout=x":                        "connect_timeout: want a number of seconds",
		"target_session_attrs=x":                   "target_session_attrs: want any, read-write, read-only, primary, standby or prefer-standby",
		"channel_binding=x":                        "channel_binding: want disable, prefer or require",
		"min_protocol_version=x":                   "min_protocol_version: want 3.0, 3.2 or latest",
		"max_protocol_version=x":                   "max_protocol_version: want 3.0, 3.2 or latest",
		"require_auth=x":                           "require_auth: want methods that libpq knows",
		"service=nowhere servicefile=/nowhere/x":   "service: there is no such one in a service file that can be read",
		"service=nowhere servicefile=" + empty:     "service: there is no such one in a service file that can be read",
	} {
		url := "postgres://u:" + secret + "@127.0.0.1/db?" + strings.ReplaceAll(parameters, " ", "&")
		for _, dsn := range []string{
			"host=127.0.0.1 " + parameters + " password=" + secret, "password='" + secret + " x' host=127.0.0.1 " + parameters,
			"host=127.0.0.1 passfile=/nowhere/" + secret + " " + parameters, "host=127.0.0.1 " + parameters, url, url + "&password=" + secret,
		} {
			if strings.HasPrefix(parameters, "port") && dsn == url { // one is in the authority too
				continue
			}
			_, err := replication.ParseDSN(dsn)
			if err == nil || err.Error() != "this connection string cannot be used: "+want {
				t.Errorf("%q: %v", dsn, err)
			}
		}
	}
}
