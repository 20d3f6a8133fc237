"""Polling against the served simulator and a real database, tick by tick."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest

from pulseguard_assets.coingecko.packing import pack_ids
from pulseguard_assets.coingecko.planner import PlanCannotPay
from pulseguard_assets.collecting import polling
from pulseguard_assets.collecting.errors import NoCoins
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import (
    NotDue,
    PollFailed,
    minute_of,
    slot_of,
)
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.closes import put_minutes

PlatformFactory = Callable[..., Platform]
MANY = 3300
many_coins = pytest.mark.parametrize("coins", [MANY])
# 3,300 coins are eight calls, and this plan gives five a minute.
SMALL_PLAN = {"mode": str(MANY), "calls_per_minute": 5}
# Time enough between two polls to see what happens to one.
HOURLY = {"cadence_minutes": 60}

pytestmark = pytest.mark.usefixtures("swept")


class SlowTransport(httpx.HTTPTransport):
    """The network, on which every call takes so many simulated seconds."""

    def __init__(self, provider: RunningSimulator, seconds: float) -> None:
        super().__init__()
        self._provider, self._seconds = provider, seconds

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._provider.advance(timedelta(seconds=self._seconds))
        return super().handle_request(request)


def packed(ticks: Any) -> list[list[str]]:
    """The ids of all coins, call by call."""
    return pack_ids(sorted(ticks.provider.market.listed(ticks.provider.now)))


# --- what a poll stores ---


def test_a_poll_stores_what_the_provider_says_of_every_coin(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    report = ticks.poll(platform)

    truth = ticks.truth()
    assert ticks.prices() == truth
    assert min(truth.values()) < Decimal("1e-9"), "or tiny prices are not tried"
    assert (report.asked, report.stored, report.rejected) == (300, len(truth), 300 - len(truth))
    assert (report.missing, report.calls, report.calls_left) == (0, 1, 999)
    assert report.waiting_until is None
    assert ticks.cycles() == [("completed", len(truth), 300 - len(truth), 1, None)]


def test_a_close_carries_cap_volume_rank_arrival_and_the_providers_own_time(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    ticks.poll(platform)

    market, now = ticks.provider.market, ticks.provider.now
    for coin_id in ("bitcoin", "1move token", "zero-cap"):
        seen = market.observation(coin_id, now)
        rank = market.rank(market.coin(coin_id), int(now.timestamp()) // 60)
        row = connection.execute(
            "SELECT minute_ts, market_cap_usd, volume_24h_usd, coin_rank, created_at, provider_ts, "
            "source FROM minute_close WHERE coin_id = %s",
            (coin_id,),
        ).fetchone()
        assert row == (
            minute_of(now),
            Decimal(repr(seen.market_cap)),
            Decimal(repr(seen.volume)),
            rank,
            now,
            seen.last_updated.replace(microsecond=0),
            "live",
        )


def test_a_coin_without_a_price_is_set_aside_and_named(platform: Platform, ticks: Any) -> None:
    ticks.poll(platform)

    assert set(ticks.rejected()) == set(ticks.provider.market.listed(ticks.provider.now)) - set(
        ticks.prices()
    )
    assert ticks.rejected()["null-coin"] == "no price"


def test_the_hour_is_live_after_every_poll(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    for _ in range(3):
        ticks.poll(platform)
        rows = connection.execute("SELECT coin_id, price_usd FROM hourly_close").fetchall()
        assert dict(rows) == ticks.truth()
        ticks.wait(minutes=1)

    seen = connection.execute("SELECT DISTINCT seen FROM hourly_close").fetchall()
    assert seen == [(1 << 3 | 1 << 4 | 1 << 5,)]


def test_all_rows_of_a_tick_carry_the_minute_in_which_it_began(
    new_platform: PlatformFactory, ticks: Any, connection: psycopg.Connection
) -> None:
    provider = ticks.provider
    platform = new_platform(transport=SlowTransport(provider, 20))
    ticks.wait(seconds=30)
    began = provider.now

    report = ticks.poll(platform)

    assert minute_of(provider.now) != minute_of(began), "or nothing is shown"
    assert report.minute == minute_of(began)
    rows = connection.execute("SELECT DISTINCT minute_ts, created_at FROM minute_close").fetchall()
    assert rows == [(minute_of(began), began + timedelta(seconds=20))]


def test_the_rank_of_a_close_is_the_latest_known(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    connection.execute("UPDATE coin_priorities SET market_cap_rank = 77 WHERE coin_id = 'bitcoin'")
    connection.execute("UPDATE coin_priorities SET market_cap_rank = NULL WHERE coin_id = 'tron'")

    ticks.poll(platform)

    ranks = "SELECT coin_rank FROM minute_close WHERE coin_id IN ('bitcoin', 'tron') ORDER BY 1"
    assert connection.execute(ranks).fetchall() == [(77,), (None,)]


def test_a_mode_polls_its_coins_and_the_always_included_ones(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(mode="10", always_include="zero-cap,never-heard-of")

    assert ticks.poll(platform).asked == 11
    assert "zero-cap" in ticks.prices()


def test_a_coin_the_answer_leaves_out_is_counted_and_named(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    ticks.provider.fault("missing_ids", coins=["bitcoin", "tron"])

    report = ticks.poll(platform)

    assert report.missing == 2
    assert set(ticks.truth()) - set(ticks.prices()) == {"bitcoin", "tron"}
    details = connection.execute("SELECT batch_details->'missing' FROM collection_status")
    assert details.fetchone() == (["bitcoin", "tron"],)


def test_before_the_first_sweep_there_is_nobody_to_poll(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    connection.execute("TRUNCATE coin_priorities CASCADE")

    with pytest.raises(NoCoins, match="coin_priorities"):
        ticks.tick(platform)

    assert ticks.cycles() == []
    assert ticks.provider.calls()["total"] == 0


# --- when a poll is due ---


def test_a_minute_is_polled_once_however_often_the_sensor_ticks(
    platform: Platform, ticks: Any
) -> None:
    ticks.wait(seconds=-27.25)
    outcomes = []
    for _ in range(9):
        outcomes.append(type(ticks.tick(platform)) is NotDue)
        ticks.wait(seconds=20)

    assert outcomes == [False, True, True] * 3
    assert ticks.provider.calls()["total"] == 3


def test_a_tick_that_is_not_due_says_when_the_next_is(platform: Platform, ticks: Any) -> None:
    ticks.poll(platform)

    done = ticks.tick(platform)

    assert isinstance(done, NotDue)
    assert done.until == datetime(2025, 11, 22, 12, 4, tzinfo=timezone.utc)


def test_a_cadence_is_kept_on_the_same_minutes_whenever_the_platform_starts(
    new_platform: PlatformFactory, ticks: Any, connection: psycopg.Connection
) -> None:
    platform = new_platform(cadence_minutes=5)
    for _ in range(14):
        ticks.tick(platform)
        ticks.wait(minutes=1)

    minutes = connection.execute("SELECT DISTINCT minute_ts FROM minute_close ORDER BY 1")
    assert [row[0].minute for row in minutes] == [3, 5, 10, 15]


@pytest.mark.parametrize(("cadence", "minute"), [(1, 3), (2, 2), (5, 0), (60, 0)])
def test_a_slot_is_the_latest_minute_that_the_cadence_divides(cadence: int, minute: int) -> None:
    at = datetime(2025, 11, 22, 12, 3, 59, 999_999, tzinfo=timezone.utc)

    assert slot_of(at, cadence) == at.replace(minute=minute, second=0, microsecond=0)
    assert slot_of(slot_of(at, cadence), cadence) == slot_of(at, cadence)


def test_after_downtime_one_poll_is_due_and_not_all_that_were_missed(
    platform: Platform, ticks: Any
) -> None:
    ticks.poll(platform)
    ticks.wait(hours=5)

    ticks.poll(platform)

    assert isinstance(ticks.tick(platform), NotDue)


def test_a_cadence_the_plan_cannot_pay_is_refused_with_the_nearest_it_can(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(credits_per_month=20_000, cadence_minutes=1)

    with pytest.raises(PlanCannotPay, match=r"PULSEGUARD_CADENCE_MINUTES=1 .*MINUTES=3"):
        ticks.tick(platform)

    assert ticks.provider.calls()["total"] == 0


# --- a cycle that takes several ticks ---


@many_coins
def test_a_cycle_the_rate_limit_stretches_goes_on_in_the_next_ticks_and_ends_complete(
    new_platform: PlatformFactory, ticks: Any, connection: psycopg.Connection
) -> None:
    platform = new_platform(**SMALL_PLAN)
    ticks.wait(seconds=33)
    began = ticks.provider.now
    stored = []
    for _ in range(4):
        done = ticks.tick(platform)
        stored.append(0 if isinstance(done, NotDue) else done.stored)
        assert len(ticks.prices()) == sum(stored), "what arrived is stored"
        ticks.wait(seconds=20)

    assert [bool(number) for number in stored] == [True, False, False, True]
    assert ticks.asked_for() == packed(ticks)
    assert set(ticks.prices()) == set(ticks.truth()), "nobody is left out"
    assert ticks.cycles() == [("completed", sum(stored), MANY - sum(stored), 8, None)]
    labels = connection.execute(
        "SELECT minute_ts, count(*) FROM minute_close GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert labels == [
        (minute_of(began), stored[0]),
        (minute_of(began + timedelta(minutes=1)), stored[3]),
    ], "the minute of its own tick"


@many_coins
def test_a_cycle_that_waits_says_so_and_shows_its_progress(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(**SMALL_PLAN)
    report = ticks.poll(platform)

    asked = sum(map(len, packed(ticks)[:5]))
    assert report.waiting_until == ticks.provider.now + timedelta(seconds=60)
    assert (report.asked, report.coins, report.calls) == (asked, MANY, 5)
    assert ticks.cycles() == [("running", report.stored, asked - report.stored, 5, None)]
    done = ticks.tick(platform)
    assert isinstance(done, NotDue)
    assert (done.until, done.why) == (
        report.waiting_until,
        "the rate limit frees the next call then",
    )


@many_coins
def test_no_call_is_begun_after_the_tick_ends(new_platform: PlatformFactory, ticks: Any) -> None:
    platform = new_platform(mode=str(MANY), transport=SlowTransport(ticks.provider, 10))
    calls = []
    for _ in range(3):
        calls.append(ticks.poll(platform).calls)
        ticks.wait(seconds=1)

    assert calls == [3, 3, 2], "begun at 0, 10 and 20 s, but not at 30"
    assert ticks.statuses() == ["completed"]


@many_coins
def test_another_process_goes_on_where_the_first_stopped(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    ticks.poll(new_platform(**SMALL_PLAN))
    ticks.wait(seconds=60)

    report = ticks.poll(new_platform(**SMALL_PLAN))

    assert report.cycle.status == "completed"
    assert ticks.asked_for() == packed(ticks)


@many_coins
def test_a_cycle_left_over_from_long_ago_is_not_gone_on_with(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    ticks.poll(new_platform(**SMALL_PLAN))
    ticks.wait(hours=3)

    assert ticks.poll(new_platform(**SMALL_PLAN)).calls == 5

    assert ticks.asked_for() == packed(ticks)[:5] * 2
    assert ticks.statuses() == ["failed", "running"]


@many_coins
def test_another_mode_does_not_go_on_with_the_old_ones_cycle(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    ticks.poll(new_platform(**SMALL_PLAN))
    ticks.wait(seconds=60)

    report = ticks.poll(new_platform(mode="complete", calls_per_minute=5))

    assert report.cycle.kind == "complete"
    assert ticks.statuses() == ["failed"]
    assert ticks.statuses("complete") == ["running"]


# --- crashes ---


def crash(*_: object, **__: object) -> None:
    """What no handler expects: the process may as well have been killed."""
    raise SystemExit("killed between two chunks")


@many_coins
def test_after_a_crash_between_two_chunks_no_row_stays_running_and_nothing_is_paid_twice(
    new_platform: PlatformFactory, ticks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = new_platform(mode=str(MANY))
    chunks = iter((put_minutes, put_minutes, crash))
    with monkeypatch.context() as patch:
        patch.setattr(polling, "put_minutes", lambda *a, **k: next(chunks)(*a, **k))
        with pytest.raises(SystemExit):
            ticks.tick(platform)
    assert ticks.statuses() == ["running"]
    assert len(ticks.asked_for()) == 3

    report = ticks.poll(platform)

    assert report.cycle.status == "completed"
    assert ticks.statuses() == ["failed", "completed"]
    assert set(ticks.prices()) == set(ticks.truth())
    calls = packed(ticks)
    assert ticks.asked_for() == [*calls[:3], *calls[2:]], "only what was lost is asked for again"


KILLED = """
import sys
from datetime import datetime, timedelta, timezone
import httpx
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import poll_by_hand, poll_when_due
from pulseguard_assets.settings import load_settings

