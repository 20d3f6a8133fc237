-- The reserve can be released, for one month and by somebody who says so.
--
-- Every call counts against the same credits, whoever makes it. Had history alone the right to spend
-- the reserve, the polls would lack at the month's end what it took; so a released reserve is
-- everybody's.

ALTER TABLE api_budget ADD COLUMN reserve_released_in DATE;
COMMENT ON COLUMN api_budget.reserve_released_in IS 'First day of the UTC month whose reserve may be spent; NULL or another month: it may not.';

CREATE FUNCTION release_reserve(now TIMESTAMPTZ) RETURNS VOID
LANGUAGE sql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$ UPDATE api_budget SET reserve_released_in = date_trunc('month', now, 'UTC')::date $$;
COMMENT ON FUNCTION release_reserve(TIMESTAMPTZ) IS
    'Lets all processes spend the plan''s reserve in the UTC month of now.';

DROP FUNCTION reserve_api_call(TEXT, TIMESTAMPTZ, INTEGER, BIGINT);
CREATE FUNCTION reserve_api_call(
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
    released   DATE;
    allowed    BIGINT := reserve_api_call.credits_per_month;
    this_month DATE := date_trunc('month', reserve_api_call.now, 'UTC')::date;
    this_day   DATE := (reserve_api_call.now)::date;
    recent     INTEGER;
    spent      BIGINT;
    in_minute  INTEGER;
BEGIN
    SELECT b.retry_at, b.reserve_released_in INTO retry_at, released FROM api_budget b FOR UPDATE;
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
COMMENT ON FUNCTION reserve_api_call(TEXT, TIMESTAMPTZ, INTEGER, BIGINT, BIGINT) IS
    'Reserves one call to the provider, or says why not (refusal: rate, credits, retry_after) and when the next is free. calls_per_minute counts over any 60 seconds; credits_per_month is what may be spent, NULL for no limit; credits_reserved is added to it in a month whose reserve was released. A reserved call is counted whether or not it is ever sent.';
