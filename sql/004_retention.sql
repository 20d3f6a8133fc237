-- Retention: what may be deleted, and the proof that must stand before it is.
--
-- A child row is DOMINATED when its parent carries its evidence bit and a close at least as new.
-- Only dominated rows are ever deleted: each retention period is exactly one parent bucket long,
-- so age alone would delete the first child of a bucket before a late rollup had read it.

CREATE TABLE retention_policy (
    table_name TEXT PRIMARY KEY,
    keep       INTERVAL,
    at_least   INTERVAL,
    age_column TEXT NOT NULL,
    CONSTRAINT chk_keep_not_shortened CHECK (at_least IS NULL OR keep IS NULL OR keep >= at_least)
);
INSERT INTO retention_policy (table_name, keep, at_least, age_column) VALUES
    ('minute_close',          '60 minutes', '60 minutes', 'minute_ts'),
    ('hourly_close',          '24 hours',   '24 hours',   'hour_ts'),
    ('daily_close',           '7 days',     '7 days',     'day_ts'),
    ('weekly_close',          '364 days',   '364 days',   'week_ts'),
    ('monthly_close',         NULL,         NULL,         'month_ts'),
    ('collection_status',     '30 days',    '30 days',    'created_at'),
    ('rejected_observations', '30 days',    '1 day',      'rejected_at'),
    ('api_calls',             '7 days',     '2 days',     'called_at');
COMMENT ON TABLE retention_policy IS 'How long each table keeps its rows. Users may lengthen a period, never shorten it below at_least.';
COMMENT ON COLUMN retention_policy.table_name IS 'The table.';
COMMENT ON COLUMN retention_policy.keep IS 'Rows older than this may go, once dominated; NULL keeps them for ever.';
COMMENT ON COLUMN retention_policy.at_least IS 'The shortest period the platform works with.';
COMMENT ON COLUMN retention_policy.age_column IS 'Column the age of a row is measured by.';
COMMENT ON CONSTRAINT chk_keep_not_shortened ON retention_policy IS 'Refuses a period that is too short for its rollup.';

-- ---------------------------------------------------------------------------------------------
-- The proof
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION dominated_condition(timeframe TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    -- A week has no parent of its own: its days are in their months. It is dominated when each day
    -- of its evidence is in the evidence of that day's month, and the month of its close is no older.
    SELECT CASE WHEN timeframe = 'weekly' THEN
        'NOT EXISTS (
            SELECT FROM generate_series(0, 6) AS d,
                   LATERAL (SELECT child.week_ts + d * INTERVAL ''24 hours'' AS day_ts) AS day
            WHERE child.seen >> d & 1 = 1 AND NOT EXISTS (
                SELECT FROM public.monthly_close AS parent
                WHERE parent.coin_id = child.coin_id
                  AND parent.month_ts = date_trunc(''month'', day.day_ts, ''UTC'')
                  AND parent.seen & (' || evidence_expression('monthly', 'day.day_ts') || ') <> 0))
         AND EXISTS (
            SELECT FROM public.monthly_close AS parent
            WHERE parent.coin_id = child.coin_id
              AND parent.month_ts = date_trunc(''month'', coalesce(child.close_ts, child.week_ts), ''UTC'')
              AND (coalesce(parent.close_ts, parent.month_ts), parent.created_at)
                  >= (coalesce(child.close_ts, child.week_ts), child.created_at))'
    ELSE (
        SELECT string_agg(format(
            'EXISTS (
                SELECT FROM public.%1$I AS parent
                WHERE parent.coin_id = child.coin_id
                  AND parent.%2$I = date_trunc(%3$L, child.%4$I, ''UTC'')
                  AND parent.seen & (%5$s) <> 0
                  AND (coalesce(parent.close_ts, parent.%2$I), parent.created_at) >= (%6$s, child.created_at))',
            p.table_name, p.label_column, p.unit, c.label_column,
            evidence_expression(p.name, format('child.%I', c.label_column)),
            CASE WHEN c.child IS NULL THEN format('child.%I', c.label_column)
                 ELSE format('coalesce(child.close_ts, child.%I)', c.label_column) END),
            ' AND ' ORDER BY p.ordinal)
        FROM timeframes c JOIN timeframes p ON p.child = c.name
        WHERE c.name = timeframe)
    END
