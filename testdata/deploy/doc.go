// Package deploy holds examples of how walwake is run, and has no code but its tests: of them, and of docker-compose.yml
// and what it mounts. There is no container engine in the tests. What docker-compose.yml describes is run as processes on
// this machine, as it says: see stack_test.go.
package deploy
