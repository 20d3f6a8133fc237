"""Observations that are equally late: what is put last is taken, and history replaces nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import psycopg
import pytest
from closes_support import add_coins, expected, put, seen_at, stored, utc
from truth_support import empty

from pulseguard_assets.timeframes import HOURLY, MINUTE
from pulseguard_assets.warehouse.connection import connect

FIRST = seen_at("bitcoin", utc(2026, 6, 24, 9, 58), 1)
# The same answer, delivered again with a value that a first reading of it got wrong.
READ_AGAIN = replace(FIRST, market_cap_usd=Decimal(77))


@pytest.fixture
def closes(stream_database: str) -> Iterator[psycopg.Connection]:
    with connect(stream_database, application_name="tests") as connection:
        empty(connection)
        add_coins(connection, "bitcoin")
        yield connection


def test_of_two_recorded_at_the_same_instant_the_one_put_last_is_taken(
    closes: psycopg.Connection,
) -> None:
    put(closes, [FIRST])
    put(closes, [READ_AGAIN])
    for timeframe in (MINUTE, HOURLY):
        assert stored(closes, timeframe) == expected(timeframe, [FIRST, READ_AGAIN])


def test_a_later_point_of_history_replaces_no_minute_not_even_another_point(
    closes: psycopg.Connection,
) -> None:
    point = replace(FIRST, source="history")
    later = replace(point, price_usd=Decimal(9), created_at=utc(2026, 6, 25))
    put(closes, [point])
    put(closes, [later])
    assert stored(closes, MINUTE) == expected(MINUTE, [point])
    put(closes, [READ_AGAIN])
    put(closes, [later])
    assert stored(closes, MINUTE) == expected(MINUTE, [READ_AGAIN])
