"""How often the provider can be polled on a plan, and what that costs in a month.

Belongs here: arithmetic, exact and without a clock. Does not: counting the calls really made,
which a ledger does, nor the figures of the plans (`plans.py`).

A schedule is paid for when, in the longest month there is (31 days), all its polls and one daily
sweep of `/coins/markets` stay within the credits less the reserve; and when the calls a minute,
less the same reserve, suffice for a whole day's polls and its sweep within that day.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from pulseguard_assets.coingecko.packing import MAX_IDS
from pulseguard_assets.coingecko.plans import Plan

DAY_MINUTES = 1440
MONTH_DAYS = 31
# Beyond one poll a day there is no minute table left to speak of.
LONGEST_CADENCE = DAY_MINUTES
COINS_PER_PAGE = 250

_HEADING: tuple[str, ...] = (
    "plan",
    "coins",
    "calls/poll",
    "poll every",
    "calls/month",
    "allowed",
    "used",
    "stretch",
)


class PlanCannotPay(ValueError):  # noqa: N818 - read as a sentence where it is caught
    """The plan cannot pay for the schedule. The message names the setting to change.

    Attributes:
        setting: the environment variable to change.
        nearest: the shortest cadence, in minutes, that it can pay for; None if there is none.
    """

    def __init__(self, message: str, setting: str, nearest: int | None) -> None:
        super().__init__(message, setting, nearest)
        self.setting = setting
        self.nearest = nearest

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class PollingPlan:
    """A schedule that the plan pays for.

    Attributes:
        plan: on which plan.
        coins: coins polled.
        calls_per_poll: calls that one poll of all coins takes.
        cadence_minutes: whole minutes from poll to poll; see `is_due`.
        polls_per_month: polls in a month of 31 days, at most.
        sweep_calls_per_month: calls of the daily sweep in that month.
        calls_per_month: all calls in that month.
        credits_allowed: the plan's credits less the reserve; None if it has no such limit.
        share_used: `calls_per_month` by the plan's whole credits, 0 to 1; None likewise.
        stretch_minutes: by how many minutes the calls a minute stretch a poll beyond the
            minute it begins in.
    """

    plan: Plan
    coins: int
    calls_per_poll: int
    cadence_minutes: int
    polls_per_month: int
    sweep_calls_per_month: int
    calls_per_month: int
    credits_allowed: int | None
    share_used: float | None
    stretch_minutes: int


@dataclass(frozen=True)
class PlanningRow:
    """One line of the planning table: a schedule, or why there is none."""

    plan: Plan
    coins: int
    polling: PollingPlan | None
    refusal: str | None


def is_due(minute: datetime, cadence_minutes: int) -> bool:
    """Whether a poll falls on `minute` (aware): UNIX minutes that the cadence divides.

    Counted from the epoch, so that every process agrees and a restart shifts nothing.
    """
    if minute.tzinfo is None:
        raise ValueError("a minute without a zone is due at no particular time")
    return int(minute.timestamp() // 60) % cadence_minutes == 0


def calls_for(coins: int) -> int:
    """Calls of one poll of `coins` coins, as far as their number alone tells."""
    return -(-coins // MAX_IDS)


def sweep_calls(coins: int) -> int:
    """Calls of one sweep of `/coins/markets`: its pages and one more, which finds the end."""
    return -(-coins // COINS_PER_PAGE) + 1


def plan_polling(
    plan: Plan,
    coins: int,
    *,
    reserve_percent: Decimal,
    calls_per_poll: int | None = None,
    cadence_minutes: int | None = None,
) -> PollingPlan:
    """The schedule for `coins` coins: the given cadence, or the shortest that is paid for.

    Args:
        plan: with its figures as in force.
        coins: how many coins are polled, at least 1.
        reserve_percent: share of credits and of calls a minute to leave alone, 0 to 90.
        calls_per_poll: as really packed; None takes `calls_for(coins)`.
        cadence_minutes: a cadence somebody configured; None for the shortest possible.

    Raises:
        PlanCannotPay: the given cadence is too short, or no cadence up to a day is paid for.
        ValueError: coins, calls or cadence below 1, or a reserve outside 0 to 90.
    """
    calls = calls_for(coins) if calls_per_poll is None else calls_per_poll
    _check(coins, calls, reserve_percent, cadence_minutes)
    budget = _Budget(plan, coins, calls, reserve_percent)
    nearest = budget.shortest_cadence()
    if nearest is None:
        raise _no_cadence_at_all(budget)
    if cadence_minutes is not None and cadence_minutes < nearest:
        raise _cadence_too_short(budget, cadence_minutes, nearest)
    return budget.schedule(nearest if cadence_minutes is None else cadence_minutes)


def planning_table(
    plans: Iterable[Plan], coins: Iterable[int], *, reserve_percent: Decimal
) -> list[PlanningRow]:
    """The shortest schedule of every plan for every number of coins, in the order given."""
    numbers = list(coins)
    rows = []
    for plan in plans:
        for number in numbers:
            try:
                polling = plan_polling(plan, number, reserve_percent=reserve_percent)
                rows.append(PlanningRow(plan, number, polling, None))
            except PlanCannotPay as refusal:
                rows.append(PlanningRow(plan, number, None, str(refusal)))
    return rows


def render_table(rows: Iterable[PlanningRow]) -> str:
    """The planning table as text: a heading, a rule, a line for each row, numbers flush right."""
    lines = [_HEADING, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def credits_allowed(plan: Plan, reserve_percent: Decimal) -> int | None:
    """What may be spent of a plan's credits in a month; None if it has no limit."""
    if plan.credits_per_month is None:
        return None
    return int(plan.credits_per_month * (1 - Fraction(reserve_percent) / 100))


