"""Hostile ids from an answer to the tables: stored as they are or set aside, and nothing executes.

Belongs here: the way of a text through COPY and SQL. Does not: which texts the reading of an answer
lets through (tests/unit/coingecko/test_hostile_answers.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

import polars as pl
import psycopg
import pytest
from closes_support import add_coins, copy_of_prepared, ensure, one, prepared_by, utc

from pulseguard_assets.coingecko.frames import parse_coins_markets
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, put_minutes
from pulseguard_assets.warehouse.coins import COINS_SCHEMA, put_coins
from pulseguard_assets.warehouse.collections import reject

NOW = utc(2026, 6, 24, 12)
MINUTE = NOW - timedelta(minutes=1)
STORABLE = [
    " ",
    "line\nbreak\r\n",
    "bell\x07\x1b[31m",
    "'; DROP TABLE coin_priorities CASCADE; --",
    '"); SELECT pg_sleep(1000); --',
    "$$;COMMIT;$$",
    "$(touch /tmp/x)`id`|;&&",
    "%s%(name)s{0}",
    "\\.",
    "\\N",
    "NULL",
    '"quoted",and,commas"',
    "\u202egnp.exe\u202c\u200f",
    "\ufeff",
    "😀",
    "x" * 10_000,
]
UNSTORABLE = ["", "nul\x00inside", "\ud800"]


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, "bitcoin")
    ensure(connection, NOW)


prepared = prepared_by(prepare)
database = copy_of_prepared


def known_coins(connection: psycopg.Connection) -> set[str]:
    return {coin for (coin,) in connection.execute("SELECT coin_id FROM coin_priorities")}


def test_a_page_of_hostile_coins_is_stored_but_for_those_that_no_database_stores(
    connection: psycopg.Connection,
) -> None:
    page = [{"id": text, "symbol": text, "name": text} for text in (*STORABLE, *UNSTORABLE, "last")]
    parsed = parse_coins_markets(json.dumps(page).encode())
    coins = parsed.frame.rename({"last_updated": "provider_ts"}).select(COINS_SCHEMA.names())
    assert put_coins(connection, coins, now=NOW).stored == len(STORABLE) + 1
    reject(connection, parsed.rejected, collection_id=None, now=NOW)
    assert known_coins(connection) == {"bitcoin", "last", *STORABLE}
    assert one(connection, "SELECT sum(times) FROM rejected_observations") == len(UNSTORABLE)
    named: dict[str, str] = dict(
        connection.execute("SELECT coin_id, name FROM coin_priorities").fetchall()
    )
    assert all(named[text] == text for text in STORABLE)


def minutes_of(coins: Sequence[str]) -> pl.DataFrame:
    rows = [(coin, MINUTE, 1.5, None, None, None, NOW, None, "live") for coin in coins]
    return pl.DataFrame(rows, schema=MINUTES_SCHEMA, orient="row")


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_minutes_of_hostile_coins_are_stored_or_set_aside_and_the_batch_stays(
    connection: psycopg.Connection, known: bool
) -> None:
    if known:
        add_coins(connection, *STORABLE)
    put = put_minutes(connection, minutes_of([*STORABLE, "", "bitcoin"]), now=NOW)
    stored = [*STORABLE, "bitcoin"] if known else ["bitcoin"]
    assert (put.stored, put.rejected) == (len(stored), len(STORABLE) + 2 - len(stored))
    for table in ("minute_close", "hourly_close"):
        found = connection.execute(f"SELECT coin_id FROM {table}").fetchall()
        assert {coin for (coin,) in found} == set(stored)
    reasons = connection.execute("SELECT coin_id, reason FROM rejected_observations").fetchall()
    assert {coin for coin, _ in reasons} == {"", *STORABLE} - set(stored)
