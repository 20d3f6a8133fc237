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
    -- In parentheses: next to another bit operator, << is not bound any tighter.
    SELECT format('(1::bigint << (date_part(%L, %s AT TIME ZONE ''UTC'')::integer - %s))',
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
-- Locks, always taken in this order: the gate to the minutes, buckets from narrow to wide, then the
-- lock of partition creators. Whoever keeps to it cannot be part of a deadlock.
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION lock_number(timeframe TEXT) RETURNS INTEGER
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
-- Any numbers that no other advisory lock of this database uses as its first key.
AS $$ SELECT 1886678880 + t.ordinal FROM timeframes t WHERE t.name = timeframe $$;
COMMENT ON FUNCTION lock_number(TEXT) IS
    'First key of the advisory locks on the buckets of a timeframe; that of minute is the gate to the minutes.';

CREATE FUNCTION lock_buckets(timeframe TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    slots      CONSTANT INTEGER := 64;
    class      INTEGER := lock_number(timeframe);
    t          timeframes;
    first_slot BIGINT;
    last_slot  BIGINT;
    slot       INTEGER;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    IF t.child = 'minute' THEN
        -- Said before any row is touched: stop_at_the_gate() lets this transaction pass.
        PERFORM pg_advisory_xact_lock_shared(lock_number('minute'), 0);
        PERFORM set_config('pulseguard.hours_locked', 'yes', true);
    END IF;
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
        PERFORM pg_advisory_xact_lock(class, slot);
    END LOOP;
END
$$;
COMMENT ON FUNCTION lock_buckets(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Makes this transaction the only writer of the buckets that hold the instants first..last, until it ends. Writers take these locks before they touch a row, from narrow to wide timeframes and in slot order, so they cannot deadlock. Readers never wait for them. A bucket''s lock is one of 64 slots, so a year of hours takes 64 locks and not 8,760.';

CREATE FUNCTION stop_at_the_gate() RETURNS TRIGGER
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    IF current_setting('pulseguard.hours_locked', true) IS DISTINCT FROM 'yes' THEN
        PERFORM pg_advisory_xact_lock(lock_number('minute'), 0);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION stop_at_the_gate() IS
    'Statement trigger for writers of minutes that did not call lock_buckets() first, such as an INSERT typed by hand. They lock rows before their trigger learns which hours they touch, the others do it the other way round, and the two would wait for each other. So such a writer has the minutes for itself until it commits.';

-- ---------------------------------------------------------------------------------------------
-- The merge rule
-- ---------------------------------------------------------------------------------------------
-- The functions that merge and delete by the ten thousand choose among joins themselves. They also do
-- without JIT: a plan over many partitions looks dear enough for it, and compiling then takes
-- longer, half a second, than the work itself.
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
SET jit = off
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
    IF date_trunc('month', first, 'UTC') = date_trunc('month', last, 'UTC') THEN
        PERFORM add_monthly_partition('hourly_close', first);
    ELSE
        PERFORM add_monthly_partition('hourly_close', month)
        FROM (SELECT DISTINCT date_trunc('month', minute_ts, 'UTC') AS month FROM arrived) AS months;
    END IF;
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

CREATE TRIGGER trigger_gate_to_minutes
    BEFORE INSERT OR UPDATE ON minute_close
    FOR EACH STATEMENT EXECUTE FUNCTION stop_at_the_gate();
COMMENT ON TRIGGER trigger_gate_to_minutes ON minute_close IS 'Puts statements that hold no lock on their hours in line, before they lock a row.';

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
SET jit = off
AS $$
DECLARE
    parent  timeframes;
    child   timeframes;
    first   TIMESTAMPTZ;
    last    TIMESTAMPTZ;
    month   TIMESTAMPTZ;
    written BIGINT;
BEGIN
    SELECT * INTO parent FROM timeframes WHERE name = timeframe AND timeframes.child IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'roll_up: % is not a rollup', quote_nullable(timeframe)
            USING HINT = 'Name one of hourly, daily, weekly, monthly.';
    END IF;
    SELECT * INTO child FROM timeframes WHERE name = parent.child;
    -- What is stored, not what was asked for: a range of years, or an endless one, must not lock
    -- years of buckets and create years of empty partitions.
    EXECUTE format('SELECT min(%1$I), max(%1$I) FROM public.%2$I WHERE %1$I >= $1 AND %1$I < $2',
                   child.label_column, child.table_name)
        USING "from", "to" INTO first, last;
    IF first IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM lock_buckets(timeframe, first, last);
    PERFORM add_monthly_partition(parent.table_name, bucket_start(timeframe, first));
    IF date_trunc('month', bucket_start(timeframe, first), 'UTC') <> date_trunc('month', bucket_start(timeframe, last), 'UTC') THEN
        FOR month IN EXECUTE format(
            'SELECT DISTINCT date_trunc(''month'', date_trunc(%L, %I, ''UTC''), ''UTC'') FROM public.%I WHERE %2$I BETWEEN $1 AND $2',
            parent.unit, child.label_column, child.table_name)
            USING first, last
        LOOP
            PERFORM add_monthly_partition(parent.table_name, month);
        END LOOP;
    END IF;
    EXECUTE merge_statement(
        timeframe, incoming_from_children(timeframe, format('public.%I', child.table_name), first, last), first, last);
    GET DIAGNOSTICS written = ROW_COUNT;
    RETURN written;
END
$$;
COMMENT ON FUNCTION roll_up(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Merges every stored child with from <= label < to into its parent of this timeframe (hourly, daily, weekly, monthly); returns the rows written, 0 when all of it was there. Errors: an unknown timeframe.';

-- ---------------------------------------------------------------------------------------------
-- Putting minutes
-- ---------------------------------------------------------------------------------------------
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
    INSERT INTO minute_close AS kept (coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd,
                                      coin_rank, created_at, provider_ts, source)
    SELECT DISTINCT ON (coin_id, minute_ts)
           coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd,
           coin_rank, created_at, provider_ts, source
    FROM pg_temp.staged_minutes
    ORDER BY coin_id, minute_ts, source = 'history', created_at DESC
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
    'The careful put: moves the session''s temporary table staged_minutes (the columns of minute_close, nullable) into minute_close. Every row is judged as the constraints would, and the faulty ones go to rejected_observations with their reason and content. Of two observations of a coin and minute the later recorded one stays; a point of history never replaces another. Returns rows written and rows set aside.';
