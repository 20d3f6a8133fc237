"""A clock that leaps ahead and is set back: nothing waits for a time that has yet to come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import NotDue, PollFailed, minute_of
from pulseguard_assets.collecting.sweep import KIND, sweep
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.collections import begin_collection, fail_crashed

PlatformFactory = Callable[..., Platform]
MANY = 3300
# 3,300 coins are eight calls, and this plan gives five a minute.
SMALL_PLAN = {"mode": str(MANY), "calls_per_minute": 5}
LEAPS = pytest.mark.parametrize("leap", [timedelta(minutes=7), timedelta(days=366)], ids=str)

pytestmark = pytest.mark.usefixtures("swept")


class LeapingTransport(httpx.HTTPTransport):
    """The network; while an answer is waited for, the clock leaps."""

    def __init__(self, provider: RunningSimulator, leap: timedelta) -> None:
        super().__init__()
        self._provider, self._leap = provider, leap

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._provider.set_clock(self._provider.now + self._leap)
        return super().handle_request(request)


def labels(ticks: Any) -> list[datetime]:
    rows = ticks.connection.execute("SELECT DISTINCT minute_ts FROM minute_close ORDER BY 1")
    return [row[0] for row in rows.fetchall()]


@LEAPS
def test_after_a_clock_that_was_ahead_the_very_next_minute_is_polled(
    platform: Platform, ticks: Any, leap: timedelta
) -> None:
    began = ticks.provider.now
    ticks.poll(platform)
    ticks.provider.set_clock(began + leap)
    ticks.poll(platform)
    ticks.provider.set_clock(began + timedelta(minutes=1))

    assert ticks.poll(platform).cycle.status == "completed"

    ticks.wait(seconds=20)
    assert isinstance(ticks.tick(platform), NotDue), "and once only"
    ticks.wait(seconds=40)
    ticks.poll(platform)
    minute = minute_of(began)
    assert labels(ticks) == [
        *(minute + timedelta(minutes=n) for n in (0, 1, 2)),
        minute_of(began + leap),
    ]
    assert set(ticks.statuses()) == {"completed"}


@LEAPS
def test_a_pause_after_a_failure_does_not_last_until_the_clock_has_come_there_again(
    platform: Platform, ticks: Any, leap: timedelta
) -> None:
    began = ticks.provider.now
    ticks.provider.set_clock(began + leap)
    ticks.provider.fault("server_error")
    with pytest.raises(PollFailed):
        ticks.tick(platform)
    ticks.provider.clear_faults()
    ticks.provider.set_clock(began)

    assert ticks.poll(platform).cycle.status == "completed"


@pytest.mark.parametrize("coins", [MANY])
@LEAPS
def test_a_poll_that_waits_for_its_next_call_is_given_up_and_begun_anew(
    new_platform: PlatformFactory, ticks: Any, leap: timedelta
) -> None:
    platform = new_platform(**SMALL_PLAN)
    began = ticks.provider.now
    ticks.provider.set_clock(began + leap)
    assert ticks.poll(platform).waiting_until is not None
    ticks.provider.set_clock(began)

    # The calls of the other time are taken for just made, so the new one waits for a minute.
    report = ticks.poll(platform)
    assert ticks.statuses() == ["failed", "running"]
    ticks.wait(seconds=61)
    while report.waiting_until is not None:
        done = ticks.tick(platform)
        report = report if isinstance(done, NotDue) else done
        ticks.wait(seconds=20)

    assert ticks.statuses() == ["failed", "completed"]
    assert report.cycle.coins_processed == len(ticks.truth())


@LEAPS
def test_a_clock_that_leaps_in_the_middle_of_a_poll_leaves_nothing_that_waits_for_it(
    new_platform: PlatformFactory, ticks: Any, leap: timedelta
) -> None:
    """The answer comes in another time than the tick began in, and asks to be left alone."""
    began = ticks.provider.now
    platform = new_platform(transport=LeapingTransport(ticks.provider, leap))
    ticks.provider.fault("rate_limit", retry_after=90, count=1)
    with pytest.raises(PollFailed):
        ticks.tick(platform)
    ticks.provider.set_clock(began + timedelta(seconds=20))

    # The wish was for 90 seconds, and is honoured from now on.
    with pytest.raises(PollFailed, match="rate limit"):
        ticks.tick(new_platform())
    ticks.wait(seconds=91)

    assert ticks.poll(new_platform()).cycle.status == "completed"
    assert ticks.provider.calls()["total"] == 2


@LEAPS
def test_coins_swept_while_the_clock_was_ahead_are_renewed_by_the_next_sweep(
    platform: Platform, ticks: Any, leap: timedelta, connection: psycopg.Connection
) -> None:
    began = ticks.provider.now
    for now in (began + leap, began):
        ticks.provider.set_clock(now)
        connection.execute("UPDATE coin_priorities SET market_cap_rank = 77")
        sweep(platform, connection, now=now, until=now + timedelta(minutes=5))

    swept = "SELECT count(*) FILTER (WHERE market_cap_rank = 77), max(last_updated) FROM {}"
    assert connection.execute(
        swept.format("coin_priorities JOIN expected_coins() USING (coin_id)")  # type: ignore[arg-type]
    ).fetchone() == (1, ticks.provider.now), "one has the rank 77"


@LEAPS
def test_the_month_of_a_clock_that_was_ahead_blocks_no_other(
    new_platform: PlatformFactory, ticks: Any, leap: timedelta
) -> None:
    platform = new_platform(credits_per_month=20_000, reserve_percent=0)
    began = ticks.provider.now
    ticks.connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) VALUES (%s, 19_999)",
        ((began + leap).date(),),
    )
    ticks.provider.set_clock(began + leap)
    ticks.poll(platform)
    ticks.provider.set_clock(began)
    with pytest.raises(PollFailed, match="Collecting goes on with the next month"):
        # They are spent: a clock set back hands no credits out again.
        ticks.tick(platform)
    ticks.connection.execute("UPDATE api_usage_stats SET total_calls = 60 WHERE total_calls > 60")
    ticks.wait(minutes=6)

    assert ticks.poll(platform).credits_left == 20_000 - 61
    days = ticks.connection.execute("SELECT date FROM api_usage_stats ORDER BY 1").fetchall()
    assert [day for (day,) in days] == sorted({date(2025, 11, 22), (began + leap).date()})


def test_a_row_whose_sign_of_life_has_yet_to_come_does_not_stay_running(
    ticks: Any, connection: psycopg.Connection
) -> None:
    now = ticks.provider.now
    begin_collection(connection, KIND, now + timedelta(days=1), {})
    begin_collection(connection, "manual", now + timedelta(days=1), {"history": "daily"})
    begin_collection(connection, "manual", now + timedelta(minutes=1), {"history": "daily"})

    assert fail_crashed(connection, ["continuous"], now) == 2

    assert ticks.statuses("manual") == ["failed", "running"], "clocks may differ by a minute"
