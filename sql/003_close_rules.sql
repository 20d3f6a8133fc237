-- What a close is: the one rule by which an observation enters a bucket.
--
--   * Observations of a bucket are ordered by (close_ts, created_at). The last one is the close,
--     and every value column of the row comes from it.
--   * Evidence (`seen`) is the union of the children that were merged; it never shrinks.
--   * Nothing is written when nothing would change.
--
-- Everything that writes a rollup executes the statement that merge_statement() returns. Nothing
-- else does, so the rule stands here once.

CREATE FUNCTION bucket_start(timeframe TEXT, at TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$ SELECT date_trunc(t.unit, at, 'UTC') FROM timeframes t WHERE t.name = timeframe $$;
COMMENT ON FUNCTION bucket_start(TEXT, TIMESTAMPTZ) IS
    'Label of the bucket that holds an instant: bucket_start(''weekly'', now()) is last Monday 00:00 UTC.';

CREATE FUNCTION bucket_end(timeframe TEXT, at TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT date_trunc(t.unit, at, 'UTC') + ('1 ' || t.unit)::interval
    FROM timeframes t WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION bucket_end(TEXT, TIMESTAMPTZ) IS
    'First instant after the bucket that holds an instant, which is the next label.';

CREATE FUNCTION evidence_expression(timeframe TEXT, child_label TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    SELECT format('1::bigint << (date_part(%L, %s AT TIME ZONE ''UTC'')::integer - %s)',
                  t.evidence_field, child_label, t.evidence_offset)
    FROM timeframes t WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION evidence_expression(TEXT, TEXT) IS
    'SQL text for the evidence bit that a child with the label child_label (SQL text too) sets in its parent of this timeframe.';

CREATE FUNCTION evidence_bit(timeframe TEXT, child_label TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE plpgsql STABLE STRICT
SET search_path = public, pg_temp
AS $$
DECLARE
    bit BIGINT;
BEGIN
    EXECUTE 'SELECT ' || evidence_expression(timeframe, '$1') USING child_label INTO bit;
    RETURN bit;
END
$$;
COMMENT ON FUNCTION evidence_bit(TEXT, TIMESTAMPTZ) IS
    'The bit a child label sets in `seen` of its parent: evidence_bit(''hourly'', ''2025-01-01 10:07+00'') is 1 << 7.';

-- ---------------------------------------------------------------------------------------------
-- Locks
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION lock_buckets(timeframe TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    -- Any number that no other advisory lock of this database uses as its first key.
    lock_class CONSTANT INTEGER := 1886678880;
    slots      CONSTANT INTEGER := 64;
    t          timeframes;
    first_slot BIGINT;
    last_slot  BIGINT;
    slot       INTEGER;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    SELECT min(number), max(number) INTO first_slot, last_slot
    FROM (SELECT date_trunc(t.unit, instant, 'UTC') AS label
          FROM unnest(ARRAY[first, last]) AS instant) AS buckets,
         LATERAL (SELECT CASE t.unit
                      WHEN 'month' THEN extract(year FROM label) * 12 + extract(month FROM label)
                      ELSE floor(extract(epoch FROM label) / extract(epoch FROM ('1 ' || t.unit)::interval))
                  END::bigint AS number) AS numbered;
    FOR slot IN
        SELECT DISTINCT mod(s, slots)::integer
        FROM generate_series(first_slot, least(last_slot, first_slot + slots - 1)) AS s
        ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock(lock_class + t.ordinal, slot);
    END LOOP;
END
$$;
COMMENT ON FUNCTION lock_buckets(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Makes this transaction the only writer of the buckets that hold the instants first..last, until it ends. Writers take these locks before they touch a row, from narrow to wide timeframes and in slot order, so they cannot deadlock. Readers never wait for them. A bucket''s lock is one of 64 slots, so a year of hours takes 64 locks and not 8,760.';

-- ---------------------------------------------------------------------------------------------
-- The merge rule
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION merge_statement(timeframe TEXT, incoming TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS TEXT
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
            AND (incoming.close_ts, incoming.created_at)
                >= (coalesce(stored.close_ts, stored.%2$I), stored.created_at)
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
        bucket_start(timeframe, first), bucket_start(timeframe, last))
    FROM timeframes t WHERE t.name = timeframe AND t.child IS NOT NULL
$$;
COMMENT ON FUNCTION merge_statement(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'THE merge rule, as the text of one MERGE into the rollup of a timeframe. incoming is a query with coin_id, label, price_usd, market_cap_usd, volume_24h_usd, coin_rank, created_at, provider_ts, source, close_ts, seen and at most one row per coin and label, all of whose labels lie in the buckets of first..last. Hold lock_buckets() of the same range when executing it.';

CREATE FUNCTION incoming_from_children(timeframe TEXT, relation TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS TEXT
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
        format(
            'SELECT DISTINCT ON (coin_id, label)
                    coin_id, label, price_usd, market_cap_usd, volume_24h_usd, coin_rank,
                    created_at, provider_ts, source, closed_at AS close_ts,
                    bit_or(bit) OVER (PARTITION BY coin_id, label ORDER BY closed_at DESC, created_at DESC
                        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS seen
             FROM (SELECT coin_id, price_usd, market_cap_usd, volume_24h_usd, coin_rank, created_at,
                          provider_ts, source, date_trunc(%2$L, %3$I, ''UTC'') AS label,
                          %4$s AS closed_at, %5$s AS bit
                   FROM %1$s AS child WHERE %3$I BETWEEN %6$L AND %7$L) AS child
             ORDER BY coin_id, label, closed_at DESC, created_at DESC',
            relation, p.unit, c.label_column, close_ts,
            evidence_expression(timeframe, format('%I', c.label_column)), first, last)
    END
    FROM timeframes p
    JOIN timeframes c ON c.name = p.child,
    LATERAL (SELECT CASE WHEN c.child IS NULL THEN format('%I', c.label_column)
                         ELSE format('coalesce(close_ts, %I)', c.label_column) END AS close_ts) AS expression
    WHERE p.name = timeframe
$$;
COMMENT ON FUNCTION incoming_from_children(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'The query that merge_statement() takes, over the children in a relation (SQL text) whose labels lie in first..last, both included: per coin and bucket the last child and the union of their evidence bits.';

CREATE FUNCTION aggregate_to_hourly() RETURNS TRIGGER
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = on
AS $$
DECLARE
    first    TIMESTAMPTZ;
    last     TIMESTAMPTZ;
    minutes  BIGINT;
BEGIN
    SELECT min(minute_ts), max(minute_ts), count(*) INTO first, last, minutes FROM arrived;
    IF minutes = 0 THEN
        RETURN NULL;
    END IF;
    PERFORM lock_buckets('hourly', first, last);
    -- A nested loop over many rows can pick the index on the hour alone, which reads the whole
    -- hour once per coin. Over a few rows it is the best plan there is.
    IF minutes > 100 THEN
        PERFORM set_config('enable_nestloop', 'off', true);
    END IF;
    EXECUTE merge_statement('hourly', incoming_from_children('hourly', 'arrived', first, last), first, last);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION aggregate_to_hourly() IS
    'Statement trigger: merges the minutes a statement wrote into their hours, so that the open hour''s close is always live.';

-- Two triggers, because a trigger for two events cannot see the rows of either as a table.
CREATE TRIGGER trigger_aggregate_hourly
    AFTER INSERT ON minute_close REFERENCING NEW TABLE AS arrived
    FOR EACH STATEMENT EXECUTE FUNCTION aggregate_to_hourly();
CREATE TRIGGER trigger_aggregate_hourly_update
    AFTER UPDATE ON minute_close REFERENCING NEW TABLE AS arrived
    FOR EACH STATEMENT EXECUTE FUNCTION aggregate_to_hourly();
COMMENT ON TRIGGER trigger_aggregate_hourly ON minute_close IS 'Keeps hourly_close live when minutes are inserted.';
COMMENT ON TRIGGER trigger_aggregate_hourly_update ON minute_close IS 'Keeps hourly_close live when minutes are corrected.';

CREATE FUNCTION roll_up(timeframe TEXT, "from" TIMESTAMPTZ, "to" TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
AS $$
DECLARE
    t       timeframes;
    last    TIMESTAMPTZ := "to" - INTERVAL '1 microsecond';
    written BIGINT;
BEGIN
    SELECT * INTO t FROM timeframes WHERE name = timeframe AND child IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'roll_up: % is not a rollup', quote_literal(timeframe)
            USING HINT = 'Name one of hourly, daily, weekly, monthly.';
    END IF;
    IF "from" IS NULL OR "to" IS NULL OR last < "from" THEN
        RETURN 0;
    END IF;
    PERFORM ensure_partitions("from", last);
    PERFORM lock_buckets(timeframe, "from", last);
    EXECUTE merge_statement(
        timeframe,
        incoming_from_children(timeframe, (SELECT format('public.%I', c.table_name) FROM timeframes c WHERE c.name = t.child), "from", last),
        "from", last);
    GET DIAGNOSTICS written = ROW_COUNT;
    RETURN written;
END
$$;
COMMENT ON FUNCTION roll_up(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Merges every stored child with from <= label < to into its parent of this timeframe (hourly, daily, weekly, monthly); returns the rows written, 0 when all of it was there. Errors: an unknown timeframe.';

-- ---------------------------------------------------------------------------------------------
-- Putting minutes
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION observation_fault(
    coin_id TEXT, minute_ts TIMESTAMPTZ, price_usd NUMERIC, market_cap_usd NUMERIC,
    volume_24h_usd NUMERIC, source TEXT, now TIMESTAMPTZ
) RETURNS TEXT
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT CASE
        WHEN coin_id IS NULL OR coin_id = '' THEN 'the coin id is missing'
        WHEN NOT EXISTS (SELECT FROM coin_priorities c WHERE c.coin_id = observation_fault.coin_id)
            THEN 'the coin is not in coin_priorities'
        WHEN minute_ts IS NULL THEN 'the minute is missing'
        WHEN minute_ts <> date_trunc('minute', minute_ts, 'UTC') THEN 'the label is not the start of a minute'
        WHEN minute_ts > now THEN 'the minute lies in the future'
        WHEN price_usd IS NULL THEN 'the price is missing'
        WHEN price_usd = 'NaN' THEN 'the price is not a number'
        WHEN price_usd <= 0 THEN 'the price is not positive'
        WHEN price_usd = 'Infinity' THEN 'the price is infinite'
        WHEN market_cap_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the market cap is not a finite number'
        WHEN volume_24h_usd IN ('NaN', 'Infinity', '-Infinity') THEN 'the volume is not a finite number'
        WHEN source NOT IN ('live', 'history', 'correction') THEN 'the source is none of live, history, correction'
    END
$$;
COMMENT ON FUNCTION observation_fault(TEXT, TIMESTAMPTZ, NUMERIC, NUMERIC, NUMERIC, TEXT, TIMESTAMPTZ) IS
    'Why an observation cannot be a minute close, as a sentence, or NULL if it can. The CHECK and foreign key constraints say the same; this says it by row.';

CREATE FUNCTION put_staged_minutes(collection_id INTEGER, now TIMESTAMPTZ) RETURNS TABLE (stored BIGINT, rejected BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    first TIMESTAMPTZ;
    last  TIMESTAMPTZ;
BEGIN
    WITH faulty AS (
        DELETE FROM pg_temp.staged_minutes AS s
        WHERE observation_fault(s.coin_id, s.minute_ts, s.price_usd, s.market_cap_usd,
                                s.volume_24h_usd, s.source, put_staged_minutes.now) IS NOT NULL
        RETURNING s.*
    )
    INSERT INTO rejected_observations (rejected_at, collection_id, coin_id, reason, payload)
    SELECT put_staged_minutes.now, put_staged_minutes.collection_id, f.coin_id,
           observation_fault(f.coin_id, f.minute_ts, f.price_usd, f.market_cap_usd,
                             f.volume_24h_usd, f.source, put_staged_minutes.now),
           to_jsonb(f)
    FROM faulty f;
    GET DIAGNOSTICS rejected = ROW_COUNT;

    SELECT min(minute_ts), max(minute_ts) INTO first, last FROM pg_temp.staged_minutes;
    IF first IS NOT NULL THEN
        PERFORM ensure_partitions(first, last);
        PERFORM lock_buckets('hourly', first, last);
    END IF;
    INSERT INTO minute_close AS kept (coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd,
                                      coin_rank, created_at, provider_ts, source)
    SELECT DISTINCT ON (coin_id, minute_ts)
           coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd,
           coin_rank, created_at, provider_ts, source
    FROM pg_temp.staged_minutes
    ORDER BY coin_id, minute_ts, created_at DESC
    ON CONFLICT (coin_id, minute_ts) DO UPDATE SET
        price_usd = excluded.price_usd, market_cap_usd = excluded.market_cap_usd,
        volume_24h_usd = excluded.volume_24h_usd, coin_rank = excluded.coin_rank,
        created_at = excluded.created_at, provider_ts = excluded.provider_ts, source = excluded.source
    -- A point of the provider's past never replaces what was seen live.
    WHERE excluded.source <> 'history'
      AND excluded.created_at >= kept.created_at
      AND (excluded.created_at, excluded.price_usd, excluded.market_cap_usd, excluded.volume_24h_usd,
           excluded.coin_rank, excluded.provider_ts, excluded.source)
          IS DISTINCT FROM
          (kept.created_at, kept.price_usd, kept.market_cap_usd, kept.volume_24h_usd,
           kept.coin_rank, kept.provider_ts, kept.source);
    GET DIAGNOSTICS stored = ROW_COUNT;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION put_staged_minutes(INTEGER, TIMESTAMPTZ) IS
    'The careful put: moves the session''s temporary table staged_minutes (the columns of minute_close) into minute_close row by row of judgement. Faulty rows go to rejected_observations with their reason, of two observations of a coin and minute the later recorded one stays. Returns rows written and rows set aside.';
