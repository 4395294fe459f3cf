-- What the daemon's role may do with a store, and no more. Run by the schema's owner, in the store's
-- database, after `keysided init` and after every `keysided migrate`:
--
--     psql --dbname=keyside --username=keyside_owner --file=grants.sql
--
-- The role is called keyside here. It makes no tables, and deletes no key and no version: what is
-- destroyed stays as a row without material. docs/operations.md tells the rest of the set-up.

BEGIN;

-- Before PostgreSQL 15, everybody may make tables in public.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM keyside;
GRANT USAGE ON SCHEMA public TO keyside;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM keyside;

-- The schema's revision, which only `keysided migrate` writes.
GRANT SELECT ON alembic_version TO keyside;
-- The store's own row. UPDATE lets the role lock the table, too, which each change begins with.
GRANT SELECT, UPDATE ON store_meta TO keyside;
GRANT SELECT, INSERT, UPDATE ON keys, key_versions, version_usage, store_time TO keyside;
-- People's requests for access and what their grants were used for: never deleted. A use is updated
-- by `keysided root rotate` only.
GRANT SELECT, INSERT, UPDATE ON access_requests, access_uses TO keyside;
-- A sidecar removes its own row when it ends, and those of others that are long gone.
GRANT SELECT, INSERT, UPDATE, DELETE ON sidecars TO keyside;

COMMIT;
