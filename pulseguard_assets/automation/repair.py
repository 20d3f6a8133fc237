"""The sensor that has missing closes taken from the provider's history.

Belongs here: which closes to ask for next, how many calls for it, and when not to ask. Does not:
finding what is lacking (`warehouse/history.py`), nor fetching it (`collecting/history.py`).

After downtime nobody has to act. The tables themselves tell which closed hours and days lack their
close, for which coins. Hours come first, because their better grade, five-minute points, is offered
for a day only. One bounded run at a time: live polling shares the calls of a minute with it, and a
crash loses little. What was recorded as not to be had is no longer lacking, so repairs end.

To look at all days takes seconds where all coins are collected. So when none of them lacks a
close, they are looked at once an hour only; the cursor is the hour of the last such look.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg
from psycopg import Connection

from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.automation.windows import (
    UNDER_WAY,
    key_of,
    request_for,
    window_at,
    windows_between,
)
from pulseguard_assets.coingecko.backfill import first_within_reach, ready_at
from pulseguard_assets.collecting.allowance import Allowance
from pulseguard_assets.collecting.budget import history_allowance
from pulseguard_assets.collecting.errors import plainly_said
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.sweep import KIND as SWEEP
from pulseguard_assets.timeframes import DAILY, HOURLY, Timeframe
from pulseguard_assets.warehouse.collections import CLOCKS_DIFFER, SILENT_FOR, recent_collections
from pulseguard_assets.warehouse.history import forget_unrecoverable_ahead, lacking
from pulseguard_assets.warehouse.statements import one_row

SENSOR = "close_repair_sensor"
INTERVAL_SECONDS = 300

# Tags of the runs it asks for: the timeframe, how many closes were lacking, and when it asked.
REPAIR_TAG = "pulseguard/repair"
LACKING_TAG = "pulseguard/lacking"
ASKED_TAG = "pulseguard/asked_at"

# Five-minute points are offered for 24 hours, hourly ones for 90 days.
_BACK = {HOURLY: timedelta(hours=24), DAILY: timedelta(days=89)}
_RUN_MINUTES = 10

# From one attempt in vain to the next: 10, 20, 40, then 60 minutes.
_PAUSE = timedelta(minutes=10)
_LONGEST_PAUSE = timedelta(hours=1)
# From one failed first sweep to the next: 5, 10, 20 ... minutes. It can cost 70 calls.
_SWEEP_PAUSE = timedelta(minutes=5)
_LONGEST_SWEEP_PAUSE = timedelta(hours=6)
_ATTEMPTS_READ = 10

_IN_VAIN = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class _Gap:
    """Closes of one timeframe that are lacking and can be asked for.

    Attributes:
        span: from the oldest bucket that lacks its close to the newest, both included.
        coins: how many coins lack any.
        closes: how many are lacking.
    """

    timeframe: Timeframe
    span: dg.TimeWindow
    coins: int
    closes: int

    def __str__(self) -> str:
        coins = "1 coin lacks" if self.coins == 1 else f"{self.coins} coins lack"
        return (
            f"{coins} closes in {self.timeframe.table} between {self.span.start:%Y-%m-%d %H:%M} "
            f"and {self.span.end:%Y-%m-%d %H:%M} UTC"
        )


@dataclass(frozen=True)
class _Asking:
    """What a tick knows when it decides."""

    instance: dg.DagsterInstance
    platform: Platform
    now: datetime


def repair_sensor() -> dg.SensorDefinition:
    """The sensor, over `hourly_close` and `daily_close`."""

    @dg.sensor(
        name=SENSOR,
        # Not `target`: that would be one job, whose assets must share their partitions.
        asset_selection=dg.AssetSelection.assets(key_of(HOURLY), key_of(DAILY)),
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Finds closed hours of the last 24 hours, and closed days of the last 89, that lack "
            "their close for a coin, and has them taken from the provider's history: one run of "
            "about ten minutes at a time, within the month's free credits."
        ),
    )
    def close_repair_sensor(
        context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]
    ) -> dg.RunRequest | dg.SkipReason:
        asking = _Asking(context.instance, platform, platform.clock())
        if _under_way(context.instance):
            return dg.SkipReason("A repair is under way; the next is decided on when it has ended.")
        this_hour = f"{asking.now:%Y-%m-%dT%H}"
        looked_at = [HOURLY] if context.cursor == this_hour else [HOURLY, DAILY]
        with plainly_said(), platform.connect() as connection:
            gaps = _gaps(connection, platform, looked_at, asking.now)
            if DAILY in looked_at and all(gap.timeframe is not DAILY for gap in gaps):
                context.update_cursor(this_hour)
            if not gaps:
                return dg.SkipReason("No closed hour or day lacks a close that can be had by now.")
            allowance = history_allowance(platform, connection, now=asking.now)
        return _repair(asking, gaps, allowance)

    return close_repair_sensor


def first_sweep_lacking(connection: Connection, *, now: datetime) -> bool:
    """Whether coins are known, but the market list was never read to its end.

    A first sweep that failed midway leaves some coins to poll, so nothing else asks for the rest
    of them before midnight. False while a sweep is at work, and for a time after one that failed:
    5, 10, 20 ... minutes, at most 6 hours.
    """
    (lacking_at_rest,) = one_row(
        connection,
        "SELECT EXISTS (SELECT FROM coin_priorities) AND NOT EXISTS ("
        "SELECT FROM collection_status WHERE collection_type = %s "
        "AND (status = 'completed' OR (status = 'running' AND heartbeat_at > %s "
        "AND heartbeat_at <= %s)))",
        (SWEEP, now - SILENT_FOR, now + SILENT_FOR),
    )
    if not lacking_at_rest:
        return False
    sweeps = recent_collections(connection, (SWEEP,), _ATTEMPTS_READ)
    if not sweeps or sweeps[0].lies_ahead(now):
        return True
    ended = sweeps[0].ended_at or sweeps[0].started_at
    return ended + _doubled(_SWEEP_PAUSE, len(sweeps), _LONGEST_SWEEP_PAUSE) <= now


# --- what is lacking ---


def _gaps(
    connection: Connection, platform: Platform, looked_at: list[Timeframe], now: datetime
) -> list[_Gap]:
    """What to ask for, first what the provider's better grade will sooner be gone for."""
    first_seen = one_row(connection, "SELECT min(created_at) FROM coin_priorities")[0]
    if first_seen is None:
        return []
    forget_unrecoverable_ahead(connection, now=now)
    gaps = [_gap(connection, platform, each, first_seen, now) for each in looked_at]
    return [gap for gap in gaps if gap is not None]


