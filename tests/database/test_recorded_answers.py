"""Real answers of the provider, byte for byte, through the client and the puts into the tables.

The recordings are not part of the project; where there are none, these tests are skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import polars as pl
import psycopg
import pytest

from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import PollFailed, poll_by_hand
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.settings import load_settings
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, Put, put_minutes

SAMPLES = Path(
    os.environ.get("PULSEGUARD_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "samples")
)
NOW = datetime(2026, 11, 22, 12, 3, 27, tzinfo=timezone.utc)


class Recording(httpx.MockTransport):
    """Answers every call with the same bytes."""

    def __init__(self) -> None:
        super().__init__(lambda _: httpx.Response(200, content=self.body, headers=self.headers))
        self.body = b""
        self.headers: dict[str, str] = {}


def recorded(name: str) -> bytes:
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"no recorded answers here; set PULSEGUARD_SAMPLES (looked for {name})")
    return path.read_bytes()


def exact(body: bytes | str) -> Any:
    """The JSON with every number as the decimal that stands there."""
    return json.loads(body, parse_float=Decimal, parse_int=Decimal)


@pytest.fixture
def market_list() -> bytes:
    """The first page of the market list."""
    return recorded("coins_markets_p1_250_2024-11-21_baby-doge_2.264e-09.json")


@pytest.fixture
def transport() -> Recording:
    return Recording()


@pytest.fixture
def clock() -> list[datetime]:
    """The instant it is; replace it to let time pass."""
    return [NOW]


@pytest.fixture
def replayed(
    database: str,
    connection: psycopg.Connection,
    transport: Recording,
    clock: list[datetime],
    only_our_settings: None,
) -> Iterator[Platform]:
    """A platform that hears the recording whatever it asks."""
    connection.execute("SELECT ensure_partitions(%s, %s)", (NOW, NOW))
    platform = Platform(
        load_settings(database_url=database, mode="250", calls_per_minute=100),
        clock=lambda: clock[0],
        transport=transport,
    )
    yield platform
    platform.close()


def test_all_coins_of_a_recorded_page_are_stored_exactly(
    replayed: Platform, transport: Recording, connection: psycopg.Connection, market_list: bytes
) -> None:
    transport.body = market_list

    report = sweep(replayed, connection, now=NOW, until=NOW)

    coins = {coin["id"]: coin for coin in exact(market_list)}
    assert (report.stored, report.rejected, report.calls) == (250, 0, 1)
    assert len(coins) == 250
    rows = connection.execute(
        "SELECT coin_id, market_cap_rank, market_cap_usd, symbol, name, image_url, provider_ts "
        "FROM coin_priorities"
    ).fetchall()
    assert {row[0] for row in rows} == coins.keys()
    for coin_id, rank, cap, symbol, name, image, updated in rows:
        coin = coins[coin_id]
        assert (rank, cap) == (coin["market_cap_rank"], coin["market_cap"]), coin_id
        assert (symbol, name, image) == (coin["symbol"], coin["name"], coin["image"])
        # Python 3.10 reads no Z.
        assert updated == datetime.fromisoformat(coin["last_updated"].replace("Z", "+00:00"))


def test_all_prices_of_a_recorded_page_are_stored_exactly(
    replayed: Platform, transport: Recording, connection: psycopg.Connection, market_list: bytes
) -> None:
    transport.body = market_list
    sweep(replayed, connection, now=NOW, until=NOW)
    page = replayed.provider.coins_markets_page(1, until=NOW).frame

    put = put_minutes(
        connection,
        page.with_columns(
            pl.lit(NOW.replace(second=0)).alias("minute_ts"),
            pl.lit(NOW).alias("created_at"),
            pl.lit("live").alias("source"),
            pl.col("market_cap_rank").alias("coin_rank"),
            pl.col("last_updated").alias("provider_ts"),
        )
        .select(MINUTES_SCHEMA.names())
        .cast(MINUTES_SCHEMA),
        now=NOW,
    )

    assert put == Put(stored=250, rejected=0)
    truth = {
        coin["id"]: (coin["current_price"], coin["market_cap"], coin["total_volume"])
        for coin in exact(market_list)
    }
    assert truth["baby-doge-coin"][0] == Decimal("2.264e-09")
    for table in ("minute_close", "hourly_close"):
        rows = connection.execute(
            f"SELECT coin_id, price_usd, market_cap_usd, volume_24h_usd FROM {table}"
        ).fetchall()
        assert {row[0]: row[1:] for row in rows} == truth


def test_every_recorded_price_in_dollars_is_stored_exactly_by_a_poll(
    replayed: Platform,
    transport: Recording,
    connection: psycopg.Connection,
    clock: list[datetime],
) -> None:
    answers = [
        answer
        for answer in json.loads(recorded("simple_price_recorded_with_headers.json"))
        if parse_qs(urlsplit(answer["url"]).query)["vs_currencies"] == ["usd"]
    ]
    assert len(answers) > 50
    known = {coin_id for answer in answers for coin_id in exact(answer["body"])}
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO coin_priorities (coin_id) VALUES (%s)", [(each,) for each in known]
        )
    for number, answer in enumerate(answers):
        clock[0] = NOW + timedelta(minutes=number)
        transport.body, transport.headers = answer["body"].encode(), answer["headers"]

        report = poll_by_hand(replayed, connection, now=clock[0], until=clock[0])

        told = {coin_id: each["usd"] for coin_id, each in exact(answer["body"]).items()}
        stored = connection.execute(
            "SELECT coin_id, price_usd FROM minute_close WHERE minute_ts = %s", (report.minute,)
        ).fetchall()
        assert dict(stored) == told
        assert (report.stored, report.missing) == (len(told), len(known) - len(told))


def test_a_recorded_error_fails_a_poll_and_stores_nothing(
    replayed: Platform,
    connection: psycopg.Connection,
    database: str,
    clock: list[datetime],
) -> None:
    errors = [each for each in json.loads(recorded("errors/errors.json")) if each.get("body")]
    connection.execute("INSERT INTO coin_priorities (coin_id) VALUES ('bitcoin')")
    assert len(errors) > 5
    for number, error in enumerate(errors):
        clock[0] = NOW + timedelta(hours=number)
        status = error["http_status"] or 200
        if status == 200 and "error" not in error["body"]:
            continue
        body = error["body"].encode()
        platform = Platform(
            replayed.settings,
            clock=lambda: clock[0],
            transport=httpx.MockTransport(
                lambda _, status=status, body=body: httpx.Response(status, content=body)
            ),
        )
        with pytest.raises(PollFailed):
            poll_by_hand(platform, connection, now=clock[0], until=clock[0])
        platform.close()

    assert connection.execute("SELECT count(*) FROM minute_close").fetchone() == (0,)
