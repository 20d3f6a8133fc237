-- The tables of the seed design, under its names.
--
-- Belongs here: tables, constraints, named indexes. Not here: partitions (002), what a close
-- is and how it is merged (003), retention (004), the provider's ledger (005), upkeep (006), the
-- sweep of coins (007).
-- Deviations from the seed, each with its reason, are listed in docs/schema.md.

-- ---------------------------------------------------------------------------------------------
-- Timeframes: what the five close tables differ in. Every rule below loops over this table.
-- ---------------------------------------------------------------------------------------------
CREATE TABLE timeframes (
    name            TEXT PRIMARY KEY,
    ordinal         INTEGER NOT NULL UNIQUE,
    table_name      TEXT NOT NULL UNIQUE,
    label_column    TEXT NOT NULL,
    unit            TEXT NOT NULL,
    child           TEXT REFERENCES timeframes (name),
    evidence_field  TEXT,
    evidence_offset INTEGER,
    evidence_bits   INTEGER
);
INSERT INTO timeframes VALUES
    ('minute',  1, 'minute_close',  'minute_ts', 'minute', NULL,     NULL,     NULL, NULL),
    ('hourly',  2, 'hourly_close',  'hour_ts',   'hour',   'minute', 'minute', 0,    60),
    ('daily',   3, 'daily_close',   'day_ts',    'day',    'hourly', 'hour',   0,    24),
    ('weekly',  4, 'weekly_close',  'week_ts',   'week',   'daily',  'isodow', 1,    7),
    ('monthly', 5, 'monthly_close', 'month_ts',  'month',  'daily',  'day',    1,    31);

COMMENT ON TABLE timeframes IS 'The five widths of a close: one row describes all that their tables differ in.';
COMMENT ON COLUMN timeframes.name IS 'minute, hourly, daily, weekly or monthly.';
COMMENT ON COLUMN timeframes.ordinal IS 'Order from narrow to wide; locks are taken in this order.';
COMMENT ON COLUMN timeframes.table_name IS 'Table that holds its closes.';
COMMENT ON COLUMN timeframes.label_column IS 'Column with the START of the bucket, UTC.';
COMMENT ON COLUMN timeframes.unit IS 'Width as date_trunc() spells it; a week is the ISO week, from Monday.';
COMMENT ON COLUMN timeframes.child IS 'Timeframe it is rolled up from; a month comes from days because a week can lie in two months.';
COMMENT ON COLUMN timeframes.evidence_field IS 'EXTRACT() field of a child label that numbers its evidence bit.';
COMMENT ON COLUMN timeframes.evidence_offset IS 'What EXTRACT() returns for the first child of a bucket (bit 0).';
COMMENT ON COLUMN timeframes.evidence_bits IS 'How many children a full bucket has at most.';

-- ---------------------------------------------------------------------------------------------
-- Coins
-- ---------------------------------------------------------------------------------------------
CREATE TABLE coin_priorities (
    coin_id         TEXT PRIMARY KEY CONSTRAINT chk_coin_id_present CHECK (coin_id <> ''),
    market_cap_rank INTEGER CONSTRAINT chk_market_cap_rank_positive CHECK (market_cap_rank > 0),
    market_cap_usd  NUMERIC CONSTRAINT chk_market_cap_positive
                    CHECK (market_cap_usd >= 0 AND market_cap_usd < 'Infinity'),
    symbol          TEXT,
    name            TEXT,
    image_url       TEXT,
    last_updated    TIMESTAMPTZ DEFAULT now(),
    created_at      TIMESTAMPTZ DEFAULT now(),
    provider_ts     TIMESTAMPTZ
);
CREATE INDEX idx_coin_priorities_rank ON coin_priorities (market_cap_rank);
CREATE INDEX idx_coin_priorities_updated ON coin_priorities (last_updated DESC);
-- Covering, so that the coin list of mode top1000 is read from the index alone.
CREATE INDEX idx_coin_priorities_rank_active ON coin_priorities (market_cap_rank) INCLUDE (coin_id)
    WHERE market_cap_rank <= 1000;

