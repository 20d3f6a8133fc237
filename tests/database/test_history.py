"""The provider's past in the closes: what lacks its end, what a point of history may change."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
import pytest
from closes_support import (
    add_coins,
    bucket,
    clean_up,
    ensure,
    everything,
    insert,
    one,
    prepared_by,
    put,
    roll_up_all,
    seen_at,
    shared_connection,
    stored,
    undone,
    utc,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MINUTE,
    MONTHLY,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
    bucket_end,
    bucket_start,
)
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.history import (
    POINTS_SCHEMA,
    Held,
    HistoryPut,
    Lacking,
    held,
    lacking,
    put_history,
    record_unrecoverable,
    set_scope,
    without_close,
)

MIDNIGHT = utc(2026, 6, 24)  # a Wednesday
NOW = utc(2026, 6, 24, 12, 3, 27)
LATER = NOW + timedelta(minutes=1)
MINUTES, HOURS, DAYS = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, "tiny")
    for rank, coin in enumerate(("bitcoin", "ether"), start=1):
        connection.execute(
            "INSERT INTO coin_priorities (coin_id, market_cap_rank) VALUES (%s, %s)", (coin, rank)
        )
    connection.execute("UPDATE coin_priorities SET created_at = '2020-01-01', last_updated = now()")
    ensure(connection, utc(2026, 5, 31), NOW)


prepared = prepared_by(prepare)
shared = shared_connection
closes = undone

Point = tuple[str, datetime, float]


def frame(*points: Point, created_at: datetime = NOW) -> pl.DataFrame:
    """Points whose cap and volume follow from the price, so that a mixture shows."""
    rows = [
        (coin, stamp, price, price * 10, price * 100, created_at) for coin, stamp, price in points
    ]
    return pl.DataFrame(rows, schema=POINTS_SCHEMA, orient="row")


def put_points(
    connection: psycopg.Connection,
    timeframe: Timeframe,
    grade: str,
    *points: Point,
    start: datetime = utc(2026, 6, 1),  # noqa: B008 - a constant
    end: datetime = NOW,
    received_at: datetime = NOW,
) -> HistoryPut:
    return put_history(
        connection,
        timeframe,
        grade,
        frame(*points, created_at=received_at),
        start=start,
        end=end,
        now=NOW,
    )


def row(price: int, close_ts: datetime, *bits: int, received_at: datetime = NOW) -> tuple[Any, ...]:
    """What a close from a point of history holds, as `stored` returns it."""
    number = Decimal(price)
    evidence = sum(1 << bit for bit in bits)
    values = (number, number * 10, number * 100, None, received_at, None, "history")
    return (*values, close_ts, evidence)


def lacks(
    connection: psycopg.Connection, timeframe: Timeframe, start: datetime, end: datetime
) -> dict[str, tuple[datetime, datetime, int]]:
    """The coins that lack something: first and last label, and how many."""
    return {
        found.coin_id: (found.first, found.last, found.buckets)
        for found in lacking(connection, timeframe, start, end, now=NOW)
    }


# -- which minute a point observed -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("grade", "stamp", "minute"),
    [
        ("five_minute", utc(2026, 6, 24, 9, 58, 59), utc(2026, 6, 24, 9, 58)),
        ("five_minute", utc(2026, 6, 24, 9, 58), utc(2026, 6, 24, 9, 58)),
        ("hourly", utc(2026, 6, 24, 10), utc(2026, 6, 24, 9, 55)),
        ("hourly", utc(2026, 6, 24, 10, 15), utc(2026, 6, 24, 9, 55)),
        ("hourly", utc(2026, 6, 24, 10, 15, 1), None),
        ("hourly", utc(2026, 6, 24, 10, 40), None),
        ("hourly", utc(2026, 1, 1, 0, 2), utc(2025, 12, 31, 23, 55)),
        ("daily", utc(2026, 6, 24), utc(2026, 6, 23, 23, 55)),
        ("daily", utc(2026, 6, 24, 0, 15), utc(2026, 6, 23, 23, 55)),
        ("daily", utc(2026, 6, 24, 0, 16), None),
        ("daily", utc(2026, 6, 24, 10), None),
        ("daily", utc(2024, 3, 1), utc(2024, 2, 29, 23, 55)),
    ],
)
def test_a_point_is_the_observation_of_one_minute(
    closes: psycopg.Connection, grade: str, stamp: datetime, minute: datetime | None
) -> None:
    assert one(closes, "SELECT history_minute(%s, %s)", (grade, stamp)) == minute


# -- putting ---------------------------------------------------------------------------------------


def test_an_hourly_point_closes_its_hour_and_every_wider_bucket(closes: psycopg.Connection) -> None:
    point = ("bitcoin", utc(2026, 6, 24, 10, 2), 7.0)
    assert put_points(closes, HOURLY, "hourly", point) == HistoryPut(1, 1, 0)
    minute = utc(2026, 6, 24, 9, 55)
    assert everything(closes) == {
        "minute_close": {},
        "hourly_close": {("bitcoin", utc(2026, 6, 24, 9)): row(7, minute, 55)},
        "daily_close": {("bitcoin", MIDNIGHT): row(7, minute, 9)},
        "weekly_close": {("bitcoin", utc(2026, 6, 22)): row(7, minute, 2)},
        "monthly_close": {("bitcoin", utc(2026, 6, 1)): row(7, minute, 23)},
    }


def test_a_daily_point_closes_the_day_before_its_stamp(closes: psycopg.Connection) -> None:
    # The first of June is a Monday: its point is of a day in another week and another month.
    points = [("bitcoin", utc(2026, 6, day), float(day)) for day in (1, 2, 3)]
    put_points(closes, DAILY, "daily", *points, start=utc(2026, 5, 1))
    end = {day: utc(2026, 6, day) - 5 * MINUTES for day in (1, 2, 3)}
    assert everything(closes) == {
        "minute_close": {},
        "hourly_close": {},
        "daily_close": {
            ("bitcoin", utc(2026, 5, 31)): row(1, end[1], 23),
            ("bitcoin", utc(2026, 6, 1)): row(2, end[2], 23),
            ("bitcoin", utc(2026, 6, 2)): row(3, end[3], 23),
        },
        "weekly_close": {
            ("bitcoin", utc(2026, 5, 25)): row(1, end[1], 6),
            ("bitcoin", utc(2026, 6, 1)): row(3, end[3], 0, 1),
        },
        "monthly_close": {
            ("bitcoin", utc(2026, 5, 1)): row(1, end[1], 30),
            ("bitcoin", utc(2026, 6, 1)): row(3, end[3], 0, 1),
        },
    }


def test_five_minute_points_are_observations_of_the_minutes_they_are_stamped_in(
    closes: psycopg.Connection,
) -> None:
    points = [
        ("bitcoin", utc(2026, 6, 24, 9, 51, 30), 1.0),
        ("bitcoin", utc(2026, 6, 24, 9, 57, 10), 3.0),
        # The later of two in one minute counts, in whatever order they come.
        ("bitcoin", utc(2026, 6, 24, 9, 57, 5), 2.0),
    ]
    assert put_points(closes, HOURLY, "five_minute", *points) == HistoryPut(1, 3, 0)
    minute = utc(2026, 6, 24, 9, 57)
    found = everything(closes)
    assert found["hourly_close"] == {("bitcoin", utc(2026, 6, 24, 9)): row(3, minute, 51, 57)}
    assert found["daily_close"] == {("bitcoin", MIDNIGHT): row(3, minute, 9)}


def test_of_two_closes_of_an_hour_the_one_nearer_to_its_end_counts(
    closes: psycopg.Connection,
) -> None:
    points = [("bitcoin", utc(2026, 6, 24, 10, at), float(at)) for at in (1, 14)]
    put_points(closes, HOURLY, "hourly", *points)
    (values,) = stored(closes, HOURLY).values()
    assert values == row(1, utc(2026, 6, 24, 9, 55), 55)


def test_months_take_points_without_writing_anything_narrower(closes: psycopg.Connection) -> None:
    assert put_points(closes, MONTHLY, "daily", ("bitcoin", MIDNIGHT, 5.0)).written == 1
    month = {("bitcoin", utc(2026, 6, 1)): row(5, MIDNIGHT - 5 * MINUTES, 22)}
    found = everything(closes)
    assert found.pop("monthly_close") == month
    assert not any(found.values())


def test_minutes_go_where_none_is_stored_and_replace_nothing(closes: psycopg.Connection) -> None:
    live = seen_at("bitcoin", utc(2026, 6, 24, 9, 55), 9)
    insert(closes, [live])
    points = [
        ("bitcoin", utc(2026, 6, 24, 9, 50, 20), 2.0),
        ("bitcoin", utc(2026, 6, 24, 9, 55, 20), 3.0),
        ("ether", utc(2026, 6, 24, 9, 55, 20), 4.0),
    ]
    assert put_points(closes, MINUTE, "five_minute", *points) == HistoryPut(2, 3, 0)
    assert stored(closes, MINUTE) == {
        ("bitcoin", utc(2026, 6, 24, 9, 50)): row(2, NOW)[:-2],
        ("bitcoin", utc(2026, 6, 24, 9, 55)): live.values,
        ("ether", utc(2026, 6, 24, 9, 55)): row(4, NOW)[:-2],
    }
    # The trigger has carried them on.
    hour = utc(2026, 6, 24, 9)
    assert stored(closes, HOURLY) == {
        ("bitcoin", hour): (*live.values, live.minute_ts, 1 << 50 | 1 << 55),
        ("ether", hour): row(4, hour + 55 * MINUTES, 55),
    }
    # Nor are points replaced by what the provider says of the same minutes later.
    otherwise = [(coin, stamp, price + 10) for coin, stamp, price in points]
    later = NOW + 1 * MINUTES
    for asked_again in (points, otherwise):
        again = put_points(closes, MINUTE, "five_minute", *asked_again, received_at=later)
        assert again.written == 0


@pytest.mark.parametrize("history_first", [True, False])
@pytest.mark.parametrize(
    ("minute", "wins"), [(54, "history"), (55, "live"), (56, "live"), (59, "live")]
)
def test_a_live_close_of_the_last_five_minutes_wins_and_an_older_one_loses(
    closes: psycopg.Connection, minute: int, wins: str, history_first: bool
) -> None:
    hour = utc(2026, 6, 24, 9)
    live = seen_at("bitcoin", hour + minute * MINUTES, 9)
    steps = [
        lambda: put_points(closes, HOURLY, "hourly", ("bitcoin", hour + HOURS, 7.0)),
        lambda: insert(closes, [live]),
    ]
    for step in steps if history_first else reversed(steps):
        step()
    roll_up_all(closes)
    close = (7, hour + 55 * MINUTES) if wins == "history" else (9, live.minute_ts)
    for timeframe in TIMEFRAMES[1:]:
        (values,) = stored(closes, timeframe).values()
        assert (values[0], values[-2], values[-3]) == (*close, wins)
    (values,) = stored(closes, HOURLY).values()
    evidence = 1 << minute | 1 << 55
    assert values == (
        (*row(7, hour + 55 * MINUTES)[:-1], evidence)
        if wins == "history"
        else (*live.values, live.minute_ts, evidence)
    )


def test_in_the_same_minute_what_was_seen_live_stands(closes: psycopg.Connection) -> None:
    hour = utc(2026, 6, 24, 9)
    live = seen_at("bitcoin", hour + 55 * MINUTES, 9)
    insert(closes, [live])
    roll_up_all(closes)
    before = everything(closes)
    # Recorded later, and all the same no newer.
    assert put_points(closes, HOURLY, "hourly", ("bitcoin", hour + HOURS, 7.0)).written == 0
    assert everything(closes) == before


@pytest.mark.parametrize("timeframe", TIMEFRAMES[1:])
def test_nothing_outside_the_window_is_taken(
    closes: psycopg.Connection, timeframe: Timeframe
) -> None:
    start, end = utc(2026, 6, 24, 9), utc(2026, 6, 24, 10)
    stamps = [start - MINUTES, start - timedelta(milliseconds=1), end, end + MINUTES]
    points = [("bitcoin", stamp, 1.0) for stamp in stamps]
    outside = put_points(closes, timeframe, "five_minute", *points, start=start, end=end)
    assert outside == HistoryPut(0, 0, 0)
    # An hourly point stamped at the start is of the hour before.
    early = ("bitcoin", start, 1.0)
    assert put_points(closes, timeframe, "hourly", early, start=start, end=end).usable == 0
    assert not any(everything(closes).values())
    inside = [("bitcoin", start, 1.0), ("bitcoin", end - timedelta(milliseconds=1), 2.0)]
    put_points(closes, timeframe, "five_minute", *inside, start=start, end=end)
    (values,) = stored(closes, timeframe).values()
    assert (values[0], values[-2]) == (Decimal(2), end - MINUTES)


def test_a_fault_outside_the_window_is_nobodys_business(closes: psycopg.Connection) -> None:
    point = ("bitcoin", utc(2026, 6, 1), -1.0)
    put_points(closes, DAILY, "daily", point, start=utc(2026, 6, 1))
    assert one(closes, "SELECT count(*) FROM rejected_observations") == 0


FAULTS = [
    ({"price_usd": 0.0}, "the price is not positive"),
    ({"price_usd": -2.5}, "the price is not positive"),
    ({"price_usd": float("nan")}, "the price is not a number"),
    ({"price_usd": float("inf")}, "the price is infinite"),
    ({"price_usd": None}, "the price is missing"),
    ({"market_cap_usd": float("nan")}, "the market cap is not a finite number"),
    ({"volume_24h_usd": float("-inf")}, "the volume is not a finite number"),
    ({"coin_id": "no-such-coin"}, "the coin is not in coin_priorities"),
    ({"coin_id": ""}, "the coin id is missing"),
    ({"coin_id": None}, "the coin id is missing"),
]


@pytest.mark.parametrize("timeframe", [MINUTE, HOURLY, DAILY])
@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_a_faulty_point_is_set_aside_and_the_rest_is_stored(
    closes: psycopg.Connection, fault: dict[str, Any], reason: str, timeframe: Timeframe
) -> None:
    stamp = utc(2026, 6, 24, 9, 55, 30)
    # Later than the good one, so that it would be the close.
    points = frame(("bitcoin", stamp, 5.0), ("bitcoin", stamp + 2 * MINUTES, 6.0))
    bad = pl.int_range(pl.len()) == 1
    points = points.with_columns(
        **{
            name: pl.when(bad).then(pl.lit(value, POINTS_SCHEMA[name])).otherwise(pl.col(name))
            for name, value in fault.items()
        }
    )
    done = put_history(
        closes,
        timeframe,
        "five_minute",
        points,
        start=MIDNIGHT,
        end=NOW,
        now=NOW,
        collection_id=41,
    )
    assert done == HistoryPut(written=1, usable=1, rejected=1)
    filed = closes.execute(
        "SELECT coin_id, reason, collection_id, rejected_at FROM rejected_observations"
    ).fetchall()
    assert filed == [(fault.get("coin_id", "bitcoin"), reason, 41, NOW)]
    (values,) = stored(closes, timeframe).values()
    assert values[0] == 5


def test_a_minute_of_the_future_is_set_aside(closes: psycopg.Connection) -> None:
    points = [("bitcoin", NOW + timedelta(seconds=s), 1.0) for s in (0, 33)]
    done = put_points(closes, HOURLY, "five_minute", *points, end=NOW + HOURS)
    assert done == HistoryPut(written=1, usable=1, rejected=1)
    reason = one(closes, "SELECT reason FROM rejected_observations")
    assert reason == "the minute lies in the future"


@pytest.mark.parametrize("grade", ["five_minute", "hourly", "daily"])
def test_repeating_a_put_writes_no_row(closes: psycopg.Connection, grade: str) -> None:
    points = [
        (coin, MIDNIGHT - number * DAYS, 1.5 + number)
        for coin in ("bitcoin", "ether")
        for number in range(10)
    ]
    versions = " UNION ALL ".join(
        f"SELECT '{t.table}', coin_id, {t.label}, xmin, ctid FROM {t.table}" for t in TIMEFRAMES
    )
    first = put_points(closes, HOURLY, grade, *points)
    assert first.written == first.usable == 20
    before = closes.execute(versions + " ORDER BY 1, 2, 3").fetchall()
    # Savepoints have numbers of their own, so a second writing would show.
    assert put_points(closes, HOURLY, grade, *reversed(points)) == HistoryPut(0, 20, 0)
    assert closes.execute(versions + " ORDER BY 1, 2, 3").fetchall() == before


def test_every_coin_of_a_batch_stands_for_itself(closes: psycopg.Connection) -> None:
    def points(*coins: str) -> list[Point]:
        every = {"bitcoin": (1, 2, 3), "ether": (2,), "tiny": (3, 23)}
        return [
            (coin, utc(2026, 6, day), float(day * 10 + len(coin)))
            for coin in coins
            for day in every[coin]
        ]

    with closes.transaction(force_rollback=True):
        put_points(closes, DAILY, "daily", *points("bitcoin", "ether", "tiny"))
        together = everything(closes)
    for coin in ("tiny", "bitcoin", "ether"):
        put_points(closes, DAILY, "daily", *points(coin))
    assert everything(closes) == together
    assert len(together["daily_close"]) == 6 - 1  # the first of June is of May


def test_no_points_are_no_work(closes: psycopg.Connection) -> None:
    assert put_points(closes, DAILY, "daily") == HistoryPut(0, 0, 0)


@pytest.mark.parametrize(
    ("timeframe", "grade", "message"),
    [
        (MINUTE, "hourly", "points of grade hourly are no minutes"),
        (MINUTE, "daily", "points of grade daily are no minutes"),
        (DAILY, "weekly", "'weekly' is not a grade of history"),
    ],
)
def test_a_grade_that_does_not_fit_is_refused_and_nothing_stored(
    closes: psycopg.Connection, timeframe: Timeframe, grade: str, message: str
) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match=message):
        put_points(closes, timeframe, grade, ("bitcoin", MIDNIGHT, 1.0))
    # The staging table has gone with it.
    assert put_points(closes, DAILY, "daily", ("bitcoin", MIDNIGHT, 1.0)).written == 1


def test_years_back_get_the_partitions_of_their_months_only(closes: psycopg.Connection) -> None:
    points = [("bitcoin", utc(1999, 2, 1), 1.0), ("bitcoin", utc(2001, 2, 1), 2.0)]
    put_points(closes, DAILY, "daily", *points, start=utc(1990, 1, 1))
    for table, months in (("daily_close", 2), ("weekly_close", 2), ("hourly_close", 0)):
        counted = one(
            closes,
            "SELECT count(*) FROM close_partitions(%s) WHERE upper_bound < '2010-01-01'",
            (table,),
        )
        assert counted == months
    assert len(stored(closes, MONTHLY)) == 2


# -- what lacks its end ----------------------------------------------------------------------------


def test_a_bucket_without_a_row_lacks_its_end(closes: psycopg.Connection) -> None:
    start, end = utc(2026, 6, 24, 8), utc(2026, 6, 24, 11)
    assert lacking(closes, HOURLY, start, end, now=NOW) == [
        Lacking(coin, start, end - HOURS, 3) for coin in ("bitcoin", "ether", "tiny")
    ]


@pytest.mark.parametrize("timeframe", TIMEFRAMES[1:])
@pytest.mark.parametrize(("before_end", "enough"), [(5, True), (6, False), (1, True)])
def test_a_close_within_the_tolerance_of_its_end_is_enough(
    closes: psycopg.Connection, timeframe: Timeframe, before_end: int, enough: bool
) -> None:
    label = bucket_start(timeframe, utc(2026, 5, 15))
    end = bucket_end(timeframe, label)
    ensure(closes, label, end)
    insert(closes, [seen_at("bitcoin", end - before_end * MINUTES)])
    roll_up_all(closes)
    expected = {"ether", "tiny"} | (set() if enough else {"bitcoin"})
    assert set(lacks(closes, timeframe, label, end)) == expected


def test_a_slower_cadence_tolerates_more(closes: psycopg.Connection) -> None:
    hour = utc(2026, 6, 24, 9)
    insert(closes, [seen_at("bitcoin", hour + 50 * MINUTES)])
    set_scope(closes, wanted=1000, always=["bitcoin"], tolerance=timedelta(minutes=9.5))
    assert "bitcoin" in lacks(closes, HOURLY, hour, hour + HOURS)
    set_scope(closes, wanted=1000, always=["bitcoin"], tolerance=timedelta(minutes=10))
    assert "bitcoin" not in lacks(closes, HOURLY, hour, hour + HOURS)


def test_only_closed_buckets_wholly_in_the_range_are_looked_at(closes: psycopg.Connection) -> None:
    start = utc(2026, 6, 24, 8)
    found = lacks(closes, HOURLY, start + timedelta(microseconds=1), utc(2026, 7, 1))
    # The hour of now is open.
    assert found["bitcoin"] == (utc(2026, 6, 24, 9), utc(2026, 6, 24, 11), 3)
    assert lacks(closes, HOURLY, start, start + HOURS - timedelta(microseconds=1)) == {}
    assert lacks(closes, HOURLY, start, start + HOURS)["bitcoin"] == (start, start, 1)
    assert lacks(closes, DAILY, MIDNIGHT, MIDNIGHT + DAYS) == {}
    assert lacks(closes, WEEKLY, utc(2026, 6, 9), utc(2026, 6, 22))["tiny"][:2] == (
        utc(2026, 6, 15),
        utc(2026, 6, 15),
    )
    assert lacks(closes, MONTHLY, utc(2026, 1, 31), NOW)["tiny"] == (
        utc(2026, 2, 1),
        utc(2026, 5, 1),
        4,
    )
    assert lacks(closes, MONTHLY, NOW, utc(2026, 1, 1)) == {}


def test_the_order_is_first_label_then_rank_then_name(closes: psycopg.Connection) -> None:
    add_coins(closes, "Zed", "abe")
    closes.execute("UPDATE coin_priorities SET last_updated = now()")
    set_scope(closes, wanted=None, always=[], tolerance=5 * MINUTES)
    hour = utc(2026, 6, 24, 9)
    insert(closes, [seen_at("bitcoin", hour + 59 * MINUTES)])
    found = lacking(closes, HOURLY, hour, hour + 2 * HOURS, now=NOW)
    assert [f.coin_id for f in found] == ["ether", "Zed", "abe", "tiny", "bitcoin"]
    assert (found[-1].first, found[-1].buckets) == (hour + HOURS, 1)


def test_only_the_coins_of_the_scope_are_expected(closes: psycopg.Connection) -> None:
    set_scope(closes, wanted=1, always=["tiny"], tolerance=5 * MINUTES)
    hour = utc(2026, 6, 24, 9)
    assert set(lacks(closes, HOURLY, hour, hour + HOURS)) == {"bitcoin", "tiny"}


def test_known_only_leaves_out_what_ended_before_the_coin_was_known(
    closes: psycopg.Connection,
) -> None:
    closes.execute(
        "UPDATE coin_priorities SET created_at = CASE coin_id WHEN 'bitcoin' THEN %s::timestamptz "
        "WHEN 'ether' THEN NULL ELSE '2026-06-30' END",
        (utc(2026, 6, 24, 9),),
    )
    start, end = utc(2026, 6, 24, 7), utc(2026, 6, 24, 11)
    found = lacking(closes, HOURLY, start, end, now=NOW, known_only=True)
    assert found == [
        Lacking("ether", start, end - HOURS, 4),
        Lacking("bitcoin", start + 2 * HOURS, end - HOURS, 2),
    ]


# -- and retention ---------------------------------------------------------------------------------


def test_what_retention_has_taken_is_not_lacking(closes: psycopg.Connection) -> None:
    # Six weeks of days, of which all but the last have gone, and an hour of the day before last.
    first = utc(2026, 5, 11)
    days = [first + number * DAYS for number in range(45)]
    ensure(closes, first)
    insert(closes, [seen_at("bitcoin", day - MINUTES) for day in days])
    clean_up(closes, NOW)
    roll_up_all(closes)
    assert min(day for _, day in stored(closes, DAILY)) == utc(2026, 6, 18)
    assert "bitcoin" not in lacks(closes, DAILY, first, MIDNIGHT)
    assert "bitcoin" not in lacks(closes, WEEKLY, first, MIDNIGHT)
    # The hours are in the evidence of their days, also where the days are gone.
    hours = [hour for day in days[:-1] for hour in [day - HOURS]]
    assert stored(closes, HOURLY).keys() == {("bitcoin", MIDNIGHT - HOURS)}
    for hour in (hours[3], hours[-2]):
        assert "bitcoin" not in lacks(closes, HOURLY, hour, hour + HOURS)


def test_the_exception_asks_for_the_evidence_of_week_and_month(closes: psycopg.Connection) -> None:
    day = utc(2026, 6, 10)
    put_points(closes, DAILY, "daily", ("bitcoin", day + DAYS, 1.0))
    closes.execute("DELETE FROM daily_close")
    assert "bitcoin" not in lacks(closes, DAILY, day, day + DAYS)
    for parent in ("weekly_close", "monthly_close"):
        with closes.transaction(force_rollback=True):
            closes.execute(f"UPDATE {parent} SET seen = 0")
            assert "bitcoin" in lacks(closes, DAILY, day, day + DAYS)
    # Another day of that week and month was never seen.
    assert "bitcoin" in lacks(closes, DAILY, day + DAYS, day + 2 * DAYS)
    with closes.transaction(force_rollback=True):
        # A week is kept for a year.
        closes.execute("DELETE FROM weekly_close")
        assert "bitcoin" in lacks(closes, DAILY, day, day + DAYS)


def test_a_week_long_gone_does_not_count_against_its_days(closes: psycopg.Connection) -> None:
    day = utc(2024, 6, 10)
    put_points(
        closes, DAILY, "daily", ("bitcoin", day + 7 * DAYS, 1.0), start=day, end=day + 8 * DAYS
    )
    closes.execute("DELETE FROM daily_close")
    closes.execute("DELETE FROM weekly_close")
    sunday = day + 6 * DAYS
    assert "bitcoin" not in lacks(closes, DAILY, sunday, sunday + DAYS)
    assert "bitcoin" not in lacks(closes, WEEKLY, day, day + 7 * DAYS)
    assert "bitcoin" in lacks(closes, WEEKLY, day - 7 * DAYS, day)
    # Nor does the day against its hours, which it stands for once it is gone itself.
    assert "bitcoin" not in lacks(closes, HOURLY, sunday + 23 * HOURS, sunday + DAYS)


def test_evidence_excuses_nothing_within_retention_or_while_the_row_is_there(
    closes: psycopg.Connection,
) -> None:
    day = MIDNIGHT - DAYS
    put_points(closes, DAILY, "daily", ("bitcoin", MIDNIGHT, 1.0))
    closes.execute("DELETE FROM daily_close")
    assert "bitcoin" in lacks(closes, DAILY, day, MIDNIGHT)
    # Old, and still there with an early close: that can be mended.
    old = utc(2026, 6, 10)
    insert(closes, [seen_at("bitcoin", old + 5 * HOURS)])
    roll_up_all(closes)
    assert "bitcoin" in lacks(closes, DAILY, old, old + DAYS)


# -- minutes ---------------------------------------------------------------------------------------


def test_an_hour_lacks_minutes_when_five_of_them_have_none(closes: psycopg.Connection) -> None:
    hour = utc(2026, 6, 24, 11)
    every = [hour + number * MINUTES for number in range(4, 60, 5)]
    insert(closes, [seen_at("bitcoin", minute) for minute in every])
    insert(closes, [seen_at("ether", minute) for minute in every[:7] + every[8:]])
    found = lacks(closes, MINUTE, hour, hour + HOURS)
    assert found == dict.fromkeys(("ether", "tiny"), (hour, hour, 1))
    assert lacks(closes, MINUTE, hour + MINUTES, hour + HOURS) == {}


def test_minutes_that_retention_has_taken_are_not_lacking(closes: psycopg.Connection) -> None:
    hour = utc(2026, 6, 24, 10)
    insert(closes, [seen_at("bitcoin", hour + n * MINUTES) for n in range(2, 120, 5)])
    insert(closes, [seen_at("ether", hour + n * MINUTES) for n in range(7, 120, 5)])
    clean_up(closes, NOW)
    assert min(minute for _, minute in stored(closes, MINUTE)) == utc(2026, 6, 24, 11, 7)
    found = lacks(closes, MINUTE, hour, hour + 2 * HOURS)
    assert found == {"ether": (hour, hour, 1), "tiny": (hour, hour + HOURS, 2)}
    # Within retention the evidence of the hour is no minute.
    closes.execute("DELETE FROM minute_close")
    assert lacks(closes, MINUTE, hour, hour + 2 * HOURS)["bitcoin"] == (hour + HOURS,) * 2 + (1,)


# -- what cannot be had ----------------------------------------------------------------------------


def test_what_is_recorded_is_exactly_what_still_lacks_and_lacks_no_more(
    closes: psycopg.Connection,
) -> None:
    start, end = utc(2026, 6, 24, 6), utc(2026, 6, 24, 12)
    insert(closes, [seen_at("bitcoin", utc(2026, 6, 24, 8, 59))])
    gap = "The provider's history has no point there."
    assert record_unrecoverable(closes, HOURLY, "bitcoin", gap, start, end, now=NOW) == 5
    assert lacks(closes, HOURLY, start, end).keys() == {"ether", "tiny"}
    assert lacks(closes, HOURLY, start - HOURS, end)["bitcoin"] == (start - HOURS,) * 2 + (1,)
    filed = (
        "SELECT timeframe, coin_id, reason, windows::text, recorded_at FROM unrecoverable_closes"
    )
    windows = (
        '{["2026-06-24 06:00:00+00","2026-06-24 08:00:00+00"),'
        '["2026-06-24 09:00:00+00","2026-06-24 12:00:00+00")}'
    )
    assert closes.execute(filed).fetchall() == [("hourly", "bitcoin", gap, windows, NOW)]
    # Again it is nothing new; and what is, joins the row.
    assert record_unrecoverable(closes, HOURLY, "bitcoin", gap, start, end, now=LATER) == 0
    assert record_unrecoverable(closes, HOURLY, "bitcoin", "Else.", start, end, now=LATER) == 0
    assert record_unrecoverable(closes, HOURLY, "bitcoin", gap, start - HOURS, end, now=LATER) == 1
    ((*_, united, when),) = closes.execute(filed).fetchall()
    assert united == windows.replace("06:00", "05:00")
    assert when == LATER
    # Only of that width.
    assert "bitcoin" in lacks(closes, DAILY, MIDNIGHT - DAYS, MIDNIGHT)
    assert record_unrecoverable(closes, HOURLY, "no-such-coin", gap, start, end, now=NOW) == 0


def test_reasons_of_a_coin_count_together(closes: psycopg.Connection) -> None:
    start = utc(2026, 6, 20)
    for number, reason in enumerate(("No point.", "Unknown coin.")):
        day = start + number * DAYS
        assert record_unrecoverable(closes, DAILY, "tiny", reason, day, day + DAYS, now=NOW) == 1
    assert lacks(closes, DAILY, start, MIDNIGHT)["tiny"] == (
        start + 2 * DAYS,
        MIDNIGHT - DAYS,
        2,
    )


def test_hours_that_lack_minutes_are_recorded_as_hours(closes: psycopg.Connection) -> None:
    hour = utc(2026, 6, 24, 10)
    assert record_unrecoverable(closes, MINUTE, "tiny", "Too old.", hour, NOW, now=NOW) == 2
    assert "tiny" not in lacks(closes, MINUTE, hour, NOW)
    assert "tiny" in lacks(closes, HOURLY, hour, NOW)


# -- the scope -------------------------------------------------------------------------------------


def scope(connection: psycopg.Connection) -> Any:
    return connection.execute(
        "SELECT wanted, always, tolerance, ctid FROM collection_scope"
    ).fetchall()


def test_before_the_first_poll_the_scope_is_that_of_the_default_settings(
    closes: psycopg.Connection,
) -> None:
    ((*found, _),) = scope(closes)
    assert found == [1000, ["bitcoin", "ethereum", "cardano"], 5 * MINUTES]


def test_the_scope_is_written_only_when_it_changes(closes: psycopg.Connection) -> None:
    set_scope(closes, wanted=None, always=["tiny"], tolerance=10 * MINUTES)
    ((*found, place),) = scope(closes)
    assert found == [None, ["tiny"], 10 * MINUTES]
    set_scope(closes, wanted=None, always=("tiny",), tolerance=10 * MINUTES)
    assert scope(closes)[0][-1] == place
    set_scope(closes, wanted=0, always=[], tolerance=MINUTES)
    ((*found, _),) = scope(closes)
    assert found == [0, [], 5 * MINUTES]
    assert lacks(closes, DAILY, MIDNIGHT - DAYS, MIDNIGHT) == {}


# -- what is held ----------------------------------------------------------------------------------


def test_held_counts_pairs_and_sources(closes: psycopg.Connection) -> None:
    set_scope(closes, wanted=2, always=[], tolerance=5 * MINUTES)
    start = utc(2026, 6, 24, 8)
    put(closes, [seen_at("bitcoin", start), seen_at("tiny", start)])
    put(closes, [seen_at("ether", start + HOURS, source="correction")])
    put_points(closes, HOURLY, "hourly", ("bitcoin", start + 2 * HOURS, 3.0))
    assert held(closes, HOURLY, start, start + 3 * HOURS) == Held(
        rows=4, coins_expected=6, coins_seen=3, live=3, history=1
    )
    assert held(closes, MINUTE, start, start + HOURS) == Held(2, 120, 1, 2, 0)
    assert held(closes, MONTHLY, utc(2026, 1, 1), utc(2026, 6, 1)) == Held(0, 10, 0, 0, 0)
    assert held(closes, HOURLY, start, start) == Held(0, 0, 0, 0, 0)


def test_coins_without_a_close_are_named_with_the_reason(closes: psycopg.Connection) -> None:
    start, end = utc(2026, 6, 24, 8), utc(2026, 6, 24, 10)
    assert without_close(closes, HOURLY, start, end, limit=2) == [
        ("bitcoin", "No close is stored"),
        ("ether", "No close is stored"),
    ]
    insert(closes, [seen_at("bitcoin", start), seen_at("bitcoin", start + HOURS)])
    insert(closes, [seen_at("ether", start)])
    record_unrecoverable(closes, HOURLY, "tiny", "Unknown coin.", start, end, now=NOW)
    rest = [("ether", "No close is stored for 1 of 2 buckets"), ("tiny", "Unknown coin.")]
    assert without_close(closes, HOURLY, start, end) == rest
    # It has a row, but its end was asked for in vain.
    record_unrecoverable(closes, HOURLY, "bitcoin", "No point.", start, start + HOURS, now=NOW)
    assert without_close(closes, HOURLY, start, end) == [("bitcoin", "No point."), *rest]
    assert without_close(closes, HOURLY, start + HOURS, end)[0] == ("ether", "No close is stored")
    # Of minutes any will do.
    assert without_close(closes, MINUTE, start, end) == [("tiny", "No close is stored")]


# -- coverage --------------------------------------------------------------------------------------


def coverage(
    connection: psycopg.Connection, timeframe: Timeframe
) -> dict[datetime, tuple[Any, ...]]:
    rows = connection.execute(
        "SELECT window_start, coins_expected, coins_seen, share, worst_gap FROM coverage_at(%s) "
        "WHERE timeframe = %s",
        (NOW, timeframe.name),
    )
    return {start: tuple(rest) for start, *rest in rows}


def test_coverage_names_every_window_within_retention(closes: psycopg.Connection) -> None:
    found = {timeframe: sorted(coverage(closes, timeframe)) for timeframe in TIMEFRAMES}
    assert (found[MINUTE][0], found[MINUTE][-1]) == (
        utc(2026, 6, 24, 11, 4),
        utc(2026, 6, 24, 12, 2),
    )
    assert (found[HOURLY][0], found[HOURLY][-1]) == (
        utc(2026, 6, 23, 13),
        utc(2026, 6, 24, 12),
    )
    assert (found[DAILY][0], found[DAILY][-1]) == (utc(2026, 6, 18), MIDNIGHT)
    assert (found[WEEKLY][0], found[WEEKLY][-1]) == (utc(2025, 6, 30), utc(2026, 6, 22))
    assert found[MONTHLY] == [utc(2026, 6, 1)]
    assert [len(labels) for labels in found.values()] == [59, 24, 7, 52, 1]
    put_points(closes, MONTHLY, "daily", ("bitcoin", utc(2026, 4, 2), 1.0), start=utc(2026, 1, 1))
    assert sorted(coverage(closes, MONTHLY)) == [utc(2026, month, 1) for month in (4, 5, 6)]


def test_coverage_counts_expected_coins_and_their_worst_gap(closes: psycopg.Connection) -> None:
    set_scope(closes, wanted=2, always=[], tolerance=5 * MINUTES)
    hour = utc(2026, 6, 24, 11)
    # Bitcoin without the minutes 20 to 29 and 55 to 59; tiny, which has next to none, is not asked.
    minutes = [n for n in range(60) if not (20 <= n < 30 or n >= 55)]
    insert(closes, [seen_at("bitcoin", hour + n * MINUTES) for n in minutes])
    insert(closes, [seen_at("tiny", hour)])
    found = coverage(closes, HOURLY)
    assert found[hour] == (2, 1, 0.5, 10 * MINUTES)
    # Nobody has a row: as long as itself, and the open one as long as it is open.
    assert found[hour - HOURS] == (2, 0, 0.0, HOURS)
    assert found[hour + HOURS] == (2, 0, 0.0, 3 * MINUTES)
    insert(closes, [seen_at("ether", hour + n * MINUTES) for n in range(12)])
    assert coverage(closes, HOURLY)[hour] == (2, 2, 1.0, 48 * MINUTES)
    insert(closes, [seen_at("bitcoin", hour + HOURS + MINUTES)])
    assert coverage(closes, HOURLY)[hour + HOURS] == (2, 1, 0.5, MINUTES)
    minute = coverage(closes, MINUTE)
    assert minute[hour + 8 * MINUTES] == (2, 2, 1.0, None)
    assert minute[hour + 30 * MINUTES] == (2, 1, 0.5, None)
    assert minute[hour + 25 * MINUTES] == (2, 0, 0.0, None)


def test_coverage_measures_wider_gaps_in_their_children(closes: psycopg.Connection) -> None:
    set_scope(closes, wanted=1, always=[], tolerance=5 * MINUTES)
    put_points(closes, DAILY, "daily", ("bitcoin", MIDNIGHT, 1.0))
    assert coverage(closes, DAILY)[MIDNIGHT - DAYS] == (1, 1, 1.0, 23 * HOURS)
    # Monday is over without a close, Tuesday has one, Wednesday is not over.
    assert coverage(closes, WEEKLY)[utc(2026, 6, 22)] == (1, 1, 1.0, DAYS)
    assert coverage(closes, MONTHLY)[utc(2026, 6, 1)] == (1, 1, 1.0, 22 * DAYS)


def test_the_view_is_coverage_now_and_takes_no_coins_for_no_trouble(
    closes: psycopg.Connection,
) -> None:
    set_scope(closes, wanted=0, always=[], tolerance=5 * MINUTES)
    rows = closes.execute("SELECT * FROM coverage").fetchall()
    assert {row[0] for row in rows} == {timeframe.name for timeframe in TIMEFRAMES}
    assert {row[2:5] for row in rows} == {(0, 0, None)}


# -- buckets, in Python and in SQL -----------------------------------------------------------------

UTC = timezone.utc
EDGES = [
    utc(2020, 12, 31, 23, 59, 59),  # week 53, which ends in the next year
    utc(2021, 1, 3, 23, 59),
    utc(2024, 2, 29, 12),  # a leap day
    utc(2026, 1, 31),
    utc(2026, 2, 28, 23, 59),
    utc(2026, 3, 8, 7),  # New York goes to daylight saving time, and back
    utc(2026, 11, 1, 6),
    utc(2026, 10, 25, 1),
]


def assert_agreement(connection: psycopg.Connection, instants: list[datetime]) -> None:
    rows = connection.execute(
        "SELECT t.name, i, bucket_start(t.name, i), bucket_end(t.name, i) "
        "FROM timeframes t, unnest(%s::timestamptz[]) AS i",
        (instants,),
    ).fetchall()
    named = {timeframe.name: timeframe for timeframe in TIMEFRAMES}
    assert len(rows) == len(TIMEFRAMES) * len(instants)
    for name, instant, start, end in rows:
        timeframe = named[name]
        # In UTC: Python holds two instants of an ambiguous hour for unequal across zones.
        start, end = start.astimezone(UTC), end.astimezone(UTC)
        assert bucket_start(timeframe, instant) == start
        assert bucket_end(timeframe, instant) == end
        assert bucket(timeframe, instant.astimezone(UTC)) == start


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.datetimes(datetime(1971, 1, 1), datetime(2099, 12, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        min_size=1,
        max_size=50,
    )
)
def test_buckets_are_the_same_in_python_and_in_sql(
    shared: psycopg.Connection, instants: list[datetime]
) -> None:
    assert_agreement(shared, instants)


def test_buckets_are_the_same_whatever_the_zone(
    local_connection: psycopg.Connection, database: str
) -> None:
    steps = [edge + n * 7 * HOURS for edge in EDGES for n in range(-60, 60)]
    assert_agreement(local_connection, EDGES + steps)
    with connect(database) as ours:
        assert_agreement(ours, EDGES + steps)


def test_history_enters_the_same_buckets_whatever_the_zone(
    local_connection: psycopg.Connection,
) -> None:
    local_connection.execute("INSERT INTO coin_priorities (coin_id) VALUES ('bitcoin')")
    points = [("bitcoin", utc(2026, 6, day), float(day)) for day in (1, 2)]
    put_points(local_connection, DAILY, "daily", *points, start=utc(2026, 5, 31))
    assert set(stored(local_connection, DAILY)) == {
        ("bitcoin", utc(2026, 5, 31)),
        ("bitcoin", utc(2026, 6, 1)),
    }
    assert set(stored(local_connection, MONTHLY)) == {
        ("bitcoin", utc(2026, 5, 1)),
        ("bitcoin", utc(2026, 6, 1)),
    }
    (found,) = lacking(local_connection, DAILY, utc(2026, 5, 31), utc(2026, 6, 4), now=NOW)
    assert (found.first, found.last, found.buckets) == (utc(2026, 6, 2), utc(2026, 6, 3), 2)
