"""Requests for history: what they cover, what the provider makes of them, and their price."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pulseguard_assets.coingecko.backfill import (
    DAILY_POINTS,
    FIVE_MINUTE,
    GRADES,
    HOURLY_POINTS,
    ChartRequest,
    OutOfReach,
    first_within_reach,
    grade_holds,
    grade_in_words,
    plan_backfill,
    reach,
    ready_at,
    requests_for,
)
from pulseguard_assets.coingecko.plans import PLANS, Plan, plan_for
from pulseguard_assets.simulator.charts import granularity
from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MINUTE,
    MONTHLY,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
    bucket_end,
    bucket_start,
)

NOW = datetime(2026, 3, 18, 12, 34, 56, tzinfo=timezone.utc)
PRO, DEMO = plan_for("pro"), plan_for("demo")
MINUTES, HOURS, DAYS = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
# The provider's names of the grades, as the simulator has them.
GRAINS = {"5m": FIVE_MINUTE, "hourly": HOURLY_POINTS, "daily": DAILY_POINTS}

plans = st.builds(
    plan_for,
    st.sampled_from(list(PLANS)),
    history_days=st.none() | st.integers(1, 5) | st.integers(80, 100) | st.integers(1, 3000),
)
EPOCH = datetime(2025, 12, 1, tzinfo=timezone.utc)
nows = st.builds(
    lambda minutes, milliseconds: EPOCH + minutes * MINUTES + timedelta(milliseconds=milliseconds),
    # Anywhere, or around midnights, where buckets end.
    st.integers(-1_000_000, 1_000_000)
    | st.builds(lambda day, minute: day * 1440 + minute, st.integers(0, 200), st.integers(-20, 70)),
    st.integers(0, 59_999),
)
# Minutes before now: mostly near the limits of the grades.
ages = (
    st.integers(0, 3000)
    | st.integers(85 * 1440, 95 * 1440)
    | st.integers(360 * 1440, 370 * 1440)
    | st.integers(0, 3_000_000)
)


def ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)


def sent(request: ChartRequest) -> tuple[int, int]:
    """The window as the client writes it: whole seconds, outwards."""
    return (
        math.floor(request.start.timestamp()) * 1000,
        math.ceil(request.end.timestamp()) * 1000,
    )


def whole_buckets(
    timeframe: Timeframe, start: datetime, end: datetime, now: datetime
) -> list[datetime]:
    """The labels of the buckets wholly in `[start, end)` that have ended, one by one."""
    labels = []
    label = bucket_start(timeframe, start)
    while bucket_end(timeframe, label) <= min(end, now):
        if label >= start:
            labels.append(label)
        label = bucket_end(timeframe, label)
    return labels


def holds_close(request: ChartRequest, end: datetime, now: datetime) -> bool:
    """Whether an answer must hold the point that closes the bucket ending at `end`."""
    if request.grade == FIVE_MINUTE:
        return request.start <= end - 5 * MINUTES and request.end >= end
    if request.grade == DAILY_POINTS:
        return request.start <= end <= request.end
    return request.start <= end and request.end >= min(end + 15 * MINUTES, now)


@settings(max_examples=400, deadline=None)
@given(plans, st.sampled_from(TIMEFRAMES), nows, ages, ages)
def test_requests_hold_every_close_within_reach_and_nothing_lies_before_it(
    plan: Plan, timeframe: Timeframe, now: datetime, one: int, other: int
) -> None:
    start, end = now - max(one, other) * MINUTES, now - min(one, other) * MINUTES
    if timeframe is MINUTE:
        # One by one they are too many.
        assume(abs(one - other) < 20_000)
    labels = whole_buckets(timeframe, start, end, now)
    earliest = reach(plan, now)
    reachable = [
        label
        for label in labels
        if earliest is None or bucket_end(timeframe, label) - 5 * MINUTES >= earliest
    ]
    if timeframe is MINUTE:
        finest = now - DAYS + 10 * MINUTES
        reachable = [m for m in labels if m >= max(finest, earliest or finest)]

    try:
        requests = requests_for(timeframe, start, end, now=now, plan=plan)
    except OutOfReach:
        assert labels
        assert not reachable
        return

    assert bool(requests) == bool(reachable)
    for label in reachable:
        close = bucket_end(timeframe, label)
        if timeframe is MINUTE:
            assert any(r.start <= label and close <= r.end for r in requests), label
        else:
            assert any(holds_close(r, close, now) for r in requests), label
    for request in requests:
        assert request.start < request.end <= now
        assert earliest is None or request.start >= earliest
    if labels:
        assert first_within_reach(timeframe, labels[0], now=now, plan=plan) == (
            reachable[0] if reachable else first_within_reach(timeframe, start, now=now, plan=plan)
        )


@settings(max_examples=600, deadline=None)
@given(plans, st.sampled_from(TIMEFRAMES), nows, ages, ages, st.integers(0, 60_000))
def test_the_grade_is_what_the_provider_gives_also_a_minute_later(
    plan: Plan, timeframe: Timeframe, now: datetime, one: int, other: int, wait: int
) -> None:
    start, end = now - max(one, other) * MINUTES, now - min(one, other) * MINUTES
    try:
        requests = requests_for(timeframe, start, end, now=now, plan=plan)
    except OutOfReach:
        return
    asked_at = now + timedelta(milliseconds=wait)
    for request in requests:
        assert request.grade == GRAINS[granularity(*sent(request), ms(asked_at))]
        assert grade_holds(request, asked_at)
        # Not by a hair: a provider that draws its lines a few minutes off gives the same.
        for shift in (-4 * MINUTES, 4 * MINUTES):
            first, last = sent(request)
            width = last - first + round(shift.total_seconds() * 1000)
            assert GRAINS[granularity(first, first + width, ms(asked_at + shift))] == request.grade


@settings(max_examples=300, deadline=None)
@given(plans, st.sampled_from(TIMEFRAMES), nows, ages, ages)
def test_buckets_are_counted_as_they_are_one_by_one(
    plan: Plan, timeframe: Timeframe, now: datetime, one: int, other: int
) -> None:
    start, end = now - max(one, other) * MINUTES, now - min(one, other) * MINUTES
    if timeframe is MINUTE:
        assume(abs(one - other) < 20_000)
    labels = whole_buckets(timeframe, start, end, now)

    planned = plan_backfill(
        plan, timeframe, start, end, 3, now=now, calls_per_minute=1.0, credits_free=None
    )

    assert planned.buckets + planned.out_of_reach == len(labels)
    had = labels[planned.out_of_reach :]
    assert planned.not_ready == len(
        [label for label in had if ready_at(timeframe, bucket_end(timeframe, label)) > now]
    )
    assert planned.calls == 3 * len(planned.requests)
    assert (planned.refusal is None) == bool(had)
    if had:
        assert (planned.start, planned.end) == (had[0], bucket_end(timeframe, had[-1]))


def test_a_year_of_days_is_one_call_and_a_year_of_hours_five() -> None:
    year = (datetime(2025, 3, 1, tzinfo=timezone.utc), datetime(2026, 3, 1, tzinfo=timezone.utc))

    days = requests_for(DAILY, *year, now=NOW, plan=PRO)
    hours = requests_for(HOURLY, *year, now=NOW, plan=PRO)

    assert [request.grade for request in days] == [DAILY_POINTS]
    assert days[0] == ChartRequest(year[0], year[1] + 16 * MINUTES, DAILY_POINTS)
    assert [request.grade for request in hours] == [HOURLY_POINTS] * 5
    assert all(request.end - request.start <= 89 * DAYS for request in hours)


@pytest.mark.parametrize("days", [1, 89, 90, 200])
def test_days_are_asked_for_in_a_window_wide_enough_for_daily_points(days: int) -> None:
    """The hourly point that closes a day is missing now and then; the daily one is not."""
    end = bucket_start(DAILY, NOW)

    (request,) = requests_for(DAILY, end - days * DAYS, end, now=NOW, plan=PRO)

    assert request.grade == DAILY_POINTS
    assert request.end - request.start > 90 * DAYS
    assert request.start <= end - days * DAYS
    assert request.end >= end
    assert {grade_in_words(grade) for grade in GRADES if grade_in_words(grade)}


def test_a_day_at_the_end_of_the_reach_is_asked_for_with_the_days_after_it() -> None:
    day = bucket_start(DAILY, NOW) - 364 * DAYS

    (request,) = requests_for(DAILY, day, day + DAYS, now=NOW, plan=DEMO)

    assert request.grade == DAILY_POINTS
    assert request.start == day
    assert 90 * DAYS < request.end - request.start < 91 * DAYS


def test_days_come_hourly_where_history_is_too_short_for_daily_points() -> None:
    end = bucket_start(DAILY, NOW)
    short = plan_for("demo", history_days=60)

    (request,) = requests_for(DAILY, end - 30 * DAYS, end, now=NOW, plan=short)

    assert request.grade == HOURLY_POINTS


def test_the_last_hours_come_in_five_minute_points_and_older_ones_hourly() -> None:
    hour = bucket_start(HOURLY, NOW)

    assert requests_for(HOURLY, hour - 3 * HOURS, hour - HOURS, now=NOW, plan=PRO) == [
        ChartRequest(hour - 3 * HOURS, hour - HOURS + 16 * MINUTES, FIVE_MINUTE)
    ]
    assert requests_for(HOURLY, hour - 30 * HOURS, hour, now=NOW, plan=PRO) == [
        ChartRequest(hour - 30 * HOURS, hour + 16 * MINUTES, HOURLY_POINTS)
    ]


def test_an_hour_on_the_edge_of_the_finest_grade_is_asked_for_from_well_before_it() -> None:
    now = bucket_start(HOURLY, NOW) + 5 * MINUTES
    hour = now - 5 * MINUTES - DAYS

    (request,) = requests_for(HOURLY, hour, hour + HOURS, now=now, plan=PRO)

    assert request == ChartRequest(
        now - DAYS - 10 * MINUTES, hour + HOURS + 16 * MINUTES, HOURLY_POINTS
    )


def test_ninety_days_of_which_the_last_has_just_ended_are_asked_for_with_a_margin() -> None:
    now = bucket_start(DAILY, NOW) + timedelta(seconds=30)
    end = bucket_start(DAILY, NOW)
    short = plan_for("demo", history_days=90)

    (request,) = requests_for(DAILY, end - 90 * DAYS, end, now=now, plan=short)

    assert request.grade == HOURLY_POINTS
    assert request.end - request.start <= 90 * DAYS - 5 * MINUTES


def test_a_day_that_has_just_ended_is_asked_for_from_well_before_it() -> None:
    midnight = bucket_start(DAILY, NOW)
    now = midnight + 2 * MINUTES
    short = plan_for("demo", history_days=30)

    assert requests_for(DAILY, midnight - DAYS, midnight, now=now, plan=short) == [
        ChartRequest(now - DAYS - 10 * MINUTES, now, HOURLY_POINTS)
    ]


def test_a_week_whose_end_alone_is_within_reach_is_asked_for_from_well_before_it() -> None:
    monday = bucket_start(WEEKLY, NOW)
    now = monday + 12 * HOURS
    plan = plan_for("demo", history_days=2)

    assert requests_for(WEEKLY, monday - 7 * DAYS, monday, now=now, plan=plan) == [
        ChartRequest(now - DAYS - 10 * MINUTES, monday + 16 * MINUTES, HOURLY_POINTS)
    ]


def test_a_day_whose_last_five_minutes_begin_with_the_reach_can_be_had() -> None:
    now = bucket_start(DAILY, NOW) + 23 * HOURS - 5 * MINUTES
    end = bucket_start(DAILY, NOW) - 365 * DAYS + DAYS
    assert reach(DEMO, now) == end - 5 * MINUTES

    (request,) = requests_for(DAILY, end - DAYS, end, now=now, plan=DEMO)
    assert request.start == end - 5 * MINUTES
    second = timedelta(seconds=1)
    with pytest.raises(OutOfReach):
        requests_for(DAILY, end - DAYS, end, now=now + second, plan=DEMO)


def test_a_month_that_begins_beyond_the_reach_is_had_by_its_end() -> None:
    now = datetime(2026, 3, 18, 12, tzinfo=timezone.utc)
    start, end = (datetime(2025, month, 1, tzinfo=timezone.utc) for month in (3, 4))

    (request,) = requests_for(MONTHLY, start, end, now=now, plan=DEMO)

    assert request.start == end - 5 * MINUTES
    assert request.grade == DAILY_POINTS
    with pytest.raises(
        OutOfReach, match=r"'demo' reaches 365 days back: months before .* 2025-03-"
    ):
        requests_for(MONTHLY, start - 28 * DAYS, start, now=now, plan=DEMO)


def test_minutes_older_than_a_day_are_refused_with_what_can_be_had_instead() -> None:
    hour = bucket_start(HOURLY, NOW)

    (request,) = requests_for(MINUTE, hour - 2 * HOURS, hour - HOURS, now=NOW, plan=PRO)
    assert request == ChartRequest(hour - 2 * HOURS, hour - 44 * MINUTES, FIVE_MINUTE)
    with pytest.raises(OutOfReach, match=r"before 2026-03-17 12:45 UTC .* `hourly` instead"):
        requests_for(MINUTE, hour - 26 * HOURS, hour - 25 * HOURS, now=NOW, plan=PRO)


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_a_window_that_has_not_ended_is_not_asked_for(timeframe: Timeframe) -> None:
    label = bucket_start(timeframe, NOW)

    assert requests_for(timeframe, label, NOW + 40 * DAYS, now=NOW, plan=PRO) == []
    planned = plan_backfill(
        PRO, timeframe, label, NOW + 40 * DAYS, 5, now=NOW, calls_per_minute=1, credits_free=9
    )
    assert (planned.calls, planned.buckets, planned.minutes) == (0, 0, 0)
    assert "has ended yet" in str(planned.refusal)


def test_a_plan_without_a_limit_reaches_everything_and_others_stay_within_theirs() -> None:
    assert reach(PRO, NOW) is None
    assert reach(DEMO, NOW) == NOW - 365 * DAYS + HOURS


@pytest.mark.parametrize(
    ("age", "width", "grade"),
    [
        (DAYS - 10 * MINUTES, HOURS, FIVE_MINUTE),
        # Whether the provider forgives the minute above a day is its own affair.
        (DAYS + timedelta(seconds=30), HOURS, None),
        (DAYS + 2 * MINUTES, HOURS, HOURLY_POINTS),
        (100 * DAYS, 90 * DAYS, HOURLY_POINTS),
        (100 * DAYS, 90 * DAYS + MINUTES, DAILY_POINTS),
    ],
)
def test_a_grade_holds_as_long_as_the_provider_still_gives_it(
    age: timedelta, width: timedelta, grade: str | None
) -> None:
    start = NOW - age

    assert [g for g in GRADES if grade_holds(ChartRequest(start, start + width, g), NOW)] == (
        [] if grade is None else [grade]
    )


def test_hours_are_asked_for_half_an_hour_later_and_days_at_a_quarter_to_one() -> None:
    midnight = bucket_start(DAILY, NOW)

    assert ready_at(HOURLY, midnight) == midnight + 30 * MINUTES
    assert [ready_at(timeframe, midnight) for timeframe in (DAILY, WEEKLY, MONTHLY)] == (
        [midnight + 45 * MINUTES] * 3
    )


# --- the price ---


def planned_days(**options: float | int | None) -> tuple[int, float | None, float, str | None]:
    end = bucket_start(DAILY, NOW)
    given: dict[str, float | int | None] = {"calls_per_minute": 25.0, "credits_free": 2000}
    planned = plan_backfill(
        DEMO,
        DAILY,
        end - 300 * DAYS,
        end,
        1000,
        now=NOW,
        **{**given, **options},  # type: ignore[arg-type]
    )
    return planned.calls, planned.share_of_credits, planned.minutes, planned.refusal


def test_calls_time_and_share_follow_from_the_coins() -> None:
    assert planned_days() == (1000, 0.1, 40.0, None)


def test_a_run_that_costs_more_than_is_free_is_refused_with_the_way_to_allow_it() -> None:
    refusal = planned_days(credits_free=400, credits_reserved=1000)[3]

    assert refusal is not None
    assert "1,000 calls are needed and 400 credits are free" in refusal
    assert "spend the reserve (1,000 credits) with `spend_reserve: true`" in refusal


def test_a_reserve_that_would_not_suffice_is_not_offered() -> None:
    refusal = planned_days(credits_free=400, credits_reserved=599)[3]

    assert refusal is not None
    assert "spend_reserve" not in refusal
    assert "PULSEGUARD_PLAN" in refusal


def test_without_a_limit_of_credits_only_time_is_spent() -> None:
    assert planned_days(credits_free=None)[3] is None


def test_without_a_call_beside_the_polls_it_would_take_for_ever() -> None:
    _, _, minutes, refusal = planned_days(calls_per_minute=0.0)

    assert math.isinf(minutes)
    assert refusal is not None
    assert "PULSEGUARD_MODE" in refusal
