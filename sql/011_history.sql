-- The provider's past: which closes lack their end, how points of history enter the closes, what
-- cannot be had, and how much of each window was seen.
--
-- A point of history is the observation of ONE minute, which history_minute() names. From there on
-- the rules of 003 hold: put_staged_minutes() for minutes, merge_statement() for every width.

-- ---------------------------------------------------------------------------------------------
-- What is expected
-- ---------------------------------------------------------------------------------------------
CREATE TABLE collection_scope (
    only_row  BOOLEAN PRIMARY KEY DEFAULT true CONSTRAINT chk_one_scope CHECK (only_row),
    wanted    INTEGER DEFAULT 1000 CONSTRAINT chk_wanted_not_negative CHECK (wanted >= 0),
    always    TEXT[] NOT NULL DEFAULT '{bitcoin,ethereum,cardano}',
    -- Any finer, and a point of history, taken five minutes before the end, would never be enough.
    tolerance INTERVAL NOT NULL DEFAULT '5 minutes'
              CONSTRAINT chk_tolerance_reaches_history CHECK (tolerance >= '5 minutes')
);
INSERT INTO collection_scope DEFAULT VALUES;
COMMENT ON TABLE collection_scope IS 'Which coins are collected, and how near to its end a bucket must have been seen. One row, written by whoever plans a poll.';
COMMENT ON COLUMN collection_scope.only_row IS 'Always true.';
COMMENT ON COLUMN collection_scope.wanted IS 'How many coins, by rank; NULL for all the provider lists.';
COMMENT ON COLUMN collection_scope.always IS 'Coin ids collected whatever their rank.';
COMMENT ON COLUMN collection_scope.tolerance IS 'A bucket observed later than its end less this does not lack its end: the cadence of polls, at least 5 minutes.';
COMMENT ON CONSTRAINT collection_scope_pkey ON collection_scope IS 'With chk_one_scope: a single row.';
COMMENT ON CONSTRAINT chk_one_scope ON collection_scope IS 'There is one scope.';
COMMENT ON CONSTRAINT chk_wanted_not_negative ON collection_scope IS 'A number of coins.';
COMMENT ON CONSTRAINT chk_tolerance_reaches_history ON collection_scope IS 'A point of history is taken five minutes before the end of its bucket, and must be enough.';

CREATE FUNCTION expected_coins() RETURNS TABLE (coin_id TEXT, coin_rank INTEGER)
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT c.coin_id, c.coin_rank FROM collection_scope s, coins_to_poll(s.wanted, s.always) AS c
$$;
COMMENT ON FUNCTION expected_coins() IS
    'The coins that are collected now (collection_scope), each of which ought to have a close in every bucket.';

-- ---------------------------------------------------------------------------------------------
-- What was asked for and cannot be had
-- ---------------------------------------------------------------------------------------------
CREATE TABLE unrecoverable_closes (
    timeframe   TEXT NOT NULL CONSTRAINT fk_unrecoverable_closes_timeframe REFERENCES timeframes (name),
    coin_id     TEXT NOT NULL CONSTRAINT fk_unrecoverable_closes_coin REFERENCES coin_priorities (coin_id),
    reason      TEXT NOT NULL,
    windows     TSTZMULTIRANGE NOT NULL CONSTRAINT chk_windows_present CHECK (NOT isempty(windows)),
    recorded_at TIMESTAMPTZ NOT NULL,
    -- A coin that was not listed for a year is one row, and not 8,760.
    PRIMARY KEY (timeframe, coin_id, reason)
);
COMMENT ON TABLE unrecoverable_closes IS 'Buckets whose end was asked of the provider''s history and could not be had, so that nobody asks again. To have a stretch asked for again, delete its row.';
COMMENT ON COLUMN unrecoverable_closes.timeframe IS 'Width of the buckets; those of minute are hours that lack minutes.';
COMMENT ON COLUMN unrecoverable_closes.coin_id IS 'The coin.';
COMMENT ON COLUMN unrecoverable_closes.reason IS 'Why, as a sentence.';
COMMENT ON COLUMN unrecoverable_closes.windows IS 'The buckets, united: [label, end) of each.';
COMMENT ON COLUMN unrecoverable_closes.recorded_at IS 'When a bucket was last added.';
COMMENT ON CONSTRAINT unrecoverable_closes_pkey ON unrecoverable_closes IS 'One row however many buckets.';
COMMENT ON CONSTRAINT fk_unrecoverable_closes_timeframe ON unrecoverable_closes IS 'One of the five widths.';
COMMENT ON CONSTRAINT fk_unrecoverable_closes_coin ON unrecoverable_closes IS 'A known coin.';
COMMENT ON CONSTRAINT chk_windows_present ON unrecoverable_closes IS 'A row stands for at least one bucket.';