def _gap(
    connection: Connection,
    platform: Platform,
    timeframe: Timeframe,
    first_seen: datetime,
    now: datetime,
) -> _Gap | None:
    known = window_at(timeframe, first_seen).start
    begin = partitions_of(timeframe, platform.settings.history_start).start
    oldest = max(now - _BACK[timeframe], known, begin)
    reachable = first_within_reach(timeframe, oldest, now=now, plan=platform.plan)
    ready = [
        window
        for window in windows_between(timeframe, reachable, now)
        if ready_at(timeframe, window.end) <= now
    ]
    if not ready:
        return None
    found = lacking(connection, timeframe, ready[0].start, ready[-1].end, now=now, known_only=True)
    if not found:
        return None
    newest = window_at(timeframe, max(each.last for each in found))
    return _Gap(
        timeframe,
        dg.TimeWindow(min(each.first for each in found), newest.end),
        coins=len(found),
        closes=sum(each.buckets for each in found),
    )


# --- whether to ask, and for how much ---


def _repair(
    asking: _Asking, gaps: list[_Gap], allowance: Allowance
) -> dg.RunRequest | dg.SkipReason:
    calls = _RUN_MINUTES * allowance.calls_per_minute
    if allowance.credits_free is not None:
        calls = min(calls, allowance.credits_free)
    if calls < 1:
        return dg.SkipReason(_unaffordable(gaps, allowance))
    paused = []
    for gap in gaps:
        vain, until = _pause(asking, gap)
        if until <= asking.now:
            return _request(asking, gap, calls)
        paused.append(f"{gap}; attempts in vain: {vain}, the next is due at {until:%H:%M:%S} UTC.")
    return dg.SkipReason(" ".join(paused))


def _unaffordable(gaps: list[_Gap], allowance: Allowance) -> str:
    waiting = "; ".join(map(str, gaps))
    if allowance.calls_per_minute < 1:
        return (
            f"{waiting}. They wait: polls need every call a minute of the plan. A larger plan "
            "(PULSEGUARD_PLAN) allows it."
        )
    return (
        f"{waiting}. They wait: of this month's credits, polls and sweeps to come need all that "
        "the reserve leaves. A larger plan (PULSEGUARD_PLAN), fewer coins (PULSEGUARD_MODE), rarer "
        "polls (PULSEGUARD_CADENCE_MINUTES) or a smaller reserve (PULSEGUARD_RESERVE_PERCENT) "
        "allows it; so does materializing them by hand with `spend_reserve`."
    )


def _request(asking: _Asking, gap: _Gap, calls: int) -> dg.RunRequest:
    return request_for(
        gap.timeframe,
        partitions_of(gap.timeframe, asking.platform.settings.history_start),
        gap.span,
        max_calls=calls,
        known_only=True,
        asked_at=f"{asking.now:%Y-%m-%dT%H:%M}",
        tags={
            REPAIR_TAG: gap.timeframe.name,
            LACKING_TAG: str(gap.closes),
            ASKED_TAG: asking.now.isoformat(),
        },
    )


def _under_way(instance: dg.DagsterInstance) -> bool:
    repairs = {REPAIR_TAG: [timeframe.name for timeframe in _BACK]}
    return bool(instance.get_runs(dg.RunsFilter(tags=repairs, statuses=list(UNDER_WAY)), limit=1))


def _pause(asking: _Asking, gap: _Gap) -> tuple[int, datetime]:
    """How many of the last repairs were in vain, one after the other, and when to try again.

    In vain is one that failed, and one after which as much was lacking as before: a close that can
    neither be had nor be recorded as lost must not be paid for every five minutes.
    """
    runs = asking.instance.get_runs(
        dg.RunsFilter(tags={REPAIR_TAG: gap.timeframe.name}), limit=_ATTEMPTS_READ
    )
    vain, after = 0, gap.closes
    for run in runs:
        before = int(run.tags[LACKING_TAG])
        if run.status not in _IN_VAIN and after < before:
            break
        vain, after = vain + 1, before
    if not vain:
        return 0, asking.now
    asked = datetime.fromisoformat(runs[0].tags[ASKED_TAG])
    if asked > asking.now + CLOCKS_DIFFER:
        # The clock was set back since; the pause would last until that time has come.
        return 0, asking.now
    return vain, asked + _doubled(_PAUSE, vain, _LONGEST_PAUSE)


def _doubled(pause: timedelta, attempts: int, longest: timedelta) -> timedelta:
    """The pause after so many attempts in vain: twice as long after each."""
    return min(pause * (1 << attempts - 1), longest)
