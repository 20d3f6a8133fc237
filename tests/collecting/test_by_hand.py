"""Polls by hand, beside the sensor and without it, and polls whose warehouse fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest

from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import (
    NotDue,
    PollFailed,
    PollReport,
    minute_of,
    poll_by_hand,
    poll_when_due,
)
from pulseguard_assets.warehouse.collections import CollectorBusy, only_collector
from pulseguard_assets.warehouse.connection import DatabaseUnavailable, connect

PlatformFactory = Callable[..., Platform]
MANY = 3300
many_coins = pytest.mark.parametrize("coins", [MANY])
SMALL_PLAN = {"mode": str(MANY), "calls_per_minute": 5}

pytestmark = pytest.mark.usefixtures("swept")


@pytest.fixture
def another(database: str) -> Iterator[psycopg.Connection]:
    """Another process's connection; it waits half a second for a lock."""
    with connect(database, lock_timeout=timedelta(milliseconds=500)) as connection:
        yield connection


# --- by hand ---


def test_a_poll_by_hand_is_done_whether_or_not_one_is_due(platform: Platform, ticks: Any) -> None:
    ticks.poll(platform)
    ticks.wait(seconds=1)

    report = ticks.by_hand(platform)

    assert report.stored == len(ticks.truth())
    assert ticks.prices() == ticks.truth()
    assert (ticks.statuses(), ticks.statuses("manual")) == (["completed"], ["completed"])


def test_a_poll_by_hand_takes_nothing_from_the_sensors_schedule(
    platform: Platform, ticks: Any
) -> None:
    ticks.by_hand(platform)

    ticks.poll(platform)

    assert isinstance(ticks.tick(platform), NotDue)


