-- How a sweep of the provider's market list enters coin_priorities.

CREATE FUNCTION put_staged_coins(collection_id INTEGER, now TIMESTAMPTZ) RETURNS TABLE (stored BIGINT, rejected BIGINT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
BEGIN
    WITH judged AS (
        SELECT s.*, CASE
            WHEN s.coin_id IS NULL OR s.coin_id = '' THEN 'the coin id is missing'
            WHEN s.market_cap_rank <= 0 THEN 'the market cap rank is not positive'
            WHEN s.market_cap_usd < 0 THEN 'the market cap is negative'
            WHEN s.market_cap_usd IN ('NaN', 'Infinity') THEN 'the market cap is not a finite number'
        END AS reason
        FROM pg_temp.staged_coins s
    ), faulty AS (
        SELECT set_aside(put_staged_coins.collection_id, put_staged_coins.now, j.coin_id, j.reason,
                         to_jsonb(j) - 'reason')
        FROM (SELECT * FROM judged WHERE reason IS NOT NULL ORDER BY coin_id, reason) AS j
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
    SELECT (SELECT count(*) FROM sound), (SELECT count(*) FROM faulty) INTO stored, rejected;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION put_staged_coins(INTEGER, TIMESTAMPTZ) IS
    'Moves the session''s temporary table staged_coins (position, coin_id, market_cap_rank, market_cap_usd, symbol, name, image_url, provider_ts) into coin_priorities, by id. Coins are never deleted; a row that cannot be stored goes to rejected_observations. Returns coins written and rows set aside.';

CREATE FUNCTION coins_to_poll(wanted INTEGER, always TEXT[]) RETURNS TABLE (coin_id TEXT, coin_rank INTEGER)
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    -- A coin that no sweep has seen for two weeks before the newest one has left the provider. It
    -- stays in the table, but would hold a place among the ranks for ever.
    WITH listed AS (
        SELECT c.coin_id, c.market_cap_rank, c.market_cap_usd
        FROM coin_priorities c
        WHERE c.last_updated >= (SELECT max(last_updated) FROM coin_priorities) - INTERVAL '14 days'
    ), chosen AS (
        (SELECT l.coin_id FROM listed l
         ORDER BY l.market_cap_rank NULLS LAST, l.market_cap_usd DESC NULLS LAST, l.coin_id
         LIMIT wanted)
        UNION
        SELECT c.coin_id FROM coin_priorities c WHERE c.coin_id = ANY (always)
    )
    SELECT c.coin_id, c.market_cap_rank FROM coin_priorities c JOIN chosen USING (coin_id) ORDER BY c.coin_id
$$;
COMMENT ON FUNCTION coins_to_poll(INTEGER, TEXT[]) IS
    'The coins of a mode with their latest known rank, by coin_id: the first `wanted` by rank (NULL for all) and those of `always` that are known.';
