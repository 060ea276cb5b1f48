#!/bin/sh
# Runs a standby: the first time it copies the primary's data, then it goes on with its own.
#
#   standby.sh postgres …
#
#   PGDATA   where the data are. What stands there is used as it is
#   PRIMARY  how to reach the primary: keywords and values, with a password file
#   SLOT     the slot on the primary that keeps the WAL that this standby has not got yet
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	# Beside its place, so that a copy that was interrupted is never taken for a whole one.
	rm -rf "$PGDATA.new"
	mkdir -p "$(dirname "$PGDATA")"
	pg_basebackup --dbname "$PRIMARY application_name=$SLOT" --slot "$SLOT" --write-recovery-conf \
		--pgdata "$PGDATA.new" --wal-method stream --checkpoint fast --no-password
	rm -rf "$PGDATA" # the image may have made it, empty
	mv "$PGDATA.new" "$PGDATA"
fi
exec "$@"
