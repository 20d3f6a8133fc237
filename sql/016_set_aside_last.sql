-- What is set aside is filed last, and an id has an end.
--
--   * Locks, always taken in this order: the gate to the minutes, buckets from narrow to wide, the lock
--     of partition creators, rows of coin_priorities by id, then the lock of those who file rejections,
--     and rows of unrecoverable_closes by coin. A put sorts out its faulty rows first, makes its
--     partitions, writes its closes, and files what it sorted out at its end. Making a partition waits
--     for the writers of coin_priorities, who file rejections too: before, each could wait for the other.
--   * An id has at most 200 characters, the longest of the provider 72. An entry of an index holds about
--     2,700 bytes: an id beyond that would refuse, with itself, the whole batch it came in.
--
-- The functions of 001, 007, 010 and 011 that are not named here stand as they are.

-- ---------------------------------------------------------------------------------------------
-- Filing
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION set_aside_all(
    collection_id INTEGER, now TIMESTAMPTZ, coin_ids TEXT[], reasons TEXT[], payloads JSONB[]
) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF coalesce(cardinality(coin_ids), 0) = 0 THEN
        RETURN 0;
    END IF;
    -- One transaction files at a time. A put and the reading of its answer file one after the other,
    -- and two transactions that count each other's rows once more would wait for each other.
    PERFORM pg_advisory_xact_lock(hashtextextended('pulseguard.rejections', 0));
    INSERT INTO rejected_observations AS r (rejected_at, last_rejected_at, collection_id, coin_id, reason, payload, times)
    SELECT set_aside_all.now, set_aside_all.now, set_aside_all.collection_id, coin_id, reason,
           (array_agg(payload ORDER BY place DESC))[1], count(*)::integer
    -- Cut to what an entry of the index is sure to hold; the payload has the whole of it.
    FROM (SELECT left(coin_id, 200) AS coin_id, left(reason, 400) AS reason, payload, place
          FROM unnest(coin_ids, reasons, payloads) WITH ORDINALITY AS given (coin_id, reason, payload, place)) AS given
    GROUP BY coin_id, reason
    ORDER BY coin_id COLLATE "C", reason COLLATE "C"
    ON CONFLICT ON CONSTRAINT rejected_observations_once_an_hour DO UPDATE SET
        times = r.times + excluded.times, payload = excluded.payload, collection_id = excluded.collection_id,
        last_rejected_at = greatest(r.last_rejected_at, excluded.last_rejected_at);
    RETURN cardinality(coin_ids);
END
$$;
COMMENT ON FUNCTION set_aside_all(INTEGER, TIMESTAMPTZ, TEXT[], TEXT[], JSONB[]) IS
    'Files observations that cannot be a close, each with its reason, or counts them once more; of a coin and reason given twice the later payload stays. Returns how many were given. From here to its end this transaction is the only one that files: call it after everything that waits for others, except record_unrecoverable().';

CREATE OR REPLACE FUNCTION set_aside(
    collection_id INTEGER, now TIMESTAMPTZ, coin_id TEXT, reason TEXT, payload JSONB
) RETURNS VOID
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    SELECT set_aside_all(set_aside.collection_id, set_aside.now, ARRAY[set_aside.coin_id],
                         ARRAY[set_aside.reason], ARRAY[set_aside.payload])
$$;
COMMENT ON FUNCTION set_aside(INTEGER, TIMESTAMPTZ, TEXT, TEXT, JSONB) IS
    'Files one observation that cannot be a close, or counts it once more: see set_aside_all().';

COMMENT ON COLUMN rejected_observations.coin_id IS 'Coin id as received, its first 200 characters; may be unknown to coin_priorities.';

-- ---------------------------------------------------------------------------------------------
-- Coins
-- ---------------------------------------------------------------------------------------------
-- Not valid for what is there: a coin with a longer id stays, as does all that belongs to it.
ALTER TABLE coin_priorities
    ADD CONSTRAINT chk_coin_id_length CHECK (char_length(coin_id) <= 200) NOT VALID;
COMMENT ON CONSTRAINT chk_coin_id_length ON coin_priorities IS 'Fits into every index; rows from before this rule are left alone.';

