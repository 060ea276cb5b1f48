// Package stalecheck has no code but its tests: a program that looks for stale
// reads on a real primary with two standbys.
//
// # Model
//
// Writers commit rows with numbers that are never used twice, and take a token
// for each. Readers show tokens to a tracker of some node, and when it lets them
// go on they read that node, on a connection that was opened before. A driver
// breaks something all the time: see faults_test.go. What was acknowledged is
// kept in a history, and each read is checked against it:
//
//   - read-your-writes: what was waited for is there;
//   - monotonic reads: within a session nothing that was seen is gone, whichever
//     node it reads next;
//   - every wait ends, and none much later than the row could be read;
//   - a write that was called lost is in fact lost, and no other;
//   - at the end nothing is left behind: waiters, goroutines, slots, sessions.
//
// All that is random comes from a seed, which is printed. The order in which
// goroutines and servers run is their own, so a seed gives the same faults and
// choices, and nearly the same run:
//
//	go test ./replication/stalecheck -run TestNothingIsStale -args -reads 1000000 -seed 7
//
// # It can fail
//
// broken_test.go puts each known trap back, by a source, a tracker or a way to
// take tokens that is wrong in one point, and asserts that a violation is found.
package stalecheck