database, url, mode, poll = sys.argv[1:]

class SecondCallHangs(httpx.HTTPTransport):
    calls = 0
    def handle_request(self, request):
        self.calls += 1
        if self.calls == 2:
            print("hanging", flush=True)
            sys.stdin.read()
        return super().handle_request(request)

platform = Platform(
    load_settings(database_url=database, base_url=url, plan="pro", api_key="CG-x", mode=mode),
    transport=SecondCallHangs(),
)
now = platform.clock()
poll = {"sensor": poll_when_due, "hand": poll_by_hand}[poll]
poll(platform, platform.connect(), now=now, until=now + timedelta(seconds=25))
"""


@many_coins
@pytest.mark.parametrize("poll", ["sensor", "hand"])
def test_after_a_process_was_killed_in_its_second_call_no_row_stays_running(
    new_platform: PlatformFactory, ticks: Any, database: str, poll: str
) -> None:
    provider = ticks.provider
    provider.simulation.clock.follow_source()
    arguments = [sys.executable, "-c", KILLED, database, provider.url, str(MANY), poll]
    kind = {"sensor": "continuous", "hand": "manual"}[poll]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        assert ticks.statuses(kind) == ["running"]
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < len(ticks.prices()) <= 500, "the first chunk is stored"

    report = ticks.poll(new_platform(mode=str(MANY)))

    assert report.cycle.status == "completed"
    running = ticks.connection.execute("SELECT id FROM collection_status WHERE status = 'running'")
    assert running.fetchall() == []
    assert ticks.statuses(kind)[0] == "failed"


# --- failures ---


def test_a_failed_poll_says_what_happened_and_what_to_do(platform: Platform, ticks: Any) -> None:
    ticks.provider.fault("server_error", status=503)

    with pytest.raises(PollFailed, match=r"/simple/price with HTTP 503") as failure:
        ticks.tick(platform)

    report = failure.value.report
    assert report is not None
    assert (report.stored, report.calls, report.cycle.status) == (0, 3, "failed")
    status, processed, _, calls, error = ticks.cycles()[0]
    assert (status, processed, calls, error) == ("failed", 0, 3, str(failure.value))


def test_a_fault_of_our_own_is_raised_as_it_is_and_paused_after_like_any_other(
    platform: Platform, ticks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("nobody foresaw this")

    monkeypatch.setattr(polling, "put_minutes", broken)
    with pytest.raises(TypeError, match="nobody foresaw this"):
        ticks.tick(platform)
    calls = ticks.provider.calls()["total"]

    ticks.wait(seconds=20)
    with pytest.raises(PollFailed, match="TypeError: nobody foresaw this"):
        ticks.tick(platform)

    assert ticks.provider.calls()["total"] == calls
    assert ticks.statuses() == ["failed"]


def test_while_the_pause_after_a_failure_lasts_every_tick_fails_with_the_sentence(
    platform: Platform, ticks: Any
) -> None:
    ticks.provider.fault("server_error")
    with pytest.raises(PollFailed):
        ticks.tick(platform)
    for _ in range(2):
        ticks.wait(seconds=20)
        with pytest.raises(
            PollFailed, match=r"HTTP 500.* Attempt 2 follows at 12:04:27"
        ) as failure:
            ticks.tick(platform)
        assert failure.value.report is None, "nothing was tried"

    assert ticks.provider.calls()["total"] == 3


def test_a_provider_that_is_down_costs_one_attempt_at_a_time_and_ever_fewer(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(**HOURLY)
    ticks.provider.fault("server_error")
    began, attempts = ticks.provider.now, []
    for _ in range(3 * 150):
        before = ticks.provider.calls()["total"]
        with pytest.raises(PollFailed):
            ticks.tick(platform)
        made = ticks.provider.calls()["total"] - before
        if made:
            minutes = round((ticks.provider.now - began).total_seconds() / 60)
            attempts.append((minutes, made))
        ticks.wait(seconds=20)

    assert attempts == [(0, 3), (1, 1), (3, 1), (7, 1), (15, 1), (31, 1), (63, 1), (123, 1)]


def test_a_provider_that_came_back_is_polled_as_if_nothing_had_been(
    platform: Platform, ticks: Any, connection: psycopg.Connection
) -> None:
    ticks.provider.fault("server_error", count=4)
    for _ in range(2):
        with pytest.raises(PollFailed):
            ticks.tick(platform)
        ticks.wait(minutes=1)

    report = ticks.poll(platform)

    assert report.cycle.status == "completed"
    assert "failures" not in report.cycle.details
    assert ticks.prices() == ticks.truth()
    assert isinstance(ticks.tick(platform), NotDue)
    ticks.wait(minutes=1)
    ticks.provider.fault("server_error")
    with pytest.raises(PollFailed) as failure:
        ticks.tick(platform)
    assert failure.value.report.cycle.details["failures"] == 1, "counted from the beginning"
    assert failure.value.report.calls == 3


@many_coins
def test_a_failure_in_the_middle_keeps_what_was_stored_and_the_next_attempt_goes_on_behind_it(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(mode=str(MANY), **HOURLY)
    ticks.provider.fault("server_error", skip=2, count=3)
    with pytest.raises(PollFailed) as failure:
        ticks.tick(platform)
    assert failure.value.report.calls == 5
    assert len(ticks.prices()) == failure.value.report.stored
    ticks.wait(minutes=1)

    report = ticks.poll(platform)

    assert report.cycle.status == "completed"
    calls = packed(ticks)
    assert ticks.asked_for() == [*calls[:3], calls[2], calls[2], *calls[2:]]
    assert set(ticks.prices()) == set(ticks.truth())


@many_coins
def test_a_failure_of_an_earlier_slot_is_not_gone_on_with(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(mode=str(MANY))
    ticks.provider.fault("server_error", skip=2, count=3)
    with pytest.raises(PollFailed):
        ticks.tick(platform)
    ticks.wait(minutes=1)

    assert ticks.poll(platform).asked == MANY


def test_a_rate_limit_of_the_provider_keeps_every_process_away_until_it_is_over(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    ticks.provider.fault("rate_limit", retry_after=119, count=1)
    one, other = new_platform(), new_platform()
    with pytest.raises(PollFailed, match="rate limit of the plan 'pro'"):
        ticks.tick(one)
    for platform in (one, other) * 2:
        ticks.wait(seconds=29)
        with pytest.raises(PollFailed, match=r"follows at 12:05:26"):
            ticks.tick(platform)
    with pytest.raises(PollFailed, match="rate limit"):
        ticks.by_hand(other, patience=timedelta(0))
    assert ticks.provider.calls()["total"] == 1

    ticks.wait(seconds=4)

    assert ticks.poll(other).cycle.status == "completed"


def test_a_rate_limit_without_a_time_is_waited_out_for_a_minute(
    platform: Platform, ticks: Any
) -> None:
    ticks.provider.fault("rate_limit", retry_after=None, count=1)
    with pytest.raises(PollFailed):
        ticks.tick(platform)
    ticks.wait(seconds=59)
    with pytest.raises(PollFailed):
        ticks.tick(platform)
    ticks.wait(seconds=1)

    assert ticks.poll(platform).cycle.status == "completed"
    assert ticks.provider.calls()["total"] == 2


def test_a_short_retry_after_is_waited_for_within_the_tick(platform: Platform, ticks: Any) -> None:
    ticks.provider.fault("rate_limit", retry_after=5, count=1)
    began = ticks.provider.now

    assert ticks.poll(platform).calls == 2

    assert timedelta(seconds=5) <= ticks.provider.now - began <= timedelta(seconds=25)


def test_an_address_that_is_too_long_is_halved_until_it_fits(
    platform: Platform, ticks: Any
) -> None:
    ticks.provider.set_limits(max_url_bytes=1500)

    report = ticks.poll(platform)

    assert ticks.prices() == ticks.truth()
    assert report.cycle.status == "completed"
    sizes = [len(ids) for ids in ticks.asked_for()]
    assert sizes[:3] == [300, 150, 75]
    assert report.calls == len(sizes) == ticks.provider.calls()["total"]


def test_a_single_id_that_is_too_long_fails_the_poll(platform: Platform, ticks: Any) -> None:
    ticks.provider.set_limits(max_url_bytes=100)

    with pytest.raises(PollFailed, match="fewer coins"):
        ticks.tick(platform)

    assert ticks.statuses() == ["failed"]


def already_spent(connection: psycopg.Connection, calls: int) -> None:
    connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) VALUES ('2025-11-01', %s)", (calls,)
    )


def test_spent_credits_fail_the_poll_until_the_month_ends(
    new_platform: PlatformFactory, ticks: Any
) -> None:
    platform = new_platform(credits_per_month=20_000, reserve_percent=0)
    already_spent(ticks.connection, 19_999)
    ticks.poll(platform)
    ticks.wait(minutes=6)
    with pytest.raises(PollFailed, match=r"credits of the plan 'pro' \(20000 a month\)"):
        ticks.tick(platform)
    assert ticks.provider.calls()["total"] == 1

    ticks.wait(days=9)

    assert ticks.poll(platform).cycle.status == "completed"


def test_the_reserve_is_left_alone(new_platform: PlatformFactory, ticks: Any) -> None:
    platform = new_platform(credits_per_month=100_000, reserve_percent=25)
    already_spent(ticks.connection, 75_000)

    with pytest.raises(PollFailed, match="the reserve left aside"):
        ticks.tick(platform)
