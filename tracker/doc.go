// Package tracker wakes goroutines when a PostgreSQL replica has replayed a
// write.
//
// # Model
//
// A writer gets a Token for its commit: system, timeline, LSN. A Tracker knows,
// through a Source, how far one replica has replayed. Wait blocks until the
// replica shows the token's write; Replayed asks without blocking; Request and
// Await split asking from blocking. A Set waits on several replicas.
//
// A Source begins an epoch with each connection and reports Observations in
// it: a position, and the system and timeline that it is a position of. The
// Tracker judges tokens by the latest epoch alone and tells the source what is
// waited for (Demand), so that it need not ask while nobody waits.
//
// # Guarantees
//
//   - No early wake: after Wait has returned nil, a snapshot taken on that
//     replica sees every commit up to the token.
//   - No lost wake: a waiter is judged under the same lock that positions are
//     taken in under, and anew when an epoch or a timeline begins.
//   - No position outlives its epoch: when the connection is gone the position
//     is unknown, since a standby that crashed comes back lower.
//   - A lost write is an error: a token past the point where the replica's
//     history left its timeline is ErrDiverged, at once, also for who waits
//     already. A token of another cluster is ErrWrongSystem.
//   - Every wait ends: replayed, one of those errors, the caller's context,
//     the timeout, Cancel or Close. It leaves nothing behind.
//   - What cannot be verified is not replayed: a token that names a timeline
//     is not satisfied by a position whose timeline is not known.
//   - Bounded: Config.MaxWaiters, Config.Timeout.
//
// These hold for the server that the source observes. Where a connection
// string may lead to several servers, the read has to go to the one that was
// observed.
//
// # Failures
//
// While the source fails, Run runs it again with a growing pause, waits go on,
// and State and TimeoutError say why.
//
// # Concurrency
//
// All methods may be called from any goroutine. One mutex guards the lists; it
// is not held while a waiter is woken or an Observer's function runs. Replayed,
// and Wait on what is replayed, take no lock and allocate nothing.
//
// # Cost
//
// A waiter is 64 bytes and a place in the list 16 to 40; the channel behind
// Done is made when first asked for. Adding is O(1) for ascending positions
// and O(log n) otherwise, as cancelling is.
//
// # Testing
//
// The lists and the Tracker are checked against naive models with random
// operations, and everything with time runs in testing/synctest bubbles.
// Package replicationtest starts real servers.
package tracker
