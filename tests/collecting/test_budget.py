"""What history may spend: never what a poll or a sweep still needs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulseguard_assets.coingecko.errors import CallNotFree, CreditsExhausted
from pulseguard_assets.coingecko.planner import (
    PlanCannotPay,
    PollingPlan,
    is_due,
    plan_polling,
    sweep_calls,
)
from pulseguard_assets.coingecko.plans import PLANS, Plan, plan_for
from pulseguard_assets.collecting.budget import (
    Allowance,
    allowance_after,
    calls_to_come,
    history_allowance,
    history_pace,
    history_rate,
    polling_of,
    spent_by_figures,
)
from pulseguard_assets.collecting.platform import NoCallsForHistory, Platform
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.ledger import spent_this_month

TEN = Decimal(10)
NOON = datetime(2026, 2, 10, 12, 0, 20, tzinfo=timezone.utc)
MARCH = datetime(2026, 3, 1, tzinfo=timezone.utc)

NewPlatform = Callable[..., Platform]

plans = st.builds(
    plan_for,
    st.sampled_from(list(PLANS)),
    calls_per_minute=st.none() | st.integers(1, 100) | st.integers(1, 2000),
    credits_per_month=st.none() | st.integers(1, 100_000) | st.integers(1, 10_000_000),
)


def polling(plan: Plan, coins: int = 1000, **options: int) -> PollingPlan:
    return plan_polling(plan, coins, reserve_percent=TEN, **options)


def due_between(start: datetime, end: datetime, cadence: int) -> int:
    """The due minutes of `[start, end)`, both whole minutes: what `is_due` says of each."""
    first, last = (int(instant.timestamp()) // 60 for instant in (start, end))
    return -(-last // cadence) - -(-first // cadence)


def test_due_minutes_are_counted_here_as_the_sensor_asks() -> None:
    start = NOON.replace(second=0)
    each = [is_due(start + timedelta(minutes=n), 7) for n in range(1000)]

    assert due_between(start, start + timedelta(minutes=1000), 7) == sum(each)


@settings(max_examples=300, deadline=None)
@given(
    plans,
    st.integers(1, 30_000),
    st.decimals(0, 90, places=1),
    st.lists(st.floats(0, 28 * 86_400 - 1), min_size=1, max_size=4),
    st.floats(0, 1),
    st.booleans(),
)
def test_polls_and_sweeps_of_the_month_are_paid_for_whenever_history_takes_all_it_may(
    plan: Plan,
    coins: int,
    reserve: Decimal,
    instants: list[float],
    before: float,
    spend_reserve: bool,
) -> None:
    try:
        schedule = plan_polling(plan, coins, reserve_percent=reserve)
    except PlanCannotPay:
        return
    allowed = plan.credits_per_month if spend_reserve else schedule.credits_allowed
    month = datetime(2026, 2, 1, tzinfo=timezone.utc)
    spent, since = int(before * (allowed or 0)), month
    history = 0

    def poll_until(instant: datetime) -> int:
        polls = due_between(since, instant, schedule.cadence_minutes)
        sweeps = due_between(since, instant, 1440)
        return polls * schedule.calls_per_poll + sweeps * sweep_calls(coins)

    for second in sorted(instants):
        now = month + timedelta(seconds=second)
        minute = now.replace(second=0, microsecond=0)
        spent += poll_until(minute)
        since = minute
        allowance = allowance_after(schedule, spent, now=now, spend_reserve=spend_reserve)
        if allowed is None:
            assert allowance.credits_per_month is allowance.credits_free is None
            continue
        free = allowance.credits_free
        assert free is not None
        assert free >= 0
        assert allowance.credits_per_month == spent + free
        assert allowance.month_end == MARCH
        spent += free
        history += free
    spent += poll_until(MARCH)
    if allowed is not None and history:
        assert spent <= allowed


@settings(max_examples=300, deadline=None)
@given(plans, st.integers(1, 30_000))
def test_a_poll_ends_as_early_as_without_history_and_history_gets_on(
    plan: Plan, coins: int
) -> None:
    try:
        schedule = polling(plan, coins)
    except PlanCannotPay:
        return
    rate, poll, most = history_rate(schedule), schedule.calls_per_poll, plan.calls_per_minute

    assert 0 <= rate < most or (rate, most) == (0, 1)
    # The worst: all that history may was called just before the poll.
    minutes = 1 if poll <= most - rate else 1 + -(-(poll - (most - rate)) // most)
    if rate > 1:
        assert minutes == schedule.stretch_minutes + 1
    assert (history_pace(schedule) > 0) == (rate > 0)
    assert history_pace(schedule) <= rate


@pytest.mark.parametrize(
    ("plan", "coins", "rate"),
    [
        ("pro", 1000, 1000 - 2 - 1),
        ("demo", 1000, 30 - 2 - 1),
        # 35 calls take two minutes' calls: 60 - 35 of them are not needed.
        ("demo", 17_500, 60 - 35 - 1),
        # 30 calls take a whole minute; in those between the polls there is one for history.
        ("demo", 15_000, 1),
        # One a minute is what lasts, and the polls share it.
        ("keyless", 1000, 1),
    ],
)
def test_the_rate_of_history_leaves_a_poll_and_a_call_to_spare(
    plan: str, coins: int, rate: int
) -> None:
    assert history_rate(polling(plan_for(plan), coins)) == rate


def test_the_only_call_of_a_minute_is_the_polls() -> None:
    assert history_rate(polling(plan_for("pro", calls_per_minute=1), 250)) == 0


def test_polls_in_every_minute_that_leave_history_nothing_are_told_as_that() -> None:
    schedule = polling(plan_for("pro", calls_per_minute=4), 1000)

    assert (schedule.cadence_minutes, schedule.calls_per_poll) == (1, 2)
    assert history_rate(schedule) == 0


def test_what_is_to_come_holds_the_poll_and_the_sweep_that_may_be_under_way() -> None:
    schedule = polling(plan_for("demo"))
    last_minute = MARCH - timedelta(seconds=10)

    assert calls_to_come(schedule, last_minute) == 2 * 2 + 5
    assert calls_to_come(schedule, MARCH - timedelta(days=1)) == (131 + 1) * 2 + 5
    assert calls_to_come(schedule, MARCH) >= schedule.calls_per_month


def test_without_a_ledger_the_month_is_taken_for_polled_throughout() -> None:
    schedule = polling(plan_for("demo"))
    assert schedule.credits_allowed is not None

    allowance = allowance_after(schedule, spent_by_figures(schedule, NOON), now=NOON)

    assert allowance.credits_free == schedule.credits_allowed - schedule.calls_per_month


# --- on a real ledger, against the simulator ---


def chart(platform: Platform, allowance: Allowance, calls: int, patience: float = 0) -> None:
    """So many calls for history, one coin after the other."""
    with platform.history_provider(allowance) as provider:
        for _ in range(calls):
            now = platform.clock()
            until = now + timedelta(seconds=patience)
            start = now - timedelta(hours=5)
            provider.market_chart_range("bitcoin", start, now, until=until)
        assert provider.granted == calls


def test_calls_for_history_are_counted_with_all_others_and_leave_room_for_a_poll(
    provider: RunningSimulator,
    new_platform: NewPlatform,
    connection: psycopg.Connection,
) -> None:
    platform = new_platform(calls_per_minute=10)
    now = platform.clock()
    allowance = history_allowance(platform, connection, now=now)
    assert allowance.calls_per_minute == 8

    chart(platform, allowance, 8)
    with pytest.raises(CallNotFree):
        chart(platform, allowance, 1)
    # The poll has its call at once.
    answer = platform.provider.simple_price(["bitcoin"], until=now)

    assert answer.calls_left == 1
    assert spent_this_month(connection, now) == 9
    assert provider.calls()["total"] == 9


def test_history_stops_when_its_credits_are_spent_and_the_polls_go_on(
    new_platform: NewPlatform, connection: psycopg.Connection
) -> None:
    polling_now = plan_polling(plan_for("pro", credits_per_month=20_000), 300, reserve_percent=TEN)
    platform = new_platform(credits_per_month=20_000)
    now = platform.clock()
    spent = 18_000 - calls_to_come(polling_now, now) - 3
    connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) VALUES (%s, %s)",
        (now.date(), spent),
    )

    allowance = history_allowance(platform, connection, now=now)
    assert (allowance.credits_free, allowance.credits_per_month) == (3, spent + 3)
    with_reserve = history_allowance(platform, connection, now=now, spend_reserve=True)
    assert with_reserve.credits_free == 3 + 2000

    chart(platform, allowance, 3)
    with pytest.raises(CreditsExhausted):
        chart(platform, allowance, 1)
    platform.provider.simple_price(["bitcoin"], until=now)
    assert history_allowance(platform, connection, now=now).credits_free == 0
    chart(platform, with_reserve, 1)


def test_an_allowance_ends_with_its_month(
    provider: RunningSimulator, new_platform: NewPlatform, connection: psycopg.Connection
) -> None:
    platform = new_platform()
    allowance = history_allowance(platform, connection, now=platform.clock())
    assert allowance.month_end == datetime(2025, 12, 1, tzinfo=timezone.utc)

    provider.advance(allowance.month_end - platform.clock())

    with pytest.raises(CreditsExhausted):
        chart(platform, allowance, 1)
    assert spent_this_month(connection, platform.clock()) == 0


def test_history_keeps_pace_while_polls_go_on(
    provider: RunningSimulator, new_platform: NewPlatform, connection: psycopg.Connection
) -> None:
    platform = new_platform(calls_per_minute=10)
    pace = history_pace(polling_of(platform, connection))
    polls, calls = 5, 0
    with platform.history_provider(
        history_allowance(platform, connection, now=platform.clock())
    ) as history:
        for _ in range(polls):
            asked = platform.clock()
            platform.provider.simple_price(["bitcoin"], until=asked)
            while True:
                now = platform.clock()
                next_poll = asked + timedelta(minutes=1)
                try:
                    history.market_chart_range(
                        "bitcoin", now - timedelta(hours=5), now, until=next_poll
                    )
                except CallNotFree:
                    break
            calls = history.granted
            provider.advance(max(next_poll - platform.clock(), timedelta(0)))
    assert calls >= 0.95 * pace * polls


def test_coins_known_to_the_warehouse_make_the_schedule_and_else_the_mode(
    swept: None, new_platform: NewPlatform, connection: psycopg.Connection
) -> None:
    assert polling_of(new_platform(mode="complete"), connection).coins == 300
    assert polling_of(new_platform(mode="40"), connection).coins == 40
    connection.execute("TRUNCATE coin_priorities CASCADE")
    assert polling_of(new_platform(mode="40"), connection).coins == 40


def test_what_was_spent_in_other_months_is_not_counted(connection: psycopg.Connection) -> None:
    for day, calls in ((31, 100), (32, 20), (41, 3)):
        connection.execute(
            "INSERT INTO api_usage_stats (date, total_calls) VALUES (%s, %s)",
            (datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(days=day - 1), calls),
        )

    assert spent_this_month(connection, NOON) == 23


def test_where_the_polls_need_every_call_history_says_so(platform: Platform) -> None:
    with pytest.raises(NoCallsForHistory, match="PULSEGUARD_PLAN"):
        platform.history_provider(Allowance(0, None, None))
