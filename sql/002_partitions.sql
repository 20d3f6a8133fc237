-- Monthly partitions of the close tables, with UTC bounds whatever the session's TimeZone.

CREATE FUNCTION close_partitions(table_name TEXT)
RETURNS TABLE (partition REGCLASS, lower_bound TIMESTAMPTZ, upper_bound TIMESTAMPTZ)
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT c.oid::regclass, bound[1]::timestamptz, bound[2]::timestamptz
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid,
    LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') AS bound
    WHERE i.inhparent = to_regclass(format('public.%I', table_name))
    ORDER BY 2
$$;
COMMENT ON FUNCTION close_partitions(TEXT) IS
    'The partitions of a close table with their bounds [lower_bound, upper_bound), read from the catalog and not from their names.';

CREATE FUNCTION add_monthly_partition(table_name TEXT, month TIMESTAMPTZ) RETURNS BOOLEAN
LANGUAGE plpgsql
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
    RETURN true;
END
$$;
COMMENT ON FUNCTION add_monthly_partition(TEXT, TIMESTAMPTZ) IS
    'Creates the partition of a close table for the UTC month that holds an instant, unless some partition covers it; returns whether it did. Readers and writers of the table go on meanwhile. Errors: another relation has the name.';

CREATE FUNCTION create_monthly_partition(table_name TEXT, start_date DATE) RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM timeframes t WHERE t.table_name = create_monthly_partition.table_name) THEN
        RAISE EXCEPTION 'create_monthly_partition: % is not one of the close tables', quote_nullable(table_name)
            USING HINT = 'Name one of minute_close, hourly_close, daily_close, weekly_close, monthly_close.';
    END IF;
    IF start_date IS NULL OR NOT isfinite(start_date) THEN
        RAISE EXCEPTION 'create_monthly_partition: % is not a day', quote_nullable(start_date)
            USING HINT = 'Give any day of the month, such as 2025-01-01.';
    END IF;
    PERFORM add_monthly_partition(table_name, start_date::timestamp AT TIME ZONE 'UTC');
END
$$;
COMMENT ON FUNCTION create_monthly_partition(TEXT, DATE) IS
    'Creates the partition of a close table for the month of start_date, from 00:00 UTC of its first day, unless it exists. Errors: a table that is not a close table.';

CREATE FUNCTION create_monthly_partition(table_name TEXT, start_at TIMESTAMPTZ) RETURNS VOID
LANGUAGE sql
SET search_path = public, pg_temp
-- The session's TimeZone on purpose: it is what turned the caller's timestamp into start_at, and
-- so what turns it back into the day that was meant.
AS $$ SELECT create_monthly_partition(table_name, start_at::date) $$;
COMMENT ON FUNCTION create_monthly_partition(TEXT, TIMESTAMPTZ) IS
    'The same for a day written as CURRENT_DATE + INTERVAL ''1 month'', which is a timestamp and no date.';

CREATE FUNCTION ensure_partitions("from" TIMESTAMPTZ, "to" TIMESTAMPTZ) RETURNS INTEGER
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t       timeframes;
    month   TIMESTAMPTZ;
    created INTEGER := 0;
BEGIN
    IF "from" IS NULL OR "to" IS NULL OR "to" < "from" OR NOT isfinite("from") OR NOT isfinite("to") THEN
        RAISE EXCEPTION 'ensure_partitions: % to % is not a range of instants', coalesce("from"::text, 'NULL'), coalesce("to"::text, 'NULL')
            USING HINT = 'Give the first and the last instant that closes shall be stored for.';
    END IF;
    FOR t IN SELECT * FROM timeframes ORDER BY ordinal LOOP
        -- The label of the first bucket may lie in the month before.
        month := date_trunc('month', date_trunc(t.unit, "from", 'UTC'), 'UTC');
        WHILE month <= "to" LOOP
            created := created + add_monthly_partition(t.table_name, month)::integer;
            month := month + INTERVAL '1 month';
        END LOOP;
    END LOOP;
    RETURN created;
END
$$;
COMMENT ON FUNCTION ensure_partitions(TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Creates whatever monthly partition of the five close tables is missing for instants from..to, both included; returns how many. Commit it before other work: creators wait for each other until they commit. Errors: an empty or endless range.';

-- The seed's two named partitions, and this month with the twelve that follow.
SELECT create_monthly_partition('minute_close', '2025-01-01');
SELECT create_monthly_partition('minute_close', '2025-02-01');
SELECT ensure_partitions(now(), now() + INTERVAL '12 months');
