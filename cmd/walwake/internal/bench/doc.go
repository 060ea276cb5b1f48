// Package bench measures how long it takes from a COMMIT acknowledged by the
// primary until it is known that a replica has replayed it: every way in turn,
// on the same servers, in rounds, so that a noisy machine hits all alike. What
// it finds is to be read as ratios within one run.
package bench
