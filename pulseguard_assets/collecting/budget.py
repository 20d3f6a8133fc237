"""What history may spend, beside the polls that go on meanwhile.

Belongs here: the month's credits and the calls a minute, shared out between polls, sweeps and
history. Does not: keeping to it, which a ledger does with these figures, nor the schedule of the
polls (`coingecko/planner.py`).
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from fractions import Fraction

from psycopg import Connection

from pulseguard_assets.coingecko.packing import pack_ids
from pulseguard_assets.coingecko.planner import (
    DAY_MINUTES,
    PollingPlan,
    plan_polling,
    sweep_calls,
)
from pulseguard_assets.collecting.allowance import Allowance
from pulseguard_assets.collecting.planning import polling_by_settings
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.warehouse.coins import coins_to_poll
from pulseguard_assets.warehouse.ledger import spent_this_month


def history_allowance(
    platform: Platform, connection: Connection, *, now: datetime, spend_reserve: bool = False
) -> Allowance:
    """What history may spend from `now` on without taking a call from a poll or a sweep.

    Args:
        now: the present.
        spend_reserve: the plan's reserve may be spent as well.

    Raises:
        PlanCannotPay: the configured cadence costs more than the plan gives.
    """
    polling = polling_of(platform, connection)
    spent = spent_this_month(connection, now)
    return allowance_after(polling, spent, now=now, spend_reserve=spend_reserve)


def allowance_after(
    polling: PollingPlan, spent: int, *, now: datetime, spend_reserve: bool = False
) -> Allowance:
    """What history may spend when `spent` calls were made this month, by anybody."""
    rate = history_rate(polling)
    credits = polling.plan.credits_per_month
    if credits is None or polling.credits_allowed is None:
        return Allowance(rate, None, None)
    ceiling = credits if spend_reserve else polling.credits_allowed
    free = max(0, ceiling - spent - calls_to_come(polling, now))
    return Allowance(rate, spent + free, free, _month_end(now))


def spent_by_figures(polling: PollingPlan, now: datetime) -> int:
    """Calls made this month if it was polled throughout, for want of a ledger."""
    return max(0, polling.calls_per_month - calls_to_come(polling, now))


def polling_of(platform: Platform, connection: Connection) -> PollingPlan:
    """The schedule of the polls, for the coins that the warehouse knows.

    Before the first sweep it is that of `polling_by_settings`.

    Raises:
        PlanCannotPay: the configured cadence costs more than the plan gives.
    """
    settings = platform.settings
    coins = coins_to_poll(connection, settings.coins_wanted, settings.always_include)
    if coins.is_empty():
        return polling_by_settings(settings)
    return plan_polling(
        platform.plan,
        coins.height,
        reserve_percent=settings.reserve_percent,
        calls_per_poll=len(pack_ids(coins["coin_id"].to_list())),
        cadence_minutes=settings.cadence_minutes,
    )


def history_rate(polling: PollingPlan) -> int:
    """Most calls in 60 seconds that let history have another, those of the polls included.

    One call more than a poll takes is left free, so that a poll finds its calls whenever it
    comes. A poll of more calls than a minute has is stretched over several, and leaves free what
    it does not need of the last. History gets at least one call in a minute without polls: 0 if
    there is no such minute, or if the plan has only one call, which a poll would have to wait for.
    """
    plan, poll = polling.plan, polling.calls_per_poll
    beside_a_poll = plan.calls_per_minute * (polling.stretch_minutes + 1) - poll
    lasting = plan.sustainable_calls_per_minute - Fraction(poll, polling.cadence_minutes)
    least = 1 if plan.calls_per_minute > 1 else 0
    rate = max(least, min(beside_a_poll - 1, int(lasting)))
    return rate if _left_by_polls(polling, rate) > 0 else 0


def history_pace(polling: PollingPlan) -> float:
    """Calls a minute that history makes over hours, what the polls take from it taken off."""
    return float(_left_by_polls(polling, history_rate(polling)))


def _left_by_polls(polling: PollingPlan, rate: int) -> Fraction:
    # For 60 seconds after a poll, history finds its rate used up by as much as the poll took.
    taken = min(polling.calls_per_poll, rate * (polling.stretch_minutes + 1))
    return rate - Fraction(taken, polling.cadence_minutes)


def calls_to_come(polling: PollingPlan, now: datetime) -> int:
    """Calls of polls and sweeps from `now` to the end of its UTC month, at most.

    The poll of this minute and the sweep of today are counted in, since they may be under way,
    and so is one poll that began before.
    """
    end = _month_end(now)
    minute = now.astimezone(timezone.utc).replace(second=0, microsecond=0)
    minutes = (end - minute) // timedelta(minutes=1)
    polls = -(-minutes // polling.cadence_minutes) + 1
    sweeps = -(-minutes // DAY_MINUTES)
    return polls * polling.calls_per_poll + sweeps * sweep_calls(polling.coins)


def _month_end(now: datetime) -> datetime:
    first = now.astimezone(timezone.utc).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=31)).replace(day=1)
