"""Materializing the assets by hand, in process."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulseguard_assets.simulator.server import RunningSimulator

Materialize = Callable[..., dg.ExecuteInProcessResult]
Failure = Callable[[dg.ExecuteInProcessResult], str]

OPEN_HOUR = "2025-11-22-12:00"
OPEN = {
    "hourly_close": OPEN_HOUR,
    "daily_close": "2025-11-22",
    "weekly_close": "2025-11-17",
    "monthly_close": "2025-11-01",
}


def told(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The metadata of the one materialization of a run."""
    assert result.success
    (event,) = result.asset_materializations_for_node(asset)
    return {key: each.value for key, each in event.metadata.items()}


def count(connection: psycopg.Connection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


# --- coin_priorities ---


def test_materializing_the_coins_sweeps_the_market_list(
    materialize: Materialize, connection: psycopg.Connection
) -> None:
    figures = told(materialize("coin_priorities"), "coin_priorities")

    assert figures == {
        "dagster/row_count": 300,
        "coins_ranked": 211,
        "coins_stored": 300,
        "coins_rejected": 0,
        "pages": 2,
        "api_calls": 2,
        "credits_left": 4_499_998,
    }
    assert count(connection, "coin_priorities") == 300


def test_a_sweep_that_fails_fails_the_run_with_the_sentence(
    materialize: Materialize, failure: Failure, provider: RunningSimulator
) -> None:
    provider.fault("api_error", code=10005)

    result = materialize("coin_priorities")

    assert not result.success
    assert "Set PULSEGUARD_PLAN" in failure(result)


# --- minute_close ---


@pytest.mark.usefixtures("swept")
def test_materializing_the_open_hour_polls_once(
    materialize: Materialize, provider: RunningSimulator, connection: psycopg.Connection
) -> None:
    figures = told(materialize("minute_close", OPEN_HOUR), "minute_close")

    assert (figures["rows_stored"], figures["coins_expected"], figures["api_calls"]) == (
        295,
        300,
        1,
    )
    assert figures["dagster/row_count"] == count(connection, "minute_close") == 295
    assert count(connection, "hourly_close") == 295
    assert provider.calls()["total"] == 1
    kinds = connection.execute("SELECT collection_type, status FROM collection_status ORDER BY id")
    assert kinds.fetchall()[-1] == ("manual", "completed")


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("hour", ["2025-11-21-11:00", "2025-01-01-00:00"])
def test_an_hour_beyond_its_history_is_refused_because_prices_of_now_would_be_invented_there(
    materialize: Materialize,
    failure: Failure,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    hour: str,
) -> None:
    result = materialize("minute_close", hour)

    assert not result.success
    said = failure(result)
    assert "five-minute points of the last 24 hours" in said
    assert "hourly_close" in said, "what can be had instead"
    assert provider.calls()["total"] == 0
    assert count(connection, "minute_close") == 0


@pytest.mark.usefixtures("swept")
def test_an_hour_to_come_is_refused(
    materialize: Materialize, failure: Failure, provider: RunningSimulator
) -> None:
    provider.set_clock(provider.now - timedelta(hours=1))

    result = materialize("minute_close", OPEN_HOUR)

    assert f"The hour {OPEN_HOUR} has not begun." in failure(result)
    assert provider.calls()["total"] == 0


@pytest.mark.usefixtures("swept")
def test_the_first_and_the_last_instant_of_the_hour_belong_to_it(
    materialize: Materialize, provider: RunningSimulator, connection: psycopg.Connection
) -> None:
    hour = provider.now.replace(minute=0, second=0, microsecond=0)
    for instant, inside in (
        (hour - timedelta(microseconds=1), False),
        (hour, True),
        (hour + timedelta(hours=1, microseconds=-1), True),
        (hour + timedelta(hours=1), False),
    ):
        provider.set_clock(instant)
        before = count(connection, "minute_close")
        materialize("minute_close", OPEN_HOUR)
        assert (count(connection, "minute_close") > before) is inside


@pytest.mark.usefixtures("swept")
def test_a_provider_that_fails_fails_the_run_with_the_sentence(
    materialize: Materialize, failure: Failure, provider: RunningSimulator
) -> None:
    provider.fault("server_error", status=503)

    assert "HTTP 503" in failure(materialize("minute_close", OPEN_HOUR))


def test_without_coins_the_run_says_how_to_get_some(
    materialize: Materialize, failure: Failure
) -> None:
    assert "Materialize coin_priorities" in failure(materialize("minute_close", OPEN_HOUR))


# --- rollups ---


@pytest.mark.usefixtures("swept")
def test_rollups_carry_the_close_up_to_the_month_and_again_write_nothing(
    materialize: Materialize, connection: psycopg.Connection
) -> None:
    assert materialize("minute_close", OPEN_HOUR).success
    written = {}
    for table, key in OPEN.items():
        figures = told(materialize(table, key), table)
        written[table] = figures["rows_written"]
        assert (figures["coins_seen"], figures["dagster/partition_row_count"]) == (295, 295)
        assert (figures["coins_expected"], figures["from_live"]) == (300, 295)
        assert (figures["coverage"], figures["api_calls"]) == (0.9833, 0)
        assert figures["dagster/row_count"] == count(connection, table) == 295
        assert told(materialize(table, key), table)["rows_written"] == 0

    assert written == {
        "hourly_close": 0,
        "daily_close": 295,
        "weekly_close": 295,
        "monthly_close": 295,
    }, "the hour is live"
    same = connection.execute(
        "SELECT count(*) FROM minute_close JOIN monthly_close USING (coin_id, price_usd)"
    )
    assert same.fetchone() == (295,)


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("table", list(OPEN))
def test_a_rollup_of_nothing_is_refused(
    materialize: Materialize, failure: Failure, table: str
) -> None:
    said = failure(materialize(table, OPEN[table]))

    assert f"Nothing is stored of {OPEN[table]}" in said
    assert table in said


@pytest.mark.usefixtures("swept")
def test_a_rollup_touches_its_own_bucket_only(
    materialize: Materialize, provider: RunningSimulator, connection: psycopg.Connection
) -> None:
    assert materialize("minute_close", OPEN_HOUR).success
    provider.advance(timedelta(days=1))
    assert materialize("minute_close", "2025-11-23-12:00").success

    assert told(materialize("daily_close", "2025-11-23"), "daily_close")["rows_written"] == 295

    days = connection.execute("SELECT DISTINCT day_ts::text FROM daily_close").fetchall()
    assert days == [("2025-11-23 00:00:00+00",)]
