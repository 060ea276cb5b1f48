// Package pgnotify tells workers beside a replica what happened on the primary,
// when their replica can show it.
//
// PostgreSQL cannot LISTEN on a standby, and who hears a NOTIFY from the primary
// and then reads a replica reads too early. A [Listener] LISTENs on the primary
// and holds each notification until the replica has replayed the transaction that
// sent it. The application that notifies needs not be changed.
//
// NOTIFY is not kept for who is away. Whenever notifications may have been missed,
// because the connection was lost or a handler was too slow, the handler gets
// a [Resync] in their place: it then looks for itself at what it is about.
//
// # Through the WAL
//
// [Emit] sends a message as part of a transaction, and [Messages] hears it over the
// tracker's logical stream from the replica, from PostgreSQL 16: no connection to
// the primary is needed, and no lock is taken at commit. Handlers and events are
// the same.
//
// # Who is where
//
// An [Announcer] tells trackers where the primary is, in few NOTIFYs whatever the
// rate of writes: see [Announcements]. [Publisher] and [Fleet] tell every process
// where all replicas are. Whoever may NOTIFY may announce: what is announced never
// ends a wait.
package pgnotify
