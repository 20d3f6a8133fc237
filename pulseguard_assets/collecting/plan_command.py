"""`pulseguard plan backfill`: what taking closes of the past from history would cost.

Belongs here: what somebody typed, and what is printed. Does not: the arithmetic
(`coingecko/backfill.py`, `collecting/budget.py`), or spending anything.
"""

from __future__ import annotations

import math
import re
import textwrap
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches

import click
import psycopg

from pulseguard_assets.coingecko.backfill import (
    FIVE_MINUTE,
    BackfillPlan,
    grade_in_words,
    out_of_reach_in_words,
    plan_backfill,
    window_name,
    windows_in_words,
)
from pulseguard_assets.coingecko.planner import PollingPlan
from pulseguard_assets.coingecko.plans import PLANS, plan_for
from pulseguard_assets.collecting.budget import (
    allowance_after,
    history_pace,
    polling_of,
    spent_by_figures,
)
from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.planning import polling_by_settings
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.settings import load_settings
from pulseguard_assets.timeframes import (
    MINUTE,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
    bucket_end,
    bucket_start,
    timeframe_named,
)
from pulseguard_assets.warehouse.connection import DatabaseUnavailable
from pulseguard_assets.warehouse.ledger import spent_this_month

# No coin had a price before its first year.
_FIRST_YEAR = 2009
_LABEL_WIDTH, _LINE_WIDTH = 15, 100

_MINUTES_LOST = (
    "every minute: history has one sample in five. What is stored of them stays as it is."
)


class NotUnderstood(CollectingError):  # noqa: N818 - reads as what it says
    """What was typed makes no backfill; the message says what to write instead."""


@dataclass(frozen=True)
class _Basis:
    """What is known of the budget: the polls, the calls of this month, and from where."""

    polling: PollingPlan
    spent: int
    no_ledger: str | None


@click.command("backfill")
@click.argument("timeframe")
@click.argument("start", metavar="FROM")
@click.argument("end", metavar="TO")
@click.option("--coins", type=click.IntRange(min=1), help="How many coins; else those polled.")
@click.option("--plan", "plan_name", type=click.Choice(list(PLANS)), help="Another plan.")
def backfill(
    timeframe: str, start: str, end: str, coins: int | None, plan_name: str | None
) -> None:
    """What taking the closes from FROM up to TO from the provider's history would cost.

    TIMEFRAME is minute, hourly, daily, weekly or monthly. FROM and TO are dates in UTC, or
    instants such as 2026-01-01T10:00; TO is not included. Nothing is asked for, and nothing
    spent. The run itself is started in the web interface.
    """
    wanted = _timeframe(timeframe)
    with closing(Platform(load_settings())) as platform:
        now = platform.clock()
        first, last = _range(wanted, start, end, now)
        basis = _basis(platform, plan_name, now)
    polling = basis.polling
    allowance = allowance_after(polling, basis.spent, now=now)
    with_reserve = allowance_after(polling, basis.spent, now=now, spend_reserve=True)
    free, more = allowance.credits_free, with_reserve.credits_free
    planned = plan_backfill(
        polling.plan,
        wanted,
        first,
        last,
        polling.coins if coins is None else coins,
        now=now,
        calls_per_minute=history_pace(polling),
        credits_free=free,
        credits_reserved=None if free is None or more is None else more - free,
    )
    for line in _lines(planned, basis, now):
        click.echo(line)


# --- what was typed ---


def _timeframe(name: str) -> Timeframe:
    names = [timeframe.name for timeframe in TIMEFRAMES]
    if name.lower() in names:
        return timeframe_named(name.lower())
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise NotUnderstood(f"{name!r} is no timeframe; write one of {', '.join(names)}.{hint}")


def _range(timeframe: Timeframe, start: str, end: str, now: datetime) -> tuple[datetime, datetime]:
    first, last = _instant("FROM", start), _instant("TO", end)
    if first >= last:
        raise NotUnderstood(
            f"TO ({last:%Y-%m-%d %H:%M}) does not lie behind FROM ({first:%Y-%m-%d %H:%M}). TO is "
            "not included: for a single day write the next one as TO."
        )
    if first >= now:
        raise NotUnderstood(
            f"FROM ({first:%Y-%m-%d %H:%M}) lies in the future, which has no history. Write a time "
            f"before {now:%Y-%m-%d %H:%M}, in UTC."
        )
    begin, over = bucket_start(timeframe, first), bucket_end(timeframe, first)
    whole = over if begin < first else begin
    if bucket_end(timeframe, whole) > last:
        monday = " Weeks begin on Mondays." if timeframe is WEEKLY else ""
        raise NotUnderstood(
            f"No whole {window_name(timeframe)} lies between FROM and TO.{monday} Write "
            f"for example {begin:%Y-%m-%dT%H:%M} {over:%Y-%m-%dT%H:%M}."
        )
    return first, last