-- ---------------------------------------------------------------------------------------------
-- What lacks its end
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION cutoff_of(timeframe TEXT, now TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT coalesce(cutoff_of.now - r.keep, '-infinity')
    FROM timeframes t JOIN retention_policy r USING (table_name) WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION cutoff_of(TEXT, TIMESTAMPTZ) IS
    'The oldest label that retention_policy keeps for sure at this instant; -infinity where everything is kept.';

CREATE FUNCTION carried_query(timeframe TEXT, now TIMESTAMPTZ, first TIMESTAMPTZ, last TIMESTAMPTZ, coin TEXT) RETURNS TEXT
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    cutoff TIMESTAMPTZ := cutoff_of(timeframe, now);
    -- Of one coin its rows are looked up by their key.
    which  TEXT := CASE WHEN coin IS NULL THEN 'IN (SELECT coin_id FROM incomplete)' ELSE format('= %L', coin) END;
BEGIN
    -- Nothing that old was asked for, or nothing of it ever goes.
    IF first IS NULL OR first >= cutoff THEN
        RETURN 'SELECT NULL::text AS coin_id, NULL::timestamptz AS label WHERE false';
    END IF;
    RETURN CASE timeframe
        -- An hour is in its day's evidence. The day may be gone as well; then it stands for its hours.
        WHEN 'hourly' THEN format(
            'SELECT day.coin_id, bucket.label
             FROM bucket JOIN public.daily_close AS day ON day.day_ts = date_trunc(''day'', bucket.label, ''UTC'')
                  AND day.day_ts BETWEEN %1$L AND %2$L
             WHERE bucket.label < %3$L AND day.seen & %4$s <> 0 AND day.coin_id %6$s
             UNION ALL
             SELECT gone.coin_id, bucket.label
             FROM (WITH bucket AS (SELECT DISTINCT date_trunc(''day'', label, ''UTC'') AS label FROM bucket) %5$s) AS gone
             JOIN bucket ON date_trunc(''day'', bucket.label, ''UTC'') = gone.label
             WHERE bucket.label < %3$L AND NOT EXISTS (
                SELECT FROM public.daily_close AS day WHERE day.coin_id = gone.coin_id AND day.day_ts = gone.label
                AND day.day_ts BETWEEN %1$L AND %2$L)',
            bucket_start('daily', first), bucket_start('daily', last), cutoff,
            evidence_expression('daily', 'bucket.label'),
            carried_query('daily', now, bucket_start('daily', first), bucket_start('daily', last), coin), which)
        -- A day is in its month's and its week's evidence. The week may be gone by itself.
        WHEN 'daily' THEN format(
            'SELECT month.coin_id, bucket.label
             FROM bucket JOIN public.monthly_close AS month ON month.month_ts = date_trunc(''month'', bucket.label, ''UTC'')
                  AND month.month_ts BETWEEN %1$L AND %2$L
             LEFT JOIN public.weekly_close AS week ON week.coin_id = month.coin_id
                  AND week.week_ts = date_trunc(''week'', bucket.label, ''UTC'') AND week.week_ts BETWEEN %3$L AND %4$L
             WHERE bucket.label < %5$L AND month.seen & %6$s <> 0 AND month.coin_id %9$s
               AND CASE WHEN week.coin_id IS NULL THEN date_trunc(''week'', bucket.label, ''UTC'') < %7$L
                        ELSE week.seen & %8$s <> 0 END',
            bucket_start('monthly', first), bucket_start('monthly', last),
            bucket_start('weekly', first), bucket_start('weekly', last), cutoff,
            evidence_expression('monthly', 'bucket.label'), cutoff_of('weekly', now),
            evidence_expression('weekly', 'bucket.label'), which)
        -- A week has no parent of its own; its end is its Sunday's.
        WHEN 'weekly' THEN format(
            'SELECT month.coin_id, bucket.label
             FROM bucket JOIN public.monthly_close AS month
                  ON month.month_ts = date_trunc(''month'', bucket.label + INTERVAL ''6 days'', ''UTC'')
                  AND month.month_ts BETWEEN %1$L AND %2$L
             WHERE bucket.label < %3$L AND month.seen & %4$s <> 0 AND month.coin_id %5$s',
            bucket_start('monthly', first), bucket_start('monthly', last + INTERVAL '6 days'), cutoff,
            evidence_expression('monthly', 'bucket.label + INTERVAL ''6 days'''), which)
    END;
END
$$;
COMMENT ON FUNCTION carried_query(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ, TEXT) IS
    'Query with coin_id and label, once each: the closes of a timeframe that retention may have taken and whose evidence a wider table still carries. For one coin, or for those of a relation incomplete(coin_id); it reads labels from a relation bucket(label), all between first and last.';

CREATE FUNCTION stored_ends(timeframe TEXT, now TIMESTAMPTZ, first TIMESTAMPTZ, last TIMESTAMPTZ, coin TEXT) RETURNS TEXT
LANGUAGE sql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT CASE WHEN t.child IS NOT NULL THEN format(
        'SELECT coin_id, %2$I AS label, coalesce(close_ts, %2$I) AS close_ts
         FROM public.%1$I WHERE %2$I BETWEEN %3$L AND %4$L%5$s',
        t.table_name, t.label_column, first, last, which)
    -- An hour that has a minute in each of its twelve five minutes is complete: finer than that the
    -- provider has no past. What retention has taken of it already is in the hour's evidence.
    ELSE format(
        'SELECT coin_id, label,
                CASE WHEN (bits | (bits >> 1) | (bits >> 2) | (bits >> 3) | (bits >> 4)) & %1$s = %1$s
                     THEN timestamptz ''infinity'' ELSE ''-infinity'' END AS close_ts
         FROM (SELECT coin_id, label, bit_or(bits) AS bits
               FROM (SELECT coin_id, date_bin(''1 hour'', minute_ts, ''2000-01-03 00:00:00+00'') AS label, %2$s AS bits
                     FROM public.minute_close WHERE minute_ts >= %3$L AND minute_ts < %4$L%7$s
                     UNION ALL
                     SELECT coin_id, hour_ts, seen & ((1::bigint << gone) - 1)
                     FROM public.hourly_close,
                          LATERAL (SELECT least(greatest(ceil(extract(epoch FROM %5$L - hour_ts) / 60), 0), 60)::integer) AS t (gone)
                     WHERE hour_ts BETWEEN %3$L AND %6$L%7$s) AS seen
               GROUP BY coin_id, label) AS hour',
        (SELECT sum(1::bigint << 5 * slot) FROM generate_series(0, 11) AS slot),
        evidence_expression('hourly', 'minute_ts'), first, last + INTERVAL '1 hour', cutoff_of('minute', now), last, which)
    END
    FROM timeframes t, LATERAL (SELECT CASE WHEN coin IS NULL THEN '' ELSE format(' AND coin_id = %L', coin) END) AS one (which) WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION stored_ends(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ, TEXT) IS
    'Query with coin_id, label and close_ts, once each: how far each stored close with first <= label <= last was seen, of one coin or (NULL) of all. For minute the labels are hours, seen to the end if they lack no five minutes and else not at all.';

CREATE FUNCTION lacking_query(
    timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ, now TIMESTAMPTZ, known_only BOOLEAN, only_coin TEXT
) RETURNS TEXT
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t         timeframes;
    -- Minutes are asked for by the hour.
    width     TEXT := CASE timeframe WHEN 'minute' THEN 'hourly' ELSE timeframe END;
    tolerance INTERVAL := (SELECT s.tolerance FROM collection_scope s);
    first     TIMESTAMPTZ := CASE bucket_start(width, "from") WHEN "from" THEN "from" ELSE bucket_end(width, "from") END;
    last      TIMESTAMPTZ;
BEGIN
    SELECT * INTO t FROM timeframes WHERE name = width;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'lacking_query: % is not a timeframe', quote_nullable(timeframe)
            USING HINT = 'Name one of minute, hourly, daily, weekly, monthly.';
    END IF;
    last := bucket_start(width, least("to", now)) - ('1 ' || t.unit)::interval;
    -- Coins that lack nothing, nearly all as a rule, cost no more than a count.
    RETURN format(
        'WITH bucket AS MATERIALIZED (
            SELECT label, label + %1$L::interval AS bucket_end, label + %1$L::interval - %2$L::interval AS enough
            FROM generate_series(%3$L::timestamptz, %4$L, %1$L) AS label
         ), expected AS MATERIALIZED (
            SELECT e.coin_id, e.coin_rank, nowhere.windows, %5$s AS since
            FROM (%6$s) AS e
            LEFT JOIN public.coin_priorities c USING (coin_id)
            LEFT JOIN (SELECT coin_id, range_agg(windows) AS windows FROM public.unrecoverable_closes
                       WHERE timeframe = %7$L GROUP BY coin_id) AS nowhere USING (coin_id)
         ), incomplete AS MATERIALIZED (
            SELECT expected.* FROM expected
            LEFT JOIN (SELECT coin_id, count(*) AS closes
                       FROM (%8$s) AS stored JOIN bucket USING (label)
                       WHERE close_ts >= enough GROUP BY coin_id) AS complete USING (coin_id)
            WHERE coalesce(closes, 0) < (SELECT count(*) FROM bucket)
         )
         SELECT incomplete.coin_id, incomplete.coin_rank, bucket.label, bucket.bucket_end
         FROM incomplete CROSS JOIN bucket
         LEFT JOIN (%8$s) AS stored ON stored.coin_id = incomplete.coin_id AND stored.label = bucket.label
         LEFT JOIN (%9$s) AS carried ON carried.coin_id = incomplete.coin_id AND carried.label = bucket.label
         WHERE CASE WHEN stored.coin_id IS NULL THEN carried.coin_id IS NULL
                    ELSE stored.close_ts < bucket.enough END
           AND bucket.bucket_end > incomplete.since
           AND (incomplete.windows IS NULL OR NOT incomplete.windows @> bucket.label)',
        '1 ' || t.unit, tolerance, first, last,
        CASE WHEN known_only THEN 'coalesce(c.created_at, ''-infinity'')' ELSE '''-infinity''::timestamptz' END,
        CASE WHEN only_coin IS NULL THEN 'SELECT coin_id, coin_rank FROM public.expected_coins()'
             ELSE format('SELECT coin_id, market_cap_rank AS coin_rank FROM public.coin_priorities WHERE coin_id = %L', only_coin) END,
        timeframe,
        stored_ends(timeframe, now, first, last, only_coin),
        carried_query(width, now, first, last, only_coin));
END
$$;
COMMENT ON FUNCTION lacking_query(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ, BOOLEAN, TEXT) IS
    'Query with coin_id, coin_rank, label, bucket_end: the buckets wholly in [from, to) and over by now that lack their end for an expected coin, or for only_coin. See lacking_closes().';

CREATE FUNCTION lacking_closes(
    timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ, now TIMESTAMPTZ, known_only BOOLEAN DEFAULT false
) RETURNS TABLE (coin_id TEXT, coin_rank INTEGER, first TIMESTAMPTZ, last TIMESTAMPTZ, buckets BIGINT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
SET work_mem = '64MB'
AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT coin_id, coin_rank, min(label), max(label), count(*) FROM (%s) AS lacking
         GROUP BY coin_id, coin_rank ORDER BY min(label), coin_rank NULLS LAST, coin_id COLLATE "C"',
        lacking_query(timeframe, "from", "to", now, known_only, NULL));
END
$$;
COMMENT ON FUNCTION lacking_closes(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ, BOOLEAN) IS
    'By expected coin: how many buckets wholly in [from, to) and over by now lack their end, with the first and last label of them. A bucket lacks its end when it has no row, or one observed before its end less collection_scope.tolerance. Not when retention has taken the row and a wider table carries its evidence, nor when it is in unrecoverable_closes. For minute the buckets are hours, which lack minutes when some five of them have none. known_only leaves out what ended before a sweep first saw the coin. Errors: an unknown timeframe.';

CREATE FUNCTION record_unrecoverable(
    timeframe TEXT, coin_id TEXT, reason TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ, now TIMESTAMPTZ
) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET jit = off
AS $$
DECLARE
    found RECORD;
BEGIN
    EXECUTE format('SELECT count(*) AS buckets, range_agg(tstzrange(label, bucket_end)) AS windows FROM (%s) AS lacking',
                   lacking_query(timeframe, "from", "to", now, false, coin_id)) INTO found;
    IF found.buckets > 0 THEN
        INSERT INTO unrecoverable_closes AS known (timeframe, coin_id, reason, windows, recorded_at)
        VALUES (record_unrecoverable.timeframe, record_unrecoverable.coin_id, record_unrecoverable.reason,
                found.windows, record_unrecoverable.now)
        ON CONFLICT ON CONSTRAINT unrecoverable_closes_pkey DO UPDATE SET
            windows = known.windows + excluded.windows, recorded_at = excluded.recorded_at;
    END IF;
    RETURN found.buckets;
END
$$;
COMMENT ON FUNCTION record_unrecoverable(TEXT, TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Files the buckets of [from, to) that lack their end for a coin as not to be had, so that they are not asked for again; returns how many were new. Errors: an unknown timeframe.';

-- ---------------------------------------------------------------------------------------------
-- Putting points of history
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION history_minute(grade TEXT, stamp TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE sql IMMUTABLE STRICT
SET search_path = public, pg_temp
AS $$
    SELECT CASE
        WHEN grade = 'five_minute' THEN date_trunc('minute', stamp, 'UTC')
        WHEN stamp - turn <= INTERVAL '15 minutes' THEN turn - INTERVAL '5 minutes'
    END
    FROM (SELECT CASE grade WHEN 'hourly' THEN date_trunc('hour', stamp, 'UTC')
                            WHEN 'daily' THEN date_trunc('day', stamp, 'UTC') END) AS t (turn)
$$;
COMMENT ON FUNCTION history_minute(TEXT, TIMESTAMPTZ) IS
    'The minute that a point of history observed. five_minute: the one it is stamped in. hourly and daily: five minutes before the hour or day that turned at most 15 minutes before the stamp, since points carry the price just before their stamp; NULL for one stamped later, which closes nothing.';

CREATE FUNCTION incoming_from_history(timeframe TEXT, grade TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    -- Of two points of one minute: the later of two samples, but of two closes of an hour the one
    -- stamped nearer to its end.
    SELECT format(
        'SELECT DISTINCT ON (coin_id, label)
                coin_id, label, price_usd, market_cap_usd, volume_24h_usd, NULL::integer AS coin_rank,
                created_at, NULL::timestamptz AS provider_ts, ''history'' AS source, minute_ts AS close_ts,
                bit_or(bit) OVER (PARTITION BY coin_id, label) AS seen
         FROM (SELECT *, date_trunc(%L, minute_ts, ''UTC'') AS label, %s AS bit FROM pg_temp.staged_history) AS point
         ORDER BY coin_id, label, minute_ts DESC, stamp %s',
        t.unit, coalesce(evidence_expression(timeframe, 'minute_ts'), '0'),
        CASE grade WHEN 'five_minute' THEN 'DESC' ELSE 'ASC' END)
    FROM timeframes t WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION incoming_from_history(TEXT, TEXT) IS
    'The query that merge_statement() takes, over staged_history: per coin and bucket the last minute observed, and the bits of the children that hold its minutes (0 for minute, which has none).';

CREATE FUNCTION set_aside_history(collection_id INTEGER, now TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    counted BIGINT;
BEGIN
    WITH judged AS (
        SELECT s.ctid AS place, CASE
            WHEN s.coin_id IS NULL OR s.coin_id = '' THEN 'the coin id is missing'
            WHEN c.coin_id IS NULL THEN 'the coin is not in coin_priorities'
            WHEN s.minute_ts > set_aside_history.now THEN 'the minute lies in the future'
            WHEN s.price_usd IS NULL THEN 'the price is missing'
            WHEN s.price_usd = 'NaN' THEN 'the price is not a number'
            WHEN s.price_usd <= 0 THEN 'the price is not positive'
            WHEN s.price_usd = 'Infinity' THEN 'the price is infinite'
            WHEN s.market_cap_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the market cap is not a finite number'
            WHEN s.volume_24h_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the volume is not a finite number'
        END AS reason
        FROM pg_temp.staged_history s LEFT JOIN coin_priorities c ON c.coin_id = s.coin_id
    ), faulty AS (
        DELETE FROM pg_temp.staged_history s USING judged j
        WHERE s.ctid = j.place AND j.reason IS NOT NULL
        RETURNING s.*, j.reason
    )
    SELECT count(*) INTO counted
    FROM (SELECT set_aside(set_aside_history.collection_id, set_aside_history.now, f.coin_id,
                           f.reason, to_jsonb(f) - 'reason')
          FROM (SELECT * FROM faulty ORDER BY coin_id, reason, stamp) AS f) AS filed;
    RETURN counted;
END
$$;
COMMENT ON FUNCTION set_aside_history(INTEGER, TIMESTAMPTZ) IS
    'Moves the points of staged_history that no constraint would accept to rejected_observations, as put_staged_minutes() does; returns how many.';

CREATE FUNCTION put_minutes_of_history(grade TEXT, now TIMESTAMPTZ, collection_id INTEGER) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    written BIGINT;
BEGIN
    CREATE TEMPORARY TABLE staged_minutes ON COMMIT DROP AS SELECT * FROM public.minute_close WITH NO DATA;
    EXECUTE 'INSERT INTO pg_temp.staged_minutes (coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd, created_at, source)
             SELECT coin_id, label, price_usd, market_cap_usd, volume_24h_usd, created_at, source
             FROM (' || incoming_from_history('minute', grade) || ') AS point';
    SELECT stored INTO written FROM put_staged_minutes(collection_id, now);
    DROP TABLE pg_temp.staged_minutes;
    RETURN written;
END
$$;
COMMENT ON FUNCTION put_minutes_of_history(TEXT, TIMESTAMPTZ, INTEGER) IS
    'The last step of put_staged_history() for minutes: put_staged_minutes() of what is staged; returns the rows stored.';

CREATE FUNCTION put_staged_history(
    timeframe TEXT, grade TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ, now TIMESTAMPTZ, collection_id INTEGER DEFAULT NULL
) RETURNS TABLE (written BIGINT, usable BIGINT, rejected BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    asked timeframes;
    t     timeframes;
    first TIMESTAMPTZ;
    last  TIMESTAMPTZ;
    merged BIGINT;
BEGIN
    SELECT * INTO asked FROM timeframes WHERE name = put_staged_history.timeframe;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'put_staged_history: % is not a timeframe', quote_nullable(timeframe)
            USING HINT = 'Name one of minute, hourly, daily, weekly, monthly.';
    END IF;
    IF grade IS NULL OR grade NOT IN ('five_minute', 'hourly', 'daily') THEN
        RAISE EXCEPTION 'put_staged_history: % is not a grade of history', quote_nullable(grade)
            USING HINT = 'Name one of five_minute, hourly, daily.';
    END IF;
    IF asked.child IS NULL AND grade <> 'five_minute' THEN
        RAISE EXCEPTION 'put_staged_history: points of grade % are no minutes', grade
            USING HINT = 'Only five_minute points can be put into minute; put these into hourly or wider.';
    END IF;

    UPDATE pg_temp.staged_history SET minute_ts = history_minute(grade, stamp);
    DELETE FROM pg_temp.staged_history WHERE (minute_ts >= "from" AND minute_ts < "to") IS NOT true;
    SELECT min(minute_ts), max(minute_ts), count(*) INTO first, last, usable FROM pg_temp.staged_history;

    -- All of them before any row, also of rejections, is touched. Minutes reach their hour only.
    FOR t IN SELECT * FROM timeframes
             WHERE CASE WHEN asked.child IS NULL THEN child = asked.name ELSE ordinal >= asked.ordinal END
             ORDER BY ordinal LOOP
        PERFORM lock_buckets(t.name, first, last);
    END LOOP;
    rejected := set_aside_history(collection_id, now);
    usable := usable - rejected;
    written := 0;
    IF usable = 0 THEN
        NULL;
    ELSIF asked.child IS NULL THEN
        written := put_minutes_of_history(grade, now, collection_id);
    ELSE
        FOR t IN SELECT * FROM timeframes WHERE ordinal >= asked.ordinal ORDER BY ordinal LOOP
            PERFORM add_monthly_partition(t.table_name, month)
            FROM (SELECT DISTINCT date_trunc('month', date_trunc(t.unit, minute_ts, 'UTC'), 'UTC') AS month
                  FROM pg_temp.staged_history) AS months;
            EXECUTE merge_statement(t.name, incoming_from_history(t.name, grade), first, last);
            GET DIAGNOSTICS merged = ROW_COUNT;
            IF t.name = asked.name THEN
                written := merged;
            END IF;
        END LOOP;
    END IF;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION put_staged_history(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ, INTEGER) IS
    'Merges the session''s temporary table staged_history (coin_id, stamp, minute_ts to be filled here, price_usd, market_cap_usd, volume_24h_usd, created_at) into the closes of a timeframe and of every wider one, as observations of the minutes that history_minute() names; into minute_close by put_staged_minutes(), where they replace nothing. What lies outside [from, to) is left alone, what is faulty set aside. Returns rows written to the timeframe''s own table, sound points, and points set aside. Errors: an unknown timeframe or grade; a grade too coarse for minutes.';

-- ---------------------------------------------------------------------------------------------
-- What was stored of a stretch
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION labels_in(timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ) RETURNS SETOF TIMESTAMPTZ
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT label
    FROM timeframes t, generate_series(bucket_start(timeframe, "from"), "to", ('1 ' || t.unit)::interval) AS label
    WHERE t.name = timeframe AND label >= "from" AND label < "to"
$$;
COMMENT ON FUNCTION labels_in(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Every label of a timeframe with from <= label < to, oldest first.';

CREATE FUNCTION held_closes(
    timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ,
    OUT rows BIGINT, OUT coins_expected BIGINT, OUT coins_seen BIGINT, OUT live BIGINT, OUT history BIGINT
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    t timeframes;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    EXECUTE format(
        'SELECT count(*), count(expected.coin_id), count(*) FILTER (WHERE source <> ''history''),
                count(*) FILTER (WHERE source = ''history'')
         FROM public.%1$I AS stored LEFT JOIN expected_coins() AS expected USING (coin_id)
         WHERE stored.%2$I >= $1 AND stored.%2$I < $2', t.table_name, t.label_column)
        USING "from", "to" INTO rows, coins_seen, live, history;
    coins_expected := (SELECT count(*) FROM expected_coins())
        * (SELECT count(*) FROM labels_in(timeframe, "from", "to"));
END
$$;
COMMENT ON FUNCTION held_closes(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Counts the closes of a timeframe with from <= label < to: rows; coins and buckets expected, and those of them that have a row; rows seen live (or corrected) and rows of history. Errors: an unknown timeframe.';

CREATE FUNCTION coins_without_close(
    timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ
) RETURNS TABLE (coin_id TEXT, coin_rank INTEGER, why TEXT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    t      timeframes;
    labels BIGINT;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    labels := (SELECT count(*) FROM labels_in(timeframe, "from", "to"));
    RETURN QUERY EXECUTE format(
        'SELECT e.coin_id, e.coin_rank, coalesce(nowhere.reasons, CASE
                    WHEN stored.closes IS NULL THEN ''No close is stored''
                    ELSE format(''No close is stored for %%s of %%s buckets'', $3 - stored.closes, $3) END)
         FROM expected_coins() AS e
         LEFT JOIN (SELECT coin_id, count(*) AS closes FROM public.%1$I WHERE %2$I >= $1 AND %2$I < $2
                    GROUP BY coin_id) AS stored USING (coin_id)
         LEFT JOIN (SELECT coin_id, string_agg(reason, ''; '' ORDER BY reason COLLATE "C") AS reasons
                    FROM public.unrecoverable_closes
                    WHERE timeframe = $4 AND windows && tstzrange($1, $2)
                    GROUP BY coin_id) AS nowhere USING (coin_id)
         WHERE nowhere.reasons IS NOT NULL OR stored.closes IS NULL OR %3$s
         ORDER BY e.coin_rank NULLS LAST, e.coin_id COLLATE "C"',
        t.table_name, t.label_column,
        -- A minute that was not polled is no loss to report; an hour without any is.
        CASE WHEN t.child IS NULL THEN 'false' ELSE 'stored.closes < $3' END)
        USING "from", "to", labels, timeframe;
END
$$;
COMMENT ON FUNCTION coins_without_close(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Expected coins that lack a close with from <= label < to (of minute: any at all) or have one of them in unrecoverable_closes, by rank, and why. Errors: an unknown timeframe.';

-- ---------------------------------------------------------------------------------------------
-- Coverage
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION longest_gap(seen BIGINT, children INTEGER) RETURNS INTEGER
LANGUAGE sql IMMUTABLE STRICT
SET search_path = public, pg_temp
AS $$
    SELECT coalesce(max(length(run)), 0)
    FROM unnest(string_to_array(right(seen::bit(64)::text, children), '1')) AS run
$$;
COMMENT ON FUNCTION longest_gap(BIGINT, INTEGER) IS
    'How many of the first children of a bucket, in a row, are not in its evidence.';

CREATE FUNCTION coverage_windows(timeframe TEXT, now TIMESTAMPTZ) RETURNS TABLE (label TIMESTAMPTZ, children INTEGER)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t     timeframes;
    first TIMESTAMPTZ;
    child INTERVAL;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = coverage_windows.timeframe;
    IF t.child IS NULL THEN
        -- Not the minute that is still running: its poll may be under way.
        RETURN QUERY SELECT at, 0 FROM labels_in(timeframe, now - INTERVAL '1 hour', bucket_start(timeframe, now)) AS at;
        RETURN;
    END IF;
    first := cutoff_of(timeframe, now);
    IF NOT isfinite(first) THEN
        first := coalesce((labels_between(timeframe, '-infinity', now)).oldest, bucket_start(timeframe, now));
    END IF;
    child := (SELECT '1 ' || c.unit FROM timeframes c WHERE c.name = t.child);
    RETURN QUERY
    SELECT at, floor(extract(epoch FROM least(bucket_end(timeframe, at), now) - at) / extract(epoch FROM child))::integer
    FROM labels_in(timeframe, first, now) AS at;
END
$$;
COMMENT ON FUNCTION coverage_windows(TEXT, TIMESTAMPTZ) IS
    'The labels that coverage_at() judges: what retention keeps for sure, up to the bucket that holds now; of months, which are kept for ever, from the first stored; of minutes the last 60 that are over. children is how many children of the bucket are over (0 for minute).';

CREATE FUNCTION coverage_at(now TIMESTAMPTZ) RETURNS TABLE (
    timeframe TEXT, window_start TIMESTAMPTZ, coins_expected BIGINT, coins_seen BIGINT, share DOUBLE PRECISION, worst_gap INTERVAL
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    coins    TEXT[] := (SELECT coalesce(array_agg(coin_id), '{}') FROM expected_coins());
    expected BIGINT := cardinality(coins);
    t        timeframes;
    child    INTERVAL;
    first    TIMESTAMPTZ;
BEGIN
    FOR t IN SELECT * FROM timeframes ORDER BY ordinal LOOP
        child := (SELECT '1 ' || c.unit FROM timeframes c WHERE c.name = t.child);
        first := (SELECT min(label) FROM coverage_windows(t.name, now));
        -- By evidence and not by coin: coins that were polled together have the same.
        RETURN QUERY EXECUTE format(
            'WITH stored AS MATERIALIZED (
                SELECT %2$I AS label, %3$s AS seen, count(*) AS coins
                FROM public.%1$I WHERE %2$I BETWEEN %4$L AND %5$L AND coin_id = ANY ($1)
                GROUP BY 1, 2
             )
             SELECT %6$L, w.label, $2, coalesce(sum(coins), 0)::bigint,
                    coalesce(sum(coins), 0) / nullif($2, 0)::double precision,
                    max(longest_gap(coalesce(seen, 0), children)) * $3
             FROM coverage_windows(%6$L, $4) AS w LEFT JOIN stored USING (label)
             GROUP BY w.label ORDER BY w.label DESC',
            t.table_name, t.label_column, CASE WHEN t.child IS NULL THEN '0::bigint' ELSE 'seen' END,
            first, now, t.name)
            USING coins, expected, child, now;
    END LOOP;
END
$$;
COMMENT ON FUNCTION coverage_at(TIMESTAMPTZ) IS
    'How well each window was seen, as of an instant: see the view coverage, which asks for now.';

CREATE VIEW coverage AS SELECT * FROM coverage_at(now());
COMMENT ON VIEW coverage IS 'By timeframe and window within its retention: how many of the coins collected now have a close, and the longest stretch that none of it rests on.';
COMMENT ON COLUMN coverage.timeframe IS 'Width of the window.';
COMMENT ON COLUMN coverage.window_start IS 'Its label; the newest may still be open. Minutes are shown when they are over.';
COMMENT ON COLUMN coverage.coins_expected IS 'Coins that are collected now.';
COMMENT ON COLUMN coverage.coins_seen IS 'Those of them with a close in the window.';
COMMENT ON COLUMN coverage.share IS 'coins_seen / coins_expected; NULL if no coin is known.';
COMMENT ON COLUMN coverage.worst_gap IS 'Longest run of children, of those that are over, without evidence, among the expected coins with a close; of a window without any, all of them. NULL for minutes.';