COMMENT ON TABLE coin_priorities IS 'Coins the provider lists, with market cap rank and metadata. Coins are never deleted: a miss in one sweep is no delisting.';
COMMENT ON COLUMN coin_priorities.coin_id IS 'The provider''s id; the only unique name of a coin.';
COMMENT ON COLUMN coin_priorities.market_cap_rank IS 'Rank by market cap, 1 is the largest; NULL for the third of all coins without one.';
COMMENT ON COLUMN coin_priorities.market_cap_usd IS 'Market cap in US dollars at the last sweep.';
COMMENT ON COLUMN coin_priorities.symbol IS 'Ticker symbol; not unique, may be empty.';
COMMENT ON COLUMN coin_priorities.name IS 'Display name as the provider writes it.';
COMMENT ON COLUMN coin_priorities.image_url IS 'Address of the logo.';
COMMENT ON COLUMN coin_priorities.last_updated IS 'When a sweep last saw this coin.';
COMMENT ON COLUMN coin_priorities.created_at IS 'When a sweep first saw this coin.';
COMMENT ON COLUMN coin_priorities.provider_ts IS 'The provider''s own last-updated time, NULL if unknown.';
COMMENT ON INDEX idx_coin_priorities_rank IS 'Coin lists of every mode: ORDER BY market_cap_rank LIMIT n.';
COMMENT ON INDEX idx_coin_priorities_updated IS 'Coins a sweep has not seen for long, newest first.';
COMMENT ON INDEX idx_coin_priorities_rank_active IS 'Coin list of mode top1000 as an index-only scan.';

-- ---------------------------------------------------------------------------------------------
-- Closes: five tables of one shape, made by one loop
-- ---------------------------------------------------------------------------------------------
DO $$
DECLARE
    t timeframes;
    label TEXT;
    bucket TEXT;
