-- What the edge may do in the ledger, and nothing else. Run it as the owner of the tables, after every
-- `drawbridge migrate`; a repeat changes nothing. Needs psql 15 or newer:
--
--     EDGE_DB_PASSWORD=… psql "$OWNER_URL" -f edge_role.sql
--
-- A table that is not named here is closed to the edge.
\set ON_ERROR_STOP on
\getenv edge_password EDGE_DB_PASSWORD

SELECT 'CREATE ROLE drawbridge_edge LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'drawbridge_edge')
\gexec
ALTER ROLE drawbridge_edge PASSWORD :'edge_password';

BEGIN;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM drawbridge_edge;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM drawbridge_edge;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO drawbridge_edge;

-- Jobs move, and are never removed from here.
GRANT SELECT, INSERT, UPDATE ON jobs, attempts, workers, queues TO drawbridge_edge;
-- The one row that numbers jobs.
GRANT SELECT, UPDATE ON bridge_state TO drawbridge_edge;
-- Logs and files are added to.
GRANT SELECT, INSERT ON events, artifacts TO drawbridge_edge;
-- Files in parts are announced, filled, and may begin anew; bridges forget them.
GRANT SELECT, INSERT, UPDATE ON uploads, upload_parts TO drawbridge_edge;
-- Operators make, list, rotate and revoke tokens over HTTP.
GRANT SELECT, INSERT, UPDATE ON credentials TO drawbridge_edge;
-- Who did what is added to, and never read or changed; the head is where the next record is chained.
GRANT INSERT ON audit TO drawbridge_edge;
GRANT SELECT, UPDATE ON audit_head TO drawbridge_edge;
-- What Celery must be told is written here and read by bridges alone.
GRANT INSERT ON outbox TO drawbridge_edge;
GRANT USAGE ON SEQUENCE outbox_seq_seq TO drawbridge_edge;
-- Whether the tables fit this version.
GRANT SELECT ON alembic_version TO drawbridge_edge;
COMMIT;
