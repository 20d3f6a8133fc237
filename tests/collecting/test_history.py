"""Closes of the past from the served simulator's charts, held against its truth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest

from pulseguard_assets.collecting import history as history_module
from pulseguard_assets.collecting.budget import calls_to_come, history_allowance, polling_of
from pulseguard_assets.collecting.errors import NoCoins
from pulseguard_assets.collecting.history import (
    LOCK,
    HistoryFailed,
    WindowReport,
    materialize_window,
)
from pulseguard_assets.collecting.platform import HistoryProvider, Platform
from pulseguard_assets.simulator.charts import hourly_close_stamp
from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator
from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MINUTE,
    MONTHLY,
    WEEKLY,
    Timeframe,
    bucket_end,
)
from pulseguard_assets.warehouse.collections import only_collector, reject
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.history import put_history, record_unrecoverable

PlatformFactory = Callable[..., Platform]

COINS = 20
NOON = datetime(2025, 11, 22, 12, 3, 27, 250_000, tzinfo=timezone.utc)

pytestmark = [pytest.mark.usefixtures("swept"), pytest.mark.parametrize("coins", [COINS])]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


@dataclass
class Past:
    """Filling windows at the simulated time, and what the simulator knows of them."""

    provider: RunningSimulator
    connection: psycopg.Connection

    def fill(
        self,
        platform: Platform,
        timeframe: Timeframe,
        start: str,
        end: str,
        *,
        patience: timedelta = timedelta(hours=5),
        **options: Any,
    ) -> WindowReport:
        """Materialize a window at the simulated time."""
        now = self.provider.now
        return materialize_window(
            platform,
            self.connection,
            timeframe,
            at(start),
            at(end),
            now=now,
            until=now + patience,
            **options,
        )

    def calls(self) -> int:
        """Calls that the simulator saw."""
        return int(self.provider.calls()["total"])

    def asked_for(self) -> list[str]:
        """The coins whose charts were asked for, in order of arrival."""
        calls = self.provider.calls(recent=2_000)["recent"]
        return [each["url"] for each in calls if each["endpoint"] == "market_chart_range"]

    def stored(self, timeframe: Timeframe) -> dict[tuple[str, datetime], tuple[Any, ...]]:
        """Price, market cap, volume and minute of each close, by coin and label."""
        rows = self.connection.execute(
            f"SELECT coin_id, {timeframe.label}, price_usd, market_cap_usd, volume_24h_usd, "
            f"{'minute_ts' if timeframe is MINUTE else 'close_ts'} FROM {timeframe.table}"
        ).fetchall()
        return {(row[0], row[1]): row[2:] for row in rows}

    def truth(self, coin_id: str, end: datetime) -> tuple[Any, ...] | None:
        """What history's close of the bucket that ends then must be; None without a price."""
        close = self.provider.market.close(coin_id, end, "history")
        if close is None or close.price is None:
            return None
        values = (close.price, close.market_cap, close.volume)
        return (*(each if each is None else Decimal(repr(each)) for each in values), close.close_ts)

    def truths(
        self,
        timeframe: Timeframe,
        start: str,
        end: str,
        has: Callable[[str, datetime], bool] = lambda _coin, _end: True,
    ) -> dict[tuple[str, datetime], tuple[Any, ...]]:
        """`stored` as it must be, for the buckets of which the charts have the close."""
        found = {}
        for coin_id in self.coin_ids:
            label = at(start)
            while label < at(end):
                over = bucket_end(timeframe, label)
                truth = self.truth(coin_id, over)
                if truth is not None and has(coin_id, over):
                    found[coin_id, label] = truth
                label = over
        return found

    @property
    def coin_ids(self) -> list[str]:
        """All coins."""
        return [coin.id for coin in self.provider.market.coins]

    def row(self) -> Any:
        """The newest row of history in collection_status."""
        return self.connection.execute(
            "SELECT status, coins_processed, coins_failed, api_calls_made, error_message "
            "FROM collection_status WHERE batch_details ? 'history' ORDER BY id DESC LIMIT 1"
        ).fetchone()

    def leave_credits(self, platform: Platform, credits: int) -> None:
        """Spend the month so far that history has so many credits left."""
        polling = polling_of(platform, self.connection)
        assert polling.credits_allowed is not None
        spent = polling.credits_allowed - calls_to_come(polling, self.provider.now) - credits
        self.connection.execute(
            "INSERT INTO api_usage_stats (date, total_calls) VALUES ('2025-11-01', %s)", (spent,)
        )
        allowance = history_allowance(platform, self.connection, now=self.provider.now)
        assert allowance.credits_free == credits


