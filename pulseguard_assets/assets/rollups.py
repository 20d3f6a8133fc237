"""The assets `hourly_close`, `daily_close`, `weekly_close` and `monthly_close`, by one factory.

Belongs here: the assets. Does not: how closes are merged (`sql/`), how a window is filled
(`collecting/history.py`), or when one needs it (`automation/`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

import warnings
from datetime import date

import dagster as dg

from pulseguard_assets.assets.closing import HistoryConfig, close_asset, fill
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.assets.provider import MARKET_CHART
from pulseguard_assets.assets.tables import with_query
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import TIMEFRAMES, Timeframe, timeframe_named

_SHOWN = {"hourly": "48 hours", "daily": "14 days", "weekly": "1 year", "monthly": "5 years"}
# A year of days is one call per coin; a week of hours is still five-minute or hourly grade.
_PARTITIONS_PER_RUN = {"hourly": 24 * 7, "daily": 400, "weekly": 60, "monthly": 36}


def rollup_assets(start: date) -> list[dg.AssetsDefinition]:
    """The four rollups, partitioned from `start` on, each fed by the timeframe below it."""
    return [_rollup(timeframe, start) for timeframe in TIMEFRAMES if timeframe.child is not None]


def _rollup(timeframe: Timeframe, start: date) -> dg.AssetsDefinition:
    child = timeframe_named(timeframe.child or "")

    @close_asset(
        timeframe,
        partitions_of(timeframe, start),
        deps=[dg.AssetDep(child.table, partition_mapping=_within()), MARKET_CHART],
        partitions_per_run=_PARTITIONS_PER_RUN[timeframe.name],
        description=with_query(
            f"The last {child.name} close of every coin, per UTC bucket, from {child.table}. "
            "Materializing a partition merges what is stored of it, and takes the closes that "
            "lack of a bucket that is over from the provider's history, by one call per coin for "
            "the whole range; again writes nothing and asks nothing.",
            f"SELECT coin_id, {timeframe.label}, price_usd, close_ts, bit_count(seen::bit(64)) AS "
            f"children_seen\nFROM {timeframe.table}\nWHERE coin_id = 'bitcoin' AND "
            f"{timeframe.label} > now() - interval '{_SHOWN[timeframe.name]}'\n"
            f"ORDER BY {timeframe.label} DESC;",
        ),
    )
    def rollup(
        context: dg.AssetExecutionContext,
        config: HistoryConfig,
        platform: dg.ResourceParam[Platform],
    ) -> dg.MaterializeResult[None]:
        with platform.connect() as connection:
            return fill(context, platform, connection, timeframe, config, now=platform.clock())

    return rollup


def _within() -> dg.TimeWindowPartitionMapping:
    """A window rests on the child windows within it, those to come included.

    By default Dagster refuses to backfill the open day, because the hours that are still to come
    have no partitions yet.
    """
    with warnings.catch_warnings():
        # Beta in 1.13.
        warnings.filterwarnings(
            "ignore",
            message="Parameter `allow_nonexistent_upstream_partitions`",
            category=dg.BetaWarning,
        )
        return dg.TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)