BEGIN
    FOR t IN SELECT * FROM timeframes ORDER BY ordinal LOOP
        label := quote_ident(t.label_column);
        -- The bucket that holds an instant, for the checks: date_trunc() in UTC. Widths that do not
        -- vary are counted from a Monday by date_bin(), which is an integer division and takes a
        -- tenth of the time; with 36,000 of them a minute that shows.
        bucket := CASE t.unit WHEN 'month' THEN 'date_trunc(''month'', %s, ''UTC'')'
                  ELSE format('date_bin(%L, %%s, ''2000-01-03 00:00:00+00'')', '1 ' || t.unit) END;
        EXECUTE format(
            'CREATE TABLE %1$I (
                coin_id        TEXT NOT NULL,
                %2$s           TIMESTAMPTZ NOT NULL,
                price_usd      NUMERIC NOT NULL,
                market_cap_usd NUMERIC,
                volume_24h_usd NUMERIC,
                coin_rank      INTEGER,
                created_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
                provider_ts    TIMESTAMPTZ,
                source         TEXT NOT NULL DEFAULT ''live'',
                CONSTRAINT %5$I PRIMARY KEY (coin_id, %2$s) INCLUDE (%6$s),
                CONSTRAINT %3$I FOREIGN KEY (coin_id) REFERENCES coin_priorities (coin_id),
                CONSTRAINT chk_price_positive CHECK (price_usd > 0 AND price_usd < ''Infinity''),
                CONSTRAINT chk_market_cap_finite
                    CHECK (market_cap_usd > ''-Infinity'' AND market_cap_usd < ''Infinity''),
                CONSTRAINT chk_volume_finite
                    CHECK (volume_24h_usd > ''-Infinity'' AND volume_24h_usd < ''Infinity''),
                CONSTRAINT chk_label_aligned CHECK (%2$s = %4$s),
                CONSTRAINT chk_source_known CHECK (source IN (''live'', ''history'', ''correction'')),
                CONSTRAINT chk_recorded_finite CHECK (isfinite(created_at))
            ) PARTITION BY RANGE (%2$s)',
            t.table_name, label, 'fk_' || t.table_name || '_coin', format(bucket, label),
            -- The seed's index for a coin's series has the columns of the key, which can be read in
            -- both directions. So it IS the key's index and not a second one, and it covers: what
            -- one asks a series for, or, in a rollup, those columns that a merge leaves alone. A
            -- rollup's row is rewritten with every newer child, and only while no index holds a
            -- column that changes is that a heap-only update.
            'idx_' || t.table_name || '_coin_time',
            CASE WHEN t.child IS NULL THEN 'price_usd' ELSE 'coin_rank, source' END);

        IF t.child IS NOT NULL THEN
            EXECUTE format(
                'ALTER TABLE %1$I
                    ADD COLUMN close_ts TIMESTAMPTZ,
                    ADD COLUMN seen BIGINT NOT NULL DEFAULT 0,
                    ADD CONSTRAINT chk_close_in_bucket
                        CHECK (%3$s = %2$s),
                    ADD CONSTRAINT chk_evidence_in_bucket CHECK (seen >= 0 AND seen < %4$s)',
                t.table_name, label, format(bucket, 'close_ts'), (1::bigint << t.evidence_bits)::text);
        END IF;

        EXECUTE format('CREATE INDEX %I ON %I (%s DESC)',
            'idx_' || t.table_name || '_time', t.table_name, label);

        EXECUTE format('COMMENT ON TABLE %I IS %L', t.table_name,
            CASE WHEN t.child IS NULL
                THEN 'One close per coin and minute: the last observation in the minute. Partitioned by month, UTC.'
                ELSE format('One close per coin and %s, merged from %s_close. Partitioned by month, UTC.', t.unit, t.child)
            END);
        EXECUTE format('COMMENT ON COLUMN %I.coin_id IS %L', t.table_name, 'The provider''s coin id.');
        EXECUTE format('COMMENT ON COLUMN %I.%s IS %L', t.table_name, label, format('START of the %s, UTC; the bucket ends before the next label.', t.unit));
        EXECUTE format('COMMENT ON COLUMN %I.price_usd IS %L', t.table_name, 'Price in US dollars of the last observation in the bucket, unrounded.');
        EXECUTE format('COMMENT ON COLUMN %I.market_cap_usd IS %L', t.table_name, 'Market cap in US dollars, from the same observation.');
        EXECUTE format('COMMENT ON COLUMN %I.volume_24h_usd IS %L', t.table_name, 'Volume of the last 24 hours in US dollars, from the same observation.');
        EXECUTE format('COMMENT ON COLUMN %I.coin_rank IS %L', t.table_name, 'Market cap rank known at that observation.');
        EXECUTE format('COMMENT ON COLUMN %I.created_at IS %L', t.table_name, 'When the observation was recorded: the instant its response arrived.');
        EXECUTE format('COMMENT ON COLUMN %I.provider_ts IS %L', t.table_name, 'The provider''s own last-updated time, NULL if unknown.');
        EXECUTE format('COMMENT ON COLUMN %I.source IS %L', t.table_name, 'live, history (the provider''s past) or correction.');
        EXECUTE format('COMMENT ON CONSTRAINT %I ON %I IS %L', 'fk_' || t.table_name || '_coin', t.table_name, 'A close belongs to a known coin.');
        EXECUTE format('COMMENT ON CONSTRAINT chk_price_positive ON %I IS %L', t.table_name, 'Positive and finite; the upper bound is what refuses NaN.');
        EXECUTE format('COMMENT ON CONSTRAINT chk_market_cap_finite ON %I IS %L', t.table_name, 'A number: neither NaN nor infinite.');
        EXECUTE format('COMMENT ON CONSTRAINT chk_volume_finite ON %I IS %L', t.table_name, 'A number: neither NaN nor infinite.');
        EXECUTE format('COMMENT ON CONSTRAINT chk_label_aligned ON %I IS %L', t.table_name, format('The label is the start of a UTC %s.', t.unit));
        EXECUTE format('COMMENT ON CONSTRAINT chk_source_known ON %I IS %L', t.table_name, 'One of the three sources.');
        EXECUTE format('COMMENT ON INDEX %I IS %L', 'idx_' || t.table_name || '_coin_time',
            CASE WHEN t.child IS NULL THEN 'A coin''s price series, newest first, as an index-only scan.'
                 ELSE 'A coin''s buckets with rank and source, newest first, as an index-only scan; free of the columns a merge rewrites.' END);
        EXECUTE format('COMMENT ON INDEX %I IS %L', 'idx_' || t.table_name || '_time',
            'Rows per label and newest label: small, since equal labels share one entry.');
        EXECUTE format('COMMENT ON CONSTRAINT chk_recorded_finite ON %I IS %L', t.table_name, 'A real instant: an observation recorded at infinity could never be corrected.');
        EXECUTE format('COMMENT ON CONSTRAINT %I ON %I IS %L', 'idx_' || t.table_name || '_coin_time', t.table_name, format('One close per coin and %s.', t.unit));
        IF t.child IS NOT NULL THEN
            EXECUTE format('COMMENT ON COLUMN %I.close_ts IS %L', t.table_name, 'Minute label of the observation that is the close; NULL means the row''s own label.');
            EXECUTE format('COMMENT ON COLUMN %I.seen IS %L', t.table_name, format('Evidence: one bit for each %s child the close rests on.', t.child));
            EXECUTE format('COMMENT ON CONSTRAINT chk_close_in_bucket ON %I IS %L', t.table_name, 'The observation lies inside its bucket.');
            EXECUTE format('COMMENT ON CONSTRAINT chk_evidence_in_bucket ON %I IS %L', t.table_name, format('At most %s children.', t.evidence_bits));
        END IF;
    END LOOP;
