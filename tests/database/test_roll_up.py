"""Rolling up: hours, days, weeks and months equal what the raw minutes say."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import psycopg
from closes_support import (
    Observation,
    add_coins,
    copy,
    ensure,
    everything,
    expected,
    insert,
    one,
    prepared_by,
    put,
    refused,
    roll_up,
    roll_up_all,
    seen_at,
    shared_connection,
    stored,
    undone,
    utc,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, TIMEFRAMES, WEEKLY

COINS = ("bitcoin", "ether")
EDGES = [
    utc(2026, 12, 28),  # ISO week 53 of 2026 begins, and ends in January
    utc(2027, 1, 1),
    utc(2027, 1, 4),
    utc(2028, 2, 28),  # a Monday; then a leap day
    utc(2028, 2, 29),
    utc(2028, 3, 1),
    utc(2026, 3, 29, 1),  # clocks change in Europe,
    utc(2026, 10, 25, 1),
    utc(2026, 3, 8, 7),  # and in New York
    utc(2026, 11, 1, 6),
    utc(2026, 4, 30, 18, 30),  # midnight in Kolkata
    utc(2026, 5, 1),
    utc(2026, 5, 31),
    utc(2026, 6, 1),  # a month that begins with its week
]
AROUND = [
    edge + offset
    for edge in EDGES
    for offset in (
        timedelta(0),
        timedelta(minutes=-1),
        timedelta(minutes=1),
        timedelta(hours=-1),
        timedelta(hours=23, minutes=59),
        timedelta(days=3),
    )
]


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, *COINS)
    ensure(connection, *AROUND)


prepared = prepared_by(prepare)
shared = shared_connection
closes = undone


@st.composite
def streams(draw: st.DrawFn) -> list[Observation]:
    chosen = draw(st.lists(st.tuples(st.sampled_from(COINS), st.sampled_from(AROUND)), min_size=1))
    return [
        Observation(
            coin,
            when,
            Decimal(number + 1) / 1_000_000_000_000,
            draw(st.none() | st.just(Decimal(number))),
            created_at=when
            + timedelta(seconds=draw(st.sampled_from([7, 90, 90_000])), microseconds=number),
            source=draw(st.sampled_from(["live", "correction"])),
        )
        for number, (coin, when) in enumerate(chosen)
    ]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(streams(), min_size=1, max_size=3),
    order=st.lists(st.sampled_from([t.name for t in TIMEFRAMES[1:]]), max_size=4),
)
def test_every_width_equals_the_raw_minutes_however_often_it_was_rolled_up_before(
    closes: psycopg.Connection, parts: list[list[Observation]], order: list[str]
) -> None:
    with closes.transaction(force_rollback=True):
        for part in parts:
            put(closes, part)
            for name in order:
                roll_up(closes, name, utc(2026, 1, 1), utc(2029, 1, 1))
        roll_up_all(closes)
        observations = [seen for part in parts for seen in part]
        for timeframe in TIMEFRAMES:
            assert stored(closes, timeframe) == expected(timeframe, observations)
        assert roll_up_all(closes) == 0


def test_labels_and_evidence_are_right_around_every_edge_of_the_calendar(
    closes: psycopg.Connection,
) -> None:
    weeks = [edge + timedelta(hours=5 * n, minutes=7 * n) for edge in EDGES for n in range(-40, 40)]
    ensure(closes, *{when.replace(day=1, hour=0) for when in weeks})
    observations = [seen_at("bitcoin", when, n + 1) for n, when in enumerate(sorted(set(weeks)))]
    copy(closes, observations)
    roll_up_all(closes)
    for timeframe in TIMEFRAMES:
        assert stored(closes, timeframe) == expected(timeframe, observations)


def test_it_returns_the_rows_it_wrote_and_writes_none_the_second_time(
    closes: psycopg.Connection,
) -> None:
    day = utc(2026, 12, 31)
    copy(closes, [seen_at(coin, day + timedelta(hours=h)) for h in range(30) for coin in COINS])
    assert roll_up(closes, "hourly", day, day + timedelta(days=2)) == 0  # the trigger did it
    assert roll_up(closes, "daily", day, day + timedelta(days=2)) == 4
    assert roll_up(closes, "daily", day, day + timedelta(days=2)) == 0
    assert roll_up(closes, "weekly", day, day + timedelta(days=2)) == 2
    assert roll_up(closes, "monthly", day, day + timedelta(days=2)) == 4
    assert roll_up_all(closes) == 0
    insert(closes, [seen_at("bitcoin", day + timedelta(hours=29, minutes=1), 9)])
    assert [roll_up(closes, t.name, day, day + timedelta(days=2)) for t in TIMEFRAMES[1:]] == [
        0,
        1,
        1,
        1,
    ]


def test_a_range_takes_its_first_label_and_leaves_its_last(closes: psycopg.Connection) -> None:
    day = utc(2026, 12, 31)
    copy(closes, [seen_at("bitcoin", day + timedelta(hours=h), h + 1) for h in range(24)])
    assert roll_up(closes, "daily", day + timedelta(hours=3), day + timedelta(hours=5)) == 1
    ((price, *_, close_ts, seen),) = stored(closes, DAILY).values()
    assert (price, close_ts, seen) == (5, day + timedelta(hours=4), 0b11 << 3)
    assert roll_up(closes, "daily", day + timedelta(hours=1), day + timedelta(hours=2)) == 1
    ((price, *_, close_ts, seen),) = stored(closes, DAILY).values()
    assert (price, close_ts, seen) == (5, day + timedelta(hours=4), 0b11 << 3 | 1 << 1)
    assert roll_up(closes, "daily", day + timedelta(hours=5), day + timedelta(hours=5)) == 0
    assert roll_up(closes, "daily", day + timedelta(hours=9), day + timedelta(hours=5)) == 0


def test_a_month_is_made_of_days_and_never_of_weeks(closes: psycopg.Connection) -> None:
    # The week of 28 December has its close in January. December's is of the 31st.
    monday = utc(2026, 12, 28)
    copy(closes, [seen_at("bitcoin", monday + timedelta(days=d), d + 1) for d in range(7)])
    roll_up_all(closes)
    months = {label: (v[0], v[-1]) for (_, label), v in stored(closes, MONTHLY).items()}
    assert months == {utc(2026, 12, 1): (4, 0b1111 << 27), utc(2027, 1, 1): (7, 0b111)}
    weeks = {label: (v[0], v[-1]) for (_, label), v in stored(closes, WEEKLY).items()}
    assert weeks == {utc(2026, 12, 28): (7, 0b1111111)}
    closes.execute("DELETE FROM weekly_close")
    closes.execute("DELETE FROM monthly_close")
    roll_up(closes, "monthly", utc(2026, 1, 1), utc(2028, 1, 1))
    assert {label: v[0] for (_, label), v in stored(closes, MONTHLY).items()} == {
        utc(2026, 12, 1): 4,
        utc(2027, 1, 1): 7,
    }


def test_partitions_that_are_missing_are_made_and_no_others(connection: psycopg.Connection) -> None:
    add_coins(connection, "bitcoin")
    for month in ("2019-04-01", "2019-07-01"):
        connection.execute("SELECT create_monthly_partition('daily_close', %s::date)", (month,))
    for day in ("2019-04-01", "2019-07-01"):  # both are Mondays
        connection.execute(
            "INSERT INTO daily_close (coin_id, day_ts, price_usd) VALUES ('bitcoin', %s, 1)",
            (f"{day} 00:00+00",),
        )
    assert roll_up(connection, "weekly", utc(2000, 1, 1), utc(2030, 1, 1)) == 2
    assert roll_up(connection, "monthly", utc(2000, 1, 1), utc(2030, 1, 1)) == 2
    made = connection.execute(
        "SELECT partition::text FROM unnest(ARRAY['weekly_close', 'monthly_close']) AS t, "
        "close_partitions(t) WHERE upper_bound <= '2019-12-01'"
    ).fetchall()
    assert sorted(name for (name,) in made) == [
        "monthly_close_y2019m04",
        "monthly_close_y2019m07",
        "weekly_close_y2019m04",
        "weekly_close_y2019m07",
    ]


def test_a_week_that_began_in_another_month_gets_that_months_partition(
    connection: psycopg.Connection,
) -> None:
    add_coins(connection, "bitcoin")
    connection.execute("SELECT create_monthly_partition('daily_close', DATE '2019-09-01')")
    connection.execute(
        "INSERT INTO daily_close (coin_id, day_ts, price_usd) "
        "VALUES ('bitcoin', '2019-09-01 00:00+00', 1)"
    )
    assert roll_up(connection, "weekly", utc(2019, 9, 1), utc(2019, 9, 2)) == 1
    assert one(connection, "SELECT count(*) FROM weekly_close_y2019m08") == 1


def test_an_endless_range_takes_what_is_stored_and_makes_no_partitions(
    closes: psycopg.Connection,
) -> None:
    count = "SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r'"
    before = one(closes, count)
    assert one(closes, "SELECT roll_up('daily', '-infinity', 'infinity')") == 0
    insert(closes, [seen_at("bitcoin", utc(2026, 12, 31))])
    assert one(closes, "SELECT roll_up('daily', '-infinity', 'infinity')") == 1
    assert one(closes, "SELECT roll_up('daily', NULL, NULL)") == 0
    assert one(closes, count) == before


def test_what_cannot_be_rolled_up_is_named(closes: psycopg.Connection) -> None:
    for name in ("minute", "yearly", None):
        with refused(closes, psycopg.errors.RaiseException, "is not a rollup") as told:
            closes.execute("SELECT roll_up(%s, now(), now())", (name,))
        assert "hourly, daily, weekly, monthly" in str(told.value.diag.message_hint)


def test_when_the_children_are_gone_the_parent_stands(closes: psycopg.Connection) -> None:
    day = utc(2026, 12, 31)
    copy(closes, [seen_at("bitcoin", day + timedelta(hours=h), h + 1) for h in range(24)])
    roll_up_all(closes)
    before = everything(closes)
    closes.execute("DELETE FROM minute_close")
    closes.execute("DELETE FROM hourly_close WHERE hour_ts > %s", (day + timedelta(hours=2),))
    assert roll_up_all(closes) == 0
    after = everything(closes)
    for timeframe in (DAILY, WEEKLY, MONTHLY):
        assert after[timeframe.table] == before[timeframe.table]


def test_a_late_minute_reaches_the_month_though_the_other_children_are_gone(
    closes: psycopg.Connection,
) -> None:
    day = utc(2026, 12, 31)
    early = [seen_at("bitcoin", day + timedelta(hours=h), h + 1) for h in range(0, 24, 2)]
    copy(closes, early)
    roll_up_all(closes)
    for timeframe in (MINUTE, HOURLY, DAILY):
        closes.execute(f"DELETE FROM {timeframe.table}")
    late = [seen_at("bitcoin", day + timedelta(hours=h), 99) for h in (3, 23)]
    copy(closes, late)
    roll_up_all(closes)
    for timeframe in (WEEKLY, MONTHLY):
        assert stored(closes, timeframe) == expected(timeframe, early + late)


def test_a_bucket_function_says_where_an_instant_lies(local_connection: psycopg.Connection) -> None:
    at = utc(2027, 1, 1, 3, 59)
    found = local_connection.execute(
        "SELECT name, bucket_start(name, %s), bucket_end(name, %s) FROM timeframes", (at, at)
    ).fetchall()
    assert {name: (start, end) for name, start, end in found} == {
        "minute": (at, at + timedelta(minutes=1)),
        "hourly": (utc(2027, 1, 1, 3), utc(2027, 1, 1, 4)),
        "daily": (utc(2027, 1, 1), utc(2027, 1, 2)),
        "weekly": (utc(2026, 12, 28), utc(2027, 1, 4)),
        "monthly": (utc(2027, 1, 1), utc(2027, 2, 1)),
    }
    assert one(local_connection, "SELECT evidence_bit('daily', %s)", (at,)) == 1 << 3
    assert one(local_connection, "SELECT evidence_bit('weekly', %s)", (at,)) == 1 << 4
