"""Coins: what a sweep leaves in `coin_priorities`, and whom a mode polls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import sql

from pulseguard_assets.warehouse.closes import Put
from pulseguard_assets.warehouse.coins import (
    COINS_SCHEMA,
    POLLED_SCHEMA,
    CoinCount,
    coins_to_poll,
    count_coins,
    put_coins,
    unknown_coins,
)
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.migrations import migrate

NOW = datetime(2026, 11, 22, 0, 0, 5, tzinfo=timezone.utc)
ODD_NAMES = (
    "",
    " ",
    'He said "no", twice',
    "trailing no-break space\u00a0",
    "比特币",
    "🐕🚀",
    "שקל",
    "line\nbreak",
    "return\rinside",
    "\\N",
    "\\.",
    "NULL",
    "a,b;c\td",
    "x" * 88,
)


def coins(*rows: dict[str, Any]) -> pl.DataFrame:
    """Rows of `COINS_SCHEMA`; what a row does not say is bitcoin's."""
    sound = {
        "coin_id": "bitcoin",
        "market_cap_rank": 1,
        "market_cap_usd": 1.9e12,
        "symbol": "btc",
        "name": "Bitcoin",
        "image_url": "https://example.org/btc.png",
        "provider_ts": NOW - timedelta(seconds=9),
    }
    return pl.DataFrame([sound | row for row in rows], schema=COINS_SCHEMA)


def ranked(*ids: str | tuple[str, int | None]) -> pl.DataFrame:
    """Coins with ranks: in the order given, or as each says."""
    pairs = [(each, n) if isinstance(each, str) else each for n, each in enumerate(ids, 1)]
    return coins(*({"coin_id": coin_id, "market_cap_rank": rank} for coin_id, rank in pairs))


def table(connection: psycopg.Connection, columns: str = "coin_id") -> Sequence[Any]:
    return connection.execute(
        f'SELECT {columns} FROM coin_priorities ORDER BY coin_id COLLATE "C"'
    ).fetchall()


@pytest.fixture
def connection(undone_or_own: psycopg.Connection) -> psycopg.Connection:
    """See `undone_or_own`."""
    return undone_or_own


# --- storing a page ---


def test_a_coin_is_stored_with_all_it_has(connection: psycopg.Connection) -> None:
    assert put_coins(connection, coins({"market_cap_usd": 2.264e-09}), now=NOW) == Put(1, 0)

    assert table(connection, "*") == [
        (
            "bitcoin",
            1,
            Decimal("2.264E-9"),
            "btc",
            "Bitcoin",
            "https://example.org/btc.png",
            NOW,
            NOW,
            NOW - timedelta(seconds=9),
        )
    ]


def test_nothing_known_is_null_and_an_empty_text_is_empty(connection: psycopg.Connection) -> None:
    nothing = dict.fromkeys(
        ("market_cap_rank", "market_cap_usd", "symbol", "name", "image_url", "provider_ts")
    )
    empty = nothing | {"coin_id": "blank", "symbol": "", "name": ""}

    assert put_coins(connection, coins(nothing, empty), now=NOW) == Put(2, 0)

    assert table(connection, "market_cap_rank, market_cap_usd, symbol, name, image_url") == [
        (None, None, None, None, None),
        (None, None, "", "", None),
    ]


def test_an_odd_name_is_stored_as_it_is(connection: psycopg.Connection) -> None:
    rows = [
        {"coin_id": f"coin-{n:02}", "name": name, "symbol": name}
        for n, name in enumerate(ODD_NAMES)
    ]

    put_coins(connection, coins(*rows), now=NOW)

    assert table(connection, "name, symbol") == [(name, name) for name in ODD_NAMES]


def test_a_later_sweep_renews_a_coin_and_keeps_when_it_was_first_seen(
    connection: psycopg.Connection,
) -> None:
    put_coins(connection, coins({}), now=NOW)
    tomorrow = NOW + timedelta(days=1)

    put_coins(connection, coins({"market_cap_rank": 2, "name": "Bit coin"}), now=tomorrow)

    assert table(connection, "market_cap_rank, name, created_at, last_updated") == [
        (2, "Bit coin", NOW, tomorrow)
    ]


