"""Hostile ids from an answer to the tables: stored as they are or set aside, and nothing executes.

Belongs here: the way of a text through COPY and SQL. Does not: which texts the reading of an answer
lets through (tests/unit/coingecko/test_hostile_answers.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import timedelta

import polars as pl
import psycopg
import pytest
from closes_support import add_coins, copy_of_prepared, ensure, one, prepared_by, utc

from pulseguard_assets.coingecko.frames import REJECTED_SCHEMA, parse_coins_markets
from pulseguard_assets.timeframes import TIMEFRAMES
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, Put, put_minutes
from pulseguard_assets.warehouse.coins import COINS_SCHEMA, put_coins
from pulseguard_assets.warehouse.collections import reject
from pulseguard_assets.warehouse.history import POINTS_SCHEMA, HistoryPut, put_history

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
]
UNSTORABLE = ["", "nul\x00inside", "\ud800"]


def incompressible(length: int) -> str:
    """Characters of four bytes each, which no index can squeeze."""
    chance = random.Random(length)
    return "".join(chr(chance.randrange(0x20000, 0x2A6D0)) for _ in range(length))


STORABLE.append(incompressible(200))
TOO_LONG = ["x" * 201, incompressible(201), incompressible(4_000)]


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
    refused = [*UNSTORABLE, *TOO_LONG]
    page = [{"id": text, "symbol": text, "name": text} for text in (*STORABLE, *refused, "last")]
    parsed = parse_coins_markets(json.dumps(page).encode())
    coins = parsed.frame.rename({"last_updated": "provider_ts"}).select(COINS_SCHEMA.names())
    assert put_coins(connection, coins, now=NOW).stored == len(STORABLE) + 1
    reject(connection, parsed.rejected, collection_id=None, now=NOW)
    assert known_coins(connection) == {"bitcoin", "last", *STORABLE}
    assert one(connection, "SELECT sum(times) FROM rejected_observations") == len(refused)
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
    batch = [*STORABLE, *TOO_LONG, "", "bitcoin"]
    put = put_minutes(connection, minutes_of(batch), now=NOW)
    stored = [*STORABLE, "bitcoin"] if known else ["bitcoin"]
    assert (put.stored, put.rejected) == (len(stored), len(batch) - len(stored))
    for table in ("minute_close", "hourly_close"):
        found = connection.execute(f"SELECT coin_id FROM {table}").fetchall()
        assert {coin for (coin,) in found} == set(stored)
    reasons = connection.execute("SELECT coin_id, reason FROM rejected_observations").fetchall()
    assert {coin for coin, _ in reasons} == {text[:200] for text in set(batch) - set(stored)}


def test_a_coin_with_a_long_id_is_set_aside_with_the_whole_of_it_and_its_page_is_stored(
    connection: psycopg.Connection,
) -> None:
    rows = [(text, None, None, "s", "n", None, None) for text in (*TOO_LONG, "last")]
    page = pl.DataFrame(rows, schema=COINS_SCHEMA, orient="row")
    assert put_coins(connection, page, now=NOW) == Put(stored=1, rejected=len(TOO_LONG))
    assert known_coins(connection) == {"bitcoin", "last"}
    filed = connection.execute(
        "SELECT coin_id, payload ->> 'coin_id', reason FROM rejected_observations"
    ).fetchall()
    reason = "the coin id is longer than 200 characters"
    assert set(filed) == {(text[:200], text, reason) for text in TOO_LONG}


@pytest.mark.parametrize("text", TOO_LONG)
def test_a_point_of_the_past_with_a_long_id_is_set_aside_and_the_others_stay(
    connection: psycopg.Connection, text: str
) -> None:
    points = pl.DataFrame(
        [(coin, MINUTE, 1.5, None, None, NOW) for coin in (text, "bitcoin")],
        schema=POINTS_SCHEMA,
        orient="row",
    )
    window = {"start": MINUTE, "end": NOW, "now": NOW}
    put = put_history(connection, TIMEFRAMES[0], "five_minute", points, **window)  # type: ignore[arg-type]
    assert put == HistoryPut(written=1, usable=1, rejected=1)
    assert one(connection, "SELECT coin_id FROM rejected_observations") == text[:200]


def test_a_rejection_is_filed_however_long_its_id_and_reason_are(
    connection: psycopg.Connection,
) -> None:
    endless = incompressible(4_000)
    rows = [(endless, endless, "1"), (endless[:200] + "other", endless, "2")]
    rejected = pl.DataFrame(rows, schema=REJECTED_SCHEMA, orient="row")
    assert reject(connection, rejected, collection_id=None, now=NOW) == 2
    filed = "SELECT coin_id, reason, times, payload FROM rejected_observations"
    assert connection.execute(filed).fetchall() == [(endless[:200], endless[:400], 2, 2)]
