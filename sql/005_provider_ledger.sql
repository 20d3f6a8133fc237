-- The ledger of calls to the provider: one truth for all processes.

CREATE TABLE api_usage_stats (
    id                    SERIAL PRIMARY KEY,
    date                  DATE NOT NULL,
    total_calls           INTEGER DEFAULT 0,
    successful_calls      INTEGER DEFAULT 0,
    failed_calls          INTEGER DEFAULT 0,
    rate_limited_calls    INTEGER DEFAULT 0,
    average_response_time INTEGER,
    peak_calls_per_minute INTEGER,
    created_at            TIMESTAMPTZ DEFAULT now(),
    updated_at            TIMESTAMPTZ DEFAULT now(),
    answered_calls        INTEGER NOT NULL DEFAULT 0,
    response_time_total   BIGINT NOT NULL DEFAULT 0,
    -- The seed's unique key and its index for the newest days in one: the key reads backwards too. It
    -- covers no count, since today's row changes with every call, in place while no index holds what
    -- changes.
    CONSTRAINT idx_api_usage_date UNIQUE (date)
);
COMMENT ON TABLE api_usage_stats IS 'Calls to the provider by UTC day. total = successful + failed + rate_limited + those still under way.';
COMMENT ON COLUMN api_usage_stats.id IS 'Number of the row.';
COMMENT ON COLUMN api_usage_stats.date IS 'UTC day in which the calls were sent.';
COMMENT ON COLUMN api_usage_stats.total_calls IS 'Every attempt, retries included; each costs one credit.';
COMMENT ON COLUMN api_usage_stats.successful_calls IS 'Attempts answered as asked.';
COMMENT ON COLUMN api_usage_stats.failed_calls IS 'Attempts that failed, rate limits not included.';
COMMENT ON COLUMN api_usage_stats.rate_limited_calls IS 'Attempts refused by the provider''s rate limit.';
COMMENT ON COLUMN api_usage_stats.average_response_time IS 'Mean time to a complete answer of any kind, in milliseconds.';
COMMENT ON COLUMN api_usage_stats.peak_calls_per_minute IS 'Most attempts within one UTC minute of the day.';
COMMENT ON COLUMN api_usage_stats.created_at IS 'When the day''s first call was reserved.';
COMMENT ON COLUMN api_usage_stats.updated_at IS 'When the row last changed.';
COMMENT ON COLUMN api_usage_stats.answered_calls IS 'Attempts that were answered at all: what average_response_time is the mean of.';
COMMENT ON COLUMN api_usage_stats.response_time_total IS 'Sum of their response times, in milliseconds.';
COMMENT ON CONSTRAINT api_usage_stats_pkey ON api_usage_stats IS 'One number per row.';
COMMENT ON CONSTRAINT idx_api_usage_date ON api_usage_stats IS 'One row per UTC day.';
COMMENT ON INDEX idx_api_usage_date IS 'One row per day, and newest days first.';

CREATE TABLE api_calls (
    call_id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    called_at   TIMESTAMPTZ NOT NULL,
    endpoint    TEXT NOT NULL,
    outcome     TEXT CONSTRAINT chk_outcome_known CHECK (outcome IN ('successful', 'failed', 'rate_limited')),
    http_status INTEGER,
    response_ms INTEGER,
    called_on   DATE NOT NULL
);
CREATE INDEX idx_api_calls_time ON api_calls (called_at DESC);
CREATE INDEX idx_api_calls_open ON api_calls (called_at) WHERE outcome IS NULL;
COMMENT ON TABLE api_calls IS 'Every attempt of the last days, reserved before it is sent.';
COMMENT ON COLUMN api_calls.call_id IS 'Number of the attempt.';
COMMENT ON COLUMN api_calls.called_at IS 'When it was reserved; pulled back to the present if the clock was ahead then.';
COMMENT ON COLUMN api_calls.endpoint IS 'Path without parameters.';
COMMENT ON COLUMN api_calls.outcome IS 'successful, failed or rate_limited; NULL while under way.';
COMMENT ON COLUMN api_calls.http_status IS 'HTTP status, NULL if none arrived.';
COMMENT ON COLUMN api_calls.response_ms IS 'Milliseconds to the complete answer, NULL if none arrived.';
COMMENT ON COLUMN api_calls.called_on IS 'UTC day it is counted under in api_usage_stats.';
COMMENT ON CONSTRAINT api_calls_pkey ON api_calls IS 'One row per attempt.';
COMMENT ON CONSTRAINT chk_outcome_known ON api_calls IS 'One of the three outcomes.';
COMMENT ON INDEX idx_api_calls_time IS 'The last minute''s calls.';
COMMENT ON INDEX idx_api_calls_open IS 'Calls under way.';

