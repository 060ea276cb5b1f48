// Package ryw gives code that reads and writes what it expects of one database:
// who has written reads the write, from whatever server.
//
// A [Router] knows the primary and its replicas. Write runs a transaction on the
// primary and takes its token; Read picks a replica that has replayed the token of
// the [Session], waits a little for one that has, or goes to the primary. A Session
// travels with a request in its context, and with a user in a cookie or a header:
// see [Middleware].
package ryw
