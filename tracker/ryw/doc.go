// Package ryw gives code that reads and writes what it expects of one database:
// who has written reads the write, from whatever server.
//
// A [Router] knows the primary and its replicas. [Router.Write] runs a transaction
// on the primary and takes its token; [Router.Read] picks a replica that has
// replayed the token of the [Session], waits a little for one that has, or goes to
// the primary: see [Options]. [SQLRouter] is the same over package database/sql, and
// [Router.ReadDB] is a *sql.DB for what wants one, such as GORM and ent, whose writes
// [Router.Wrote] takes note of.
//
// A Session travels with a request in its context ([NewContext]), with a user in a
// signed cookie or a header ([Middleware]), and with a message as a text or in its
// headers ([Inject], [Extract], [Keys]). Who has no Session reads from any replica, as
// far as it is.
//
// # What is guaranteed
//
// A read shows every write that its Session has a token of, unless a failover has lost
// it: [ToPrimary] says what is read then. With [Options.Monotonic] it also shows what
// the Session has read before. A position is of one server, and of one life of it: a
// standby that crashes comes back lower. So a connection is read over only when it has
// been shown to lead to the server that the tracker's session leads to, so that one
// crash ends both, or has been asked itself.
//
// That holds for what Read's function begins once it was called. A transaction in
// isolation level REPEATABLE READ goes on to show what its first statement showed,
// whatever the Session writes meanwhile.
package ryw
