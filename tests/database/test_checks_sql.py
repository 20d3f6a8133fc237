"""The functions that the checks of the close tables ask, case by case."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from closes_support import (
    add_coins,
    clean_up,
    ensure,
    insert,
    one,
    roll_up,
    roll_up_all,
    seen_at,
    utc,
)

from pulseguard_assets.timeframes import DAILY, MONTHLY, TIMEFRAMES, WEEKLY
from pulseguard_assets.warehouse.checks import newest_label
from pulseguard_assets.warehouse.connection import connect

NOW = utc(2026, 6, 24, 12, 0)
HOUR = NOW - timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def tables(undone_or_own: psycopg.Connection) -> psycopg.Connection:
    """Two coins, and partitions around `NOW`."""
    add_coins(undone_or_own, "bitcoin", "cardano")
    ensure(undone_or_own, utc(2026, 5, 1), NOW, NOW + timedelta(days=40))
    return undone_or_own


def rows(connection: psycopg.Connection, statement: str, *parameters: Any) -> list[Any]:
    return connection.execute(statement, parameters).fetchall()


# --- buckets_ago ---


def test_the_bucket_so_many_before_the_open_one(tables: psycopg.Connection) -> None:
    found = {
        timeframe.name: [
            one(tables, "SELECT buckets_ago(%s, %s, %s)", (timeframe.name, NOW, number))
            for number in (0, 1)
        ]
        for timeframe in TIMEFRAMES
    }

    assert found == {
        "minute": [NOW, NOW - MINUTE],
        "hourly": [NOW, HOUR],
        "daily": [utc(2026, 6, 24), utc(2026, 6, 23)],
        "weekly": [utc(2026, 6, 22), utc(2026, 6, 15)],
        "monthly": [utc(2026, 6, 1), utc(2026, 5, 1)],
    }


# --- misaligned_closes ---


def misaligned(connection: psycopg.Connection, timeframe: str) -> list[Any]:
    return rows(connection, "SELECT * FROM misaligned_closes(%s, %s)", timeframe, NOW)


def test_rows_are_read_even_where_a_constraint_vouches_for_them(
    database: str, tables: psycopg.Connection
) -> None:
    """The planner would otherwise answer from the constraint, without a look at the table."""
    insert(tables, [seen_at("bitcoin", HOUR)])
    definition = one(
        tables,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE conname = 'chk_label_aligned' AND conrelid = 'minute_close'::regclass",
    )
    tables.execute("ALTER TABLE minute_close DROP CONSTRAINT chk_label_aligned")
    tables.execute("ALTER TABLE minute_close DISABLE TRIGGER USER")
    tables.execute("UPDATE minute_close SET minute_ts = %s", (NOW - MINUTE / 2,))
    tables.execute(
        f"ALTER TABLE minute_close ADD CONSTRAINT chk_label_aligned {definition} NOT VALID"
    )
    tables.execute(
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'chk_label_aligned'"
    )

    with connect(database) as another:
        believed = "SELECT count(*) FROM minute_close WHERE NOT " + definition.removeprefix(
            "CHECK "
        )
        assert one(another, believed) == 0, "the trap is set"
        assert misaligned(another, "minute") == [("bitcoin", NOW - MINUTE / 2, None)]


@pytest.mark.parametrize("timeframe", ["hourly", "daily", "weekly", "monthly"])
def test_the_first_and_the_last_instant_of_a_bucket_lie_in_it(
    tables: psycopg.Connection, timeframe: str
) -> None:
    label, end = rows(
        tables, "SELECT bucket_start(%s, %s), bucket_end(%s, %s)", timeframe, NOW, timeframe, NOW
    )[0]
    name = one(tables, "SELECT label_column FROM timeframes WHERE name = %s", (timeframe,))
    tables.execute(f"ALTER TABLE {timeframe}_close DROP CONSTRAINT chk_close_in_bucket")
    tables.execute(
        f"INSERT INTO {timeframe}_close (coin_id, {name}, price_usd, close_ts) "
        "VALUES ('bitcoin', %s, 1, NULL)",
        (label,),
    )

    us = timedelta(microseconds=1)
    for closed, outside in ((None, 0), (label, 0), (end - us, 0), (label - us, 1), (end, 1)):
        tables.execute(f"UPDATE {timeframe}_close SET close_ts = %s", (closed,))
        assert len(misaligned(tables, timeframe)) == outside, closed


def test_buckets_long_past_are_not_read_again(tables: psycopg.Connection) -> None:
    tables.execute("ALTER TABLE hourly_close DROP CONSTRAINT chk_close_in_bucket")
    for number in (60, 61):
        label = NOW - timedelta(hours=number)
        tables.execute(
            "INSERT INTO hourly_close (coin_id, hour_ts, price_usd, close_ts) "
            "VALUES ('bitcoin', %s, 1, %s)",
            (label, label - MINUTE),
        )

    assert [row[1] for row in misaligned(tables, "hourly")] == [NOW - timedelta(hours=60)]


# --- parents_behind ---


def behind(connection: psycopg.Connection, timeframe: str, *more: Any) -> list[Any]:
    return rows(
        connection,
        f"SELECT coin_id, label, fault, children, newest_child FROM parents_behind(%s, %s, %s"
        f"{', %s' if more else ''})",
        timeframe,
        utc(2026, 6, 1),
        NOW,
        *more,
    )


def minutes(coin: str, *numbers: int, **other: Any) -> list[Any]:
    return [seen_at(coin, HOUR + number * MINUTE, 10 + number, **other) for number in numbers]


def test_each_fault_is_named_and_its_children_are_counted(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 1, 5, 9) + minutes("cardano", 1, 5, 9))
    assert behind(tables, "hourly") == []

    tables.execute("UPDATE hourly_close SET seen = seen & ~(1 << 5) WHERE coin_id = 'bitcoin'")
    tables.execute(
        "UPDATE hourly_close SET close_ts = %s WHERE coin_id = 'cardano'", (HOUR + MINUTE,)
    )
    assert behind(tables, "hourly") == [
        ("bitcoin", HOUR, "the evidence lacks its child", 1, HOUR + 5 * MINUTE),
        ("cardano", HOUR, "the close is older than its child", 2, HOUR + 9 * MINUTE),
    ]

    tables.execute("DELETE FROM hourly_close")
    assert behind(tables, "hourly") == [
        (coin, HOUR, "there is no row", 3, HOUR + 9 * MINUTE) for coin in ("bitcoin", "cardano")
    ]


def test_observations_of_a_minute_are_compared_in_the_order_of_the_merge_rule(
    tables: psycopg.Connection,
) -> None:
    insert(tables, minutes("bitcoin", 5))
    at = HOUR + 5 * MINUTE
    for source, recorded, agrees in (
        ("live", at + timedelta(seconds=7), True),
        ("live", at + timedelta(seconds=6), False),
        ("live", at + timedelta(seconds=8), True),
        ("history", at + timedelta(days=1), False),
        ("correction", at + timedelta(seconds=6), False),
        ("correction", at + timedelta(seconds=7), True),
    ):
        tables.execute("UPDATE hourly_close SET source = %s, created_at = %s", (source, recorded))
        assert (behind(tables, "hourly") == []) is agrees, (source, recorded)


def test_a_parent_newer_than_its_stored_children_agrees(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 5, 9))
    tables.execute("ALTER TABLE minute_close DISABLE TRIGGER USER")
    tables.execute("DELETE FROM minute_close WHERE minute_ts = %s", (HOUR + 9 * MINUTE,))

    assert behind(tables, "hourly") == []


def test_a_close_without_a_minute_is_taken_for_one_at_its_label(
    tables: psycopg.Connection,
) -> None:
    tables.execute(
        "INSERT INTO hourly_close (coin_id, hour_ts, price_usd, created_at) "
        "VALUES ('bitcoin', %s, 1, %s)",
        (HOUR, HOUR),
    )
    roll_up(tables, "daily", HOUR, NOW)
    assert behind(tables, "daily") == []

    tables.execute("UPDATE hourly_close SET close_ts = hour_ts + interval '1 minute'")
    assert [row[2] for row in behind(tables, "daily")] == ["the close is older than its child"]


def test_a_day_is_held_against_its_week_and_its_month(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 5))
    roll_up(tables, "daily", HOUR, NOW)

    assert [len(behind(tables, name)) for name in ("daily", "weekly", "monthly")] == [0, 1, 1]
    assert behind(tables, "weekly")[0][1] == utc(2026, 6, 22)
    assert behind(tables, "monthly")[0][1] == utc(2026, 6, 1)

    roll_up_all(tables)
    assert [len(behind(tables, name)) for name in ("daily", "weekly", "monthly")] == [0, 0, 0]


def test_children_recorded_later_are_not_asked_when_told_so(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 5))
    recorded = HOUR + 5 * MINUTE + timedelta(seconds=7)

    assert behind(tables, "daily", recorded) == []
    assert len(behind(tables, "daily", recorded + timedelta(microseconds=1))) == 1


def test_only_children_between_the_two_labels_are_asked(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 5))
    statement = "SELECT count(*) FROM parents_behind('daily', %s, %s)"

    assert one(tables, statement, (HOUR, NOW)) == 1
    assert one(tables, statement, (HOUR - timedelta(hours=1), HOUR)) == 0
    assert one(tables, statement, (NOW, NOW + timedelta(hours=1))) == 0


# --- overdue_closes ---


def overdue(connection: psycopg.Connection, now: datetime) -> list[Any]:
    return rows(connection, "SELECT * FROM overdue_closes('minute', %s)", now)


def test_closes_are_overdue_half_an_hour_past_their_retention_if_they_are_dominated(
    tables: psycopg.Connection,
) -> None:
    insert(tables, minutes("bitcoin", 0, 1) + minutes("cardano", 0))
    due = HOUR + timedelta(minutes=90)

    assert overdue(tables, due) == []
    assert overdue(tables, due + timedelta(seconds=1)) == [(HOUR, 2)]
    assert overdue(tables, due + MINUTE) == [(HOUR, 2)], "the second is just due"
    assert overdue(tables, due + MINUTE * 2) == [(HOUR, 2), (HOUR + MINUTE, 1)]

    tables.execute("DELETE FROM hourly_close WHERE coin_id = 'cardano'")
    assert overdue(tables, due + timedelta(seconds=1)) == [(HOUR, 1)]

    clean_up(tables, due + timedelta(seconds=1))
    assert overdue(tables, due + timedelta(seconds=1)) == []


def test_a_longer_retention_is_kept_to(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 0))
    tables.execute("UPDATE retention_policy SET keep = '2 hours' WHERE table_name = 'minute_close'")

    assert overdue(tables, HOUR + timedelta(minutes=149)) == []
    assert overdue(tables, HOUR + timedelta(minutes=151)) == [(HOUR, 1)]


def test_old_closes_are_found_also_after_a_long_silence(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 0))

    assert overdue(tables, NOW + timedelta(days=9)) == [(HOUR, 1)]


def test_months_are_never_overdue(tables: psycopg.Connection) -> None:
    insert(tables, minutes("bitcoin", 0))
    roll_up_all(tables)

    found = rows(tables, "SELECT * FROM overdue_closes('monthly', %s)", utc(2226, 1, 1))
    assert found == []


# --- partition_runway ---


def test_the_runway_ends_at_the_first_gap(tables: psycopg.Connection) -> None:
    tables.execute("SELECT ensure_partitions(%s, %s)", (NOW, utc(2026, 12, 1)))
    statement = "SELECT partition_runway('daily_close', %s)"
    whole = one(tables, statement, (NOW,))
    assert whole >= 6

    tables.execute("DROP TABLE daily_close_y2026m09")

    assert one(tables, statement, (NOW,)) == 2
    assert one(tables, statement, (utc(2026, 8, 31, 23, 59),)) == 0
    assert one(tables, statement, (utc(2026, 9, 1),)) == -1
    assert one(tables, statement, (utc(2026, 10, 1),)) == whole - 4


# --- price_jumps ---


def series(connection: psycopg.Connection, coin: str, *prices: str) -> None:
    """Store minute closes, the last of them in the minute before NOW."""
    first = NOW - len(prices) * MINUTE
    insert(
        connection,
        [
            seen_at(coin, first + number * MINUTE, price_usd=Decimal(price))
            for number, price in enumerate(prices)
        ],
    )


def jumps(connection: psycopg.Connection) -> list[Any]:
    statement = "SELECT coin_id, label, kind, price_usd, times FROM price_jumps('minute', %s)"
    return [
        (coin, int((NOW - label) / MINUTE), kind, str(price), str(times))
        for coin, label, kind, price, times in rows(connection, statement, NOW)
    ]


@pytest.mark.parametrize(
    ("prices", "found"),
    [
        (["1", "1", "1", "1"], []),
        (["1", "1", "1", "10"], []),
        (["1", "1", "1", "10.01"], [(1, "jump", "10.01", "10.0")]),
        (["10", "10", "10", "1"], []),
        (["10", "10", "10", "0.99"], [(1, "jump", "0.99", "10.1")]),
        (["1", "1", "20", "1"], [(2, "spike", "20", "20.0")]),
        (["20", "20", "1", "20"], [(2, "spike", "1", "20.0")]),
        (["1", "20", "1", "1", "30"], [(1, "jump", "30", "30.0"), (4, "spike", "20", "20.0")]),
        # Two closes before the newest, one of them the spike: the newest is as it always was.
        (["1", "20", "1"], [(2, "spike", "20", "20.0")]),
        (["20", "1", "20"], [(2, "spike", "1", "20.0")]),
        # A step that lasts was told when it came, and steady growth is no spike.
        (["1", "20", "20", "20", "20"], []),
        (["1", "11", "121"], [(1, "jump", "121", "121.0")]),
        (["1"], []),
        (["2.264e-09", "2.264e-09", "1e-10"], [(1, "jump", "1E-10", "22.6")]),
    ],
)
def test_what_counts_as_a_jump_and_as_a_spike(
    tables: psycopg.Connection, prices: list[str], found: list[Any]
) -> None:
    series(tables, "cardano", "5", "5", "5")
    series(tables, "bitcoin", *prices)

    assert jumps(tables) == [("bitcoin", *each) for each in found]


def test_the_open_bucket_is_not_judged_yet(tables: psycopg.Connection) -> None:
    series(tables, "bitcoin", "1", "1")
    insert(tables, [seen_at("bitcoin", NOW, 100)])

    assert jumps(tables) == []
    later = rows(tables, "SELECT kind FROM price_jumps('minute', %s)", NOW + MINUTE)
    assert later == [("jump",)]


def test_how_far_back_to_look_can_be_told(tables: psycopg.Connection) -> None:
    insert(
        tables,
        [
            seen_at("bitcoin", NOW - MINUTE * ago, price)
            for ago, price in ((41, 1), (21, 50), (1, 1))
        ],
    )

    assert jumps(tables) == []
    wide = rows(tables, "SELECT kind FROM price_jumps('minute', %s, '1 hour')", NOW)
    assert wide == [("spike",)]


# --- stale_provider_times ---


def stale(connection: psycopg.Connection, timeframe: str = "minute") -> list[Any]:
    statement = "SELECT coin_id, behind, told FROM stale_provider_times(%s, %s)"
    return rows(connection, statement, timeframe, NOW)


def test_a_provider_time_is_compared_with_the_minute_it_was_told_in(
    tables: psycopg.Connection,
) -> None:
    hour = timedelta(hours=1)
    insert(
        tables,
        [
            seen_at("bitcoin", HOUR, provider_ts=HOUR - hour),
            seen_at("cardano", HOUR, provider_ts=HOUR - hour - timedelta(seconds=1)),
        ],
    )
    roll_up_all(tables)

    for timeframe in TIMEFRAMES:
        assert stale(tables, timeframe.name) == [("cardano", hour + timedelta(seconds=1), 2)]


def test_a_coin_without_a_provider_time_and_a_point_of_history_tell_nothing(
    tables: psycopg.Connection,
) -> None:
    old = HOUR - timedelta(days=1)
    insert(
        tables,
        [
            seen_at("bitcoin", HOUR),
            seen_at("cardano", HOUR, provider_ts=old, source="history"),
        ],
    )

    assert stale(tables) == []


def test_only_the_newest_label_is_asked_and_none_of_the_future(
    tables: psycopg.Connection,
) -> None:
    old = HOUR - timedelta(days=1)
    insert(tables, [seen_at("bitcoin", HOUR, provider_ts=old)])
    insert(tables, [seen_at("bitcoin", NOW + MINUTE, provider_ts=old)])
    assert [row[0] for row in stale(tables)] == ["bitcoin"]

    insert(tables, [seen_at("cardano", NOW, provider_ts=NOW)])
    assert stale(tables) == []


# --- coins_unseen ---


def test_expected_coins_without_any_close_are_told_by_rank(tables: psycopg.Connection) -> None:
    tables.execute("UPDATE collection_scope SET wanted = 2, always = '{always}'")
    tables.execute(
        "INSERT INTO coin_priorities (coin_id, market_cap_rank) VALUES "
        "('second', 2), ('first', 1), ('always', NULL), ('other', 3)"
    )
    insert(tables, [seen_at("second", HOUR), seen_at("other", HOUR)])
    statement = "SELECT * FROM coins_unseen('minute', %s, %s)"

    assert rows(tables, statement, HOUR, HOUR + MINUTE) == [("first", 1, 3), ("always", None, 3)]
    assert [row[0] for row in rows(tables, statement, HOUR + MINUTE, NOW)] == [
        "first",
        "second",
        "always",
    ]


# --- whatever the session's zone ---


def test_everything_is_found_in_utc_whatever_the_sessions_zone(
    local_connection: psycopg.Connection,
) -> None:
    """A session half an hour off, and one with daylight saving, see the same."""
    add_coins(local_connection, "bitcoin")
    ensure(local_connection, utc(2026, 5, 1), NOW)
    insert(
        local_connection,
        [seen_at("bitcoin", utc(2026, 6, day, 23, 59)) for day in range(14, 24)],
    )
    roll_up_all(local_connection)

    for timeframe in TIMEFRAMES:
        assert misaligned(local_connection, timeframe.name) == []
    for timeframe in (DAILY, WEEKLY, MONTHLY):
        assert behind(local_connection, timeframe.name) == []
    newest = newest_label(local_connection, WEEKLY).first[0][0]
    assert newest == utc(2026, 6, 22)
    assert one(local_connection, "SELECT buckets_ago('daily', %s, 1)", (NOW,)) == utc(2026, 6, 23)
    assert one(
        local_connection, "SELECT partition_runway('daily_close', %s)", (utc(2026, 6, 30, 23, 59),)
    ) == one(local_connection, "SELECT partition_runway('daily_close', %s)", (utc(2026, 6, 1),))
