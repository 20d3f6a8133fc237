-- What the checks of the close tables look for.
--
-- Belongs here: queries that show offenders. None of them writes, and each looks at a bounded number
-- of buckets, so that it takes about as long in ten years as today. Not here: how bad an offence is.

CREATE FUNCTION buckets_ago(timeframe TEXT, now TIMESTAMPTZ, number INTEGER) RETURNS TIMESTAMPTZ
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT date_trunc(t.unit, now, 'UTC') - number * ('1 ' || t.unit)::interval
    FROM timeframes t WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION buckets_ago(TEXT, TIMESTAMPTZ, INTEGER) IS
    'Label of the bucket so many before the one that is open: 0 is the open one, 1 the last closed one.';

CREATE FUNCTION coins_unseen(timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ)
RETURNS TABLE (coin_id TEXT, coin_rank INTEGER, expected BIGINT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    t timeframes;
BEGIN
    SELECT * INTO STRICT t FROM timeframes f WHERE f.name = timeframe;
    RETURN QUERY EXECUTE format(
        'SELECT e.coin_id, e.coin_rank, e.expected
         FROM (SELECT *, count(*) OVER () AS expected FROM expected_coins()) AS e
         WHERE NOT EXISTS (SELECT FROM public.%1$I AS stored
                           WHERE stored.coin_id = e.coin_id AND stored.%2$I >= $1 AND stored.%2$I < $2)
         ORDER BY e.coin_rank NULLS LAST, e.coin_id', t.table_name, t.label_column)
        USING "from", "to";
END
$$;
COMMENT ON FUNCTION coins_unseen(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Coins that are collected now and have no close at all with from <= label < to, by rank; expected is how many are collected. Why, and what history could not give, is told by coins_without_close().';

CREATE FUNCTION misaligned_closes(timeframe TEXT, now TIMESTAMPTZ DEFAULT now(), buckets INTEGER DEFAULT 60)
RETURNS TABLE (coin_id TEXT, label TIMESTAMPTZ, close_ts TIMESTAMPTZ)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET jit = off
-- Else the planner takes the constraints' word for it, and does not look at a single row.
SET constraint_exclusion = off
AS $$
DECLARE
    t timeframes;
BEGIN
    SELECT * INTO STRICT t FROM timeframes f WHERE f.name = timeframe;
    RETURN QUERY EXECUTE format(
        'SELECT coin_id, %1$I, %4$s FROM public.%2$I WHERE %1$I >= $1 AND (%3$s <> %1$I OR %5$s) ORDER BY 2 DESC, 1',
        t.label_column, t.table_name, bucket_expression(timeframe, format('%I', t.label_column)),
        CASE WHEN t.child IS NULL THEN 'NULL::timestamptz' ELSE 'close_ts' END,
        CASE WHEN t.child IS NULL THEN 'false'
             ELSE format('%s <> %I', bucket_expression(timeframe, 'close_ts'), t.label_column) END)
        USING buckets_ago(timeframe, now, buckets);
END
$$;
COMMENT ON FUNCTION misaligned_closes(TEXT, TIMESTAMPTZ, INTEGER) IS
    'Closes of the last buckets whose label is not the start of a bucket in UTC, or whose observation lies outside it. The constraints refuse them; this proves from the rows that they did.';

CREATE FUNCTION parents_behind(
    timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ, recorded_before TIMESTAMPTZ DEFAULT 'infinity'
) RETURNS TABLE (coin_id TEXT, label TIMESTAMPTZ, fault TEXT, children BIGINT, newest_child TIMESTAMPTZ)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    p timeframes;
    c timeframes;
BEGIN
    SELECT * INTO STRICT p FROM timeframes f WHERE f.name = timeframe AND f.child IS NOT NULL;
    SELECT * INTO STRICT c FROM timeframes f WHERE f.name = p.child;
    RETURN QUERY EXECUTE format(
        'SELECT child.coin_id, child.bucket, child.fault, count(*), max(child.label)
         FROM (SELECT child.coin_id, child.bucket, child.label,
                      CASE WHEN parent.coin_id IS NULL THEN ''there is no row''
                           WHEN %8$s > %9$s
                           THEN ''the close is older than its child''
                           WHEN parent.seen & child.bit = 0 THEN ''the evidence lacks its child''
                      END AS fault
               FROM (SELECT coin_id, %3$I AS label, %4$s AS bucket, %5$s AS closed_at, %6$s AS bit, source, created_at
                     FROM public.%2$I
                     WHERE %3$I >= $1 AND %3$I < $2 AND created_at < $3) AS child
               LEFT JOIN public.%7$I AS parent
                 ON parent.coin_id = child.coin_id AND parent.%1$I = child.bucket AND parent.%1$I BETWEEN $4 AND $2) AS child
         WHERE child.fault IS NOT NULL
         GROUP BY child.coin_id, child.bucket, child.fault ORDER BY child.bucket DESC, child.coin_id, child.fault',
        p.label_column, c.table_name, c.label_column, bucket_expression(timeframe, format('%I', c.label_column)),
        CASE WHEN c.child IS NULL THEN format('%I', c.label_column) ELSE format('coalesce(close_ts, %I)', c.label_column) END,
        evidence_expression(timeframe, format('%I', c.label_column)), p.table_name,
        observation_order('child', 'child.closed_at'),
        observation_order('parent', format('coalesce(parent.close_ts, parent.%I)', p.label_column)))
        USING "from", "to", recorded_before, bucket_start(timeframe, "from");
END
$$;
COMMENT ON FUNCTION parents_behind(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Closes that do not agree with their stored children, those with from <= label < to and recorded before an instant: by coin, bucket and fault, how many children tell so and the newest of them. A parent must carry each child''s bit and be no older than any, by observation_order().';

CREATE FUNCTION overdue_closes(
    timeframe TEXT, now TIMESTAMPTZ DEFAULT now(), patience INTERVAL DEFAULT '30 minutes'
) RETURNS TABLE (label TIMESTAMPTZ, closes BIGINT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    t      timeframes;
    cutoff TIMESTAMPTZ;
    newest TIMESTAMPTZ;
BEGIN
    SELECT * INTO STRICT t FROM timeframes f WHERE f.name = timeframe;
    SELECT now - r.keep - patience INTO cutoff FROM retention_policy r WHERE r.table_name = t.table_name;
    newest := (labels_between(timeframe, '-infinity', cutoff)).newest;
    IF newest IS NULL OR dominated_condition(timeframe) IS NULL THEN
        RETURN;
    END IF;
    -- Not all of them: after a day without a cleanup that would be 26 million minutes.
    RETURN QUERY EXECUTE format(
        'SELECT %1$I, count(*) FROM public.%2$I AS child WHERE %1$I >= $1 AND %1$I < $2 AND %3$s GROUP BY 1 ORDER BY 1',
        t.label_column, t.table_name, dominated_condition(timeframe))
        USING buckets_ago(timeframe, newest, CASE WHEN t.child IS NULL THEN 59 ELSE 1 END), cutoff;
END
$$;
COMMENT ON FUNCTION overdue_closes(TEXT, TIMESTAMPTZ, INTERVAL) IS
    'Dominated closes that cleanup_old_data() should have deleted longer ago than patience, by label, among the two newest buckets (60 minutes, of minutes) of that age. Any of them means that no cleanup runs.';

CREATE FUNCTION partition_runway(table_name TEXT, now TIMESTAMPTZ DEFAULT now()) RETURNS INTEGER
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    WITH there AS MATERIALIZED (SELECT * FROM close_partitions(table_name))
    SELECT coalesce(min(number), 120) - 1
    FROM generate_series(0, 119) AS number,
         LATERAL (SELECT date_trunc('month', now, 'UTC') + number * INTERVAL '1 month' AS month) AS asked
    WHERE NOT EXISTS (SELECT FROM there
                      WHERE there.lower_bound <= asked.month AND there.upper_bound >= asked.month + INTERVAL '1 month')
$$;
COMMENT ON FUNCTION partition_runway(TEXT, TIMESTAMPTZ) IS
    'How many months after the one of now have a partition without a gap; -1 when that one has none itself. At most 119.';

CREATE FUNCTION price_jumps(
    timeframe TEXT, now TIMESTAMPTZ DEFAULT now(), span INTERVAL DEFAULT NULL, factor NUMERIC DEFAULT 10
) RETURNS TABLE (coin_id TEXT, label TIMESTAMPTZ, kind TEXT, price_usd NUMERIC, usual NUMERIC, times NUMERIC)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET jit = off
AS $$
DECLARE
    t timeframes;
BEGIN
    SELECT * INTO STRICT t FROM timeframes f WHERE f.name = timeframe;
    RETURN QUERY EXECUTE format(
        'WITH closes AS MATERIALIZED (
            SELECT coin_id, %1$I AS label, price_usd FROM public.%2$I WHERE %1$I >= $1 AND %1$I < $2
         ), moved AS MATERIALIZED (
            -- Nearly every coin stays within the factor, and is not looked at twice.
            SELECT coin_id FROM closes GROUP BY coin_id HAVING max(price_usd) > $3 * min(price_usd)
         ), series AS (
            SELECT coin_id, label, price_usd,
                   lag(price_usd) OVER coin AS before, lead(price_usd) OVER coin AS after
            FROM closes WHERE coin_id IN (SELECT coin_id FROM moved)
            WINDOW coin AS (PARTITION BY coin_id ORDER BY label)
         ), newest AS (
            SELECT DISTINCT ON (coin_id) coin_id, label, price_usd FROM series ORDER BY coin_id, label DESC
         ), found AS (
            -- Of an even number of closes both in the middle: one of two may itself be a spike.
            SELECT n.coin_id, n.label, ''jump'' AS kind, n.price_usd, m.low AS usual
            FROM newest n, LATERAL (
                SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY s.price_usd) AS low,
                       percentile_disc(0.5) WITHIN GROUP (ORDER BY s.price_usd DESC) AS high
                FROM series s WHERE s.coin_id = n.coin_id AND s.label < n.label) AS m
            WHERE n.price_usd > $3 * m.high OR m.low > $3 * n.price_usd
            UNION ALL
            SELECT coin_id, label, ''spike'', price_usd, after FROM series
            WHERE before IS NOT NULL AND after IS NOT NULL
              AND (price_usd > $3 * greatest(before, after) OR $3 * price_usd < least(before, after))
         )
         SELECT coin_id, label, kind, price_usd, usual,
                round(greatest(price_usd, usual) / nullif(least(price_usd, usual), 0), 1)
         FROM found ORDER BY 6 DESC NULLS FIRST, coin_id, label',
        t.label_column, t.table_name)
        USING CASE WHEN span IS NULL THEN buckets_ago(timeframe, now, CASE WHEN t.child IS NULL THEN 15 ELSE 8 END)
                   ELSE bucket_start(timeframe, now - span) END,
              bucket_start(timeframe, now), factor;
END
$$;
COMMENT ON FUNCTION price_jumps(TEXT, TIMESTAMPTZ, INTERVAL, NUMERIC) IS
    'Prices of closed buckets that lie more than factor away from what is usual. A jump: the coin''s newest close against the median of those before it. A spike: a close above, or below, both its neighbours, so one that was back at once. Looked at are the closes of the last span; NULL is 8 buckets, of minutes 15.';

CREATE FUNCTION stale_provider_times(timeframe TEXT, now TIMESTAMPTZ DEFAULT now(), older_than INTERVAL DEFAULT '1 hour')
RETURNS TABLE (coin_id TEXT, label TIMESTAMPTZ, provider_ts TIMESTAMPTZ, behind INTERVAL, told BIGINT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET jit = off
AS $$
DECLARE
    t      timeframes;
    newest TIMESTAMPTZ;
BEGIN
    SELECT * INTO STRICT t FROM timeframes f WHERE f.name = timeframe;
    newest := (labels_between(timeframe, '-infinity', now + INTERVAL '1 microsecond')).newest;
    RETURN QUERY EXECUTE format(
        'SELECT coin_id, label, provider_ts, closed_at - provider_ts, told
         FROM (SELECT coin_id, %1$I AS label, provider_ts, %3$s AS closed_at, count(*) OVER () AS told
               FROM public.%2$I
               WHERE %1$I = $1 AND provider_ts IS NOT NULL AND source <> ''history'') AS newest
         WHERE provider_ts < closed_at - $2 ORDER BY provider_ts, coin_id',
        t.label_column, t.table_name,
        CASE WHEN t.child IS NULL THEN format('%I', t.label_column) ELSE format('coalesce(close_ts, %I)', t.label_column) END)
        USING newest, older_than;
END
$$;
COMMENT ON FUNCTION stale_provider_times(TEXT, TIMESTAMPTZ, INTERVAL) IS
    'Coins of the newest label whose price was already older than that when it was observed, by the provider''s own time, the oldest first; told is how many coins of the label have such a time. Points of history have none of their own.';