END
$$;

-- The seed's "recent data" indexes. PostgreSQL refuses now() in an index predicate, and a fixed
-- instant would age. Partitioned by month and kept 60 minutes or 24 hours long, these tables ARE
-- the recent data, so the index is whole. It answers "every coin of the last minutes" by itself.
CREATE INDEX idx_recent_minute_close ON minute_close (minute_ts DESC, coin_id) INCLUDE (price_usd);
CREATE INDEX idx_recent_hourly_close ON hourly_close (hour_ts DESC, coin_id);
COMMENT ON INDEX idx_recent_minute_close IS 'All coins of the last minutes with their prices, as an index-only scan.';
COMMENT ON INDEX idx_recent_hourly_close IS 'All coins of the last hours; without the price, so that a merge stays a heap-only update.';

-- ---------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------
CREATE TABLE collection_status (
    id              SERIAL PRIMARY KEY,
    collection_type TEXT NOT NULL CONSTRAINT chk_valid_collection_type
                    CHECK (collection_type IN ('complete', 'continuous', 'priority_refresh', 'manual')),
    start_time      TIMESTAMPTZ NOT NULL,
    end_time        TIMESTAMPTZ,
    coins_processed INTEGER DEFAULT 0,
    coins_failed    INTEGER DEFAULT 0,
    api_calls_made  INTEGER DEFAULT 0,
    status          TEXT DEFAULT 'running' CONSTRAINT chk_valid_status
                    CHECK (status IN ('running', 'completed', 'failed', 'cancelled')),
    error_message   TEXT,
    batch_details   JSONB,
    created_at      TIMESTAMPTZ DEFAULT now(),
    heartbeat_at    TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX idx_collection_status_start_time ON collection_status (start_time DESC);
CREATE INDEX idx_collection_status_type_status ON collection_status (collection_type, status);
COMMENT ON TABLE collection_status IS 'One row per collection cycle: what it fetched, stored and set aside, and how it ended.';
COMMENT ON COLUMN collection_status.id IS 'Number of the cycle.';
COMMENT ON COLUMN collection_status.collection_type IS 'complete (all coins), continuous (coins of the mode), priority_refresh (ranks) or manual.';
COMMENT ON COLUMN collection_status.start_time IS 'When the cycle began.';
COMMENT ON COLUMN collection_status.end_time IS 'When it ended; NULL while running.';
COMMENT ON COLUMN collection_status.coins_processed IS 'Coins stored.';
COMMENT ON COLUMN collection_status.coins_failed IS 'Coins asked for and not stored.';
COMMENT ON COLUMN collection_status.api_calls_made IS 'Calls sent to the provider, retries included.';
COMMENT ON COLUMN collection_status.status IS 'running, completed, failed or cancelled.';
COMMENT ON COLUMN collection_status.error_message IS 'Why it failed, as a sentence.';
COMMENT ON COLUMN collection_status.batch_details IS 'Figures of the cycle: minute, chunks, coverage, latency.';
COMMENT ON COLUMN collection_status.created_at IS 'When the row was written.';
COMMENT ON COLUMN collection_status.heartbeat_at IS 'Last sign of life; a running cycle without one for minutes has crashed.';
COMMENT ON CONSTRAINT chk_valid_collection_type ON collection_status IS 'One of the four kinds of cycle.';
COMMENT ON CONSTRAINT chk_valid_status ON collection_status IS 'One of the four states of a cycle.';
COMMENT ON INDEX idx_collection_status_start_time IS 'Newest cycles first.';
COMMENT ON INDEX idx_collection_status_type_status IS 'Cycles of a kind in a state.';

CREATE TABLE rejected_observations (
    id               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rejected_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    collection_id    INTEGER,
    coin_id          TEXT,
    reason           TEXT NOT NULL,
    payload          JSONB,
    times            INTEGER NOT NULL DEFAULT 1 CONSTRAINT chk_times_positive CHECK (times > 0),
    last_rejected_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    hour             TIMESTAMPTZ NOT NULL GENERATED ALWAYS AS
                     (date_bin('1 hour', rejected_at, '2000-01-01 00:00:00+00')) STORED,
    -- Hundreds of coins have no price for months. One row per poll and coin would outgrow the
    -- closes themselves, so repetitions within an hour are counted.
    CONSTRAINT rejected_observations_once_an_hour UNIQUE NULLS NOT DISTINCT (hour, coin_id, reason)
);
CREATE INDEX idx_rejected_observations_time ON rejected_observations (rejected_at DESC);
COMMENT ON TABLE rejected_observations IS 'Observations that could not be a close, each with its reason and payload. The rest of their batch was stored. Within an hour, repetitions of a coin and reason are one row.';
COMMENT ON COLUMN rejected_observations.id IS 'Number of the row.';
COMMENT ON COLUMN rejected_observations.rejected_at IS 'When it was first set aside in that hour.';
COMMENT ON COLUMN rejected_observations.collection_id IS 'Cycle it last came with (collection_status.id); kept after that row has gone.';
COMMENT ON COLUMN rejected_observations.coin_id IS 'Coin id as received; may be unknown to coin_priorities.';
COMMENT ON COLUMN rejected_observations.reason IS 'Why it cannot be a close, as a sentence.';
COMMENT ON COLUMN rejected_observations.payload IS 'What was received last.';
COMMENT ON COLUMN rejected_observations.times IS 'How often in that hour.';
COMMENT ON COLUMN rejected_observations.last_rejected_at IS 'When it was last set aside in that hour.';
COMMENT ON COLUMN rejected_observations.hour IS 'UTC hour of rejected_at.';
COMMENT ON CONSTRAINT chk_times_positive ON rejected_observations IS 'A row stands for at least one rejection.';
COMMENT ON CONSTRAINT rejected_observations_once_an_hour ON rejected_observations IS 'Repetitions within an hour are counted in times.';
COMMENT ON INDEX idx_rejected_observations_time IS 'Newest rejections first; also their clean-up by age.';

CREATE FUNCTION set_aside(
    collection_id INTEGER, now TIMESTAMPTZ, coin_id TEXT, reason TEXT, payload JSONB
) RETURNS VOID
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    INSERT INTO rejected_observations AS r (rejected_at, last_rejected_at, collection_id, coin_id, reason, payload)
    VALUES (set_aside.now, set_aside.now, set_aside.collection_id, set_aside.coin_id, set_aside.reason, set_aside.payload)
    ON CONFLICT ON CONSTRAINT rejected_observations_once_an_hour DO UPDATE SET
        times = r.times + 1, payload = excluded.payload, collection_id = excluded.collection_id,
        last_rejected_at = greatest(r.last_rejected_at, excluded.last_rejected_at)
$$;
COMMENT ON FUNCTION set_aside(INTEGER, TIMESTAMPTZ, TEXT, TEXT, JSONB) IS
    'Files one observation that cannot be a close, or counts it once more.';

COMMENT ON CONSTRAINT timeframes_pkey ON timeframes IS 'One row per width.';
COMMENT ON CONSTRAINT timeframes_ordinal_key ON timeframes IS 'The order has no ties.';
COMMENT ON CONSTRAINT timeframes_table_name_key ON timeframes IS 'Each width has a table of its own.';
COMMENT ON CONSTRAINT timeframes_child_fkey ON timeframes IS 'A rollup is built from another width.';
COMMENT ON CONSTRAINT coin_priorities_pkey ON coin_priorities IS 'One row per coin.';
COMMENT ON CONSTRAINT collection_status_pkey ON collection_status IS 'One row per cycle.';
COMMENT ON CONSTRAINT rejected_observations_pkey ON rejected_observations IS 'One number per row.';
COMMENT ON CONSTRAINT schema_migrations_pkey ON schema_migrations IS 'A migration is applied once.';
COMMENT ON CONSTRAINT chk_coin_id_present ON coin_priorities IS 'An id is never empty.';
COMMENT ON CONSTRAINT chk_market_cap_rank_positive ON coin_priorities IS 'Ranks start at 1.';
COMMENT ON CONSTRAINT chk_market_cap_positive ON coin_priorities IS 'Zero or more, finite; the upper bound is what refuses NaN.';
COMMENT ON TABLE schema_migrations IS 'Migrations that have been applied, with the checksum of the file.';
COMMENT ON COLUMN schema_migrations.version IS 'Name of the file in sql/ without its ending.';
COMMENT ON COLUMN schema_migrations.applied_at IS 'When it was applied.';
COMMENT ON COLUMN schema_migrations.checksum IS 'SHA-256 of the file; an applied file must not be edited.';