class SlowTransport(httpx.HTTPTransport):
    """The network, on which a call takes 58 simulated minutes to arrive."""

    def __init__(self, provider: RunningSimulator) -> None:
        super().__init__()
        self._provider = provider

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._provider.advance(timedelta(minutes=58))
        return super().handle_request(request)


@pytest.fixture
def platform(new_platform: PlatformFactory) -> Platform:
    """A platform that asks by three calls at a time, on a machine that has other things to do."""
    return new_platform(calls_per_minute=150)


@pytest.fixture
def past(provider: RunningSimulator, connection: psycopg.Connection) -> Past:
    """Past windows on `connection`, against `provider`."""
    return Past(provider, connection)


# --- grades ---


def test_hours_of_downtime_are_filled_from_five_minute_points_by_one_call_per_coin(
    platform: Platform, past: Past, connection: psycopg.Connection
) -> None:
    report = past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    assert past.stored(HOURLY) == past.truths(HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")
    assert past.calls() == report.calls == COINS
    assert (report.refused, report.waiting_until) == (None, None)
    assert report.held.rows == report.held.history == 6 * COINS
    assert report.held.coins_expected == 6 * COINS
    bits = connection.execute("SELECT DISTINCT bit_count(seen::bit(64)), source FROM hourly_close")
    assert bits.fetchall() == [(12, "history")]


def test_the_hours_from_history_reach_their_day_week_and_month(
    platform: Platform, past: Past
) -> None:
    past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    last = {coin: past.truth(coin, at("2025-11-22 11:00")) for coin in past.coin_ids}
    for timeframe in (DAILY, WEEKLY, MONTHLY):
        assert {coin: row for (coin, _), row in past.stored(timeframe).items()} == last


def test_older_hours_come_from_hourly_points_where_there_are_any(
    platform: Platform, past: Past
) -> None:
    market = past.provider.market
    window = ("2025-11-12 00:00", "2025-11-14 00:00")

    report = past.fill(platform, HOURLY, *window)

    truths = past.truths(
        HOURLY, *window, has=lambda coin, end: hourly_close_stamp(market, coin, end) is not None
    )
    assert len(truths) < 48 * COINS, "or no chart has a gap here"
    assert past.stored(HOURLY) == truths
    assert past.calls() == COINS
    assert report.still_lacking == 0, "what charts do not have is recorded, and not lacking"
    assert {why for _, why in report.unrecovered} == {
        "CoinGecko's history holds no usable point at its end."
    }


def test_200_days_come_by_one_call_per_coin_and_end_in_exact_weeks_and_months(
    platform: Platform, past: Past
) -> None:
    window = ("2025-05-05 00:00", "2025-11-17 00:00")

    report = past.fill(platform, DAILY, *window)

    assert past.stored(DAILY) == past.truths(DAILY, *window)
    assert past.calls() == report.calls == COINS
    assert past.stored(WEEKLY) == past.truths(WEEKLY, *window)
    whole = past.truths(MONTHLY, "2025-05-01 00:00", "2025-11-01 00:00")
    months = past.stored(MONTHLY)
    assert {key: months[key] for key in whole} == whole
    assert report.held.rows == 196 * COINS


@pytest.mark.parametrize("timeframe", [WEEKLY, MONTHLY])
def test_weeks_and_months_are_asked_for_by_themselves(
    platform: Platform, past: Past, timeframe: Timeframe
) -> None:
    window = ("2024-01-01 00:00", "2025-09-01 00:00")

    past.fill(platform, timeframe, *window)

    assert past.stored(timeframe) == past.truths(timeframe, *window)
    assert past.calls() == COINS


def test_minutes_of_a_past_hour_are_its_five_minute_points(platform: Platform, past: Past) -> None:
    report = past.fill(platform, MINUTE, "2025-11-22 09:00", "2025-11-22 10:00")

    stored = past.stored(MINUTE)
    assert len(stored) == 12 * COINS == report.held.rows
    for (coin_id, minute), values in stored.items():
        seen = past.provider.market.observation(coin_id, minute)
        assert seen is not None
        assert values[0] == Decimal(repr(seen.price))
    assert past.stored(HOURLY) == past.truths(HOURLY, "2025-11-22 09:00", "2025-11-22 10:00")


# --- asking once ---


@pytest.mark.parametrize(
    ("timeframe", "start", "end"),
    [
        (MINUTE, "2025-11-22 09:00", "2025-11-22 10:00"),
        (HOURLY, "2025-11-22 05:00", "2025-11-22 11:00"),
        (HOURLY, "2025-11-12 00:00", "2025-11-14 00:00"),
        (DAILY, "2025-10-01 00:00", "2025-11-22 00:00"),
        (DAILY, "2025-05-01 00:00", "2025-11-22 00:00"),
        (MONTHLY, "2025-01-01 00:00", "2025-11-01 00:00"),
    ],
)
def test_what_was_asked_for_once_is_not_asked_for_again(
    platform: Platform, past: Past, timeframe: Timeframe, start: str, end: str
) -> None:
    first = past.fill(platform, timeframe, start, end)
    tables = [past.stored(each) for each in (HOURLY, DAILY, WEEKLY, MONTHLY)]
    past.provider.reset()

    again = past.fill(platform, timeframe, start, end)

    assert (past.calls(), again.calls, again.rows_written, again.from_history) == (0, 0, 0, 0)
    assert (again.held, again.still_lacking, again.refused) == (first.held, 0, None)
    assert [past.stored(each) for each in (HOURLY, DAILY, WEEKLY, MONTHLY)] == tables


def test_a_run_without_history_asks_nothing(platform: Platform, past: Past) -> None:
    report = past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00", with_history=False)

    assert (past.calls(), report.held.rows, report.still_lacking) == (0, 0, 6 * COINS)


def test_only_the_lacking_part_of_a_coin_is_asked_for(platform: Platform, past: Past) -> None:
    past.fill(platform, HOURLY, "2025-11-10 00:00", "2025-11-11 00:00")
    past.provider.reset()

    report = past.fill(platform, HOURLY, "2025-11-10 00:00", "2025-11-11 05:00")

    asked = past.asked_for()
    assert len(asked) == COINS
    begin = int(asked[0].partition("from=")[2].partition("&")[0])
    assert begin >= at("2025-11-11 00:00").timestamp()
    assert 0 < report.from_history <= 5 * COINS


# --- what is live, open or fresh ---


def test_a_live_close_of_the_last_five_minutes_is_kept_and_an_older_one_is_not(
    platform: Platform, past: Past, ticks: Any, connection: psycopg.Connection
) -> None:
    for instant in ("2025-11-22 09:57:10", "2025-11-22 10:50:10"):
        past.provider.set_clock(at(instant))
        ticks.by_hand(platform)
    past.provider.set_clock(NOON)
    past.provider.reset()

    report = past.fill(platform, HOURLY, "2025-11-22 08:00", "2025-11-22 11:00")

    assert past.calls() == COINS, "the hours before and after it lack"
    hours = connection.execute(
        "SELECT DISTINCT hour_ts, close_ts, source FROM hourly_close ORDER BY 1"
    ).fetchall()
    assert hours == [
        (at("2025-11-22 08:00"), at("2025-11-22 08:55"), "history"),
        (at("2025-11-22 09:00"), at("2025-11-22 09:57"), "live"),
        (at("2025-11-22 10:00"), at("2025-11-22 10:55"), "history"),
    ]
    assert (report.held.live, report.held.history) == (COINS, 2 * COINS)


def test_an_hour_with_a_live_close_at_its_end_is_not_asked_for(
    platform: Platform, past: Past, ticks: Any
) -> None:
    past.provider.set_clock(at("2025-11-22 10:59:10"))
    ticks.by_hand(platform)
    past.provider.set_clock(NOON)
    past.provider.reset()

    past.fill(platform, HOURLY, "2025-11-22 10:00", "2025-11-22 11:00")

    assert past.calls() == 0


def test_a_stored_minute_is_never_replaced(
    platform: Platform, past: Past, ticks: Any, connection: psycopg.Connection
) -> None:
    past.provider.set_clock(at("2025-11-22 09:55:10"))
    ticks.by_hand(platform)
    live = past.stored(MINUTE)
    connection.execute("UPDATE minute_close SET price_usd = price_usd * 2")
    past.provider.set_clock(NOON)

    past.fill(platform, MINUTE, "2025-11-22 09:00", "2025-11-22 10:00")

    kept = past.stored(MINUTE)
    assert live
    assert all(kept[key][0] == 2 * values[0] for key, values in live.items())


@pytest.mark.parametrize(
    ("timeframe", "start", "end"),
    [
        (HOURLY, "2025-11-22 12:00", "2025-11-22 13:00"),
        (DAILY, "2025-11-22 00:00", "2025-11-23 00:00"),
        (MONTHLY, "2025-11-01 00:00", "2025-12-01 00:00"),
    ],
)
def test_an_open_bucket_is_only_rolled_up(
    platform: Platform, past: Past, ticks: Any, timeframe: Timeframe, start: str, end: str
) -> None:
    ticks.by_hand(platform)
    past.connection.execute("SELECT roll_up('daily', '2025-11-22', '2025-11-23')")
    past.provider.reset()

    report = past.fill(platform, timeframe, start, end)

    assert past.calls() == 0
    assert (report.held.rows, report.held.live) == (COINS, COINS)
    assert (report.still_lacking, report.waiting_until, report.refused) == (0, None, None)


def test_an_hour_that_has_just_ended_is_left_until_its_points_are_settled(
    platform: Platform, past: Past
) -> None:
    window = ("2025-11-22 10:00", "2025-11-22 12:00")

    early = past.fill(platform, HOURLY, *window)
    assert past.stored(HOURLY) == past.truths(HOURLY, "2025-11-22 10:00", "2025-11-22 11:00")
    assert (early.waiting_until, early.refused) == (at("2025-11-22 12:30"), None)
    assert early.still_lacking == COINS

    past.provider.set_clock(at("2025-11-22 12:30:00"))
    late = past.fill(platform, HOURLY, *window)
    assert past.stored(HOURLY) == past.truths(HOURLY, *window)
    assert (late.waiting_until, late.still_lacking) == (None, 0)


def test_a_day_is_left_until_its_point_is_there(platform: Platform, past: Past) -> None:
    past.provider.set_clock(at("2025-11-22 00:44:59"))
    window = ("2025-11-21 00:00", "2025-11-22 00:00")

    assert past.fill(platform, DAILY, *window).waiting_until == at("2025-11-22 00:45")
    assert past.calls() == 0


# --- coins that cannot be had ---


def test_a_coin_the_provider_does_not_know_costs_one_call_and_is_recorded(
    platform: Platform, past: Past
) -> None:
    past.provider.fault("not_found", coins=["tron"])
    window = ("2025-11-22 05:00", "2025-11-22 11:00")

    report = past.fill(platform, HOURLY, *window)

    assert ("tron", "CoinGecko knows no such coin any more.") in report.unrecovered
    assert {coin for coin, _ in past.stored(HOURLY)} == set(past.coin_ids) - {"tron"}
    assert (report.refused, report.still_lacking) == (None, 0)
    past.provider.reset()
    past.fill(platform, HOURLY, *window)
    assert past.calls() == 0


def test_a_coin_without_any_price_is_recorded_and_named(platform: Platform, past: Past) -> None:
    past.provider.fault("null", coins=["tron"])

    report = past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    assert [coin for coin, _ in report.unrecovered] == ["tron"]
    assert {coin for coin, _ in past.stored(HOURLY)} == set(past.coin_ids) - {"tron"}


class TestComingAndGoing:
    """A market whose coins are listed and vanish."""

    @pytest.fixture
    def provider(self, coins: int) -> Iterator[RunningSimulator]:
        market = Market(seed=7, coins=20 * coins, churn=True)
        with running_simulator(market=market, now=NOON, limits=Limits(host="pro")) as simulator:
            yield simulator

    def test_a_coin_has_closes_from_its_listing_on_and_the_time_before_is_recorded(
        self, new_platform: PlatformFactory, past: Past
    ) -> None:
        first, last = at("2025-05-01 00:00"), at("2025-11-01 00:00")
        young = next(
            coin
            for coin in past.provider.market.coins
            if coin.values == "plain"
            and coin.gone is None
            and first.timestamp() + 864_000 < coin.born * 60 < last.timestamp() - 864_000
        )
        platform = new_platform(mode="1", always_include=young.id, calls_per_minute=150)

        report = past.fill(platform, DAILY, "2025-05-01 00:00", "2025-11-01 00:00")

        days = {label: row for (coin, label), row in past.stored(DAILY).items() if coin == young.id}
        born = datetime.fromtimestamp(young.born * 60, timezone.utc)
        assert min(days) == born.replace(hour=0, minute=0)
        assert all(
            row == past.truth(young.id, label + timedelta(days=1)) for label, row in days.items()
        )
        assert (report.still_lacking, report.refused) == (0, None)
        assert [coin for coin, _ in report.unrecovered] == [young.id]


# --- budget, rate, time ---


def test_credits_that_run_out_midway_keep_what_was_had_and_the_rest_is_asked_for_later(
    new_platform: PlatformFactory, past: Past, connection: psycopg.Connection
) -> None:
    platform = new_platform(credits_per_month=100_000, calls_per_minute=150)
    past.leave_credits(platform, 8)
    window = ("2025-11-22 05:00", "2025-11-22 11:00")

    report = past.fill(platform, HOURLY, *window)

    assert past.calls() == report.calls == 8
    assert report.credits_left == 0
    assert "leave 8 calls for history" in str(report.refused)
    assert "spend_reserve: true" in str(report.refused)
    assert report.still_lacking == 6 * (COINS - 8)
    assert past.row()[:1] == ("failed",)
    connection.execute("DELETE FROM api_usage_stats WHERE date = '2025-11-01'")
    done = past.fill(platform, HOURLY, *window)
    assert past.calls() == COINS, "each coin was asked for once"
    assert (done.refused, done.still_lacking) == (None, 0)
    assert past.stored(HOURLY) == past.truths(HOURLY, *window)


def test_the_least_that_an_answer_says_is_left_counts_in_whatever_order_they_come(
    new_platform: PlatformFactory, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = new_platform(credits_per_month=100_000, calls_per_minute=150)
    past.leave_credits(platform, 8)
    ask, left = HistoryProvider.market_chart_range, itertools.count()

    def counted_backwards(*arguments: Any, **options: Any) -> Any:
        return replace(ask(*arguments, **options), credits_left=next(left))

    monkeypatch.setattr(HistoryProvider, "market_chart_range", counted_backwards)
    report = past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    assert (report.calls, report.credits_left) == (8, 0)


def test_the_reserve_is_spent_only_when_told_to(new_platform: PlatformFactory, past: Past) -> None:
    platform = new_platform(credits_per_month=100_000, calls_per_minute=150)
    past.leave_credits(platform, 0)
    window = ("2025-11-22 05:00", "2025-11-22 11:00")

    assert past.fill(platform, HOURLY, *window).refused is not None
    assert past.calls() == 0
    assert past.row() is None, "nothing was asked, so there is nothing to file"
    assert past.fill(platform, HOURLY, *window, spend_reserve=True).refused is None
    assert past.calls() == COINS


def test_most_calls_are_kept_to_and_that_is_no_failure(platform: Platform, past: Past) -> None:
    window = ("2025-11-22 05:00", "2025-11-22 11:00")

    report = past.fill(platform, HOURLY, *window, max_calls=7)

    assert (past.calls(), report.calls, report.capped) == (7, 7, True)
    assert "max_calls" in str(report.refused)
    assert past.row()[0] == "completed"


def test_the_allowed_rate_is_kept_and_used(new_platform: PlatformFactory, past: Past) -> None:
    platform = new_platform(calls_per_minute=12)
    rate = history_allowance(platform, past.connection, now=NOON).calls_per_minute
    past.provider.set_limits(calls_per_minute=12)

    report = past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    assert report.still_lacking == 0
    assert past.provider.calls()["outcomes"]["rate_limited"] == 0
    took = (past.provider.now - NOON).total_seconds() / 60
    assert rate < 12
    assert took <= COINS / rate / 0.95


def test_a_run_whose_time_is_over_says_so_and_the_next_goes_on(
    new_platform: PlatformFactory, past: Past
) -> None:
    platform = new_platform(calls_per_minute=12)
    window = ("2025-11-22 05:00", "2025-11-22 11:00")

    report = past.fill(platform, HOURLY, *window, patience=timedelta(seconds=30))

    assert 0 < past.calls() == report.calls < COINS
    assert "time was over" in str(report.refused)
    assert report.waiting_until is not None
    past.fill(platform, HOURLY, *window)
    assert past.calls() == COINS


def test_beyond_the_plans_reach_is_refused_by_name_and_what_lies_within_is_stored(
    new_platform: PlatformFactory, past: Past, connection: psycopg.Connection
) -> None:
    platform = new_platform(history_days=30, calls_per_minute=150)

    report = past.fill(platform, DAILY, "2025-10-01 00:00", "2025-11-01 00:00")

    assert "30 days" in str(report.refused)
    assert past.calls() == COINS
    assert report.still_lacking == 22 * COINS
    stored = past.stored(DAILY)
    assert {label for _, label in stored} == {at(f"2025-10-{day}") for day in range(23, 32)}
    truths = past.truths(
        DAILY,
        "2025-10-23 00:00",
        "2025-11-01 00:00",
        has=lambda coin, end: hourly_close_stamp(past.provider.market, coin, end) is not None,
    )
    assert {key: stored[key] for key in truths} == truths
    past.provider.reset()
    nothing = past.fill(platform, DAILY, "2025-09-01 00:00", "2025-10-01 00:00")
    assert "30 days" in str(nothing.refused)
    assert past.calls() == 0
    past.fill(new_platform(calls_per_minute=150), DAILY, "2025-10-01 00:00", "2025-10-23 00:00")
    assert past.calls() == COINS, "a better plan has it, so it was not recorded as lost"


def test_minutes_beyond_a_day_are_refused_and_hours_are_offered(
    platform: Platform, past: Past
) -> None:
    report = past.fill(platform, MINUTE, "2025-11-21 09:00", "2025-11-21 12:00")

    assert past.calls() == 0
    assert "hourly" in str(report.refused)


# --- trouble ---


def test_a_provider_that_fails_midway_is_asked_no_further_and_the_rest_follows_later(
    new_platform: PlatformFactory, past: Past
) -> None:
    platform = new_platform(calls_per_minute=60)
    past.provider.fault("server_error", status=503, skip=8)
    window = ("2025-11-22 05:00", "2025-11-22 11:00")

    report = past.fill(platform, HOURLY, *window)

    assert "HTTP 503" in str(report.refused)
    assert report.calls == past.calls() <= 8 + 4 * 3
    assert (past.row()[0], past.row()[4]) == ("failed", report.refused)
    stored = {coin for coin, _ in past.stored(HOURLY)}
    assert len(stored) == 8
    past.provider.reset()
    past.fill(platform, HOURLY, *window)
    assert past.calls() == COINS - 8
    assert past.stored(HOURLY) == past.truths(HOURLY, *window)


def test_one_coin_that_fails_does_not_keep_the_others_waiting(
    platform: Platform, past: Past
) -> None:
    past.provider.fault("server_error", coins=["tron"])
    window = ("2025-11-22 05:00", "2025-11-22 11:00")

    report = past.fill(platform, HOURLY, *window)

    assert {coin for coin, _ in past.stored(HOURLY)} == set(past.coin_ids) - {"tron"}
    assert "1 coin could not be read" in str(report.refused)
    assert report.still_lacking == 6
    past.provider.reset()
    past.fill(platform, HOURLY, *window)
    assert past.calls() == 1


def test_rate_limits_of_the_provider_are_waited_for(
    new_platform: PlatformFactory, past: Past
) -> None:
    past.provider.fault("rate_limit", count=2, skip=5)

    report = past.fill(
        new_platform(calls_per_minute=60), HOURLY, "2025-11-22 05:00", "2025-11-22 11:00"
    )

    assert (report.refused, report.still_lacking) == (None, 0)
    assert past.calls() == COINS + 2 == report.calls


def test_an_answer_that_came_too_late_for_its_grade_is_not_read_at_it(
    new_platform: PlatformFactory, past: Past
) -> None:
    """Asked for in five-minute points, and answered in hourly ones when it was a day old."""
    platform = new_platform(calls_per_minute=60, transport=SlowTransport(past.provider))
    window = ("2025-11-21 13:00", "2025-11-21 14:00")

    report = past.fill(platform, HOURLY, *window, patience=timedelta(days=3))

    assert 0 < report.still_lacking < 5
    assert "answered too late" in str(report.refused)
    stored = past.stored(HOURLY)
    truths = past.truths(HOURLY, *window)
    assert stored
    assert all(row == truths[key] for key, row in stored.items())


def test_a_chart_that_failed_leaves_its_part_lacking_and_the_other_part_is_stored(
    new_platform: PlatformFactory, past: Past
) -> None:
    """More than 89 days of hours are two charts of a coin."""
    platform = new_platform(mode="1", always_include="bitcoin", calls_per_minute=60)
    window = ("2025-07-01 00:00", "2025-10-01 00:00")
    past.provider.fault("server_error", count=3, coins=["bitcoin"])

    report = past.fill(platform, HOURLY, *window)

    assert report.calls == past.calls() == 2 + 2
    hours = 89 * 24 - 1
    assert hours <= report.still_lacking < hours + 12, "the first chart's, and gaps of the other"
    assert report.unrecovered == ()
    assert 0 < report.held.rows <= 92 * 24 - hours
    past.provider.reset()
    assert past.fill(platform, HOURLY, *window).still_lacking == 0
    assert 1 <= past.calls() <= 2


def test_a_wrong_key_is_told_with_the_setting_at_once(platform: Platform, past: Past) -> None:
    past.provider.fault("api_error", code=10002)

    report = past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    assert "PULSEGUARD_API_KEY" in str(report.refused)
    assert past.calls() < COINS


def test_faulty_points_are_set_aside_and_cost_no_other(
    platform: Platform, past: Past, connection: psycopg.Connection
) -> None:
    past.provider.fault("negative", coins=["tron"], every=2)

    report = past.fill(platform, DAILY, "2025-05-01 00:00", "2025-11-01 00:00")

    days = [label for coin, label in past.stored(DAILY) if coin == "tron"]
    assert 80 < len(days) < 104
    assert report.still_lacking == 0
    reasons = connection.execute(
        "SELECT count(*) FROM rejected_observations WHERE coin_id = 'tron'"
    ).fetchone()
    assert reasons is not None
    assert reasons[0] > 0


def test_what_cannot_be_had_is_recorded_by_coin_after_all_that_waits_for_others(
    platform: Platform, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that record in different orders, or file in between, would wait for each other."""
    batches: list[list[str]] = []

    def put(*args: Any, **options: Any) -> Any:
        batches.append([])
        return put_history(*args, **options)

    def file(*args: Any, **options: Any) -> int:
        batches[-1].append("")  # before any coin
        return reject(*args, **options)

    def record(connection: Any, timeframe: Any, coin_id: str, *args: Any, **options: Any) -> int:
        batches[-1].append(coin_id)
        return record_unrecoverable(connection, timeframe, coin_id, *args, **options)

    monkeypatch.setattr(history_module, "put_history", put)
    monkeypatch.setattr(history_module, "reject", file)
    monkeypatch.setattr(history_module, "record_unrecoverable", record)

    past.fill(platform, HOURLY, "2025-11-12 00:00", "2025-11-14 00:00")

    assert max(map(len, batches)) > 2, "or no batch had two coins"
    assert batches == [sorted(batch) for batch in batches]


def test_a_warehouse_that_fails_midway_keeps_what_was_committed(
    platform: Platform, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, committed = history_module.put_history, set[str]()

    def failing(connection: Any, timeframe: Any, grade: str, points: Any, **options: Any) -> Any:
        if len(committed) >= 10:
            raise psycopg.OperationalError("no room on the disk")
        committed.update(points["coin_id"])
        return real(connection, timeframe, grade, points, **options)

    monkeypatch.setattr(history_module, "put_history", failing)

    with pytest.raises(HistoryFailed, match="no room on the disk"):
        past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    assert {coin for coin, _ in past.stored(HOURLY)} == committed
    assert 10 <= len(committed) < 30
    assert past.row()[0] == "failed"


def test_a_run_ended_by_hand_is_filed_as_cancelled(
    platform: Platform, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_COINS_PER_LOG_LINE", 5)

    def log(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00", log=log)

    assert past.row()[0] == "cancelled"
    assert len({coin for coin, _ in past.stored(HOURLY)}) == 5


def test_without_coins_there_is_nothing_to_expect(
    platform: Platform, past: Past, connection: psycopg.Connection
) -> None:
    connection.execute("TRUNCATE coin_priorities CASCADE")

    with pytest.raises(NoCoins, match="coin_priorities"):
        past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")


# --- runs beside each other ---


def test_a_second_run_waits_for_its_turn_and_says_when_it_did_not_come(
    platform: Platform, past: Past, database: str
) -> None:
    said: list[str] = []
    with connect(database) as another, only_collector(another, LOCK):
        report = past.fill(
            platform,
            HOURLY,
            "2025-11-22 05:00",
            "2025-11-22 11:00",
            patience=timedelta(minutes=1),
            log=said.append,
        )

    assert "Another run reads the provider's history" in str(report.refused)
    assert past.calls() == 0
    assert len(said) == 1
    assert past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00").refused is None


def test_a_run_with_nothing_to_ask_waits_for_nobody(
    platform: Platform, past: Past, database: str
) -> None:
    window = ("2025-11-22 05:00", "2025-11-22 11:00")
    past.fill(platform, HOURLY, *window)

    with connect(database) as another, only_collector(another, LOCK):
        assert past.fill(platform, HOURLY, *window).refused is None

    assert past.provider.now == NOON


def test_the_row_of_a_run_that_crashed_is_closed_by_the_next(
    platform: Platform, past: Past, connection: psycopg.Connection
) -> None:
    connection.execute(
        "INSERT INTO collection_status (collection_type, start_time, batch_details) "
        "VALUES ('manual', %s, '{\"history\": \"hourly\"}')",
        (NOON,),
    )

    past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    rows = connection.execute("SELECT status FROM collection_status ORDER BY id").fetchall()
    assert rows == [("failed",), ("completed",)]


def test_progress_is_told_and_filed(
    platform: Platform, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_COINS_PER_LOG_LINE", 15)
    said: list[str] = []

    report = past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00", log=said.append)

    assert said[0].startswith(f"15 of {COINS} coins asked for by ")
    assert said[-1].startswith(f"{COINS} of {COINS} coins asked for by {COINS} calls")
    assert past.row() == ("completed", COINS, 0, COINS, None)
    assert report.credits_left is not None


def test_a_slow_provider_is_asked_by_several_calls_at_a_time(
    new_platform: PlatformFactory, past: Past
) -> None:
    platform = new_platform(calls_per_minute=1_000)
    past.provider.fault("delay", seconds=0.5)

    began = time.monotonic()
    past.fill(platform, HOURLY, "2025-11-22 05:00", "2025-11-22 11:00")

    assert time.monotonic() - began < COINS * 0.5 / 2
