"""The assets `hourly_close`, `daily_close`, `weekly_close` and `monthly_close`, by one factory.

Belongs here: the assets and what a rollup reports. Does not: how closes are merged (`sql/`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from datetime import date

import dagster as dg

from pulseguard_assets.assets.minute_close import GROUP
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.assets.tables import (
    KINDS,
    OWNERS,
    close_columns,
    table_metadata,
    with_query,
)
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import TIMEFRAMES, Timeframe
from pulseguard_assets.warehouse.closes import count_rows, roll_up, window

_SHOWN = {"hourly": "48 hours", "daily": "14 days", "weekly": "1 year", "monthly": "5 years"}


def rollup_assets(start: date) -> list[dg.AssetsDefinition]:
    """The four rollups, partitioned from `start` on, each fed by the timeframe below it."""
    return [_rollup(timeframe, start) for timeframe in TIMEFRAMES if timeframe.child is not None]


def _rollup(timeframe: Timeframe, start: date) -> dg.AssetsDefinition:
    child = next(each for each in TIMEFRAMES if each.name == timeframe.child)
    partitions = partitions_of(timeframe, start)

    @dg.asset(
        key=dg.AssetKey(timeframe.table),
        partitions_def=partitions,
        deps=[dg.AssetKey(child.table)],
        group_name=GROUP,
        kinds=KINDS,
        owners=OWNERS,
        metadata=table_metadata(timeframe.table, close_columns(timeframe)),
        description=with_query(
            f"The last {child.name} close of every coin, per UTC bucket, from {child.table}. "
            "Materializing a partition merges what is stored of it; again writes nothing.",
            f"SELECT coin_id, {timeframe.label}, price_usd, close_ts, bit_count(seen::bit(64)) AS "
            f"children_seen\nFROM {timeframe.table}\nWHERE coin_id = 'bitcoin' AND "
            f"{timeframe.label} > now() - interval '{_SHOWN[timeframe.name]}'\n"
            f"ORDER BY {timeframe.label} DESC;",
        ),
    )
    def rollup(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        bucket = context.partition_time_window
        with platform.connect() as connection:
            written = roll_up(connection, timeframe, bucket.start, bucket.end)
            held = window(connection, timeframe, bucket.start, bucket.end)
            children = window(connection, child, bucket.start, bucket.end)
            total = count_rows(connection, timeframe)
        if held.rows == 0:
            raise dg.Failure(_nothing_stored(timeframe, child, context.partition_key))
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": total,
                "dagster/partition_row_count": held.rows,
                "rows_written": written,
                "coins": held.coins,
                f"{child.name}_rows_stored": children.rows,
            }
        )

    return rollup


def _nothing_stored(timeframe: Timeframe, child: Timeframe, key: str) -> str:
    return (
        f"Nothing is stored of {key}: neither a row of {timeframe.table} nor one of {child.table} "
        "to merge. The platform was not collecting then."
    )
