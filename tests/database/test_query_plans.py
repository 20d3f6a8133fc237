"""Each index serves the query it is for: plans over realistic data, and updates that stay cheap."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from closes_support import ensure, one, prepared_by, shared_connection, undone, utc

LAST = utc(2026, 6, 24, 11, 59)
HOUR = LAST.replace(minute=0)


def prepare(connection: psycopg.Connection) -> None:
    """Two thousand coins: an hour of minutes, two days of hours, weeks of days, and records."""
    ensure(connection, HOUR - timedelta(days=3), HOUR)
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, market_cap_rank, last_updated) "
        "SELECT 'coin-' || md5(n::text), n, %s - n * interval '1 minute' "
        "FROM generate_series(1, 2000) n ORDER BY 1",
        (HOUR,),
    )
    # Others have no rank, or one beyond the thousand.
    connection.execute(
        "INSERT INTO coin_priorities (coin_id) "
        "SELECT 'coin-' || md5(n::text) FROM generate_series(2001, 6000) n"
    )
    store = (
        "INSERT INTO {0} (coin_id, {1}, price_usd, coin_rank) SELECT coin_id, label, 1 + "
        "market_cap_rank, market_cap_rank FROM generate_series(%s::timestamptz, %s, %s) label, "
        "coin_priorities WHERE market_cap_rank <= 2000 ORDER BY label, coin_id"
    )
    days, hours = timedelta(days=1), timedelta(hours=1)
    connection.execute(
        store.format("daily_close", "day_ts"), (utc(2026, 6, 3), utc(2026, 6, 24), days)
    )
    connection.execute(
        store.format("hourly_close", "hour_ts"), (HOUR - 47 * hours, HOUR - hours, hours)
    )
    for number in range(60):
        at = HOUR + timedelta(minutes=number)
        connection.execute(store.format("minute_close", "minute_ts"), (at, at, hours))
    connection.execute(
        "INSERT INTO collection_status (collection_type, start_time, status) SELECT "
        "CASE n %% 500 WHEN 0 THEN 'priority_refresh' ELSE 'continuous' END, "
        "%s - n * interval '1 minute', CASE n WHEN 1 THEN 'running' ELSE 'completed' END "
        "FROM generate_series(1, 20000) n",
        (LAST,),
    )
    connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) "
        "SELECT date '2000-01-01' + n, n FROM generate_series(1, 9000) n"
    )
    connection.execute(
        "INSERT INTO api_calls (called_at, called_on, endpoint, outcome) "
        "SELECT at, at, '/simple/price', CASE WHEN n > 5 THEN 'successful' END "
        "FROM generate_series(1, 20000) n, LATERAL (SELECT %s - n * interval '2 s' AS at) AS t",
        (LAST,),
    )
    connection.execute("VACUUM ANALYZE")


prepared = prepared_by(prepare)
shared = shared_connection
tables = undone


def plan(connection: psycopg.Connection, query: str, parameters: tuple[Any, ...] = ()) -> str:
    """Return the plan's nodes, an index of a partition under the name that it has on the table."""
    text = "\n".join(
        line for (line,) in connection.execute(f"EXPLAIN (COSTS off) {query}", parameters)
    )
    names = connection.execute(
        "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits "
        "JOIN pg_class ON oid = inhrelid WHERE relkind = 'i' ORDER BY length(relname) DESC"
    ).fetchall()
    for partition, table in names:
        text = text.replace(partition, table)
    return text


