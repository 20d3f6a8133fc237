-- Who may do what: rights for three roles, which `pulseguard roles` makes, and none for anybody else.
--
-- Roles belong to the whole server, so no migration makes them. They are in use in this database as
-- soon as the tables belong to pulseguard_owner; until then only their owner may do anything. Every
-- migration ends with grant_rights(), so what a later file adds needs no grants of its own.

CREATE FUNCTION own_objects() RETURNS TABLE (kind TEXT, id OID, name TEXT)
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    WITH owner AS (SELECT relowner AS id FROM pg_class WHERE oid = 'schema_migrations'::regclass),
    found AS (
        SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind,
               c.oid AS id, c.oid::regclass::text AS name, c.tableoid AS catalog
        FROM pg_class c JOIN owner ON owner.id = c.relowner
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
        UNION ALL
        SELECT 'FUNCTION', p.oid, p.oid::regprocedure::text, p.tableoid
        FROM pg_proc p JOIN owner ON owner.id = p.proowner
        WHERE p.pronamespace = 'public'::regnamespace
    )
    SELECT f.kind, f.id, f.name FROM found f
    -- Whoever installed an extension into public may be the owner of our tables too.
    WHERE NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = f.catalog AND d.objid = f.id AND d.deptype = 'e')
    ORDER BY 1, 3
$$;
COMMENT ON FUNCTION own_objects() IS
    'The tables with their partitions, the views, sequences and functions in public that belong to the owner of schema_migrations, extensions left out: what grant_rights() and use_roles() are about.';

CREATE FUNCTION writers_rights(relation REGCLASS) RETURNS TEXT
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT nullif(concat_ws(', ',
        CASE WHEN c.relkind = 'S' THEN 'USAGE'
             -- A row written to a partition by its own name would pass the triggers by.
             WHEN NOT c.relispartition THEN 'SELECT' END,
        CASE WHEN c.relkind NOT IN ('r', 'p') OR c.relispartition THEN NULL
             WHEN c.relname IN ('schema_migrations', 'timeframes', 'retention_audit') THEN NULL
             WHEN c.relname = 'retention_policy' THEN 'UPDATE (keep)'
             WHEN c.relname = 'platform_purpose' THEN 'INSERT'
             WHEN c.relname = 'watch_list' THEN 'INSERT, UPDATE, DELETE'
             -- Rows are deleted by cleanup_old_data(), which proves first that nothing is lost.
             ELSE 'INSERT, UPDATE' END,
        -- What REINDEX takes; before PostgreSQL 17 only an owner may.
        CASE WHEN c.relkind IN ('r', 'p') AND current_setting('server_version_num')::integer >= 170000
             THEN 'MAINTAIN' END), '')
    FROM pg_class c WHERE c.oid = relation
$$;
COMMENT ON FUNCTION writers_rights(REGCLASS) IS
    'What pulseguard_writer may do with a relation, as GRANT spells it; NULL for nothing.';

CREATE FUNCTION grant_on(relation REGCLASS) RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    it     pg_class := (SELECT c FROM pg_class c WHERE c.oid = relation);
    kind   TEXT := CASE WHEN it.relkind = 'S' THEN 'SEQUENCE' ELSE 'TABLE' END;
    rights TEXT := writers_rights(relation);
BEGIN
    EXECUTE format('REVOKE ALL ON %s %s FROM PUBLIC', kind, relation);
    IF it.relowner IS DISTINCT FROM to_regrole('pulseguard_owner')::oid THEN
        RETURN;
    END IF;
    EXECUTE format('REVOKE ALL ON %s %s FROM pulseguard_writer, pulseguard_reader', kind, relation);
    IF rights IS NOT NULL THEN
        EXECUTE format('GRANT %s ON %s %s TO pulseguard_writer', rights, kind, relation);
    END IF;
    IF it.relkind <> 'S' AND NOT it.relispartition THEN
        EXECUTE format('GRANT SELECT ON %s TO pulseguard_reader', relation);
    END IF;
END
$$;
COMMENT ON FUNCTION grant_on(REGCLASS) IS
    'Gives the roles their rights on one relation, and takes all others away; without roles it takes those of PUBLIC away.';

CREATE FUNCTION grant_rights() RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    it     RECORD;
    in_use BOOLEAN := (SELECT relowner FROM pg_class WHERE oid = 'schema_migrations'::regclass)
                      IS NOT DISTINCT FROM to_regrole('pulseguard_owner')::oid;
BEGIN
    FOR it IN SELECT * FROM own_objects() WHERE kind <> 'FUNCTION' LOOP
        PERFORM grant_on(it.id);
    END LOOP;
    FOR it IN SELECT f.name, p.proname, p.provolatile <> 'v' AND NOT p.prosecdef AS reads
              FROM own_objects() f JOIN pg_proc p ON p.oid = f.id WHERE f.kind = 'FUNCTION' LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', it.name);
        CONTINUE WHEN NOT in_use;
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM pulseguard_writer, pulseguard_reader', it.name);
        CONTINUE WHEN it.proname IN ('grant_on', 'grant_rights', 'use_roles');
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO pulseguard_writer', it.name);
        -- One that promises not to write is held to that by PostgreSQL.
        IF it.reads THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO pulseguard_reader', it.name);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION grant_rights() IS
    'Gives the roles the rights they have on what is there now, and takes all others from them and from PUBLIC. Repeated, it changes nothing.';