$$;
COMMENT ON FUNCTION dominated_condition(TEXT) IS
    'SQL condition that holds for a row `child` of this timeframe exactly when it is dominated by every parent: daily rows by their week AND their month. NULL for monthly, which nothing dominates.';

CREATE FUNCTION roll_up_parents(timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    SELECT coalesce(sum(roll_up(p.name, "from", "to")), 0)::bigint
    FROM (SELECT name FROM timeframes WHERE child = timeframe ORDER BY ordinal) AS p
$$;
COMMENT ON FUNCTION roll_up_parents(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'roll_up() into every parent of a timeframe, for its rows with from <= label < to; returns the rows written.';

CREATE FUNCTION cleanup_old_data(now TIMESTAMPTZ DEFAULT now())
RETURNS TABLE (table_name TEXT, rows_deleted BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
AS $$
DECLARE
    policy  retention_policy;
    t       timeframes;
    parent  timeframes;
    cutoff  TIMESTAMPTZ;
    oldest  TIMESTAMPTZ;
    newest  TIMESTAMPTZ;
    proof   TEXT;
    removal TEXT;
    counted BIGINT;
    unproven BIGINT;
BEGIN
    FOR policy IN
        SELECT r.* FROM retention_policy r LEFT JOIN timeframes f ON f.table_name = r.table_name
        WHERE r.keep IS NOT NULL ORDER BY f.ordinal NULLS LAST, r.table_name
    LOOP
        cutoff := cleanup_old_data.now - policy.keep;
        table_name := policy.table_name;
        rows_deleted := 0;
        SELECT * INTO t FROM timeframes f WHERE f.table_name = policy.table_name;
        IF NOT FOUND THEN
            EXECUTE format('DELETE FROM public.%I WHERE %I < $1', policy.table_name, policy.age_column) USING cutoff;
            GET DIAGNOSTICS rows_deleted = ROW_COUNT;
            RETURN NEXT;
            CONTINUE;
        END IF;

        EXECUTE format('SELECT min(%1$I), max(%1$I) FROM public.%2$I WHERE %1$I < $1', t.label_column, t.table_name)
            USING cutoff INTO oldest, newest;
        IF oldest IS NOT NULL THEN
            -- Before the first row is touched, like every writer: else a correction that holds the
            -- bucket and waits for the row would wait for us for ever.
            FOR parent IN SELECT * FROM timeframes f WHERE f.child = t.name ORDER BY f.ordinal LOOP
                PERFORM lock_buckets(parent.name, oldest, newest);
            END LOOP;
            proof := dominated_condition(t.name);
            removal := format('DELETE FROM public.%I AS child WHERE child.%I BETWEEN %L AND %L AND ',
                              t.table_name, t.label_column, oldest, newest) || proof;
            EXECUTE removal;
            GET DIAGNOSTICS rows_deleted = ROW_COUNT;
            EXECUTE format('SELECT min(%1$I), max(%1$I) FROM public.%2$I WHERE %1$I < $1', t.label_column, t.table_name)
                USING cutoff INTO oldest, newest;
            -- What is left was never rolled up, because a job was late or never ran.
            IF oldest IS NOT NULL THEN
                PERFORM roll_up_parents(t.name, oldest, newest + INTERVAL '1 microsecond');
                EXECUTE removal;
                GET DIAGNOSTICS counted = ROW_COUNT;
                rows_deleted := rows_deleted + counted;
                EXECUTE format('SELECT count(*) FROM public.%I WHERE %I < $1', t.table_name, t.label_column)
                    USING cutoff INTO unproven;
                IF unproven > 0 THEN
                    RAISE WARNING 'cleanup_old_data: % rows of % are older than % but not dominated; they stay',
                        unproven, t.table_name, policy.keep
                        USING HINT = 'SELECT * FROM retention_blocked() lists them by table.';
                END IF;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION cleanup_old_data(TIMESTAMPTZ) IS
    'Deletes what retention_policy no longer keeps. Closes are rolled up first if that was not done yet, and only dominated ones are deleted; the others stay, with a warning. Returns the rows deleted by table. now is the instant ages are measured from.';

CREATE FUNCTION retention_blocked(now TIMESTAMPTZ DEFAULT now())
RETURNS TABLE (table_name TEXT, rows_kept BIGINT, oldest TIMESTAMPTZ)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t     timeframes;
    limit_at TIMESTAMPTZ;
BEGIN
    FOR t IN SELECT f.* FROM timeframes f ORDER BY f.ordinal LOOP
        SELECT retention_blocked.now - r.keep INTO limit_at
        FROM retention_policy r WHERE r.table_name = t.table_name;
        CONTINUE WHEN limit_at IS NULL;
        EXECUTE format('SELECT count(*), min(%2$I) FROM public.%1$I AS child WHERE %2$I < $1 AND NOT (%3$s)',
                       t.table_name, t.label_column, dominated_condition(t.name))
            USING limit_at INTO rows_kept, oldest;
        table_name := t.table_name;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION retention_blocked(TIMESTAMPTZ) IS
    'By close table: rows that are older than their retention period and not dominated yet, and the oldest of them. More than 0 after a cleanup means that rollups are missing.';

-- ---------------------------------------------------------------------------------------------
-- Dropping whole partitions
-- ---------------------------------------------------------------------------------------------
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
    'The partitions of a close table with their bounds [lower_bound, upper_bound), read from the catalog.';

CREATE FUNCTION drop_old_partitions(table_name TEXT, retention_months INTEGER, now TIMESTAMPTZ DEFAULT now())
RETURNS INTEGER
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '5s'
AS $$
DECLARE
    t         timeframes;
    part      RECORD;
    cutoff    TIMESTAMPTZ;
    keep      INTERVAL;
    undominated BIGINT;
    dropped   INTEGER := 0;
BEGIN
    SELECT * INTO t FROM timeframes f WHERE f.table_name = drop_old_partitions.table_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'drop_old_partitions: % is not one of the close tables', quote_literal(table_name)
            USING HINT = 'Name one of minute_close, hourly_close, daily_close, weekly_close, monthly_close.';
    END IF;
    IF retention_months IS NULL OR retention_months < 0 THEN
        RAISE EXCEPTION 'drop_old_partitions: retention_months is %, but counts months to keep', coalesce(retention_months::text, 'NULL')
            USING HINT = 'Give 0 or more; 0 keeps the month of now.';
    END IF;
    SELECT r.keep INTO keep FROM retention_policy r WHERE r.table_name = t.table_name;
    IF keep IS NULL THEN
        RETURN 0; -- kept for ever
    END IF;
    cutoff := least(date_trunc('month', now, 'UTC') - make_interval(months => retention_months), now - keep);

    FOR part IN SELECT * FROM close_partitions(t.table_name) WHERE upper_bound <= cutoff LOOP
        PERFORM roll_up_parents(t.name, part.lower_bound, part.upper_bound);
        -- Nothing may slip in between the proof and the drop.
        EXECUTE format('LOCK TABLE %s IN EXCLUSIVE MODE', part.partition);
        EXECUTE format('SELECT count(*) FROM %s AS child WHERE NOT (%s)', part.partition, dominated_condition(t.name))
            INTO undominated;
        IF undominated > 0 THEN
            RAISE WARNING 'drop_old_partitions: % holds % closes that no rollup carries yet; it stays', part.partition, undominated
                USING HINT = 'SELECT * FROM retention_blocked() shows which table is behind.';
            CONTINUE;
        END IF;
        EXECUTE format('DROP TABLE %s', part.partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;
COMMENT ON FUNCTION drop_old_partitions(TEXT, INTEGER, TIMESTAMPTZ) IS
    'Drops the partitions of a close table that end before the month of now less retention_months, and before its retention period. Rolls up first, and leaves a partition with any undominated row standing, with a warning. Returns how many were dropped. Gives up on a lock after 5 s instead of queueing readers behind it.';
