// Command walwake lets a shell script, or a program that is not written in Go, read its own writes from a PostgreSQL
// replica: it makes tokens, waits until a replica has replayed them, shows what it knows of a replica, and what is missing.
//
//	walwake demo     starts servers of its own and shows what waiting is for
//	walwake token    prints a token for all that is committed on the primary
//	walwake wait     waits until a replica has replayed a token
//	walwake status   shows how far a replica is, and by which source
//	walwake watch    shows that live, with the last minutes
//	walwake serve    answers programs in any language over HTTP, and has metrics and a page
//	walwake listen   prints notifications once the replica shows what they are about
//	walwake doctor   shows what each source needs, what is there, and what mends it
//	walwake verify   counts stale reads on servers of yours, without waiting and with it
//	walwake bench    compares every way to know that a write is replayed
//
// # Output
//
// Results go to stdout, with --json as one JSON object; what a person reads meanwhile, and errors, go to stderr. An error
// is one line that says what to do. No error and no log line holds a password.
//
// # Exit status
//
//	0    done
//	1    any failure that is not below
//	2    usage: an unknown flag, a malformed token, LSN or duration, no server named
//	3    the time was up
//	4    the write was lost in a failover, or belongs to another cluster
//	130  interrupted (Ctrl-C), after cleaning up
//	143  terminated (SIGTERM), after cleaning up
//
// # Testing
//
// The tests call run, which is all of the command but its process, against real servers; signals are tested on the
// built binary.
package main
