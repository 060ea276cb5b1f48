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
package pgnotify