@dataclass(frozen=True)
class _Budget:
    """What polling costs on a plan, cadence by cadence."""

    plan: Plan
    coins: int
    calls_per_poll: int
    reserve_percent: Decimal

    @property
    def kept(self) -> Fraction:
        """The share that is not reserved."""
        return 1 - Fraction(self.reserve_percent) / 100

    @property
    def credits_allowed(self) -> int | None:
        return credits_allowed(self.plan, self.reserve_percent)

    def polls(self, minutes: int, cadence: int) -> int:
        """Most due minutes in any span of `minutes`, wherever on the grid it begins."""
        return -(-minutes // cadence)

    def calls_per_month(self, cadence: int) -> int:
        polls = self.polls(MONTH_DAYS * DAY_MINUTES, cadence)
        return polls * self.calls_per_poll + MONTH_DAYS * sweep_calls(self.coins)

    def pays_for(self, cadence: int) -> bool:
        allowed = self.credits_allowed
        if allowed is not None and self.calls_per_month(cadence) > allowed:
            return False
        rate = self.plan.sustainable_calls_per_minute * self.kept
        day = self.polls(DAY_MINUTES, cadence) * self.calls_per_poll + sweep_calls(self.coins)
        # It follows that each poll ends before the next is due.
        return day <= rate * DAY_MINUTES

    def shortest_cadence(self) -> int | None:
        # What one cadence can afford every longer one can, so the first is the boundary.
        return next((c for c in range(1, LONGEST_CADENCE + 1) if self.pays_for(c)), None)

    def schedule(self, cadence: int) -> PollingPlan:
        calls = self.calls_per_month(cadence)
        credits = self.plan.credits_per_month
        return PollingPlan(
            plan=self.plan,
            coins=self.coins,
            calls_per_poll=self.calls_per_poll,
            cadence_minutes=cadence,
            polls_per_month=self.polls(MONTH_DAYS * DAY_MINUTES, cadence),
            sweep_calls_per_month=MONTH_DAYS * sweep_calls(self.coins),
            calls_per_month=calls,
            credits_allowed=self.credits_allowed,
            share_used=None if credits is None else calls / credits,
            stretch_minutes=-(-self.calls_per_poll // self.plan.calls_per_minute) - 1,
        )


def _check(coins: int, calls: int, reserve: Decimal, cadence: int | None) -> None:
    if coins < 1 or calls < 1:
        raise ValueError(f"there is nothing to plan for {coins} coins in {calls} calls")
    if not 0 <= reserve <= 90:
        raise ValueError(f"PULSEGUARD_RESERVE_PERCENT is {reserve}; set it from 0 to 90.")
    if cadence is not None and not 1 <= cadence <= LONGEST_CADENCE:
        raise ValueError(
            f"PULSEGUARD_CADENCE_MINUTES is {cadence}; set it from 1 to {LONGEST_CADENCE}."
        )


def _cadence_too_short(budget: _Budget, given: int, nearest: int) -> PlanCannotPay:
    needed, allowed = budget.calls_per_month(given), budget.credits_allowed
    if allowed is not None and needed > allowed:
        why = f"{needed:,} calls a month where {allowed:,} credits are left after the reserve"
    else:
        why = (
            f"{budget.calls_per_poll} calls every {_minutes(given)} where "
            f"{budget.plan.sustainable_calls_per_minute} a minute can be sustained, less the "
            "reserve"
        )
    return PlanCannotPay(
        f"PULSEGUARD_CADENCE_MINUTES={given} is more than the plan {budget.plan.name!r} can pay "
        f"for with {budget.coins:,} coins: {why}. The nearest it can pay for is "
        f"PULSEGUARD_CADENCE_MINUTES={nearest}; or leave it out.",
        "PULSEGUARD_CADENCE_MINUTES",
        nearest,
    )


def _no_cadence_at_all(budget: _Budget) -> PlanCannotPay:
    return PlanCannotPay(
        f"The plan {budget.plan.name!r} cannot pay for even one poll a day of {budget.coins:,} "
        "coins and the daily sweep. Set fewer coins with PULSEGUARD_MODE, a larger plan with "
        "PULSEGUARD_PLAN, or correct PULSEGUARD_CREDITS_PER_MONTH and "
        "PULSEGUARD_CALLS_PER_MINUTE.",
        "PULSEGUARD_MODE",
        None,
    )


def _cells(row: PlanningRow) -> tuple[str, ...]:
    polling = row.polling
    if polling is None:
        return (row.plan.name, f"{row.coins:,}", "-", "cannot pay", "-", "-", "-", "-")
    allowed, share = polling.credits_allowed, polling.share_used
    return (
        row.plan.name,
        f"{row.coins:,}",
        str(polling.calls_per_poll),
        _minutes(polling.cadence_minutes),
        f"{polling.calls_per_month:,}",
        "no limit" if allowed is None else f"{allowed:,}",
        "-" if share is None else f"{share:.1%}",
        _minutes(polling.stretch_minutes) if polling.stretch_minutes else "-",
    )


def _minutes(number: int) -> str:
    return f"{number} min"
