#!/bin/sh
# Makes the passwords of docker-compose.yml, so that none is written down in the project and each installation has its
# own. What is there stays: it may run at each start.
#
#   SECRETS   the folder, a volume that the other services mount read-only
#
# Each file can be read by the one user whose service needs it.
set -eu
umask 077
cd "$SECRETS"
chmod 0755 .

# keep NAME OWNER puts what comes on stdin into a file, whole or not at all.
keep() {
	rm -f "$1.new" # of a run that was interrupted, and belongs to somebody else by now
	cat >"$1.new"
	chmod 0400 "$1.new"
	[ "$(id -u)" != 0 ] || chown "$2" "$1.new"
	mv "$1.new" "$1"
}

# secret NAME OWNER makes a password of 32 random bytes, which needs no quoting anywhere.
secret() {
	[ -s "$1" ] || od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n' | keep "$1" "$2"
}

# passfile ROLE OWNER makes the password file with which libpq and pgx log in as a role.
passfile() {
	[ -s "$1.pgpass" ] || printf '*:*:*:%s:%s\n' "$1" "$(cat "$1")" | keep "$1.pgpass" "$2"
}

secret superuser postgres
secret app postgres
secret replicator postgres
passfile replicator postgres
secret walwake postgres
passfile walwake 65532 # the user of the image walwake
secret grafana 472     # the user of the image grafana/grafana