SERVED = [
    # The newest prices, page by page: what "recent" is for.
    (
        "Index Only Scan using idx_recent_minute_close",
        "SELECT coin_id, minute_ts, price_usd FROM minute_close "
        "WHERE minute_ts BETWEEN '2026-06-24 11:58+00' AND %(last)s "
        "ORDER BY minute_ts DESC, coin_id LIMIT 250",
    ),
    (
        "Index Only Scan using idx_recent_hourly_close",
        "SELECT coin_id, hour_ts FROM hourly_close "
        "WHERE hour_ts BETWEEN '2026-06-24 09:00+00' AND %(last)s ORDER BY hour_ts DESC, coin_id",
    ),
    # A coin's series.
    (
        "Index Only Scan Backward using idx_minute_close_coin_time",
        "SELECT minute_ts, price_usd FROM minute_close WHERE coin_id = %(coin)s "
        "AND minute_ts > %(last)s - interval '1 hour' ORDER BY minute_ts DESC LIMIT 60",
    ),
    (
        "idx_hourly_close_coin_time",
        "SELECT hour_ts, price_usd FROM hourly_close WHERE coin_id = %(coin)s "
        "AND hour_ts > %(last)s - interval '1 day' ORDER BY hour_ts DESC LIMIT 24",
    ),
    (
        "Index Only Scan Backward using idx_hourly_close_coin_time",
        "SELECT hour_ts, coin_rank FROM hourly_close WHERE coin_id = %(coin)s "
        "AND hour_ts > %(last)s - interval '1 day' ORDER BY hour_ts DESC LIMIT 24",
    ),
    (
        "idx_daily_close_coin_time",
        "SELECT day_ts, price_usd FROM daily_close WHERE coin_id = %(coin)s "
        "AND day_ts > %(last)s - interval '7 days' ORDER BY day_ts DESC LIMIT 7",
    ),
    # By time alone: the newest and the oldest label, what is older than a period.
    (
        "using idx_recent_minute_close",
        "SELECT max(minute_ts) FROM minute_close WHERE minute_ts > %(last)s - interval '1 day'",
    ),
    (
        "Bitmap Index Scan on idx_minute_close_time",
        "SELECT coin_id, avg(market_cap_usd) FROM minute_close "
        "WHERE minute_ts >= %(last)s - interval '12 minutes' GROUP BY coin_id",
    ),
    (
        "using idx_hourly_close_time",
        "SELECT min(hour_ts) FROM hourly_close WHERE hour_ts > %(last)s - interval '9 days'",
    ),
    (
        "using idx_daily_close_time",
        "SELECT count(*) FROM daily_close WHERE day_ts >= %(last)s - interval '2 days'",
    ),
    # Coins.
    (
        "Index Only Scan using idx_coin_priorities_rank_active",
        "SELECT coin_id FROM coin_priorities WHERE market_cap_rank <= 1000 "
        "ORDER BY market_cap_rank",
    ),
    (
        "Index Scan using idx_coin_priorities_rank",
        "SELECT coin_id, symbol FROM coin_priorities ORDER BY market_cap_rank LIMIT 20",
    ),
    (
        "using idx_coin_priorities_updated",
        "SELECT max(last_updated) FROM coin_priorities",
    ),
    # Records.
    (
        "using idx_collection_status_start_time",
        "SELECT * FROM collection_status ORDER BY start_time DESC LIMIT 10",
    ),
    (
        "idx_collection_status_type_status",
        "SELECT * FROM collection_status WHERE collection_type = 'continuous' "
        "AND status = 'running'",
    ),
    (
        "Scan Backward using idx_api_usage_date",
        "SELECT date, total_calls FROM api_usage_stats ORDER BY date DESC LIMIT 31",
    ),
    (
        "using idx_api_calls_time",
        "SELECT count(*) FROM api_calls WHERE called_at > %(last)s - interval '60 seconds'",
    ),
    (
        "idx_api_calls_open",
        "SELECT call_id FROM api_calls WHERE outcome IS NULL "
        "AND called_at < %(last)s - interval '5 minutes'",
    ),
]


@pytest.mark.parametrize(("node", "query"), SERVED)
def test_the_index_serves_the_query_it_is_for(
    tables: psycopg.Connection, node: str, query: str
) -> None:
    coin = one(tables, "SELECT coin_id FROM coin_priorities WHERE market_cap_rank = 77")
    # As literals, as a user types them: then whole months are left out when planning.
    typed = query.replace("%(last)s", f"timestamptz '{LAST.isoformat()}'").replace(
        "%(coin)s", f"'{coin}'"
    )
    assert node in plan(tables, typed)


def test_a_query_for_the_last_minutes_leaves_other_months_alone(
    tables: psycopg.Connection,
) -> None:
    recent = f"minute_ts BETWEEN timestamptz '{HOUR}' AND timestamptz '{LAST}'"
    text = plan(tables, f"SELECT * FROM minute_close WHERE {recent}")
    assert "minute_close_y2026m06" in text
    assert "Append" not in text


def test_the_merge_reads_only_the_hours_it_writes(tables: psycopg.Connection) -> None:
    tables.execute(
        "CREATE TEMP TABLE arrived ON COMMIT DROP AS SELECT * FROM minute_close "
        "WHERE minute_ts = %s",
        (LAST,),
    )
    statement = one(
        tables,
        "SELECT merge_statement('hourly', "
        "incoming_from_children('hourly', 'arrived', %(at)s, %(at)s), %(at)s, %(at)s)".replace(
            "%(at)s", f"timestamptz '{LAST.isoformat()}'"
        ),
    )
    text = plan(tables, statement)
    assert "hourly_close_y2026m06" in text
    assert "hourly_close_y2026m07" not in text


def test_live_minutes_are_heap_only_updates_of_their_hour(
    connection: psycopg.Connection,
) -> None:
    ensure(connection, HOUR)
    connection.execute(
        "INSERT INTO coin_priorities (coin_id) SELECT 'c' || n FROM generate_series(1, 1000) n"
    )
    for number in range(12):
        connection.execute(
            "INSERT INTO minute_close (coin_id, minute_ts, price_usd, market_cap_usd, provider_ts) "
            "SELECT coin_id, %s, random() + 1, random() * 1e12, %s FROM coin_priorities",
            (HOUR + timedelta(minutes=number), HOUR),
        )
    connection.execute("SELECT pg_stat_force_next_flush()")
    one(connection, "SELECT 1")
    found = connection.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
        "WHERE relname = 'hourly_close_y2026m06'"
    ).fetchone()
    assert found is not None
    updated, in_place = found
    assert updated == 11_000
    assert in_place >= 0.95 * updated
