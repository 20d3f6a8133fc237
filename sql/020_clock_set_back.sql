-- A clock that was ahead for a while and was set back leaves times behind that have yet to come. None
-- of them may keep anything from going on until then.
--
-- What lies ahead by more than the clocks of processes differ, 60 seconds, was written by a wrong
-- clock. When it really was is unknown; it is taken for just now.

-- ---------------------------------------------------------------------------------------------
-- The provider's wish to be left alone
-- ---------------------------------------------------------------------------------------------
ALTER TABLE api_budget ADD COLUMN told_at TIMESTAMPTZ;
COMMENT ON COLUMN api_budget.told_at IS 'When the provider asked for it, by the clock of that process; NULL if nobody knows.';

CREATE OR REPLACE FUNCTION reserve_api_call(
    endpoint TEXT, now TIMESTAMPTZ, calls_per_minute INTEGER, credits_per_month BIGINT,
    credits_reserved BIGINT DEFAULT 0
) RETURNS TABLE (
    call_id BIGINT, next_free_at TIMESTAMPTZ, refusal TEXT,
    calls_left_this_minute INTEGER, credits_left_this_month BIGINT
)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    retry_at   TIMESTAMPTZ;
    told_at    TIMESTAMPTZ;
    released   DATE;
    allowed    BIGINT := reserve_api_call.credits_per_month;
    this_month DATE := date_trunc('month', reserve_api_call.now, 'UTC')::date;
    this_day   DATE := (reserve_api_call.now)::date;
    recent     INTEGER;
    spent      BIGINT;
    in_minute  INTEGER;
BEGIN
    SELECT b.retry_at, b.told_at, b.reserve_released_in INTO retry_at, told_at, released FROM api_budget b FOR UPDATE;
    IF told_at > reserve_api_call.now + INTERVAL '60 seconds' THEN
        -- A wait that the provider asked for while the clock was ahead begins now, as long as it asked.
        UPDATE api_budget b
        SET retry_at = reserve_api_call.now + (b.retry_at - b.told_at), told_at = reserve_api_call.now
        RETURNING b.retry_at INTO retry_at;
    END IF;
    IF released = this_month THEN
        allowed := allowed + reserve_api_call.credits_reserved;
    END IF;
    -- The clock was set back by more than the processes' clocks differ. When these calls were made
    -- is unknown now; taken for just made, they fill the next minute and not the next hours.
    UPDATE api_calls SET called_at = reserve_api_call.now
    WHERE called_at > reserve_api_call.now + INTERVAL '60 seconds';
    SELECT count(*) INTO recent FROM api_calls c WHERE c.called_at > reserve_api_call.now - INTERVAL '60 seconds';
    -- Days to come are counted in: a clock set back must not hand the month's credits out again.
    SELECT coalesce(sum(day.total_calls), 0) INTO spent FROM api_usage_stats day WHERE day.date >= this_month;
    calls_left_this_minute := greatest(calls_per_minute - recent, 0);
    -- Not greatest() alone: it takes NULL, which is no limit, for the smaller one.
    credits_left_this_month := CASE WHEN allowed IS NOT NULL THEN greatest(allowed - spent, 0) END;

    IF retry_at > reserve_api_call.now THEN
        refusal := 'retry_after';
        next_free_at := retry_at;
    ELSIF credits_left_this_month = 0 THEN
        refusal := 'credits';
        next_free_at := this_month + INTERVAL '1 month';
    ELSIF calls_left_this_minute = 0 THEN
        refusal := 'rate';
        SELECT c.called_at + INTERVAL '60 seconds' INTO next_free_at FROM api_calls c
        ORDER BY c.called_at DESC OFFSET greatest(calls_per_minute, 1) - 1 LIMIT 1;
    ELSE
        INSERT INTO api_calls (called_at, endpoint, called_on)
        VALUES (reserve_api_call.now, reserve_api_call.endpoint, this_day)
        RETURNING api_calls.call_id INTO call_id;
        SELECT count(*) INTO in_minute FROM api_calls c
        WHERE c.called_at >= date_trunc('minute', reserve_api_call.now)
          AND c.called_at < date_trunc('minute', reserve_api_call.now) + INTERVAL '1 minute';
        INSERT INTO api_usage_stats AS day (date, total_calls, peak_calls_per_minute, created_at, updated_at)
        VALUES (this_day, 1, in_minute, reserve_api_call.now, reserve_api_call.now)
        ON CONFLICT (date) DO UPDATE SET
            total_calls = day.total_calls + 1,
            peak_calls_per_minute = greatest(day.peak_calls_per_minute, excluded.peak_calls_per_minute),
            updated_at = excluded.updated_at;
        calls_left_this_minute := calls_left_this_minute - 1;
        credits_left_this_month := credits_left_this_month - 1;
    END IF;
    RETURN NEXT;
END
$$;

