"""Which charts to ask the provider for, so that past closes come at the best grade it still has.

Belongs here: arithmetic on windows, reach and grades, exact and without a clock or a database.
Does not: asking, storing, or knowing what is stored already.

The provider picks the grade by itself, from the window asked for: five-minute points when it begins
within the last 24 hours, hourly points up to 90 days of width, daily points beyond. So a request is
a window chosen with margins: its grade is certain, also if it waits a while for its turn. Days and
wider are asked for in daily points whenever history reaches back far enough for such a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from pulseguard_assets.coingecko.plans import PLANS, Plan
from pulseguard_assets.timeframes import (
    HOURLY,
    MINUTE,
    MONTHLY,
    Timeframe,
    bucket_end,
    bucket_start,
)

FIVE_MINUTE, HOURLY_POINTS, DAILY_POINTS = "five_minute", "hourly", "daily"
GRADES = (FIVE_MINUTE, HOURLY_POINTS, DAILY_POINTS)

# The point that closes a bucket carries a price of its last five minutes.
_LAST_SAMPLE = timedelta(minutes=5)
# An hourly point is stamped up to a quarter past the hour it closes.
_LATEST_STAMP = timedelta(minutes=16)

_FINEST = timedelta(hours=24)
_FINEST_MARGIN = timedelta(minutes=10)
# The provider was seen to forgive a minute: between the two nobody knows what it will do.
_FINEST_FORGIVEN = timedelta(minutes=1)
_HOURLY_WIDTH = timedelta(days=90)
_WIDTH_MARGIN = timedelta(minutes=5)
# With the latest stamp at its end no wider than 89 days.
_CHUNK = timedelta(days=88, hours=23)

# The limit of the plans is strict, and a request may wait before it is sent.
_REACH_MARGIN = timedelta(hours=1)

_WIDTHS = {
    "minute": timedelta(minutes=1),
    "hourly": timedelta(hours=1),
    "daily": timedelta(days=1),
    "weekly": timedelta(weeks=1),
}
_NAMES = {
    "minute": "minute",
    "hourly": "hour",
    "daily": "day",
    "weekly": "week",
    "monthly": "month",
}


class OutOfReach(ValueError):  # noqa: N818 - read as a sentence where it is caught
    """The provider has none of these windows any more. The message says what can be had instead."""


@dataclass(frozen=True)
class ChartRequest:
    """One call for each coin: the window to ask for, and what the provider will answer.

    Attributes:
        start, end: the window, aware, both ends included.
        grade: one of `GRADES`.
    """

    start: datetime
    end: datetime
    grade: str


@dataclass(frozen=True)
class BackfillPlan:
    """What a backfill takes, before anything is spent.

    Attributes:
        timeframe: whose closes.
        start, end: the windows that can be had: the label of the first, the end of the last.
            Equal when there is none.
        coins: how many coins.
        buckets: windows that can be had, for each coin.
        out_of_reach: windows before those, which the provider does not have any more.
        not_ready: how many of `buckets` have ended so recently that their close is not in the
            provider's answers yet; see `ready_at`.
        requests: what is asked for each coin.
        calls: at most; a coin whose closes are stored is not asked for.
        share_of_credits: `calls` by all credits of the plan's month, 0 and up; None if the plan
            has no such limit.
        calls_per_minute: pace of the calls.
        minutes: how long the calls take at that pace; infinite if it is 0.
        credits_free: credits that may be spent now; None for no limit.
        refusal: why a run would end early and what to change; None if it would not.
    """

    timeframe: Timeframe
    start: datetime
    end: datetime
    coins: int
    buckets: int
    out_of_reach: int
    not_ready: int
    requests: tuple[ChartRequest, ...]
    calls: int
    share_of_credits: float | None
    calls_per_minute: float
    minutes: float
    credits_free: int | None
    refusal: str | None


def reach(plan: Plan, now: datetime) -> datetime | None:
    """The earliest instant to ask the plan for, an hour within its limit; None means everything."""
    if plan.history_days is None:
        return None
    return now - timedelta(days=plan.history_days) + _REACH_MARGIN


def ready_at(timeframe: Timeframe, bucket_end: datetime) -> datetime:
    """From when on the close of a bucket that ended at `bucket_end` may be asked for.

    Points of the last 15 minutes are unsettled, hourly ones come up to 15 minutes late, and the
    daily point of a day is there at 00:35 UTC.
    """
    hour_or_less = timeframe in (MINUTE, HOURLY)
    return bucket_end + timedelta(minutes=30 if hour_or_less else 45)


def grade_holds(request: ChartRequest, received_at: datetime) -> bool:
    """Whether an answer received then has the grade that was planned.

    A five-minute request that waited too long for its turn was answered in hourly points: those
    must not be read as observations of the minutes they are stamped in.
    """
    if request.start >= received_at - _FINEST:
        return request.grade == FIVE_MINUTE
    if request.start >= received_at - _FINEST - _FINEST_FORGIVEN:
        return False
    hourly = request.end - request.start <= _HOURLY_WIDTH
    return request.grade == (HOURLY_POINTS if hourly else DAILY_POINTS)


def requests_for(
    timeframe: Timeframe, start: datetime, end: datetime, *, now: datetime, plan: Plan
) -> list[ChartRequest]:
    """The requests whose answers hold the close of every bucket within reach: one call each.

    Plan anew after a wait: what was within reach may not be any more.

    Args:
        timeframe: whose closes are wanted. Minutes only come as samples, one in five minutes.
        start, end: buckets wholly in `[start, end)` (aware) are asked for, if they ended by `now`.
        now: the present.
        plan: says how far back history goes.

    Returns:
        Oldest first; nothing if no such bucket has ended yet. Buckets beyond the reach are left
        out: `first_within_reach` tells from where on there are any.

    Raises:
        OutOfReach: all of these buckets are beyond the reach.
    """
    first, last = _ended_buckets(timeframe, start, end, now)
    if first >= last:
        return []
    first = max(first, first_within_reach(timeframe, first, now=now, plan=plan))
    if first >= last:
        raise OutOfReach(out_of_reach_in_words(timeframe, now=now, plan=plan))
    earliest = reach(plan, now)
    until = min(last + _LATEST_STAMP, now)
    opening = first if earliest is None else max(first, earliest)
    if opening >= now - _FINEST + _FINEST_MARGIN:
        return [ChartRequest(opening, until, FIVE_MINUTE)]
    if timeframe is HOURLY:
        return _hourly_requests(opening, last, now)
    start = _start_of_days(timeframe, first, opening, now)
    return [_wide_request(start, until, earliest, now) or _narrow_request(start, until)]


def first_within_reach(
    timeframe: Timeframe, start: datetime, *, now: datetime, plan: Plan
) -> datetime:
    """The label of the first bucket, of those from the label `start` on, that can be had."""
    earliest = reach(plan, now)
    if timeframe is MINUTE:
        finest = now - _FINEST + _FINEST_MARGIN
        earliest = finest if earliest is None else max(finest, earliest)
        return max(start, _ceiling(timeframe, earliest))
    if earliest is None:
        return start
    # A bucket can be had whose last sample can: it need not begin within reach. A bucket that
    # ends on that very instant is one of them, so the one just before the instant is looked at.
    needed = earliest + _LAST_SAMPLE - timedelta(microseconds=1)
    return max(start, bucket_start(timeframe, needed))


def _hourly_requests(opening: datetime, last: datetime, now: datetime) -> list[ChartRequest]:
    """Chunks narrow enough for hourly points, none so young that it would get others."""
    latest_start = now - _FINEST - _FINEST_MARGIN
    requests = []
    start = opening
    while start < last:
        end = min(_ceiling(HOURLY, start) + _CHUNK, last)
        requests.append(
            ChartRequest(min(start, latest_start), min(end + _LATEST_STAMP, now), HOURLY_POINTS)
        )
        start = end
    return requests


def _start_of_days(
    timeframe: Timeframe, first: datetime, opening: datetime, now: datetime
) -> datetime:
    """From when on to ask for whole days."""
    start = opening
    if opening > first:
        # Of the bucket that begins beyond the reach, its end. The width is then, as without a
        # reach, a whole number of days and some minutes, which keeps it off the 90 days.
        start = bucket_end(timeframe, first) - _LAST_SAMPLE
    # Too near to 24 hours to be certain.
    return min(start, now - _FINEST - _FINEST_MARGIN)


def _wide_request(
    start: datetime, until: datetime, earliest: datetime | None, now: datetime
) -> ChartRequest | None:
    """The window made wide enough for daily points, on the side where there is room.

    There is a daily point for every day. Of hourly ones the one that closes a day is missing now
    and then, or comes too late in the next hour to be that close.
    """
    needed = _HOURLY_WIDTH + 2 * _WIDTH_MARGIN
    if until - start < needed:
        start, until = _widened(start, until, needed, earliest, now)
    return ChartRequest(start, until, DAILY_POINTS) if until - start >= needed else None


def _widened(
    start: datetime, until: datetime, needed: timedelta, earliest: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    if earliest is None or until - needed >= earliest:
        return until - needed, until
    return start, min(start + needed, now)


def _narrow_request(start: datetime, until: datetime) -> ChartRequest:
    """Hourly points: where history reaches back too little for daily ones."""
    if abs(until - start - _HOURLY_WIDTH) < _WIDTH_MARGIN:
        # Too near to 90 days, because the last bucket ended this minute. The first is a day long
        # and can spare its beginning.
        start += 2 * _WIDTH_MARGIN
    wide = until - start > _HOURLY_WIDTH
    return ChartRequest(start, until, DAILY_POINTS if wide else HOURLY_POINTS)


def plan_backfill(
    plan: Plan,
    timeframe: Timeframe,
    start: datetime,
    end: datetime,
    coins: int,
    *,
    now: datetime,
    calls_per_minute: float,
    credits_free: int | None,
    credits_reserved: int | None = None,
) -> BackfillPlan:
    """What taking the closes of `[start, end)` from the provider's history would take.

    Args:
        plan: with its figures as in force.
        timeframe, start, end, now: as in `requests_for`.
        coins: how many coins, 0 or more.
        calls_per_minute: pace that history may go at; 0 if none is left for it.
        credits_free: credits that history may spend; None for no limit.
        credits_reserved: credits that `spend_reserve` would add to those; None if unknown.
    """
    first, last = _ended_buckets(timeframe, start, end, now)
    reachable = max(first, min(first_within_reach(timeframe, first, now=now, plan=plan), last))
    refusal = None
    requests: tuple[ChartRequest, ...] = ()
    if first >= last:
        refusal = "None of these windows has ended yet; ask again when they have."
    else:
        try:
            requests = tuple(requests_for(timeframe, start, end, now=now, plan=plan))
        except OutOfReach as beyond:
            refusal = str(beyond)
    calls = len(requests) * coins
    if refusal is None:
        refusal = _budget_refusal(calls, calls_per_minute, credits_free, credits_reserved)
    return BackfillPlan(
        timeframe=timeframe,
        start=reachable,
        end=last,
        coins=coins,
        buckets=count_buckets(timeframe, reachable, last),
        out_of_reach=count_buckets(timeframe, first, reachable),
        not_ready=_not_ready(timeframe, reachable, last, now),
        requests=requests,
        calls=calls,
        share_of_credits=None if plan.credits_per_month is None else calls / plan.credits_per_month,
        calls_per_minute=calls_per_minute,
        minutes=_minutes_for(calls, calls_per_minute),
        credits_free=credits_free,
        refusal=refusal,
    )


def count_buckets(timeframe: Timeframe, first: datetime, last: datetime) -> int:
    """How many buckets begin at labels from `first` up to `last`, both labels, `last` left out."""
    if first >= last:
        return 0
    if timeframe is MONTHLY:
        return (last.year - first.year) * 12 + last.month - first.month
    return (last - first) // _WIDTHS[timeframe.name]


def windows_in_words(timeframe: Timeframe, number: int) -> str:
    """So many windows of a timeframe: "1 hour", "8,760 hours"."""
    return f"{number:,} {window_name(timeframe)}{'' if number == 1 else 's'}"


def window_name(timeframe: Timeframe) -> str:
    """What one window of a timeframe is called: "hour"."""
    return _NAMES[timeframe.name]


def grade_in_words(grade: str) -> str:
    """What closes a bucket gets from points of this grade."""
    return {
        FIVE_MINUTE: "one point every five minutes: the price in the last five minutes before each "
        "window's end",
        HOURLY_POINTS: "one point an hour: the price five minutes before each hour's end",
        DAILY_POINTS: "one point a day: the price five minutes before each day's end",
    }[grade]


def out_of_reach_in_words(timeframe: Timeframe, *, now: datetime, plan: Plan) -> str:
    """Which windows of a timeframe cannot be had, and what can be had instead."""
    earliest = reach(plan, now)
    if timeframe is MINUTE:
        # Whatever the plan: no plan has a reach this short by itself.
        first = first_within_reach(timeframe, now - _FINEST, now=now, plan=plan)
        return (
            f"The provider has five-minute points of the last 24 hours only: minutes before "
            f"{first:%Y-%m-%d %H:%M} UTC cannot be had any more. Ask from then on, or take the "
            "closes of the hours: `hourly` instead of `minute`."
        )
    if earliest is None:
        return f"The plan {plan.name!r} reaches back to the beginning."
    first = first_within_reach(timeframe, bucket_start(timeframe, earliest), now=now, plan=plan)
    further = [p.name for p in PLANS.values() if p.history_days is None]
    return (
        f"The plan {plan.name!r} reaches {plan.history_days} days back: {window_name(timeframe)}s "
        f"before the one that begins at {first:%Y-%m-%d %H:%M} UTC cannot be had. Ask from then "
        f"on, or use a plan that has all history (PULSEGUARD_PLAN: {', '.join(further)})."
    )


def _budget_refusal(
    calls: int, calls_per_minute: float, credits_free: int | None, reserved: int | None
) -> str | None:
    if calls and calls_per_minute <= 0:
        return (
            "The polls need every call a minute that the plan gives. Set fewer coins with "
            "PULSEGUARD_MODE, or a larger plan with PULSEGUARD_PLAN."
        )
    if credits_free is None or calls <= credits_free:
        return None
    lacks = (
        f"{calls:,} calls are needed and {credits_free:,} credits are free this month, what the "
        "polls still need left aside"
    )
    otherwise = "ask for fewer coins or a shorter time, wait for the next month, or use a larger "
    otherwise += "plan (PULSEGUARD_PLAN)"
    if reserved is not None and calls <= credits_free + reserved:
        return (
            f"{lacks}. Allow it to spend the reserve ({reserved:,} credits) with "
            f"`spend_reserve: true` in the run's config; or {otherwise}."
        )
    enough = (
        "" if reserved is None else f", and the reserve ({reserved:,}) would not make up for it"
    )
    return f"{lacks}{enough}: {otherwise}."


def _minutes_for(calls: int, calls_per_minute: float) -> float:
    if calls == 0:
        return 0.0
    return calls / calls_per_minute if calls_per_minute > 0 else math.inf


def _not_ready(timeframe: Timeframe, first: datetime, last: datetime, now: datetime) -> int:
    if first >= last:
        return 0
    # The latest end that is ready: what is added to an end does not depend on the end.
    settled = now - (ready_at(timeframe, now) - now)
    ready_until = max(first, min(bucket_start(timeframe, settled), last))
    return count_buckets(timeframe, ready_until, last)


def _ended_buckets(
    timeframe: Timeframe, start: datetime, end: datetime, now: datetime
) -> tuple[datetime, datetime]:
    """Label of the first and end of the last bucket wholly in `[start, end)` and the past."""
    return _ceiling(timeframe, start), bucket_start(timeframe, min(end, now))


def _ceiling(timeframe: Timeframe, instant: datetime) -> datetime:
    """The first label at or after an instant."""
    label = bucket_start(timeframe, instant)
    return label if label >= instant else bucket_end(timeframe, instant)