def test_a_coin_that_lost_its_rank_has_none(connection: psycopg.Connection) -> None:
    put_coins(connection, coins({}), now=NOW)

    put_coins(connection, coins({"market_cap_rank": None}), now=NOW)

    assert table(connection, "market_cap_rank") == [(None,)]


def test_a_page_that_arrives_late_does_not_undo_a_newer_one(
    connection: psycopg.Connection,
) -> None:
    put_coins(connection, coins({}), now=NOW)

    stale = coins({"market_cap_rank": 7})
    assert put_coins(connection, stale, now=NOW - timedelta(seconds=1)) == Put(0, 0)

    assert table(connection, "market_cap_rank") == [(1,)]


def test_of_a_coin_twice_on_a_page_the_later_row_stays(connection: psycopg.Connection) -> None:
    page = coins({"market_cap_rank": 5}, {"coin_id": "other"}, {"market_cap_rank": 6})

    assert put_coins(connection, page, now=NOW) == Put(2, 0)

    assert table(connection, "coin_id, market_cap_rank") == [("bitcoin", 6), ("other", 1)]


def test_ranks_may_be_shared_and_have_gaps(connection: psycopg.Connection) -> None:
    put_coins(connection, ranked(("a", 1), ("b", 1), ("c", 900)), now=NOW)

    assert table(connection, "coin_id, market_cap_rank") == [("a", 1), ("b", 1), ("c", 900)]


def test_a_coin_missing_from_a_page_stays_in_the_table(connection: psycopg.Connection) -> None:
    put_coins(connection, ranked("a", "b"), now=NOW)

    put_coins(connection, ranked("b"), now=NOW + timedelta(days=400))

    assert table(connection) == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"coin_id": ""}, "the coin id is missing"),
        ({"coin_id": None}, "the coin id is missing"),
        ({"market_cap_rank": 0}, "the market cap rank is not positive"),
        ({"market_cap_usd": -1.0}, "the market cap is negative"),
        ({"market_cap_usd": float("nan")}, "the market cap is not a finite number"),
        ({"market_cap_usd": float("inf")}, "the market cap is not a finite number"),
        ({"market_cap_usd": float("-inf")}, "the market cap is negative"),
    ],
)
def test_a_faulty_coin_is_set_aside_and_its_page_is_stored(
    connection: psycopg.Connection, fault: dict[str, Any], reason: str
) -> None:
    bad = {"coin_id": "bad", "name": "Bad"} | fault

    assert put_coins(connection, coins({}, bad), now=NOW, collection_id=8) == Put(1, 1)

    assert table(connection) == [("bitcoin",)]
    filed = connection.execute(
        "SELECT coin_id, reason, collection_id, rejected_at, payload->>'name' "
        "FROM rejected_observations"
    ).fetchall()
    assert filed == [(bad["coin_id"], reason, 8, NOW, "Bad")]


def test_an_empty_page_is_nothing_to_do(connection: psycopg.Connection) -> None:
    assert put_coins(connection, coins(), now=NOW) == Put(0, 0)


def test_two_pages_can_be_stored_in_one_transaction(connection: psycopg.Connection) -> None:
    with connection.transaction():
        put_coins(connection, ranked("a"), now=NOW)
        put_coins(connection, ranked("b"), now=NOW)

    assert table(connection) == [("a",), ("b",)]


# --- whom to poll ---


def polled(connection: psycopg.Connection, wanted: int | None, *always: str) -> list[Any]:
    frame = coins_to_poll(connection, wanted, always)
    assert frame.schema == POLLED_SCHEMA
    return frame.rows()


def test_a_mode_takes_so_many_coins_by_rank_and_lists_them_by_id(
    connection: psycopg.Connection,
) -> None:
    put_coins(connection, ranked("zeta", "beta", "alpha", "omega"), now=NOW)

    assert polled(connection, 3) == [("alpha", 3), ("beta", 2), ("zeta", 1)]


