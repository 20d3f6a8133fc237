-- The order of observations with history in it, roll-ups by hashing, and cleanup by buckets.
--
--   * Observations of a bucket are ordered by (close_ts, source <> 'history', created_at): the later
--     minute wins, within a minute what was seen live or corrected beats a point of the provider's
--     past, and then the later recorded one wins. So it does not matter whether history or a delayed
--     live row arrives first.
--   * A roll-up groups by hashing instead of sorting every child.
--   * Cleanup proves the children of a bucket from the parents' side, and then deletes them by label.
--     What it deleted is counted in retention_audit, to be checked later by other means.
--
-- The functions of 003 and 004 that are not named here stand as they are.

CREATE FUNCTION observation_order("row" TEXT, close_ts TEXT) RETURNS TEXT
LANGUAGE sql IMMUTABLE STRICT
SET search_path = public, pg_temp
AS $$ SELECT format('(%2$s, %1$s.source <> ''history'', %1$s.created_at)', "row", close_ts) $$;
COMMENT ON FUNCTION observation_order(TEXT, TEXT) IS
    'THE order of observations, as SQL text of a row value: of two observations of a bucket the greater one is the close. "row" is the alias whose source and created_at are compared, close_ts the text of its minute.';

CREATE FUNCTION bucket_expression(timeframe TEXT, at TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    -- Widths that do not vary are counted from a Monday: an integer division, which takes a tenth of
    -- the time of date_trunc(). With a million rows to clean that shows.
    SELECT CASE t.unit WHEN 'month' THEN format('date_trunc(''month'', %s, ''UTC'')', at)
           ELSE format('date_bin(%L, %s, ''2000-01-03 00:00:00+00'')', '1 ' || t.unit, at) END
    FROM timeframes t WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION bucket_expression(TEXT, TEXT) IS
    'SQL text for the label of the bucket of this timeframe that holds the instant at (SQL text too).';

CREATE OR REPLACE FUNCTION evidence_expression(timeframe TEXT, child_label TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    -- How many whole children lie between the start of the bucket and this one. The difference of
    -- two instants knows no time zone. In parentheses: next to another bit operator, << is not bound
    -- any tighter.
    SELECT format('(1::bigint << date_part(%L, %s - %s)::integer)',
                  c.unit, child_label, bucket_expression(timeframe, child_label))
    FROM timeframes t JOIN timeframes c ON c.name = t.child WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION evidence_expression(TEXT, TEXT) IS
    'SQL text for the evidence bit that a child with the label child_label (SQL text too) sets in its parent of this timeframe.';

-- ---------------------------------------------------------------------------------------------
-- The merge rule
-- ---------------------------------------------------------------------------------------------
CREATE OR REPLACE FUNCTION merge_statement(timeframe TEXT, incoming TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    -- The bounds let PostgreSQL leave out the other months' partitions. As a range and not as an
    -- equality: for a label newer than the statistics an equality is taken for a single row.
    SELECT format(
        'MERGE INTO public.%1$I AS stored USING (%3$s) AS incoming
         ON stored.coin_id = incoming.coin_id AND stored.%2$I = incoming.label
            AND stored.%2$I BETWEEN %4$L AND %5$L
         WHEN MATCHED
            AND %6$s >= %7$s
            AND (incoming.close_ts, incoming.created_at, incoming.price_usd, incoming.market_cap_usd,
                 incoming.volume_24h_usd, incoming.coin_rank, incoming.provider_ts, incoming.source,
                 stored.seen | incoming.seen)
                IS DISTINCT FROM
                (stored.close_ts, stored.created_at, stored.price_usd, stored.market_cap_usd,
                 stored.volume_24h_usd, stored.coin_rank, stored.provider_ts, stored.source,
                 stored.seen)
         THEN UPDATE SET
            price_usd = incoming.price_usd, market_cap_usd = incoming.market_cap_usd,
            volume_24h_usd = incoming.volume_24h_usd, coin_rank = incoming.coin_rank,
            created_at = incoming.created_at, provider_ts = incoming.provider_ts,
            source = incoming.source, close_ts = incoming.close_ts,
            seen = stored.seen | incoming.seen
         WHEN MATCHED AND stored.seen | incoming.seen <> stored.seen
         THEN UPDATE SET seen = stored.seen | incoming.seen
         WHEN NOT MATCHED
         THEN INSERT (coin_id, %2$I, price_usd, market_cap_usd, volume_24h_usd, coin_rank,
                      created_at, provider_ts, source, close_ts, seen)
              VALUES (incoming.coin_id, incoming.label, incoming.price_usd, incoming.market_cap_usd,
                      incoming.volume_24h_usd, incoming.coin_rank, incoming.created_at,
                      incoming.provider_ts, incoming.source, incoming.close_ts, incoming.seen)',
        t.table_name, t.label_column, incoming,
        bucket_start(timeframe, first), bucket_start(timeframe, last),
        observation_order('incoming', 'incoming.close_ts'),
        observation_order('stored', format('coalesce(stored.close_ts, stored.%I)', t.label_column)))
    FROM timeframes t WHERE t.name = timeframe AND t.child IS NOT NULL
$$;
COMMENT ON FUNCTION merge_statement(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'THE merge rule, as the text of one MERGE into the rollup of a timeframe. incoming is a query with coin_id, label, price_usd, market_cap_usd, volume_24h_usd, coin_rank, created_at, provider_ts, source, close_ts, seen and at most one row per coin and label, all of whose labels lie in the buckets of first..last. Hold lock_buckets() of the same range when executing it.';

CREATE OR REPLACE FUNCTION incoming_from_children(timeframe TEXT, relation TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    -- One child label means one row per coin (it is their key): nothing to choose from.
    SELECT CASE WHEN first = last THEN
        format(
            'SELECT coin_id, %2$L::timestamptz AS label, price_usd, market_cap_usd, volume_24h_usd, coin_rank,
                    created_at, provider_ts, source, %3$s AS close_ts, %4$s::bigint AS seen
             FROM %1$s AS child WHERE %5$I = %6$L',
            relation, bucket_start(timeframe, first), close_ts, evidence_bit(timeframe, first),
            c.label_column, first)
    ELSE
        -- A close lies in its own bucket (chk_close_in_bucket) and buckets do not overlap, so of a
        -- coin's children the one with the last label is the last in the order of observations.
        -- That makes the choice a max() of one column, which hashing finds without sorting a row;
        -- the winner's other columns are then fetched by its key. Within a single bucket the groups
        -- are the coins alone, which the planner knows the number of.
        format(
            'SELECT child.coin_id, bucket.label, child.price_usd, child.market_cap_usd,
                    child.volume_24h_usd, child.coin_rank, child.created_at, child.provider_ts,
                    child.source, %3$s AS close_ts, bucket.seen
             FROM (SELECT coin_id, %2$s AS label, max(%4$I) AS last, bit_or(%5$s) AS seen
                   FROM %1$s AS child WHERE %4$I BETWEEN %6$L AND %7$L
                   GROUP BY %8$s) AS bucket
             JOIN %1$s AS child ON child.coin_id = bucket.coin_id AND child.%4$I = bucket.last
                                AND child.%4$I BETWEEN %6$L AND %7$L',
            relation,
            CASE WHEN one_bucket THEN format('%L::timestamptz', bucket_start(timeframe, first))
                 ELSE bucket_expression(timeframe, format('%I', c.label_column)) END,
            close_ts, c.label_column, evidence_expression(timeframe, format('%I', c.label_column)), first, last,
            CASE WHEN one_bucket THEN '1' ELSE '1, 2' END)
    END
    FROM timeframes p
    JOIN timeframes c ON c.name = p.child,
    LATERAL (SELECT bucket_start(timeframe, first) = bucket_start(timeframe, last) AS one_bucket) AS width,
    LATERAL (SELECT CASE WHEN c.child IS NULL THEN format('child.%I', c.label_column)
                         ELSE format('coalesce(child.close_ts, child.%I)', c.label_column) END AS close_ts) AS expression
    WHERE p.name = timeframe
$$;
COMMENT ON FUNCTION incoming_from_children(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'The query that merge_statement() takes, over the children in a relation (SQL text) whose labels lie in first..last, both included: per coin and bucket the last child and the union of their evidence bits.';

CREATE OR REPLACE FUNCTION put_staged_minutes(collection_id INTEGER, now TIMESTAMPTZ) RETURNS TABLE (stored BIGINT, rejected BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    first TIMESTAMPTZ;
    last  TIMESTAMPTZ;
BEGIN
    -- Before any row, also of rejections, is touched.
    SELECT min(minute_ts), max(minute_ts) INTO first, last FROM pg_temp.staged_minutes WHERE isfinite(minute_ts);
    PERFORM lock_buckets('hourly', first, last);

    WITH judged AS (
        SELECT s.ctid AS place, CASE
            WHEN s.coin_id IS NULL OR s.coin_id = '' THEN 'the coin id is missing'
            WHEN c.coin_id IS NULL THEN 'the coin is not in coin_priorities'
            WHEN s.minute_ts IS NULL THEN 'the minute is missing'
            WHEN NOT isfinite(s.minute_ts) THEN 'the minute is infinite'
            WHEN s.minute_ts <> date_trunc('minute', s.minute_ts, 'UTC') THEN 'the label is not the start of a minute'
            WHEN s.minute_ts > put_staged_minutes.now THEN 'the minute lies in the future'
            WHEN s.price_usd IS NULL THEN 'the price is missing'
            WHEN s.price_usd = 'NaN' THEN 'the price is not a number'
            WHEN s.price_usd <= 0 THEN 'the price is not positive'
            WHEN s.price_usd = 'Infinity' THEN 'the price is infinite'
            WHEN s.market_cap_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the market cap is not a finite number'
            WHEN s.volume_24h_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the volume is not a finite number'
            WHEN s.created_at IS NULL OR NOT isfinite(s.created_at) THEN 'the instant of recording is missing'
            WHEN s.source IS NULL OR s.source NOT IN ('live', 'history', 'correction')
                THEN 'the source is none of live, history, correction'
        END AS reason
        FROM pg_temp.staged_minutes s LEFT JOIN coin_priorities c ON c.coin_id = s.coin_id
    ), faulty AS (
        DELETE FROM pg_temp.staged_minutes s USING judged j
        WHERE s.ctid = j.place AND j.reason IS NOT NULL
        RETURNING s.*, j.reason
    )
    SELECT count(*) INTO rejected
    FROM (SELECT set_aside(put_staged_minutes.collection_id, put_staged_minutes.now, f.coin_id,
                           f.reason, to_jsonb(f) - 'reason')
          FROM (SELECT * FROM faulty ORDER BY coin_id, reason) AS f) AS filed;

    PERFORM ensure_partitions(month, month)
    FROM (SELECT DISTINCT date_trunc('month', minute_ts, 'UTC') AS month FROM pg_temp.staged_minutes) AS months;
    EXECUTE format(
        'INSERT INTO public.minute_close AS kept (coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd,
                                                  coin_rank, created_at, provider_ts, source)
         SELECT DISTINCT ON (coin_id, minute_ts)
                coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd,
                coin_rank, created_at, provider_ts, source
         FROM pg_temp.staged_minutes AS staged
         ORDER BY coin_id, minute_ts, %1$s DESC
         ON CONFLICT (coin_id, minute_ts) DO UPDATE SET
             price_usd = excluded.price_usd, market_cap_usd = excluded.market_cap_usd,
             volume_24h_usd = excluded.volume_24h_usd, coin_rank = excluded.coin_rank,
             created_at = excluded.created_at, provider_ts = excluded.provider_ts, source = excluded.source
         -- A point of the provider''s past replaces nothing, not even another one.
         WHERE excluded.source <> ''history''
           AND %2$s >= %3$s
           AND (excluded.created_at, excluded.price_usd, excluded.market_cap_usd, excluded.volume_24h_usd,
                excluded.coin_rank, excluded.provider_ts, excluded.source)
               IS DISTINCT FROM
               (kept.created_at, kept.price_usd, kept.market_cap_usd, kept.volume_24h_usd,
                kept.coin_rank, kept.provider_ts, kept.source)',
        observation_order('staged', 'staged.minute_ts'),
        observation_order('excluded', 'excluded.minute_ts'),
        observation_order('kept', 'kept.minute_ts'));
    GET DIAGNOSTICS stored = ROW_COUNT;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION put_staged_minutes(INTEGER, TIMESTAMPTZ) IS
    'The careful put: moves the session''s temporary table staged_minutes (the columns of minute_close, nullable) into minute_close. Every row is judged as the constraints would, and the faulty ones go to rejected_observations with their reason and content. Of two observations of a coin and minute the last in observation_order() stays, so a live one or a correction replaces a point of history whenever either was recorded; a point of history never replaces a stored minute. Returns rows written and rows set aside.';

-- ---------------------------------------------------------------------------------------------
-- The proof
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION dominates(parent_timeframe TEXT, parent TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    SELECT format(
        '%1$I.coin_id = child.coin_id AND %1$I.%2$I = %3$s AND %1$I.seen & %4$s <> 0 AND %5$s >= %6$s',
        parent, p.label_column, bucket_expression(p.name, label), evidence_expression(p.name, label),
        observation_order(format('%I', parent), format('coalesce(%1$I.close_ts, %1$I.%2$I)', parent, p.label_column)),
        observation_order('child', CASE WHEN c.child IS NULL THEN label
                                   ELSE format('coalesce(child.close_ts, %s)', label) END))
    FROM timeframes p JOIN timeframes c ON c.name = p.child,
         LATERAL format('child.%I', c.label_column) AS label
    WHERE p.name = parent_timeframe
$$;
COMMENT ON FUNCTION dominates(TEXT, TEXT) IS
    'SQL condition that holds when the row under the alias parent, of the rollup parent_timeframe, dominates the row `child`: it is its bucket, carries its evidence bit, and a close at least as new.';

CREATE OR REPLACE FUNCTION dominated_condition(timeframe TEXT) RETURNS TEXT
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
                  AND parent.seen & ' || evidence_expression('monthly', 'day.day_ts') || ' <> 0))
         AND EXISTS (
            SELECT FROM public.monthly_close AS parent
            WHERE parent.coin_id = child.coin_id
              AND parent.month_ts = date_trunc(''month'', coalesce(child.close_ts, child.week_ts), ''UTC'')
              AND ' || observation_order('parent', 'coalesce(parent.close_ts, parent.month_ts)')
                    || ' >= ' || observation_order('child', 'coalesce(child.close_ts, child.week_ts)') || ')'
    ELSE (
        SELECT string_agg(format('EXISTS (SELECT FROM public.%I AS parent WHERE %s)', p.table_name, dominates(p.name, 'parent')),
                          ' AND ' ORDER BY p.ordinal)
        FROM timeframes p WHERE p.child = timeframe)
    END
$$;
COMMENT ON FUNCTION dominated_condition(TEXT) IS
    'SQL condition that holds for a row `child` of this timeframe exactly when it is dominated by every parent: daily rows by their week AND their month. NULL for monthly, which nothing dominates.';

-- ---------------------------------------------------------------------------------------------
-- The audit
-- ---------------------------------------------------------------------------------------------
CREATE TABLE retention_audit (
    table_name   TEXT NOT NULL,
    rollup       TEXT NOT NULL CONSTRAINT fk_retention_audit_rollup REFERENCES timeframes (name),
    bucket       TIMESTAMPTZ NOT NULL,
    rows_deleted BIGINT NOT NULL,
    rows_late    BIGINT NOT NULL,
    cleaned_at   TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (table_name, rollup, bucket)
);
COMMENT ON TABLE retention_audit IS 'What cleanup deleted, counted by the bucket of the rollup that carries it; retention_audit_failures() compares it with the evidence.';
COMMENT ON COLUMN retention_audit.table_name IS 'Table the rows were deleted from.';
COMMENT ON COLUMN retention_audit.rollup IS 'Timeframe that carries them: hourly for minutes, weekly and monthly for days.';
COMMENT ON COLUMN retention_audit.bucket IS 'Label of the bucket of the rollup.';
COMMENT ON COLUMN retention_audit.rows_deleted IS 'Rows deleted that were recorded in time, which is within the shortest retention period of their label. Each set an evidence bit of its own.';
COMMENT ON COLUMN retention_audit.rows_late IS 'Rows deleted that were recorded later. Such a row may have been there and deleted before, so it has no bit of its own and is not judged.';
COMMENT ON COLUMN retention_audit.cleaned_at IS 'The cleanup that last deleted from the bucket.';
COMMENT ON CONSTRAINT retention_audit_pkey ON retention_audit IS 'One count per table and bucket of each of its rollups.';
COMMENT ON CONSTRAINT fk_retention_audit_rollup ON retention_audit IS 'A rollup is one of the timeframes.';
INSERT INTO retention_policy (table_name, keep, at_least, age_column) VALUES
    ('retention_audit', '30 days', '2 days', 'cleaned_at');

CREATE FUNCTION recorded_in_time(timeframe TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    SELECT format('child.created_at < child.%I + %L::interval', t.label_column, r.at_least)
    FROM timeframes t JOIN retention_policy r USING (table_name) WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION recorded_in_time(TEXT) IS
    'SQL condition that holds when the row `child` of this timeframe was recorded before any row of its label may be deleted, so that it cannot be there for the second time.';

CREATE FUNCTION count_deleted(
    timeframe TEXT, label TIMESTAMPTZ, rows_in_time BIGINT, rows_late BIGINT, now TIMESTAMPTZ
) RETURNS VOID
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    INSERT INTO retention_audit AS counted (table_name, rollup, bucket, rows_deleted, rows_late, cleaned_at)
    SELECT c.table_name, p.name, bucket_start(p.name, count_deleted.label), count_deleted.rows_in_time,
           count_deleted.rows_late, count_deleted.now
    FROM timeframes c JOIN timeframes p ON p.child = c.name
    WHERE c.name = count_deleted.timeframe AND count_deleted.rows_in_time + count_deleted.rows_late > 0
    ORDER BY p.ordinal
    ON CONFLICT (table_name, rollup, bucket) DO UPDATE SET
        rows_deleted = counted.rows_deleted + excluded.rows_deleted,
        rows_late = counted.rows_late + excluded.rows_late,
        cleaned_at = greatest(counted.cleaned_at, excluded.cleaned_at)
$$;
COMMENT ON FUNCTION count_deleted(TEXT, TIMESTAMPTZ, BIGINT, BIGINT, TIMESTAMPTZ) IS
    'Adds deleted rows to retention_audit, for each rollup of the timeframe; label is any of theirs, and all of theirs lie in its bucket.';

CREATE FUNCTION retention_audit_failures(now TIMESTAMPTZ DEFAULT now())
RETURNS TABLE (table_name TEXT, rollup TEXT, bucket TIMESTAMPTZ, rows_deleted BIGINT, rows_stored BIGINT, evidence BIGINT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    pair RECORD;
    span RECORD;
BEGIN
    FOR pair IN
        SELECT c.name AS child, c.table_name AS child_table, c.label_column AS child_label,
               p.name, p.table_name, p.label_column, r.keep
        FROM timeframes p
        JOIN timeframes c ON c.name = p.child
        JOIN retention_policy r ON r.table_name = p.table_name
        ORDER BY p.ordinal
    LOOP
        -- A parent that may be deleted itself is not there to be compared with.
        SELECT min(a.bucket) AS first, max(a.bucket) AS last INTO span FROM retention_audit a
        WHERE a.table_name = pair.child_table AND a.rollup = pair.name
          AND (pair.keep IS NULL OR a.bucket >= retention_audit_failures.now - pair.keep);
        CONTINUE WHEN span.first IS NULL;
        RETURN QUERY EXECUTE format(
            'SELECT a.table_name, a.rollup, a.bucket, a.rows_deleted, coalesce(s.rows, 0), coalesce(e.bits, 0)
             FROM retention_audit a
             LEFT JOIN (SELECT parent.%4$I AS bucket, sum(bit_count(parent.seen::bit(64)))::bigint AS bits
                        FROM public.%3$I AS parent WHERE parent.%4$I BETWEEN %8$L AND %9$L GROUP BY 1) AS e
               ON e.bucket = a.bucket
             LEFT JOIN (SELECT parent.%4$I AS bucket, count(*) AS rows
                        FROM public.%1$I AS child
                        JOIN public.%3$I AS parent
                          ON parent.coin_id = child.coin_id AND parent.%4$I = %5$s AND parent.seen & %6$s <> 0
                        WHERE child.%2$I >= %8$L AND child.%2$I < %10$L AND %7$s GROUP BY 1) AS s
               ON s.bucket = a.bucket
             WHERE a.table_name = %1$L AND a.rollup = %11$L AND a.bucket BETWEEN %8$L AND %9$L
               AND a.rows_deleted + coalesce(s.rows, 0) > coalesce(e.bits, 0)
             ORDER BY a.bucket',
            pair.child_table, pair.child_label, pair.table_name, pair.label_column,
            bucket_expression(pair.name, format('child.%I', pair.child_label)),
            evidence_expression(pair.name, format('child.%I', pair.child_label)),
            recorded_in_time(pair.child), span.first, span.last, bucket_end(pair.name, span.last), pair.name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION retention_audit_failures(TIMESTAMPTZ) IS
    'Buckets from which more was deleted than they carry: rows deleted, and those still stored with their evidence bit, exceed the bits of all coins. Each accepted row set a bit and evidence never shrinks, so a row here means that something undominated was deleted, or evidence lost. Buckets old enough to be deleted themselves are not judged; nor are weeks, which no wider evidence counts.';

-- ---------------------------------------------------------------------------------------------
-- Cleanup
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION stored_labels(timeframe TEXT, first TIMESTAMPTZ, until TIMESTAMPTZ) RETURNS TIMESTAMPTZ[]
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t      timeframes;
    labels TIMESTAMPTZ[];
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    -- LIMIT 1 keeps it one look into the index for each label, instead of a join that reads all rows.
    EXECUTE format('SELECT coalesce(array_agg(label ORDER BY label), ''{}'')
                    FROM generate_series($1, $2 - INTERVAL ''1 microsecond'', $3) AS label,
                         LATERAL (SELECT FROM public.%I WHERE %I = label LIMIT 1) AS found',
                   t.table_name, t.label_column)
        USING bucket_start(timeframe, first), until, ('1 ' || t.unit)::interval INTO labels;
    RETURN labels;
END
$$;
COMMENT ON FUNCTION stored_labels(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'The labels with first <= label < until of which a close of this timeframe is stored, in order.';

CREATE FUNCTION doubtful_coins(timeframe TEXT, labels TIMESTAMPTZ[]) RETURNS TEXT[]
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    parents TEXT;
    lacking TEXT;
    coins   TEXT[];
BEGIN
    SELECT string_agg(format(
               ' LEFT JOIN public.%1$I AS %2$I
                 ON %2$I.coin_id = coin.coin_id AND %2$I.%3$I BETWEEN %4$L AND %4$L
                    AND %2$I.seen & %5$s = %5$s AND coalesce(%2$I.close_ts, %2$I.%3$I) >= %6$L',
               p.table_name, p.name, p.label_column, bucket_start(p.name, labels[1]),
               (SELECT bit_or(evidence_bit(p.name, label)) FROM unnest(labels) AS label),
               labels[cardinality(labels)]), '' ORDER BY p.ordinal),
           string_agg(format('%I.coin_id IS NULL', p.name), ' OR ' ORDER BY p.ordinal)
    INTO STRICT parents, lacking
    FROM timeframes p WHERE p.child = timeframe;
    EXECUTE format('SELECT coalesce(array_agg(coin.coin_id), ''{}'') FROM public.coin_priorities AS coin %s WHERE %s',
                   parents, lacking) INTO coins;
    RETURN coins;
END
$$;
COMMENT ON FUNCTION doubtful_coins(TEXT, TIMESTAMPTZ[]) IS
    'The coins of which some parent does not carry every one of these labels (in order, all in one bucket of each parent), or is not as new as the last of them. Of all other coins every row with one of the labels is dominated, whatever is in it, if its label is not the last: the parent has its bit, and a close in a later bucket.';

CREATE FUNCTION delete_proven(timeframe TEXT, labels TIMESTAMPTZ[]) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    t        timeframes;
    oldest   TIMESTAMPTZ := labels[1];
    newest   TIMESTAMPTZ := labels[cardinality(labels)];
    doubtful TEXT[] := doubtful_coins(timeframe, labels);
    suspects TEXT[];
    proof    TEXT;
    deleted  BIGINT;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    -- The parents alone prove most rows: a row per coin instead of one per coin and label, as every
    -- close is of a coin in coin_priorities. What they leave open is looked at row by row.
    IF cardinality(doubtful) * 10 > (SELECT count(*) FROM coin_priorities) THEN
        suspects := ARRAY['true'];
    ELSE
        suspects := ARRAY[format('child.%I = %L', t.label_column, newest)];
        IF doubtful <> '{}' THEN
            suspects := suspects || format('child.coin_id = ANY (%L)', doubtful);
        END IF;
    END IF;
    SELECT string_agg(format(
               ' AND NOT EXISTS (SELECT FROM public.%I AS child %s WHERE child.%I BETWEEN %L AND %L AND %s AND (%s))',
               t.table_name, parents.joined, t.label_column, oldest, newest, suspect, parents.lacking), '')
    INTO STRICT proof
    FROM unnest(suspects) AS suspect,
         (SELECT string_agg(format(' LEFT JOIN public.%1$I AS %2$I ON %3$s AND %2$I.%4$I BETWEEN %5$L AND %5$L',
                                   p.table_name, p.name, dominates(p.name, p.name), p.label_column,
                                   bucket_start(p.name, oldest)), '' ORDER BY p.ordinal),
                 string_agg(format('%I.coin_id IS NULL', p.name), ' OR ' ORDER BY p.ordinal)
          FROM timeframes p WHERE p.child = timeframe) AS parents (joined, lacking);
    -- Proof and deletion are one statement, and see the same rows. Between the parents' proof and
    -- this one nobody writes: lock_for_cleanup() holds the locks of the buckets until this
    -- transaction ends. And had somebody passed them by, writing to a partition by its own name, the
    -- row is not seen here, or belongs to a label and coin that stay proven, since evidence never
    -- shrinks and no close goes back.
    EXECUTE format('DELETE FROM public.%1$I WHERE %2$I BETWEEN %3$L AND %4$L AND %2$I = ANY (%5$L)',
                   t.table_name, t.label_column, oldest, newest, labels) || proof;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION delete_proven(TEXT, TIMESTAMPTZ[]) IS
    'Deletes all rows of minute, hourly or daily with one of these labels (in order, all in one bucket of each parent) if all of them are dominated, else none; returns how many. The caller holds the locks of lock_for_cleanup().';

CREATE FUNCTION count_rows(timeframe TEXT, first TIMESTAMPTZ, until TIMESTAMPTZ, OUT stored BIGINT, OUT late BIGINT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t timeframes;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    EXECUTE format('SELECT count(*), count(*) FILTER (WHERE NOT (%s)) FROM public.%I AS child WHERE %3$I >= %4$L AND %3$I < %5$L',
                   recorded_in_time(timeframe), t.table_name, t.label_column, first, until)
        INTO stored, late;
END
$$;
COMMENT ON FUNCTION count_rows(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Rows of a timeframe with first <= label < until, and how many of them were not recorded in time.';

CREATE FUNCTION clean_bucket(
    timeframe TEXT, first TIMESTAMPTZ, until TIMESTAMPTZ, now TIMESTAMPTZ,
    OUT deleted BIGINT, OUT unproven BIGINT
)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    labels    TIMESTAMPTZ[] := stored_labels(timeframe, first, until);
    before    RECORD;
    remaining RECORD;
BEGIN
    before := count_rows(timeframe, first, until);
    unproven := 0;
    deleted := delete_proven(timeframe, labels);
    IF deleted = 0 THEN
        -- Some row was never rolled up, because a job was late or never ran.
        PERFORM roll_up_parents(timeframe, first, until);
        deleted := delete_proven(timeframe, labels);
    END IF;
    IF deleted = 0 THEN
        deleted := delete_dominated(timeframe, first, until);
        remaining := count_rows(timeframe, first, until);
        unproven := remaining.stored;
        before.late := before.late - remaining.late;
    END IF;
    PERFORM count_deleted(timeframe, first, deleted - before.late, before.late, now);
END
$$;
COMMENT ON FUNCTION clean_bucket(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Deletes the dominated rows of minute, hourly or daily with first <= label < until, which lie in one bucket of each parent: all at once if all are proven, if need be after rolling them up, and else row by row. Returns the rows deleted, and those that stay for lack of proof. The caller holds the locks of lock_for_cleanup().';

DROP FUNCTION clean_closes(TEXT, TIMESTAMPTZ, TIMESTAMPTZ);
CREATE FUNCTION clean_closes(timeframe TEXT, first TIMESTAMPTZ, cutoff TIMESTAMPTZ, now TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t        timeframes;
    at       TIMESTAMPTZ;
    until    TIMESTAMPTZ;
    cleaned  RECORD;
    deleted  BIGINT := 0;
    unproven BIGINT := 0;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    IF NOT EXISTS (SELECT FROM timeframes p WHERE p.child = timeframe) THEN
        -- Weeks, whose months were written from the same days: there is nothing to roll them up to.
        deleted := delete_dominated(timeframe, first, cutoff);
        EXECUTE format('SELECT count(*) FROM public.%1$I WHERE %2$I >= $1 AND %2$I < $2', t.table_name, t.label_column)
            USING first, cutoff INTO unproven;
    ELSE
        -- By buckets: one of which a row stays does not make the proof of all others slower, and
        -- each finds its rows through the index, not through all that is stored.
        at := (labels_between(timeframe, first, cutoff)).oldest;
        WHILE at IS NOT NULL LOOP
            SELECT least(min(bucket_end(p.name, at)), cutoff) INTO until FROM timeframes p WHERE p.child = timeframe;
            cleaned := clean_bucket(timeframe, at, until, now);
            deleted := deleted + cleaned.deleted;
            unproven := unproven + cleaned.unproven;
            at := (labels_between(timeframe, until, cutoff)).oldest;
        END LOOP;
    END IF;
    IF unproven > 0 THEN
        RAISE WARNING 'cleanup_old_data: % rows of % are older than % but not dominated; they stay', unproven, t.table_name, cutoff
            USING HINT = 'SELECT * FROM retention_blocked() counts them by table.';
    END IF;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION clean_closes(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'One table''s share of cleanup_old_data(now), for first <= label < cutoff: goes through its buckets, deletes what is dominated after rolling up what was not, and warns about what then still stays. Returns the rows deleted.';

CREATE OR REPLACE FUNCTION cleanup_old_data(now TIMESTAMPTZ DEFAULT now())
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
            rows_deleted := clean_closes(policy.timeframe, policy.first, policy.cutoff, cleanup_old_data.now);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION cleanup_old_data(TIMESTAMPTZ) IS
    'Deletes what retention_policy no longer keeps. Closes are rolled up first if that was not done yet, and only dominated ones are deleted; the others stay, with a warning. What was deleted is counted in retention_audit. Returns the rows deleted by table. now is the instant ages are measured from.';
