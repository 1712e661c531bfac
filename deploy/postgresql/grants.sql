-- What each role may do; run by batching_owner after every `batching db upgrade`; harmless to run again:
--
--     psql -v ON_ERROR_STOP=1 -f deploy/postgresql/grants.sql "$OWNERS_DATABASE_URL"

BEGIN;
-- Every table of ours, those of later versions included.
-- Workers, managers, and people who steer (`pause`, `cancel`, `retry`, `doctor --fix`, `prune`): every row, no schema.
-- Readers (`list`, `show`, `results`, `failures`, `doctor`, `health`): everything but payloads.
DO $$
DECLARE
    ours text;
BEGIN
    FOR ours IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner = current_user LOOP
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC, batching_worker, batching_producer, batching_reader', ours);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO batching_worker', ours);
        EXECUTE format('GRANT SELECT ON %I TO batching_reader', ours);
        IF ours NOT IN ('profiles', 'attempts', 'callbacks') THEN
            EXECUTE format('GRANT SELECT ON %I TO batching_producer', ours);
        END IF;
    END LOOP;
END
$$;
-- The version is the owner's word.
REVOKE INSERT, UPDATE, DELETE ON batching_version FROM batching_worker;
REVOKE SELECT ON profiles FROM batching_reader;
GRANT SELECT (
    batch_id, number, key, state, generation, run, pass_number, attempts, losses, republished, worker_id, not_before,
    dispatched_at, started_at, finished_at, result, error, fingerprint
) ON profiles TO batching_reader;
REVOKE ALL ON SEQUENCE history_id_seq FROM PUBLIC, batching_producer, batching_reader;
GRANT USAGE ON SEQUENCE history_id_seq TO batching_worker;
-- Until this file runs again after an upgrade.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO batching_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO batching_worker;

-- Producers: add batches, and profiles to open ones; of what is there they see all but results, failures and callbacks.
GRANT INSERT (name) ON queues TO batching_producer;
GRANT INSERT, UPDATE (key, total, state, sealed, position, loading_until, created_at) ON batches TO batching_producer;
GRANT
    SELECT (
        batch_id, number, key, payload, state, generation, run, pass_number, attempts, losses, republished, worker_id,
        not_before, dispatched_at, started_at, finished_at
    ),
    INSERT (batch_id, number, key, payload)
    ON profiles TO batching_producer;
GRANT INSERT (batch_id, worker_id, pending), UPDATE (pending) ON counters TO batching_producer;
GRANT INSERT ON history TO batching_producer;
GRANT INSERT ON labels TO batching_producer;
GRANT USAGE ON SEQUENCE history_id_seq TO batching_producer;

COMMIT;

-- A column's right to change says nothing of the row: producers change what loads or is open, and end nothing.
-- These need the table for a moment, and must hold up nobody who waits behind them: when the time is up, run it again.
BEGIN;
SET LOCAL lock_timeout = '2s';
ALTER TABLE batches ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS everybody ON batches;
DROP POLICY IF EXISTS producers_insert ON batches;
DROP POLICY IF EXISTS producers_update ON batches;
CREATE POLICY everybody ON batches USING (true) WITH CHECK (true);
CREATE POLICY producers_insert ON batches AS RESTRICTIVE FOR INSERT TO batching_producer
    WITH CHECK (state IN ('loading', 'queued'));
CREATE POLICY producers_update ON batches AS RESTRICTIVE FOR UPDATE TO batching_producer
    USING (state = 'loading' OR NOT sealed) WITH CHECK (finished_at IS NULL);
COMMIT;