def test_coins_without_a_rank_come_after_those_with_one_by_market_cap(
    connection: psycopg.Connection,
) -> None:
    page = coins(
        {"coin_id": "small", "market_cap_rank": None, "market_cap_usd": 1.0},
        {"coin_id": "unknown", "market_cap_rank": None, "market_cap_usd": None},
        {"coin_id": "large", "market_cap_rank": None, "market_cap_usd": 9e9},
        {"coin_id": "last-ranked", "market_cap_rank": 9000},
    )
    put_coins(connection, page, now=NOW)

    assert [row[0] for row in polled(connection, 2)] == ["large", "last-ranked"]
    assert [row[0] for row in polled(connection, 3)] == ["large", "last-ranked", "small"]


def test_the_mode_complete_takes_all(connection: psycopg.Connection) -> None:
    put_coins(connection, ranked("a", ("b", None), "c"), now=NOW)

    assert [row[0] for row in polled(connection, None)] == ["a", "b", "c"]


def test_an_always_included_coin_comes_whatever_its_rank_and_only_once(
    connection: psycopg.Connection,
) -> None:
    put_coins(connection, ranked("a", "b", "c", "d"), now=NOW)

    assert polled(connection, 2, "d", "a", "never-heard-of") == [("a", 1), ("b", 2), ("d", 4)]


def test_a_coin_no_sweep_has_seen_for_two_weeks_loses_its_place_but_can_be_asked_for(
    connection: psycopg.Connection,
) -> None:
    put_coins(connection, ranked("gone", "here"), now=NOW)
    put_coins(connection, ranked("next", "here"), now=NOW + timedelta(days=14, seconds=1))

    assert polled(connection, 2) == [("here", 2), ("next", 1)]
    assert polled(connection, 2, "gone") == [("gone", 1), ("here", 2), ("next", 1)]


def test_before_the_first_sweep_there_is_nobody(connection: psycopg.Connection) -> None:
    assert polled(connection, None, "bitcoin") == []


def test_coins_are_listed_alike_whatever_the_database_thinks_of_order(postgres: Any) -> None:
    """A cycle goes on "behind" a coin: in another order, coins would be skipped or paid twice."""
    ids = ["-10", "4", "Zebra", "_", "a-b", "aa", "ab", "zebra", "é", "🦊"]
    with postgres.new_database() as dsn, connect(dsn) as admin:
        known = admin.execute(
            "SELECT count(*) FROM pg_collation WHERE collname = 'en-US-x-icu'"
        ).fetchone()
        if known == (0,):
            pytest.skip("this PostgreSQL was built without ICU")
    with postgres.new_database() as dsn:
        name = sql.Identifier(dsn.split("?")[0].rsplit("/", 1)[-1])
        with connect(postgres.dsn) as admin:
            admin.execute(sql.SQL("DROP DATABASE {}").format(name))
            admin.execute(
                sql.SQL(
                    "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' "
                    "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'"
                ).format(name)
            )
        migrate(dsn)
        with connect(dsn) as connection:
            put_coins(connection, ranked(*ids), now=NOW)
            by_icu = connection.execute("SELECT coin_id FROM coin_priorities ORDER BY 1").fetchall()
            assert [row[0] for row in by_icu] != sorted(ids), "or there is nothing to see here"

            assert [row[0] for row in polled(connection, None)] == sorted(ids)


def test_unknown_coins_are_named_in_the_order_they_were_asked_for(
    connection: psycopg.Connection,
) -> None:
    put_coins(connection, ranked("a", "b"), now=NOW)

    assert unknown_coins(connection, ["z", "b", "y", "a"]) == ["z", "y"]
    assert unknown_coins(connection, []) == []


def test_coins_are_counted(connection: psycopg.Connection) -> None:
    assert count_coins(connection) == CoinCount(0, 0, None)

    put_coins(connection, ranked("a", ("b", None)), now=NOW)

    assert count_coins(connection) == CoinCount(coins=2, ranked=1, last_updated=NOW)