def test_a_later_poll_in_the_same_minute_has_the_last_word(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    ticks.poll(platform)
    ticks.wait(seconds=15)
    ticks.provider.fault("absurd", value=123.5, coins=["bitcoin"])

    ticks.by_hand(platform)

    row = "SELECT price_usd::float, created_at FROM {} WHERE coin_id = 'bitcoin'"
    for table in ("minute_close", "hourly_close"):
        assert connection.execute(row.format(table)).fetchall() == [(123.5, ticks.provider.now)]


@many_coins
def test_a_poll_by_hand_waits_for_the_rate_limit_as_long_as_it_is_given(
    new_platform: PlatformFactory, ticks: Any, connection: psycopg.Connection
) -> None:
    began = ticks.provider.now

    report = ticks.by_hand(new_platform(**SMALL_PLAN), patience=timedelta(minutes=15))

    assert report.calls == 8
    assert set(ticks.prices()) == set(ticks.truth())
    assert ticks.provider.now - began >= timedelta(seconds=60)
    labels = connection.execute("SELECT DISTINCT minute_ts FROM minute_close").fetchall()
    assert labels == [(minute_of(began),)]


@many_coins
def test_a_poll_by_hand_without_calls_left_fails_and_keeps_what_it_has(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    with pytest.raises(PollFailed, match="PULSEGUARD_PLAN") as failure:
        ticks.by_hand(new_platform(**SMALL_PLAN))

    assert failure.value.report is not None
    assert len(ticks.prices()) == failure.value.report.stored > 2000
    assert ticks.cycles("manual")[0][3:] == (5, str(failure.value))
    assert ticks.statuses("manual") == ["failed"]


def test_a_poll_by_hand_does_not_wait_for_a_pause_of_the_sensor(
    platform: Platform, ticks: Any
) -> None:
    ticks.provider.fault("server_error", count=3)
    with pytest.raises(PollFailed):
        ticks.tick(platform)

    assert ticks.by_hand(platform).cycle.status == "completed"


def test_a_crashed_poll_by_hand_is_closed_by_the_next(platform: Platform, ticks: Any) -> None:
    ticks.connection.execute(
        "INSERT INTO collection_status (collection_type, start_time) VALUES ('manual', now())"
    )

    ticks.by_hand(platform)

    assert ticks.statuses("manual") == ["failed", "completed"]


@many_coins
def test_a_poll_by_hand_leaves_the_sensors_waiting_cycle_alone(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(**SMALL_PLAN)
    ticks.poll(platform)
    ticks.wait(seconds=60)
    ticks.by_hand(platform, patience=timedelta(minutes=2))
    assert ticks.statuses() == ["running"]
    ticks.wait(seconds=60)

    assert ticks.poll(platform).cycle.status == "completed"
    assert ticks.statuses() == ["completed"]


# --- not alone ---


def test_while_somebody_polls_by_hand_the_sensor_says_so_at_once(
    platform: Platform, ticks: Any, another: psycopg.Connection
) -> None:
    with only_collector(another, "poll"), pytest.raises(CollectorBusy, match="right now"):
        ticks.tick(platform)

    assert ticks.provider.calls()["total"] == 0
    assert ticks.poll(platform).cycle.status == "completed"


def test_a_poll_by_hand_waits_for_the_sensor_and_then_says_that_it_is_busy(
    platform: Platform, ticks: Any, another: psycopg.Connection
) -> None:
    now = ticks.provider.now
    with only_collector(ticks.connection, "poll"), pytest.raises(CollectorBusy):
        poll_by_hand(platform, another, now=now, until=now)

    assert poll_by_hand(platform, another, now=now, until=now).cycle.status == "completed"
    assert ticks.statuses("manual") == ["completed"]


# --- the warehouse ---


class ServerLost(httpx.HTTPTransport):
    """At the second call, every connection of the platform to PostgreSQL is cut."""

    def __init__(self, admin: psycopg.Connection) -> None:
        super().__init__()
        self._admin, self._calls = admin, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._calls += 1
        if self._calls == 2:
            self._admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE application_name = 'pulseguard' AND datname = current_database()"
            )
        return super().handle_request(request)


@many_coins
def test_a_warehouse_lost_in_the_middle_fails_the_poll_with_a_sentence_and_the_next_goes_on(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(mode=str(MANY), transport=ServerLost(ticks.connection))
    now = ticks.provider.now
    budget = now + timedelta(seconds=25)
    with (
        platform.connect() as cut,
        pytest.raises(PollFailed, match=r"PostgreSQL failed: .*PULSEGUARD_DATABASE_URL"),
    ):
        poll_when_due(platform, cut, now=now, until=budget)
    assert ticks.statuses() == ["running"], "nobody could write how it ended"

    with platform.connect() as whole:
        report = poll_when_due(platform, whole, now=now, until=budget)

    assert isinstance(report, PollReport)
    assert report.cycle.status == "completed"
    assert ticks.statuses() == ["failed", "completed"]
    assert set(ticks.prices()) == set(ticks.truth())


def test_a_database_that_cannot_be_reached_is_told_by_its_setting(
    new_platform: PlatformFactory,
) -> None:
    platform = new_platform(database_url="postgresql://somebody:s3cret@127.0.0.1:1/prices")

    with pytest.raises(DatabaseUnavailable, match="PULSEGUARD_DATABASE_URL") as failure:
        platform.connect()

    assert "s3cret" not in str(failure.value)


def test_a_ledger_that_cannot_be_reached_means_no_call(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(database_url="postgresql://somebody@127.0.0.1:1/prices")

    with pytest.raises(DatabaseUnavailable):
        ticks.tick(platform)

    assert ticks.provider.calls()["total"] == 0


def test_rows_that_cannot_be_stored_fail_the_poll_and_none_of_the_chunk_is_kept(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    connection.execute("ALTER TABLE minute_close RENAME TO minute_close_is_gone")

    with pytest.raises(PollFailed, match=r"PostgreSQL failed: .*minute_close"):
        ticks.tick(platform)

    connection.execute("ALTER TABLE minute_close_is_gone RENAME TO minute_close")
    assert ticks.statuses() == ["failed"]
    ticks.wait(minutes=1)
    assert ticks.poll(platform).cycle.status == "completed"