CREATE OR REPLACE FUNCTION settle_api_call(
    call_id BIGINT, outcome TEXT, http_status INTEGER, response_ms INTEGER, now TIMESTAMPTZ,
    retry_at TIMESTAMPTZ DEFAULT NULL
) RETURNS BOOLEAN
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    settled api_calls;
BEGIN
    IF settle_api_call.outcome IS NULL THEN
        RAISE EXCEPTION 'settle_api_call: the outcome is missing'
            USING HINT = 'Name one of successful, failed, rate_limited.';
    END IF;
    IF settle_api_call.retry_at IS NOT NULL THEN
        UPDATE api_budget b SET retry_at = settle_api_call.retry_at, told_at = settle_api_call.now
        WHERE b.retry_at IS NULL OR b.retry_at < settle_api_call.retry_at;
    END IF;
    UPDATE api_calls c
    SET outcome = settle_api_call.outcome, http_status = settle_api_call.http_status,
        response_ms = settle_api_call.response_ms
    WHERE c.call_id = settle_api_call.call_id AND c.outcome IS NULL
    RETURNING * INTO settled;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE api_usage_stats day SET
        successful_calls = day.successful_calls + (settled.outcome = 'successful')::integer,
        failed_calls = day.failed_calls + (settled.outcome = 'failed')::integer,
        rate_limited_calls = day.rate_limited_calls + (settled.outcome = 'rate_limited')::integer,
        answered_calls = day.answered_calls + (settled.response_ms IS NOT NULL)::integer,
        response_time_total = day.response_time_total + coalesce(settled.response_ms, 0),
        average_response_time = round((day.response_time_total + coalesce(settled.response_ms, 0))::numeric
            / nullif(day.answered_calls + (settled.response_ms IS NOT NULL)::integer, 0)),
        updated_at = settle_api_call.now
    WHERE day.date = settled.called_on;
    RETURN true;
END
$$;

-- ---------------------------------------------------------------------------------------------
-- Coins
-- ---------------------------------------------------------------------------------------------
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
            last_updated = excluded.last_updated, provider_ts = excluded.provider_ts,
            created_at = least(known.created_at, excluded.created_at)
        -- What was seen while the clock was ahead gives way at once, not when that time has come.
        WHERE known.last_updated IS NULL OR excluded.last_updated >= known.last_updated
           OR known.last_updated > put_staged_coins.now + INTERVAL '60 seconds'
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

-- ---------------------------------------------------------------------------------------------
-- Incidents and their messages
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION pull_back_incidents(now TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    present CONSTANT TIMESTAMPTZ := now + INTERVAL '60 seconds';
BEGIN
    -- As observe_incidents() does, which goes on in the same transaction.
    PERFORM pg_advisory_xact_lock(hashtextextended('pulseguard.observe_incidents', 0));
    UPDATE incidents i SET
        first_seen = least(i.first_seen, now), last_seen = least(i.last_seen, now),
        absent_since = CASE WHEN i.absent_since IS NOT NULL THEN least(i.absent_since, now) END,
        resolved_at = CASE WHEN i.resolved_at IS NOT NULL THEN least(i.resolved_at, now) END,
        last_reminded_at = CASE WHEN i.last_reminded_at IS NOT NULL THEN least(i.last_reminded_at, now) END
    WHERE greatest(i.last_seen, i.first_seen, i.absent_since, i.resolved_at, i.last_reminded_at) > present;
    -- A message that was refused waits an hour at most, from when it was refused.
    UPDATE incident_messages m SET
        created_at = least(m.created_at, now), next_attempt_at = least(m.next_attempt_at, now),
        sent_at = CASE WHEN m.sent_at IS NOT NULL THEN least(m.sent_at, now) END
    WHERE greatest(m.created_at, m.sent_at, m.next_attempt_at - INTERVAL '1 hour') > present;
END
$$;
COMMENT ON FUNCTION pull_back_incidents(TIMESTAMPTZ) IS
    'Sets times of incidents and messages that have yet to come, since the clock was ahead when they were written, to now: an incident can be resolved and told of again, a message be sent.';

-- ---------------------------------------------------------------------------------------------
-- What cannot be had
-- ---------------------------------------------------------------------------------------------
CREATE FUNCTION forget_unrecoverable_ahead(now TIMESTAMPTZ) RETURNS INTEGER
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    WITH ahead AS MATERIALIZED (
        SELECT u.timeframe, u.coin_id, u.reason FROM unrecoverable_closes u
        WHERE upper(u.windows) > now + INTERVAL '60 seconds'
        ORDER BY u.timeframe, u.coin_id, u.reason FOR UPDATE
    ), emptied AS (
        DELETE FROM unrecoverable_closes u USING ahead a
        WHERE (u.timeframe, u.coin_id, u.reason) = (a.timeframe, a.coin_id, a.reason)
          AND lower(u.windows) >= now
    ), shortened AS (
        UPDATE unrecoverable_closes u SET windows = u.windows * tstzmultirange(tstzrange(NULL, now))
        FROM ahead a
        WHERE (u.timeframe, u.coin_id, u.reason) = (a.timeframe, a.coin_id, a.reason)
          AND lower(u.windows) < now
    )
    SELECT count(*)::integer FROM ahead
$$;
COMMENT ON FUNCTION forget_unrecoverable_ahead(TIMESTAMPTZ) IS
    'Takes buckets out of unrecoverable_closes that are not over yet: nobody can know of them, a clock that was ahead has filed them. Returns how many rows held any.';
