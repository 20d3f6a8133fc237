"""The schedules that keep the rollups up to date.

Belongs here: when each timeframe is looked at, and how far back. Does not: which windows then need
a run (`windows.py`), nor merging (`sql/`).

Each tick looks for every closed window that still needs work, so a platform whose schedules were
down for six hours, or six days, is whole again after the next tick. A window that is still open
is refreshed, because the timeframe below it is kept only as long as one window lasts. Only the
open hour needs none: a trigger keeps it live.

A scheduled run asks the provider nothing. It carries up what is stored; closes that are missing
are for the repair sensor, which knows the budget and sends one run at a time.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from dataclasses import dataclass
from datetime import date, datetime, timedelta

import dagster as dg

from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.automation.windows import (
    key_of,
    request_for,
    spans_of,
    unfinished,
    window_at,
    windows_between,
)
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import DAILY, HOURLY, MONTHLY, WEEKLY, Timeframe


@dataclass(frozen=True)
class _Look:
    """When a timeframe is looked at.

    Attributes:
        cron: in UTC. Shortly after the hour, staggered, so that each finds the narrower one done.
        back: how long ago a closed window may have ended to be found.
        lookback: that in words.
        unit: what one window is called.
        refreshes: whether the open window is asked for as well.
    """

    timeframe: Timeframe
    cron: str
    back: timedelta
    lookback: str
    unit: str
    refreshes: bool = True


_LOOKS = (
    _Look(HOURLY, "2 * * * *", timedelta(hours=48), "48 hours", "hour", refreshes=False),
    _Look(DAILY, "5 * * * *", timedelta(days=14), "14 days", "day"),
    _Look(WEEKLY, "10 0 * * *", timedelta(weeks=8), "8 weeks", "week"),
    # However long the months are.
    _Look(MONTHLY, "15 0 * * *", timedelta(days=4 * 31), "4 months", "month"),
)


def rollup_schedules(start: date) -> list[dg.ScheduleDefinition]:
    """One schedule for each rollup, whose partitions begin at `start`."""
    return [_schedule(look, partitions_of(look.timeframe, start)) for look in _LOOKS]


def _schedule(look: _Look, partitions: dg.TimeWindowPartitionsDefinition) -> dg.ScheduleDefinition:
    timeframe = look.timeframe
    refreshed = f" and the open {look.unit}" if look.refreshes else ""

    @dg.schedule(
        name=f"{timeframe.table}_schedule",
        target=dg.AssetSelection.assets(key_of(timeframe)),
        cron_schedule=look.cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            f"Requests every closed {look.unit} of the last {look.lookback} that holds "
            f"something and was not materialized since it closed{refreshed}; windows that follow "
            "each other in one run. It asks the provider nothing."
        ),
    )
    def schedule(
        context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]
    ) -> list[dg.RunRequest] | dg.SkipReason:
        now = platform.clock()
        windows = _needed(context.instance, platform, look, partitions, now)
        if not windows:
            return dg.SkipReason(_nothing_to_do(look))
        return [
            request_for(
                timeframe,
                partitions,
                span,
                asked_at=f"{now:%Y-%m-%dT%H}",
                max_calls=0,
            )
            for span in spans_of(windows)
        ]

    return schedule


def _needed(
    instance: dg.DagsterInstance,
    platform: Platform,
    look: _Look,
    partitions: dg.TimeWindowPartitionsDefinition,
    now: datetime,
) -> list[dg.TimeWindow]:
    open_window = window_at(look.timeframe, now)
    oldest = window_at(look.timeframe, now - look.back)
    until = open_window.end if look.refreshes else open_window.start
    windows = windows_between(look.timeframe, oldest.start, until)
    with platform.connect() as connection:
        return unfinished(instance, connection, look.timeframe, partitions, windows, now=now)


def _nothing_to_do(look: _Look) -> str:
    return (
        f"Every {look.unit} of the last {look.lookback} of which anything is stored was "
        "materialized since it closed, or is being materialized."
    )
