-- The four roles of an installation; run once, by a superuser, in the database that holds it; harmless to run again:
--
--     psql -v ON_ERROR_STOP=1 -f deploy/postgresql/roles.sql "$DATABASE"
--
-- They can log in once they have a password (`\password batching_worker`). Others get the same rights by
-- `GRANT batching_producer TO …`. What each may do is in grants.sql, which runs after every `batching db upgrade`.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['batching_owner', 'batching_worker', 'batching_producer', 'batching_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', wanted);
        END IF;
    END LOOP;
END
$$;

ALTER ROLE batching_owner NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
ALTER ROLE batching_worker NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
ALTER ROLE batching_producer NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
ALTER ROLE batching_reader NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- Nobody but the owner creates anything in the schema.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO batching_worker, batching_producer, batching_reader;
GRANT USAGE, CREATE ON SCHEMA public TO batching_owner;
