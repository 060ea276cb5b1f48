package replicationtest

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// TB is what [Start] needs of a test. *testing.T, *testing.B and *testing.F have it; a program that is
// no test may bring its own, so that it does not link package testing.
type TB interface {
	Helper()
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// maxStandbys keeps room among the 20 WAL senders of a node for the streams of the test itself.
const maxStandbys = 12

// Options says what to start. The zero value is a primary with one standby on the newest PostgreSQL found.
type Options struct {
	// Standbys is the number of standbys that stream from the primary: 0 means 1, a negative number none,
	// and 12 is the most. See [Cluster.AddStandby] for one that joins later or streams from a standby.
	Standbys int

	// Version is a major version such as "17", or a folder that holds bin/postgres or postgres.
	// Empty: the environment variable WALWAKE_PG, which takes the same, and then the newest found.
	Version string

	// Settings go into the configuration of every node, PrimarySettings and StandbySettings on top of them
	// into those that start as primary or as standby. What the kit itself depends on (port, addresses, the
	// upstream, the delay that Lag sets) is refused. The five settings that a standby may not have lower than its primary, such as
	// max_connections, reach the standbys from PrimarySettings too.
	Settings        map[string]string
	PrimarySettings map[string]string
	StandbySettings map[string]string

	// Log tells what happens. Nil: silence.
	Log *slog.Logger

	// Dir is the folder in which the cluster's own folder is made. Empty: the one for temporary files.
	Dir string

	// Keep leaves the servers running, and the folder in place, when the cluster is closed. When the
	// process ends without closing it, everything is stopped and removed as ever.
	Keep bool
}

// standbyCount is the number that Standbys stands for.
func (o Options) standbyCount() (int, error) {
	if o.Standbys > maxStandbys {
		return 0, fmt.Errorf("replicationtest: Options.Standbys is %d, the most is %d", o.Standbys, maxStandbys)
	}
	return max(0, cmp.Or(o.Standbys, 1)), nil
}

// managed are the settings that the kit writes itself and nobody else may.
var managed = []string{
	"cluster_name", "config_file", "data_directory", "external_pid_file", "hba_file", "hot_standby",
	"listen_addresses", "logging_collector", "port", "primary_conninfo", "recovery_min_apply_delay",
	"unix_socket_directories",
}

// atLeastPrimary are the settings that recovery compares with the primary's: a standby that has one lower
// does not start, or pauses (CheckRequiredParameterValues in PostgreSQL's xlogrecovery.c).
var atLeastPrimary = []string{
	"max_connections", "max_locks_per_transaction", "max_prepared_transactions", "max_wal_senders",
	"max_worker_processes",
}

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$`)

// defaults suit a test on loopback: quick to start, nothing to be lost, everything that the sources of
// this library need, and no segment of shared memory that would survive the folder.
var defaults = map[string]string{
	"dynamic_shared_memory_type":  "mmap",
	"fsync":                       "off",
	"hot_standby":                 "on",
	"hot_standby_feedback":        "on",
	"huge_pages":                  "off",
	"jit":                         "off",
	"lc_messages":                 "C",
	"log_destination":             "stderr",
	"log_line_prefix":             "%m [%p] %b ",
	"max_connections":             "100",
	"max_replication_slots":       "20",
	"max_wal_senders":             "20",
	"shared_buffers":              "32MB",
	"wal_keep_size":               "256MB",
	"wal_level":                   "logical",
	"wal_retrieve_retry_interval": "100ms",

	// From 16 on the primary may miss a flush, until the walreceiver says something (walsender.c, WalSndWait).
	"wal_receiver_status_interval": "1s",
}

// checkSettings refuses names that are none and settings that are the kit's own.
func (o Options) checkSettings() error {
	for _, f := range []struct {
		field string
		set   map[string]string
	}{{"Settings", o.Settings}, {"PrimarySettings", o.PrimarySettings}, {"StandbySettings", o.StandbySettings}} {
		for name := range f.set {
			if !settingName.MatchString(name) {
				return fmt.Errorf("replicationtest: Options.%s: %q is not the name of a setting", f.field, name)
			}
			if slices.Contains(managed, strings.ToLower(name)) {
				return fmt.Errorf("replicationtest: Options.%s: %s is set by the kit itself", f.field, name)
			}
		}
	}
	return nil
}

// settingsFor merges what a node gets, names in lower case.
func (o Options) settingsFor(standby bool) map[string]string {
	all := maps.Clone(defaults)
	add := func(more map[string]string) {
		for name, value := range more {
			all[strings.ToLower(name)] = value
		}
	}
	add(o.Settings)
	if !standby {
		add(o.PrimarySettings)
		return all
	}
	for name, value := range o.PrimarySettings {
		if slices.Contains(atLeastPrimary, strings.ToLower(name)) {
			all[strings.ToLower(name)] = value
		}
	}
	add(o.StandbySettings)
	return all
}

// touchesRequired tells whether the caller set one of the settings of which initdb has noted its own
// value in the control file, where the standbys look for the primary's.
func (o Options) touchesRequired() bool {
	for _, set := range []map[string]string{o.Settings, o.PrimarySettings} {
		for name := range set {
			if slices.Contains(atLeastPrimary, strings.ToLower(name)) {
				return true
			}
		}
	}
	return false
}

// configText writes settings as a configuration file, in order of name.
func configText(settings map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = %s\n", name, quoteSetting(settings[name]))
	}
	return b.String()
}

// quoteSetting follows DeescapeQuotedString in PostgreSQL's guc-file.l.
func quoteSetting(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`, "\r", `\r`).Replace(value) + "'"
}
