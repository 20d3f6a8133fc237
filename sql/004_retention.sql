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
    CONSTRAINT chk_keep_not_shortened CHECK (keep >= at_least),
    CONSTRAINT chk_months_kept_for_ever CHECK (table_name <> 'monthly_close' OR keep IS NULL)
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
COMMENT ON CONSTRAINT retention_policy_pkey ON retention_policy IS 'One period per table.';
COMMENT ON CONSTRAINT chk_months_kept_for_ever ON retention_policy IS 'Nothing carries a month further, so no month is ever deleted.';
COMMENT ON CONSTRAINT chk_keep_not_shortened ON retention_policy IS 'Refuses a period that is too short for its rollup.';

-- ---------------------------------------------------------------------------------------------
-- The proof
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION dominated_condition(timeframe TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    -- A week has no parent of its own: its days are in their months. It is dominated when the day of
    -- its close and each day of its evidence are in the evidence of their months, and the month of
    -- its close is no older.
    SELECT CASE WHEN timeframe = 'weekly' THEN
        'NOT EXISTS (
            SELECT FROM generate_series(0, 6) AS d,
                   LATERAL (SELECT child.week_ts + d * INTERVAL ''24 hours'' AS day_ts) AS day
            WHERE (child.seen | ' || evidence_expression('weekly', 'coalesce(child.close_ts, child.week_ts)') || ') >> d & 1 = 1
              AND NOT EXISTS (
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

CREATE FUNCTION labels_between(timeframe TEXT, first TIMESTAMPTZ, cutoff TIMESTAMPTZ, OUT oldest TIMESTAMPTZ, OUT newest TIMESTAMPTZ)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t timeframes;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    EXECUTE format('SELECT min(%1$I), max(%1$I) FROM public.%2$I WHERE %1$I >= $1 AND %1$I < $2', t.label_column, t.table_name)
        USING first, cutoff INTO oldest, newest;
END
$$;
COMMENT ON FUNCTION labels_between(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Oldest and newest label with first <= label < cutoff in the table of a timeframe; both NULL if there is none.';

CREATE FUNCTION lock_for_cleanup(now TIMESTAMPTZ) RETURNS TABLE (timeframe TEXT, first TIMESTAMPTZ, cutoff TIMESTAMPTZ)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    step   RECORD;
    parent TEXT;
BEGIN
    FOR step IN
        SELECT t.name, lock_for_cleanup.now - r.keep AS cutoff
        FROM timeframes t JOIN retention_policy r USING (table_name)
        WHERE r.keep IS NOT NULL ORDER BY t.ordinal
    LOOP
        timeframe := step.name;
        cutoff := step.cutoff;
        -- What a narrower table is late with arrives here as new rows during the cleanup itself.
        first := least(bucket_start(timeframe, first), (labels_between(timeframe, '-infinity', cutoff)).oldest);
        CONTINUE WHEN first IS NULL OR first >= cutoff;
        FOR parent IN SELECT t.name FROM timeframes t WHERE t.child = timeframe ORDER BY t.ordinal LOOP
            PERFORM lock_buckets(parent, first, cutoff);
        END LOOP;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION lock_for_cleanup(TIMESTAMPTZ) IS
    'Takes every bucket lock that cleanup_old_data(now) needs, narrow before wide and before it locks a row: a correction that held a bucket and waited for a row deleted here would else wait for ever. Returns, by timeframe that has rows to clean, the range of labels that is locked.';

CREATE FUNCTION delete_dominated(timeframe TEXT, first TIMESTAMPTZ, cutoff TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    t       timeframes;
    found   RECORD;
    counted BIGINT := 0;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    found := labels_between(timeframe, first, cutoff);
    IF found.oldest IS NOT NULL THEN
        EXECUTE format('DELETE FROM public.%I AS child WHERE child.%I BETWEEN %L AND %L AND ',
                       t.table_name, t.label_column, found.oldest, found.newest) || dominated_condition(timeframe);
        GET DIAGNOSTICS counted = ROW_COUNT;
    END IF;
    RETURN counted;
END
$$;
COMMENT ON FUNCTION delete_dominated(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Deletes the dominated closes of a timeframe with first <= label < cutoff; returns how many. The caller holds the locks of lock_for_cleanup().';

CREATE FUNCTION clean_closes(timeframe TEXT, first TIMESTAMPTZ, cutoff TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t        timeframes;
    late     RECORD;
    deleted  BIGINT;
    unproven BIGINT;
BEGIN
    deleted := delete_dominated(timeframe, first, cutoff);
    late := labels_between(timeframe, first, cutoff);
    IF late.oldest IS NULL THEN
        RETURN deleted;
    END IF;
    -- What is left was never rolled up, because a job was late or never ran.
    PERFORM roll_up_parents(timeframe, late.oldest, late.newest + INTERVAL '1 microsecond');
    deleted := deleted + delete_dominated(timeframe, first, cutoff);
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    EXECUTE format('SELECT count(*) FROM public.%1$I WHERE %2$I >= $1 AND %2$I < $2', t.table_name, t.label_column)
        USING first, cutoff INTO unproven;
    IF unproven > 0 THEN
        RAISE WARNING 'cleanup_old_data: % rows of % are older than % but not dominated; they stay', unproven, t.table_name, cutoff
            USING HINT = 'SELECT * FROM retention_blocked() counts them by table.';
    END IF;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION clean_closes(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'One table''s share of cleanup_old_data(), for first <= label < cutoff: deletes what is dominated, rolls up what is left, deletes again, and warns about what then still stays. Returns the rows deleted.';

CREATE FUNCTION cleanup_old_data(now TIMESTAMPTZ DEFAULT now())
RETURNS TABLE (table_name TEXT, rows_deleted BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    policy RECORD;
BEGIN
    -- All locks are taken before the first turn of this loop. A row that arrives in an older bucket
    -- than those locked is left to the next cleanup.
    FOR policy IN
        SELECT r.*, t.name AS timeframe, locked.first, locked.cutoff
        FROM retention_policy r
        LEFT JOIN timeframes t USING (table_name)
        LEFT JOIN lock_for_cleanup(cleanup_old_data.now) AS locked ON locked.timeframe = t.name
        WHERE r.keep IS NOT NULL ORDER BY t.ordinal NULLS LAST, r.table_name
    LOOP
        table_name := policy.table_name;
        rows_deleted := 0;
        IF policy.timeframe IS NULL THEN
            EXECUTE format('DELETE FROM public.%I WHERE %I < $1', policy.table_name, policy.age_column)
                USING cleanup_old_data.now - policy.keep;
            GET DIAGNOSTICS rows_deleted = ROW_COUNT;
        ELSIF policy.first IS NOT NULL THEN
            rows_deleted := clean_closes(policy.timeframe, policy.first, policy.cutoff);
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
SET enable_nestloop = off
SET jit = off
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
CREATE FUNCTION try_lock_tables(relations REGCLASS[], mode TEXT, patience INTERVAL) RETURNS BOOLEAN
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    FOR attempt IN 1 .. greatest(ceil(extract(epoch FROM patience) / 0.1), 1) LOOP
        BEGIN
            -- ONLY, since a partitioned table would have the partitions in use locked with it.
            EXECUTE format('LOCK TABLE %s IN %s MODE NOWAIT',
                           (SELECT string_agg('ONLY ' || relation, ', ') FROM unnest(relations) AS relation), mode);
            RETURN true;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
    RETURN false;
END
$$;
COMMENT ON FUNCTION try_lock_tables(REGCLASS[], TEXT, INTERVAL) IS
    'Locks all of the tables or none, without ever waiting in line, where later readers would queue up behind: tries, and for as long as patience lasts tries again a tenth of a second later. Returns whether it succeeded.';

CREATE FUNCTION undominated_rows(timeframe TEXT, relation REGCLASS) RETURNS BIGINT
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    counted BIGINT;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s AS child WHERE NOT (%s)', relation, dominated_condition(timeframe)) INTO counted;
    RETURN counted;
END
$$;
COMMENT ON FUNCTION undominated_rows(TEXT, REGCLASS) IS
    'How many rows of a partition of this timeframe no parent dominates.';

CREATE FUNCTION drop_old_partitions(
    table_name TEXT, retention_months INTEGER, now TIMESTAMPTZ DEFAULT now(), patience INTERVAL DEFAULT '5 seconds'
) RETURNS INTEGER
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '5s'
AS $$
DECLARE
    t          timeframes;
    part       RECORD;
    parent     TEXT;
    cutoff     TIMESTAMPTZ;
    keep       INTERVAL;
    candidates REGCLASS[] := '{}';
    proven     REGCLASS[] := '{}';
    partition  REGCLASS;
    first      TIMESTAMPTZ;
    last       TIMESTAMPTZ;
    left_over  BIGINT;
BEGIN
    SELECT * INTO t FROM timeframes f WHERE f.table_name = drop_old_partitions.table_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'drop_old_partitions: % is not one of the close tables', quote_nullable(table_name)
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
    -- Undone on return, since the function has a setting of its own for it.
    PERFORM set_config('lock_timeout', greatest(ceil(extract(epoch FROM patience) * 1000), 1)::text || 'ms', true);
    cutoff := least(date_trunc('month', now, 'UTC') - make_interval(months => retention_months), now - keep);

    IF NOT pg_try_advisory_xact_lock(hashtextextended('pulseguard.drop_old_partitions', 0)) THEN
        RAISE WARNING 'drop_old_partitions: another session is dropping partitions';
        RETURN 0;
    END IF;

    -- 1. Roll up what some job was late with. Waiting for other writers is allowed only here, while
    -- this transaction holds no lock on a table that they need.
    FOR part IN SELECT * FROM close_partitions(t.table_name) WHERE upper_bound <= cutoff LOOP
        candidates := candidates || part.partition;
        IF undominated_rows(t.name, part.partition) > 0 THEN
            first := coalesce(first, part.lower_bound);
            last := part.upper_bound;
        END IF;
    END LOOP;
    IF first IS NOT NULL THEN
        PERFORM roll_up_parents(t.name, first, last);
    END IF;

    -- 2. Prove, with nobody writing to the partition any more.
    FOREACH partition IN ARRAY candidates LOOP
        IF NOT try_lock_tables(ARRAY[partition], 'SHARE', patience) THEN
            RAISE WARNING 'drop_old_partitions: % is in use; it stays until the next time', partition;
            CONTINUE;
        END IF;
        left_over := undominated_rows(t.name, partition);
        IF left_over > 0 THEN
            RAISE WARNING 'drop_old_partitions: % holds % closes that no rollup carries yet; it stays', partition, left_over
                USING HINT = 'SELECT * FROM retention_blocked() shows which table is behind.';
            CONTINUE;
        END IF;
        proven := proven || partition;
    END LOOP;

    -- 3. Drop. Readers are shut out for this moment only, and not at all if some are reading now.
    IF proven = '{}' THEN
        RETURN 0;
    END IF;
    IF NOT try_lock_tables(format('public.%I', t.table_name)::regclass || proven, 'ACCESS EXCLUSIVE', patience) THEN
        RAISE WARNING 'drop_old_partitions: % is in use; its old partitions stay until the next time', t.table_name;
        RETURN 0;
    END IF;
    FOREACH partition IN ARRAY proven LOOP
        EXECUTE format('DROP TABLE %s', partition);
    END LOOP;
    RETURN cardinality(proven);
END
$$;
COMMENT ON FUNCTION drop_old_partitions(TEXT, INTEGER, TIMESTAMPTZ, INTERVAL) IS
    'Drops the partitions of a close table that end before the month of now less retention_months, and before its retention period. Rolls up first, and leaves a partition with any undominated row standing, with a warning. Returns how many were dropped. Never makes readers queue behind it: if the table stays in use for all its patience it gives up, with a warning, until the next time.';