CREATE OR REPLACE FUNCTION put_staged_coins(collection_id INTEGER, now TIMESTAMPTZ) RETURNS TABLE (stored BIGINT, rejected BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    done RECORD;
BEGIN
    WITH judged AS (
        SELECT s.*, CASE
            WHEN s.coin_id IS NULL OR s.coin_id = '' THEN 'the coin id is missing'
            WHEN char_length(s.coin_id) > 200 THEN 'the coin id is longer than 200 characters'
            WHEN s.market_cap_rank <= 0 THEN 'the market cap rank is not positive'
            WHEN s.market_cap_usd < 0 THEN 'the market cap is negative'
            WHEN s.market_cap_usd IN ('NaN', 'Infinity') THEN 'the market cap is not a finite number'
        END AS reason
        FROM pg_temp.staged_coins s
    ), sound AS (
        -- Pages drift between fetches, so a coin may come twice: the later row of the list stays.
        INSERT INTO coin_priorities AS known (coin_id, market_cap_rank, market_cap_usd, symbol, name,
                                              image_url, last_updated, created_at, provider_ts)
        SELECT DISTINCT ON (j.coin_id) j.coin_id, j.market_cap_rank, j.market_cap_usd, j.symbol, j.name,
               j.image_url, put_staged_coins.now, put_staged_coins.now, j.provider_ts
        FROM judged j WHERE j.reason IS NULL
        ORDER BY j.coin_id, j.position DESC
        ON CONFLICT (coin_id) DO UPDATE SET
            market_cap_rank = excluded.market_cap_rank, market_cap_usd = excluded.market_cap_usd,
            symbol = excluded.symbol, name = excluded.name, image_url = excluded.image_url,
            last_updated = excluded.last_updated, provider_ts = excluded.provider_ts
        WHERE known.last_updated IS NULL OR excluded.last_updated >= known.last_updated
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM sound) AS stored, array_agg(j.coin_id ORDER BY j.position) AS coin_ids,
           array_agg(j.reason ORDER BY j.position) AS reasons,
           array_agg(to_jsonb(j) - 'reason' ORDER BY j.position) AS payloads
    INTO done
    FROM judged j WHERE j.reason IS NOT NULL;
    stored := done.stored;
    rejected := set_aside_all(put_staged_coins.collection_id, put_staged_coins.now,
                              done.coin_ids, done.reasons, done.payloads);
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION put_staged_coins(INTEGER, TIMESTAMPTZ) IS
    'Moves the session''s temporary table staged_coins (position, coin_id, market_cap_rank, market_cap_usd, symbol, name, image_url, provider_ts) into coin_priorities, by id. Coins are never deleted; a row that cannot be stored goes to rejected_observations. Returns coins written and rows set aside.';

-- ---------------------------------------------------------------------------------------------
-- Minutes
-- ---------------------------------------------------------------------------------------------
CREATE OR REPLACE FUNCTION put_staged_minutes(collection_id INTEGER, now TIMESTAMPTZ) RETURNS TABLE (stored BIGINT, rejected BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    first  TIMESTAMPTZ;
    last   TIMESTAMPTZ;
    faulty RECORD;
BEGIN
    -- Before any row, also of rejections, is touched.
    SELECT min(minute_ts), max(minute_ts) INTO first, last FROM pg_temp.staged_minutes WHERE isfinite(minute_ts);
    PERFORM lock_buckets('hourly', first, last);

    WITH judged AS (
        SELECT s.ctid AS place, CASE
            WHEN s.coin_id IS NULL OR s.coin_id = '' THEN 'the coin id is missing'
            WHEN char_length(s.coin_id) > 200 THEN 'the coin id is longer than 200 characters'
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
    ), taken_out AS (
        DELETE FROM pg_temp.staged_minutes s USING judged j
        WHERE s.ctid = j.place AND j.reason IS NOT NULL
        RETURNING s.*, j.reason
    )
    SELECT array_agg(f.coin_id) AS coin_ids, array_agg(f.reason) AS reasons,
           array_agg(to_jsonb(f) - 'reason') AS payloads
    INTO faulty
    FROM (SELECT * FROM taken_out ORDER BY minute_ts, created_at) AS f;

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
    rejected := set_aside_all(put_staged_minutes.collection_id, put_staged_minutes.now,
                              faulty.coin_ids, faulty.reasons, faulty.payloads);
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION put_staged_minutes(INTEGER, TIMESTAMPTZ) IS
    'The careful put: moves the session''s temporary table staged_minutes (the columns of minute_close, nullable) into minute_close. Every row is judged as the constraints would, and the faulty ones go to rejected_observations with their reason and content. Of two observations of a coin and minute the last in observation_order() stays, so a live one or a correction replaces a point of history whenever either was recorded; a point of history never replaces a stored minute. Returns rows written and rows set aside.';

-- ---------------------------------------------------------------------------------------------
-- Points of the provider's past
-- ---------------------------------------------------------------------------------------------
DROP FUNCTION set_aside_history(INTEGER, TIMESTAMPTZ);
CREATE FUNCTION take_out_faulty_history(
    now TIMESTAMPTZ, OUT coin_ids TEXT[], OUT reasons TEXT[], OUT payloads JSONB[]
)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
BEGIN
    WITH judged AS (
        SELECT s.ctid AS place, CASE
            WHEN s.coin_id IS NULL OR s.coin_id = '' THEN 'the coin id is missing'
            WHEN char_length(s.coin_id) > 200 THEN 'the coin id is longer than 200 characters'
            WHEN c.coin_id IS NULL THEN 'the coin is not in coin_priorities'
            WHEN s.minute_ts > take_out_faulty_history.now THEN 'the minute lies in the future'
            WHEN s.price_usd IS NULL THEN 'the price is missing'
            WHEN s.price_usd = 'NaN' THEN 'the price is not a number'
            WHEN s.price_usd <= 0 THEN 'the price is not positive'
            WHEN s.price_usd = 'Infinity' THEN 'the price is infinite'
            WHEN s.market_cap_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the market cap is not a finite number'
            WHEN s.volume_24h_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the volume is not a finite number'
        END AS reason
        FROM pg_temp.staged_history s LEFT JOIN coin_priorities c ON c.coin_id = s.coin_id
    ), taken_out AS (
        DELETE FROM pg_temp.staged_history s USING judged j
        WHERE s.ctid = j.place AND j.reason IS NOT NULL
        RETURNING s.*, j.reason
    )
    SELECT coalesce(array_agg(f.coin_id), '{}'), coalesce(array_agg(f.reason), '{}'),
           coalesce(array_agg(to_jsonb(f) - 'reason'), '{}')
    INTO coin_ids, reasons, payloads
    FROM (SELECT * FROM taken_out ORDER BY stamp) AS f;
END
$$;
COMMENT ON FUNCTION take_out_faulty_history(TIMESTAMPTZ) IS
    'Deletes the points of staged_history that no constraint would accept, and returns them, oldest first, as set_aside_all() takes them: judged as put_staged_minutes() does. now is the last minute that is not of the future.';

CREATE OR REPLACE FUNCTION put_staged_history(
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
    asked  timeframes;
    t      timeframes;
    first  TIMESTAMPTZ;
    last   TIMESTAMPTZ;
    merged BIGINT;
    faulty RECORD;
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
    faulty := take_out_faulty_history(now);
    usable := usable - cardinality(faulty.coin_ids);
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
    rejected := set_aside_all(collection_id, now, faulty.coin_ids, faulty.reasons, faulty.payloads);
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION put_staged_history(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ, INTEGER) IS
    'Merges the session''s temporary table staged_history (coin_id, stamp, minute_ts to be filled here, price_usd, market_cap_usd, volume_24h_usd, created_at) into the closes of a timeframe and of every wider one, as observations of the minutes that history_minute() names; into minute_close by put_staged_minutes(), where they replace nothing. What lies outside [from, to) is left alone, what is faulty set aside. Returns rows written to the timeframe''s own table, sound points, and points set aside. Errors: an unknown timeframe or grade; a grade too coarse for minutes.';

-- ---------------------------------------------------------------------------------------------
-- Earlier versions worded these at every start, otherwise than 001 does
-- ---------------------------------------------------------------------------------------------
COMMENT ON TABLE schema_migrations IS 'Migrations that have been applied, with the checksum of the file.';
COMMENT ON COLUMN schema_migrations.version IS 'Name of the file in sql/ without its ending.';
COMMENT ON COLUMN schema_migrations.applied_at IS 'When it was applied.';
COMMENT ON COLUMN schema_migrations.checksum IS 'SHA-256 of the file; an applied file must not be edited.';
