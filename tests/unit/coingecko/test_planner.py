"""Plans and planning: no accepted schedule overspends, and a refusal names what can be paid."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulseguard_assets.coingecko.planner import (
    LONGEST_CADENCE,
    PlanCannotPay,
    is_due,
    plan_polling,
    planning_table,
    render_table,
    sweep_calls,
)
from pulseguard_assets.coingecko.plans import PLANS, PRO_HOST, PUBLIC_HOST, Plan, plan_for

TEN = Decimal(10)
DAY, MONTH = 1440, 31 * 1440

plans = st.builds(
    plan_for,
    st.sampled_from(list(PLANS)),
    calls_per_minute=st.none() | st.integers(1, 2000),
    credits_per_month=st.none() | st.integers(1, 10_000_000),
)
reserves = st.decimals(0, 90, places=2)
coin_numbers = st.integers(1, 30_000)


def due_minutes(start: int, length: int, cadence: int) -> list[int]:
    """The due minutes of a span, by the very function the sensor asks."""
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return [
        minute
        for minute in range(start, start + length)
        if is_due(epoch + timedelta(minutes=minute), cadence)
    ]


@pytest.mark.parametrize(
    ("name", "calls", "credits", "days", "host", "header"),
    [
        ("keyless", 5, None, 365, PUBLIC_HOST, None),
        ("demo", 30, 10_000, 365, PUBLIC_HOST, "x-cg-demo-api-key"),
        ("basic", 250, 100_000, 730, PRO_HOST, "x-cg-pro-api-key"),
        ("analyst", 500, 500_000, None, PRO_HOST, "x-cg-pro-api-key"),
        ("lite", 500, 2_000_000, None, PRO_HOST, "x-cg-pro-api-key"),
        ("pro", 1000, 5_000_000, None, PRO_HOST, "x-cg-pro-api-key"),
        ("enterprise", 1000, 5_000_000, None, PRO_HOST, "x-cg-pro-api-key"),
    ],
)
def test_each_plan_has_the_published_figures(
    name: str, calls: int, credits: int | None, days: int | None, host: str, header: str | None
) -> None:
    plan = plan_for(name)

    assert (plan.calls_per_minute, plan.credits_per_month) == (calls, credits)
    assert (plan.history_days, plan.host, plan.header) == (days, host, header)
    assert plan.is_paid is (host == PRO_HOST)


def test_only_a_shared_address_sustains_less_than_its_burst() -> None:
    unequal = [
        p.name for p in PLANS.values() if p.sustainable_calls_per_minute < p.calls_per_minute
    ]

    assert unequal == ["keyless"]


def test_figures_of_ones_own_replace_the_published_ones() -> None:
    plan = plan_for("keyless", calls_per_minute=600, credits_per_month=7, history_days=9)

    assert plan.calls_per_minute == plan.sustainable_calls_per_minute == 600
    assert (plan.credits_per_month, plan.history_days) == (7, 9)
    assert plan_for("keyless") == PLANS["keyless"]


def test_an_unknown_plan_and_a_figure_of_zero_are_refused_by_the_setting() -> None:
    with pytest.raises(ValueError, match="PULSEGUARD_PLAN"):
        plan_for("gold")
    with pytest.raises(ValueError, match="PULSEGUARD_HISTORY_DAYS"):
        plan_for("demo", history_days=0)


def test_a_demo_key_polls_the_top_thousand_about_every_ten_minutes() -> None:
    polling = plan_polling(plan_for("demo"), 1000, reserve_percent=TEN)

    assert polling.cadence_minutes == 11
    assert polling.calls_per_poll == 2
    assert polling.calls_per_month == 4059 * 2 + 31 * 5
    assert polling.credits_allowed == 9000
    assert polling.share_used == pytest.approx(0.8273)
    assert polling.stretch_minutes == 0


def test_a_poll_larger_than_a_minutes_calls_is_stretched_over_minutes() -> None:
    polling = plan_polling(plan_for("demo"), 17_500, reserve_percent=TEN)

    assert polling.calls_per_poll == 35
    assert polling.stretch_minutes == 1


@settings(max_examples=60, deadline=None)
@given(plans, coin_numbers, reserves, st.none() | st.integers(1, 100), st.integers(0, 10**7))
def test_no_schedule_it_accepts_overspends_any_month_simulated_minute_by_minute(
    plan: Plan, coins: int, reserve: Decimal, calls: int | None, start_day: int
) -> None:
    try:
        polling = plan_polling(plan, coins, reserve_percent=reserve, calls_per_poll=calls)
    except PlanCannotPay:
        return

    start = start_day % 30_000 * DAY
    polls = len(due_minutes(start, MONTH, polling.cadence_minutes))
    spent = polls * polling.calls_per_poll + 31 * sweep_calls(coins)

    assert spent <= polling.calls_per_month
    if plan.credits_per_month is not None:
        assert spent <= plan.credits_per_month * (1 - reserve / 100)


@settings(max_examples=60, deadline=None)
@given(plans, coin_numbers, reserves, st.none() | st.integers(1, 100), st.integers(0, 10**4))
def test_no_schedule_it_accepts_piles_up_calls_that_the_rate_never_works_off(
    plan: Plan, coins: int, reserve: Decimal, calls: int | None, start_day: int
) -> None:
    try:
        polling = plan_polling(plan, coins, reserve_percent=reserve, calls_per_poll=calls)
    except PlanCannotPay:
        return

    rate = Decimal(plan.sustainable_calls_per_minute) * (1 - reserve / 100)
    start = start_day * DAY
    due = set(due_minutes(start, 3 * DAY, polling.cadence_minutes))
    waiting, evenings = Decimal(0), []
    for minute in range(start, start + 3 * DAY):
        if minute % DAY == 0:
            waiting += sweep_calls(coins)
        if minute in due:
            waiting += polling.calls_per_poll
        waiting = max(Decimal(0), waiting - rate)
        if minute % DAY == DAY - 1:
            evenings.append(waiting)

    # At most the poll that began just before midnight is still under way.
    assert max(evenings) <= polling.calls_per_poll


@settings(max_examples=100, deadline=None)
@given(plans, coin_numbers, reserves, st.integers(1, LONGEST_CADENCE))
def test_a_configured_cadence_is_taken_exactly_when_it_is_no_shorter_than_the_nearest(
    plan: Plan, coins: int, reserve: Decimal, cadence: int
) -> None:
    try:
        nearest = plan_polling(plan, coins, reserve_percent=reserve).cadence_minutes
    except PlanCannotPay:
        with pytest.raises(PlanCannotPay) as caught:
            plan_polling(plan, coins, reserve_percent=reserve, cadence_minutes=cadence)
        assert caught.value.nearest is None
        return

    if cadence >= nearest:
        chosen = plan_polling(plan, coins, reserve_percent=reserve, cadence_minutes=cadence)
        assert chosen.cadence_minutes == cadence
        return
    with pytest.raises(PlanCannotPay) as caught:
        plan_polling(plan, coins, reserve_percent=reserve, cadence_minutes=cadence)
    assert caught.value.nearest == nearest
    assert f"PULSEGUARD_CADENCE_MINUTES={nearest}" in str(caught.value)


def test_a_cadence_too_short_for_the_credits_says_how_many_calls_it_would_take() -> None:
    with pytest.raises(PlanCannotPay, match="89,435 calls a month where 9,000") as caught:
        plan_polling(plan_for("demo"), 1000, reserve_percent=TEN, cadence_minutes=1)

    assert caught.value.setting == "PULSEGUARD_CADENCE_MINUTES"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_cadence_too_short_for_the_rate_says_what_can_be_sustained() -> None:
    with pytest.raises(PlanCannotPay, match="1 a minute can be sustained") as caught:
        plan_polling(plan_for("keyless"), 1000, reserve_percent=TEN, cadence_minutes=2)

    assert caught.value.nearest == 3


def test_a_plan_that_cannot_pay_for_one_poll_a_day_asks_for_fewer_coins() -> None:
    with pytest.raises(PlanCannotPay, match="PULSEGUARD_MODE") as caught:
        plan_polling(plan_for("demo", credits_per_month=100), 1000, reserve_percent=TEN)

    assert caught.value.nearest is None


@pytest.mark.parametrize(
    ("coins", "given"),
    [
        (0, {}),
        (1, {"calls_per_poll": 0}),
        (1, {"cadence_minutes": 0}),
        (1, {"cadence_minutes": 1441}),
    ],
)
def test_nonsense_is_refused(coins: int, given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"nothing to plan|PULSEGUARD_CADENCE_MINUTES"):
        plan_polling(plan_for("pro"), coins, reserve_percent=TEN, **given)


@pytest.mark.parametrize("reserve", ["-1", "90.01"])
def test_a_reserve_outside_its_range_is_refused(reserve: str) -> None:
    with pytest.raises(ValueError, match="PULSEGUARD_RESERVE_PERCENT"):
        plan_polling(plan_for("pro"), 1, reserve_percent=Decimal(reserve))


def test_due_minutes_lie_on_the_grid_of_the_epoch_whatever_the_second() -> None:
    minute = datetime(2025, 1, 1, tzinfo=timezone.utc)

    assert is_due(minute, 10)
    assert is_due(minute.replace(second=59, microsecond=999_999), 10)
    assert not is_due(minute + timedelta(minutes=1), 10)
    assert is_due(minute.astimezone(timezone(timedelta(hours=5, minutes=30))), 10)


def test_a_minute_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        is_due(datetime(2025, 1, 1), 10)  # noqa: DTZ001


def test_the_planning_table_shows_every_plan_and_says_which_cannot_pay() -> None:
    poor = plan_for("demo", credits_per_month=40)

    rows = planning_table([PLANS["demo"], poor], [1000, 17_500], reserve_percent=TEN)
    text = render_table(rows)

    assert [(row.plan, row.coins) for row in rows] == [
        (PLANS["demo"], 1000),
        (PLANS["demo"], 17_500),
        (poor, 1000),
        (poor, 17_500),
    ]
    assert rows[0].refusal is None
    assert rows[3].polling is None
    assert rows[3].refusal is not None
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[2].split() == ["demo", "1,000", "2", "11", "min", "8,273", "9,000", "82.7%", "-"]
    assert "cannot pay" in lines[4]
    assert not any(line != line.rstrip() for line in lines)
