"""The five timeframes as one table. Everything that treats them alike loops over `TIMEFRAMES`.

Belongs here: what a timeframe *is* (its table, label column, parent, seed retention).
Does not: how a close is stored or rolled up. Those rules live in `sql/`, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone


@dataclass(frozen=True)
class Timeframe:
    """One width of bucket.

    Attributes:
        name: `minute`, `hourly`, `daily`, `weekly` or `monthly`.
        table: the table of its closes, `<name>_close`; also the name of the Dagster asset.
        label: the column holding the START of the bucket, UTC.
        child: the timeframe it is rolled up from; None for minutes, which are observed.
        keep: how long the seed keeps its rows; None means forever.
    """

    name: str
    label: str
    child: str | None
    keep: timedelta | None

    @property
    def table(self) -> str:
        """The name of the table, and of the asset, that holds its closes."""
        return f"{self.name}_close"


MINUTE = Timeframe("minute", "minute_ts", None, timedelta(minutes=60))
HOURLY = Timeframe("hourly", "hour_ts", "minute", timedelta(hours=24))
DAILY = Timeframe("daily", "day_ts", "hourly", timedelta(days=7))
WEEKLY = Timeframe("weekly", "week_ts", "daily", timedelta(weeks=52))
# From days, not weeks: a week can lie in two months.
MONTHLY = Timeframe("monthly", "month_ts", "daily", None)

TIMEFRAMES = (MINUTE, HOURLY, DAILY, WEEKLY, MONTHLY)


def timeframe_named(name: str) -> Timeframe:
    """The timeframe of a name such as `daily`.

    Raises:
        KeyError: there is none.
    """
    return {timeframe.name: timeframe for timeframe in TIMEFRAMES}[name]


def bucket_start(timeframe: Timeframe, instant: datetime) -> datetime:
    """The label of the bucket that holds an instant (aware), in UTC.

    The same rule stands in `sql/` as bucket_start(); a test holds the two together.
    """
    minute = instant.astimezone(timezone.utc).replace(second=0, microsecond=0)
    if timeframe is MINUTE:
        return minute
    hour = minute.replace(minute=0)
    if timeframe is HOURLY:
        return hour
    day = hour.replace(hour=0)
    if timeframe is DAILY:
        return day
    if timeframe is WEEKLY:
        return day - timedelta(days=day.weekday())
    return day.replace(day=1)


def bucket_end(timeframe: Timeframe, instant: datetime) -> datetime:
    """The first instant after the bucket that holds an instant, which is the next label."""
    longest = {"minute": 1, "hourly": 60, "daily": 1440, "weekly": 7 * 1440, "monthly": 31 * 1440}
    label = bucket_start(timeframe, instant)
    # A shorter month's next label, too, lies less than a month after 31 days.
    return bucket_start(timeframe, label + timedelta(minutes=longest[timeframe.name]))
