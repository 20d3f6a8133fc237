"""The five timeframes as one table. Everything that treats them alike loops over `TIMEFRAMES`.

Belongs here: what a timeframe *is* (its table, label column, parent, seed retention).
Does not: how a close is stored or rolled up. Those rules live in `sql/`, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


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
