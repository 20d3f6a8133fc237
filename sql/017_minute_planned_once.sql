-- The minute of a poll, merged by a statement that is planned once.
--
-- A poll brings one minute of every coin. The statement that merges it into its hours is the same every
-- time but for its times, and making its text and planning it took a sixth of the merge for 1,000 coins.
-- So the rule takes the bounds as text of SQL, and aggregate_to_hourly() holds that statement with variables
-- in their place: made from the rule, here, and kept planned by each session.
--
-- And lock_buckets(), which each put asks twice, reckons by itself instead of asking queries for it: it
-- took as long as all checks of the minute's rows.
--
-- Whoever defines merge_rule(), incoming_of_one_label() or observation_order() anew must make
-- aggregate_to_hourly() anew as well, as it is done below.

CREATE FUNCTION merge_rule(timeframe TEXT, incoming TEXT, first_label TEXT, last_label TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    -- The bounds let PostgreSQL leave out the other months' partitions. As a range and not as an
    -- equality: for a label newer than the statistics an equality is taken for a single row.
    SELECT format(
        'MERGE INTO public.%1$I AS stored USING (%3$s) AS incoming
         ON stored.coin_id = incoming.coin_id AND stored.%2$I = incoming.label
            AND stored.%2$I BETWEEN %4$s AND %5$s
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
        first_label, last_label,
        observation_order('incoming', 'incoming.close_ts'),
        observation_order('stored', format('coalesce(stored.close_ts, stored.%I)', t.label_column)))
    FROM timeframes t WHERE t.name = timeframe AND t.child IS NOT NULL
$$;
COMMENT ON FUNCTION merge_rule(TEXT, TEXT, TEXT, TEXT) IS
    'THE merge rule, as the text of one MERGE into the rollup of a timeframe. incoming is a query with coin_id, label, price_usd, market_cap_usd, volume_24h_usd, coin_rank, created_at, provider_ts, source, close_ts, seen and at most one row per coin and label; first_label and last_label, SQL text too, are the bounds of its labels. Hold lock_buckets() of the same range when executing it.';

CREATE OR REPLACE FUNCTION merge_statement(timeframe TEXT, incoming TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT merge_rule(timeframe, incoming, quote_literal(bucket_start(timeframe, first)),
                      quote_literal(bucket_start(timeframe, last)))
$$;
COMMENT ON FUNCTION merge_statement(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'merge_rule() for rows all of whose labels lie in the buckets of first..last.';

CREATE FUNCTION child_close(timeframe TEXT) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    SELECT CASE WHEN t.child IS NULL THEN format('child.%I', t.label_column)
                ELSE format('coalesce(child.close_ts, child.%I)', t.label_column) END
    FROM timeframes t WHERE t.name = timeframe
$$;
COMMENT ON FUNCTION child_close(TEXT) IS
    'SQL text for the minute of the close that a row of this timeframe, under the alias child, holds.';

CREATE FUNCTION incoming_of_one_label(
    timeframe TEXT, relation TEXT, child_label TEXT, label TEXT, evidence TEXT
) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
AS $$
    -- One child label means one row per coin (it is their key): nothing to choose from.
    SELECT format(
        'SELECT child.coin_id, %3$s AS label, child.price_usd, child.market_cap_usd, child.volume_24h_usd,
                child.coin_rank, child.created_at, child.provider_ts, child.source, %5$s AS close_ts,
                %4$s AS seen
         FROM %1$s AS child WHERE child.%6$I = %2$s',
        relation, child_label, label, evidence, child_close(p.child), c.label_column)
    FROM timeframes p JOIN timeframes c ON c.name = p.child
    WHERE p.name = timeframe
$$;
COMMENT ON FUNCTION incoming_of_one_label(TEXT, TEXT, TEXT, TEXT, TEXT) IS
    'The query that merge_rule() takes, over the children in a relation that have the label child_label, which lies in the bucket label and sets the evidence (one bit) there. All but timeframe are SQL text.';

CREATE OR REPLACE FUNCTION incoming_from_children(timeframe TEXT, relation TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS TEXT
LANGUAGE sql STABLE STRICT
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
    SELECT CASE WHEN first = last THEN
        incoming_of_one_label(
            timeframe, relation, quote_literal(first),
            quote_literal(bucket_start(timeframe, first)) || '::timestamptz',
            evidence_bit(timeframe, first) || '::bigint')
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
            child_close(p.child), c.label_column, evidence_expression(timeframe, format('%I', c.label_column)),
            first, last, CASE WHEN one_bucket THEN '1' ELSE '1, 2' END)
    END
    FROM timeframes p
    JOIN timeframes c ON c.name = p.child,
    LATERAL (SELECT bucket_start(timeframe, first) = bucket_start(timeframe, last) AS one_bucket) AS width
    WHERE p.name = timeframe
$$;
COMMENT ON FUNCTION incoming_from_children(TEXT, TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'The query that merge_statement() takes, over the children in a relation (SQL text) whose labels lie in first..last, both included: per coin and bucket the last child and the union of their evidence bits.';

CREATE OR REPLACE FUNCTION lock_buckets(timeframe TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    slots       CONSTANT INTEGER := 64;
    class       INTEGER := lock_number(timeframe);
    t           timeframes;
    first_label TIMESTAMPTZ;
    last_label  TIMESTAMPTZ;
    width       NUMERIC;
    first_slot  BIGINT;
    last_slot   BIGINT;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    IF t.child = 'minute' THEN
        -- Said before any row is touched: stop_at_the_gate() lets this transaction pass.
        PERFORM pg_advisory_xact_lock_shared(lock_number('minute'), 0);
        PERFORM set_config('pulseguard.hours_locked', 'yes', true);
    END IF;
    first_label := date_trunc(t.unit, least(first, last), 'UTC');
    last_label := date_trunc(t.unit, greatest(first, last), 'UTC');
    IF t.unit = 'month' THEN
        first_slot := extract(year FROM first_label) * 12 + extract(month FROM first_label);
        last_slot := extract(year FROM last_label) * 12 + extract(month FROM last_label);
    ELSE
        width := extract(epoch FROM ('1 ' || t.unit)::interval);
        first_slot := floor(extract(epoch FROM first_label) / width);
        last_slot := floor(extract(epoch FROM last_label) / width);
    END IF;
    IF first_slot = last_slot THEN
        PERFORM pg_advisory_xact_lock(class, mod(mod(first_slot, slots) + slots, slots)::integer);
        RETURN;
    END IF;
    FOR slot IN 0 .. slots - 1 LOOP
        -- How far it is from the first bucket to the next one with this slot.
        IF mod(slot - mod(first_slot, slots) + slots, slots) <= last_slot - first_slot THEN
            PERFORM pg_advisory_xact_lock(class, slot);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION lock_buckets(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Makes this transaction the only writer of the buckets that hold the instants first..last, until it ends. Writers take these locks before they touch a row, from narrow to wide timeframes and in slot order, so they cannot deadlock. Readers never wait for them. A bucket''s lock is one of 64 slots, so a year of hours takes 64 locks and not 8,760.';

DO $migration$
BEGIN
    EXECUTE format(
        $definition$
CREATE OR REPLACE FUNCTION aggregate_to_hourly() RETURNS TRIGGER
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = on
SET jit = off
AS $function$
DECLARE
    first    TIMESTAMPTZ;
    last     TIMESTAMPTZ;
    minutes  BIGINT;
    hour     TIMESTAMPTZ;
    bit      BIGINT;
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
    -- Over a few rows a nested loop is the best plan there is, and the bounds must be known to find it.
    -- Over many it can pick the index on the hour alone, which reads the whole hour once per coin.
    IF minutes > 100 THEN
        PERFORM set_config('enable_nestloop', 'off', true);
        IF first = last THEN
            hour := bucket_start('hourly', first);
            bit := %1$s;
            -- The merge rule as merge_rule() spells it.
            %2$s;
            RETURN NULL;
        END IF;
    END IF;
    EXECUTE merge_statement('hourly', incoming_from_children('hourly', 'arrived', first, last), first, last);
    RETURN NULL;
END
$function$
        $definition$,
        evidence_expression('hourly', 'first'),
        merge_rule('hourly', incoming_of_one_label('hourly', 'arrived', 'first', 'hour', 'bit'), 'hour', 'hour'));
END
$migration$;
COMMENT ON FUNCTION aggregate_to_hourly() IS
    'Statement trigger: merges the minutes a statement wrote into their hours, so that the open hour''s close is always live.';
