"""Partition definitions: the time windows of the close tables, in UTC.

Belongs here: which windows exist. Does not: what lies in them.
"""

from __future__ import annotations

from datetime import date, datetime, time, timezone

import dagster as dg

from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, WEEKLY, Timeframe


def partitions_of(timeframe: Timeframe, start: date) -> dg.TimeWindowPartitionsDefinition:
    """The windows of a timeframe from `start` on, the open one included.

    Minutes are partitioned by hour: a year has half a million minutes, which no page can list.
    All definitions begin on the same day, so that a backfill across them is one range.
    """
    begin = datetime.combine(start, time(), timezone.utc)
    if timeframe in (MINUTE, HOURLY):
        return dg.HourlyPartitionsDefinition(start_date=begin, timezone="UTC", end_offset=1)
    if timeframe is DAILY:
        return dg.DailyPartitionsDefinition(start_date=begin, timezone="UTC", end_offset=1)
    if timeframe is WEEKLY:
        # ISO weeks begin on Monday; Dagster's begin on Sunday unless told so.
        return dg.WeeklyPartitionsDefinition(
            start_date=begin, timezone="UTC", day_offset=1, end_offset=1
        )
    if timeframe is MONTHLY:
        return dg.MonthlyPartitionsDefinition(start_date=begin, timezone="UTC", end_offset=1)
    raise ValueError(f"no partitions for {timeframe.name}")


def key_at(partitions: dg.TimeWindowPartitionsDefinition, instant: datetime) -> str:
    """The key of the window that holds an instant."""
    return partitions.get_partition_key_for_timestamp(instant.timestamp())
