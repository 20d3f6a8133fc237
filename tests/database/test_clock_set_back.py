"""A clock that was ahead: what it cleans up is carried, and what it filed keeps nobody waiting."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import psycopg
import pytest
from closes_support import (
    add_coins,
    clean_up,
    copy,
    expected,
    prepared_by,
    put,
    roll_up_all,
    seen_at,
    shared_connection,
    stored,
    undone,
    utc,
)

from pulseguard_assets.timeframes import MONTHLY, WEEKLY
from pulseguard_assets.warehouse.history import forget_unrecoverable_ahead

COINS = ("bitcoin", "ether")
FIRST, NOW = utc(2026, 5, 30), utc(2026, 6, 2, 12, 30)
LEAPS = pytest.mark.parametrize("leap", [timedelta(days=1), timedelta(days=3660)], ids=str)
# Every half hour, over the end of a week and of a month.
SEEN = [
    seen_at(coin, FIRST + timedelta(minutes=30 * n), 1 + n)
    for coin in COINS
    for n in range((NOW - FIRST) // timedelta(minutes=30))
]


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, *COINS)
    connection.execute("SELECT ensure_partitions(%s, %s)", (FIRST, NOW))


prepared = prepared_by(prepare)
shared = shared_connection
closes = undone


@LEAPS
def test_a_cleanup_by_a_clock_that_is_ahead_deletes_only_what_wider_closes_carry(
    closes: psycopg.Connection, leap: timedelta
) -> None:
    copy(closes, SEEN)

    assert clean_up(closes, NOW + leap)["minute_close"] == len(SEEN)

    # Days are kept for a week, weeks for a year and months for ever: these hold all of it.
    roll_up_all(closes)
    assert stored(closes, MONTHLY) == expected(MONTHLY, SEEN)
    if leap < timedelta(days=366):
        assert stored(closes, WEEKLY) == expected(WEEKLY, SEEN)


@LEAPS
def test_after_it_was_set_back_the_closes_go_on_as_if_it_had_never_been_ahead(
    closes: psycopg.Connection, leap: timedelta
) -> None:
    copy(closes, SEEN)
    clean_up(closes, NOW + leap)
    later = [seen_at(coin, NOW + timedelta(minutes=1), 9) for coin in COINS]

    put(closes, later, now=NOW + timedelta(minutes=1))
    clean_up(closes, NOW + timedelta(minutes=2))
    clean_up(closes, NOW + timedelta(days=40))

    assert stored(closes, MONTHLY) == expected(MONTHLY, [*SEEN, *later])


# --- what cannot be had ---


def file(connection: psycopg.Connection, coin: str, *windows: Sequence[datetime]) -> None:
    connection.execute(
        "INSERT INTO unrecoverable_closes VALUES ('hourly', %s, 'There is no point.', "
        "(SELECT range_agg(tstzrange(start, stop)) "
        "FROM unnest(%s::timestamptz[], %s::timestamptz[]) AS each (start, stop)), %s)",
        (coin, [w[0] for w in windows], [w[1] for w in windows], NOW),
    )


def test_nobody_knows_of_an_hour_that_is_not_over_that_it_cannot_be_had(
    closes: psycopg.Connection,
) -> None:
    hour = timedelta(hours=1)
    noon = NOW.replace(minute=0)
    past, ahead = (noon - 5 * hour, noon - 4 * hour), (noon + 5 * hour, noon + 7 * hour)
    file(closes, "bitcoin", past, ahead)
    file(closes, "ether", ahead)

    assert forget_unrecoverable_ahead(closes, now=NOW) == 2

    filed = "SELECT coin_id, lower(windows), upper(windows) FROM unrecoverable_closes"
    assert closes.execute(filed).fetchall() == [("bitcoin", *past)]
    assert forget_unrecoverable_ahead(closes, now=NOW) == 0