CREATE FUNCTION use_roles() RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    it RECORD;
BEGIN
    IF has_schema_privilege('public', 'public', 'CREATE') THEN
        RAISE EXCEPTION 'Everybody may create objects in the schema public, and so slip functions of their own among ours'
            USING HINT = 'As the owner of the database, run: REVOKE CREATE ON SCHEMA public FROM PUBLIC', ERRCODE = 'invalid_grant_operation';
    END IF;
    -- No CONNECT: who may enter which database of a server is said login by login.
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO pulseguard_writer', current_database());
    GRANT USAGE, CREATE ON SCHEMA public TO pulseguard_owner;
    GRANT USAGE ON SCHEMA public TO pulseguard_writer, pulseguard_reader;
    -- A sequence goes with the table it belongs to.
    FOR it IN SELECT * FROM own_objects() WHERE kind <> 'SEQUENCE' LOOP
        EXECUTE format('ALTER %s %s OWNER TO pulseguard_owner', it.kind, it.name);
    END LOOP;
    -- Dagster makes its tables itself, and alters them when it is upgraded.
    IF to_regnamespace('dagster') IS NULL THEN
        CREATE SCHEMA dagster AUTHORIZATION pulseguard_writer;
        COMMENT ON SCHEMA dagster IS 'The tables of Dagster itself';
    END IF;
    ALTER SCHEMA dagster OWNER TO pulseguard_writer;
    REVOKE ALL ON SCHEMA dagster FROM PUBLIC;
    FOR it IN SELECT c.oid::regclass AS name FROM pg_class c
              WHERE c.relnamespace = 'dagster'::regnamespace AND c.relkind IN ('r', 'p') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO pulseguard_writer', it.name);
    END LOOP;
    PERFORM grant_rights();
END
$$;
COMMENT ON FUNCTION use_roles() IS
    'Takes the three roles, which must exist, in use in this database: everything of ours in public goes to pulseguard_owner, the schema dagster with its tables to pulseguard_writer, and the rights are granted. Repeated, it changes nothing. Errors: PUBLIC may create in the schema public; the caller may not give things away.';

-- ---------------------------------------------------------------------------------------------
-- What a writer may have done though he may not do it by hand. Each runs as the owner, checks what
-- it is given, and pins its search_path.
-- ---------------------------------------------------------------------------------------------
CREATE OR REPLACE FUNCTION add_monthly_partition(table_name TEXT, month TIMESTAMPTZ) RETURNS BOOLEAN
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    month_start TIMESTAMPTZ := date_trunc('month', month, 'UTC');
    month_end   TIMESTAMPTZ := month_start + INTERVAL '1 month';
    partition   TEXT := table_name || to_char(month_start, '"_y"YYYY"m"MM');
    parent      REGCLASS := to_regclass(format('public.%I', table_name));
    storage     TEXT;
BEGIN
    -- The usual case, and cheap enough for every put: it is there under its usual name.
    IF EXISTS (SELECT FROM pg_inherits
               WHERE inhrelid = to_regclass(format('public.%I', partition)) AND inhparent = parent) THEN
        RETURN false;
    END IF;
    IF NOT EXISTS (SELECT FROM timeframes t WHERE t.table_name = add_monthly_partition.table_name) THEN
        RAISE EXCEPTION 'add_monthly_partition: % is not one of the close tables', quote_nullable(table_name)
            USING HINT = 'Name one of minute_close, hourly_close, daily_close, weekly_close, monthly_close.';
    END IF;
    -- One creator at a time, of whatever month: creators hold locks on the parents until they
    -- commit, and two of them in different orders would wait for each other.
    PERFORM pg_advisory_xact_lock(hashtextextended('pulseguard.partitions', 0));
    IF EXISTS (SELECT FROM close_partitions(table_name) p
               WHERE p.lower_bound <= month_start AND p.upper_bound >= month_end) THEN
        RETURN false;
    END IF;
    IF to_regclass(format('public.%I', partition)) IS NOT NULL THEN
        RAISE EXCEPTION 'There is a relation %, but it is not the partition of % for that month', partition, table_name
            USING HINT = format('Rename it, or attach it: ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L).',
                                table_name, partition, month_start, month_end);
    END IF;
    -- Free space for one more version of every row: what lets a merge be a heap-only update.
    storage := CASE WHEN table_name = 'minute_close' THEN '' ELSE 'WITH (fillfactor = 45)' END;
    -- Made first and attached then: CREATE ... PARTITION OF would lock the parent against its
    -- readers and writers, ATTACH does not.
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS) %s',
                   partition, table_name, storage);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   table_name, partition, month_start, month_end);
    PERFORM grant_on(format('public.%I', partition)::regclass);
    RETURN true;
END
$$;
COMMENT ON FUNCTION add_monthly_partition(TEXT, TIMESTAMPTZ) IS
    'Creates the partition of a close table for the UTC month that holds an instant, unless some partition covers it; returns whether it did. Readers and writers of the table go on meanwhile. Runs as the owner of the tables. Errors: a table that is not a close table; another relation has the name.';

ALTER FUNCTION cleanup_old_data(TIMESTAMPTZ) SECURITY DEFINER;
ALTER FUNCTION drop_old_partitions(TEXT, INTEGER, TIMESTAMPTZ, INTERVAL) SECURITY DEFINER;
-- The statistics of columns are shown to those only who may read the partition itself.
ALTER FUNCTION maintain_indexes(BIGINT, DOUBLE PRECISION) SECURITY DEFINER;