CREATE TABLE api_budget (
    only_row       BOOLEAN PRIMARY KEY DEFAULT true CONSTRAINT chk_one_row CHECK (only_row),
    retry_at       TIMESTAMPTZ
);
INSERT INTO api_budget DEFAULT VALUES;
COMMENT ON TABLE api_budget IS 'Until when the provider asked to be left alone. One row: its lock puts all processes in line.';
COMMENT ON COLUMN api_budget.only_row IS 'Always true.';
COMMENT ON COLUMN api_budget.retry_at IS 'No call before this instant: the provider''s last Retry-After.';
COMMENT ON CONSTRAINT api_budget_pkey ON api_budget IS 'With chk_one_row: a single row.';
COMMENT ON CONSTRAINT chk_one_row ON api_budget IS 'There is one budget.';

CREATE FUNCTION reserve_api_call(
    endpoint TEXT, now TIMESTAMPTZ, calls_per_minute INTEGER, credits_per_month BIGINT
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
    this_month DATE := date_trunc('month', reserve_api_call.now, 'UTC')::date;
    this_day   DATE := (reserve_api_call.now)::date;
    recent     INTEGER;
    spent      BIGINT;
    in_minute  INTEGER;
BEGIN
    SELECT b.retry_at INTO retry_at FROM api_budget b FOR UPDATE;
    -- The clock was set back by more than the processes' clocks differ. When these calls were made
    -- is unknown now; taken for just made, they fill the next minute and not the next hours.
    UPDATE api_calls SET called_at = reserve_api_call.now
    WHERE called_at > reserve_api_call.now + INTERVAL '60 seconds';
    SELECT count(*) INTO recent FROM api_calls c WHERE c.called_at > reserve_api_call.now - INTERVAL '60 seconds';
    -- Days to come are counted in: a clock set back must not hand the month's credits out again.
    SELECT coalesce(sum(day.total_calls), 0) INTO spent FROM api_usage_stats day WHERE day.date >= this_month;
    calls_left_this_minute := greatest(calls_per_minute - recent, 0);
    -- Not greatest() alone: it takes NULL, which is no limit, for the smaller one.
    credits_left_this_month := CASE WHEN credits_per_month IS NOT NULL THEN greatest(credits_per_month - spent, 0) END;

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
COMMENT ON FUNCTION reserve_api_call(TEXT, TIMESTAMPTZ, INTEGER, BIGINT) IS
    'Reserves one call to the provider, or says why not (refusal: rate, credits, retry_after) and when the next is free. calls_per_minute counts over any 60 seconds; credits_per_month is what may be spent, NULL for no limit. A reserved call is counted whether or not it is ever sent.';

CREATE FUNCTION settle_api_call(
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
        UPDATE api_budget b SET retry_at = greatest(b.retry_at, settle_api_call.retry_at);
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
COMMENT ON FUNCTION settle_api_call(BIGINT, TEXT, INTEGER, INTEGER, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Records how a reserved call ended (successful, failed, rate_limited), once: returns false, and counts nothing, when it was settled before. retry_at keeps every process away from the provider until then.';

CREATE FUNCTION settle_abandoned_api_calls(now TIMESTAMPTZ, older_than INTERVAL DEFAULT '5 minutes') RETURNS INTEGER
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    -- A call that somebody settles just now is not abandoned; waiting for it, with the day's row in
    -- hand that the other waits for, would end in a deadlock.
    WITH stale AS MATERIALIZED (
        SELECT c.call_id FROM api_calls c
        WHERE c.outcome IS NULL AND c.called_at < settle_abandoned_api_calls.now - older_than
        ORDER BY c.call_id FOR UPDATE SKIP LOCKED
    )
    SELECT count(*)::integer FROM stale s
    WHERE settle_api_call(s.call_id, 'failed', NULL, NULL, settle_abandoned_api_calls.now)
$$;
COMMENT ON FUNCTION settle_abandoned_api_calls(TIMESTAMPTZ, INTERVAL) IS
    'Settles as failed the calls whose process died before it could; returns how many.';