def _instant(name: str, text: str) -> datetime:
    written = re.fullmatch(r"([0-9-]{10})(?:[T ]([0-9]{2}:[0-9]{2}))?Z?", text.strip())
    day, time = written.groups() if written else ("", None)
    try:
        instant = datetime.fromisoformat(f"{day}T{time or '00:00'}")
    except ValueError:
        raise NotUnderstood(
            f"{name} {text[:40]!r} is no time; write a date such as 2026-01-01, or an instant such "
            "as 2026-01-01T10:00, in UTC."
        ) from None
    # Weeks and months around the ends of the calendar cannot be computed.
    if not _FIRST_YEAR <= instant.year < 9999:
        raise NotUnderstood(
            f"{name} {text[:40]!r} is no time that has prices; write one from {_FIRST_YEAR} on."
        )
    return instant.replace(tzinfo=timezone.utc)


# --- what is known ---


def _basis(platform: Platform, plan_name: str | None, now: datetime) -> _Basis:
    settings = platform.settings
    if plan_name is not None and plan_name != settings.plan:
        polling = polling_by_settings(settings, plan_for(plan_name))
        why = f"the calls counted here are those of the plan {settings.plan!r}"
        return _Basis(polling, spent_by_figures(polling, now), why)
    try:
        with platform.connect() as connection:
            spent = spent_this_month(connection, now)
            return _Basis(polling_of(platform, connection), spent, None)
    except (DatabaseUnavailable, psycopg.errors.UndefinedTable) as error:
        polling = polling_by_settings(settings)
        why = (
            "no database is at hand (`pulseguard up` brings one)"
            if isinstance(error, DatabaseUnavailable)
            else "the database has no tables yet (`pulseguard migrate` makes them)"
        )
        return _Basis(polling, spent_by_figures(polling, now), why)


# --- what is printed ---


def _lines(plan: BackfillPlan, basis: _Basis, now: datetime) -> list[str]:
    rows = [
        ("windows", _windows(plan)),
        ("coins", f"{plan.coins:,}"),
        ("calls", _calls(plan, basis.polling)),
        ("free now", _free(plan, basis)),
        ("time", _time(plan)),
        ("grade", _grade(plan)),
        ("out of reach", _out_of_reach(plan, basis.polling, now)),
        ("not to be had", _MINUTES_LOST if plan.timeframe is MINUTE else ""),
    ]
    return [*(_row(label, text) for label, text in rows if text), "", _verdict(plan)]


def _row(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        _LINE_WIDTH,
        initial_indent=f"{label:<{_LABEL_WIDTH}}",
        subsequent_indent=" " * _LABEL_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(plan: BackfillPlan) -> str:
    if plan.refusal is None:
        return "A run would take all that can be had."
    if not plan.requests:
        return f"A run would be refused. {plan.refusal}"
    return f"A run would be refused the rest when its budget is spent: {plan.refusal}"


def _windows(plan: BackfillPlan) -> str:
    number = windows_in_words(plan.timeframe, plan.buckets)
    if not plan.buckets:
        return "none that can be had"
    text = f"{number} from {plan.start:%Y-%m-%d %H:%M} to {plan.end:%Y-%m-%d %H:%M} UTC"
    if plan.not_ready:
        which = "the last" if plan.not_ready == 1 else f"the last {plan.not_ready}"
        text += f"; {which} of them ended too recently to be in the provider's answers yet"
    return text


def _calls(plan: BackfillPlan, polling: PollingPlan) -> str:
    if not plan.calls:
        return "none"
    text = f"{plan.calls:,} at most, {len(plan.requests)} for each coin"
    if plan.share_of_credits is None:
        return f"{text}; the plan {polling.plan.name!r} has no monthly credits"
    share = f"{plan.share_of_credits:.1%}" if plan.share_of_credits >= 0.001 else "less than 0.1%"
    return f"{text}; {share} of the month's {polling.plan.credits_per_month:,} credits"


def _free(plan: BackfillPlan, basis: _Basis) -> str:
    if plan.credits_free is None:
        return "no limit but the rate"
    left_aside = "the polls to come and the reserve left aside"
    if basis.no_ledger is None:
        return f"{plan.credits_free:,} credits, {left_aside}; {basis.spent:,} are spent this month"
    return f"{plan.credits_free:,} credits, {left_aside}, by the plan's figures: {basis.no_ledger}"


def _time(plan: BackfillPlan) -> str:
    if not plan.calls:
        return ""
    if math.isinf(plan.minutes):
        return "never: the polls leave no call"
    pace = f"at {plan.calls_per_minute:.1f} calls a minute, beside the polls"
    if plan.minutes < 1:
        return f"less than a minute {pace}"
    if plan.minutes < 120:
        return f"{math.ceil(plan.minutes)} minutes {pace}"
    hours = plan.minutes / 60
    return f"{hours:.1f} hours {pace}" if hours < 48 else f"{hours / 24:.1f} days {pace}"


def _out_of_reach(plan: BackfillPlan, polling: PollingPlan, now: datetime) -> str:
    # When it is all of them, the verdict says so.
    if not plan.out_of_reach or not plan.requests:
        return ""
    number = windows_in_words(plan.timeframe, plan.out_of_reach)
    return f"{number}. {out_of_reach_in_words(plan.timeframe, now=now, plan=polling.plan)}"


def _grade(plan: BackfillPlan) -> str:
    if not plan.requests:
        return ""
    grade = plan.requests[0].grade
    if plan.timeframe is MINUTE and grade == FIVE_MINUTE:
        return "one point every five minutes, each a close of the minute it is stamped in"
    return grade_in_words(grade)
