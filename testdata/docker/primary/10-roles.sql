-- What the primary has besides an empty database: roles that may do no more than they need, the publication of source
-- logical, a slot for each standby. The image's entrypoint runs it once, in the database that POSTGRES_DB names; it may
-- be run again.
--
--   SECRETS   the folder that secrets.sh filled
--   STANDBYS  the names of the slots, separated by commas

\set app_password `cat "$SECRETS/app"`
\set replicator_password `cat "$SECRETS/replicator"`
\set walwake_password `cat "$SECRETS/walwake"`
\set standbys `echo "$STANDBYS"`

SET log_min_error_statement = panic; -- a statement that fails is not logged with the password in it

SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest('{app,replicator,walwake}'::name[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

-- The owner of the database, for what writes and reads.
ALTER ROLE app PASSWORD :'app_password';
ALTER DATABASE :"DBNAME" OWNER TO app;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;

-- For the standbys.
ALTER ROLE replicator REPLICATION PASSWORD :'replicator_password';

-- For walwake: it reads no table.
ALTER ROLE walwake REPLICATION PASSWORD :'walwake_password';
GRANT CONNECT ON DATABASE :"DBNAME" TO walwake;
GRANT pg_read_all_stats TO walwake;
SELECT 'GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO walwake'
WHERE to_regprocedure('pg_log_standby_snapshot()') IS NOT NULL \gexec
SELECT 'CREATE PUBLICATION walwake' WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'walwake') \gexec

SELECT pg_create_physical_replication_slot(name, true) FROM unnest(string_to_array(:'standbys', ',')::name[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = name);
