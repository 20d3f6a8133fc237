"""The asset `minute_close`: live prices, partitioned by hour.

Belongs here: the asset, and the figures of a poll as metadata. Does not: polling (`collecting/`),
nor the sensor that does it every minute (`automation/`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from datetime import date, datetime, timedelta
from typing import Any

import dagster as dg

from pulseguard_assets.assets.coin_priorities import KEY as COIN_PRIORITIES
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.assets.provider import SIMPLE_PRICE
from pulseguard_assets.assets.tables import (
    KINDS,
    OWNERS,
    close_columns,
    table_metadata,
    with_query,
)
from pulseguard_assets.collecting.errors import NoCoins
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import PollFailed, PollReport, poll_by_hand
from pulseguard_assets.timeframes import MINUTE

GROUP = "closes"
KEY = dg.AssetKey(MINUTE.table)

# Somebody is looking at the run; all coins on a small plan still fit.
_PATIENCE = timedelta(minutes=15)

_QUERY = """SELECT coin_id, minute_ts, price_usd
FROM minute_close
WHERE minute_ts > now() - interval '10 minutes' AND coin_id = 'bitcoin'
ORDER BY minute_ts DESC;"""


def poll_metadata(report: PollReport, now: datetime) -> dict[str, Any]:
    """The figures of a poll: numbers, so that the UI plots them over time.

    Durations are in seconds; coverage is the share of the cycle's coins that were stored.
    """
    figures: dict[str, Any] = {
        "dagster/row_count": report.table_rows,
        "rows_stored": report.stored,
        "coins_expected": report.coins,
        "coverage": round(report.cycle.coins_processed / report.coins, 4) if report.coins else 0.0,
        "rejected": report.rejected,
        "missing": report.missing,
        "latency_seconds": round(report.took.total_seconds(), 3),
        "api_calls": report.calls,
        "minute": dg.MetadataValue.timestamp(report.minute),
    }
    if report.oldest_provider_ts is not None:
        figures["oldest_provider_time"] = dg.MetadataValue.timestamp(report.oldest_provider_ts)
        age = (now - report.oldest_provider_ts).total_seconds()
        figures["oldest_provider_age_seconds"] = round(age, 1)
    if report.calls_left is not None:
        figures["calls_left_this_minute"] = report.calls_left
    if report.credits_left is not None:
        figures["credits_left_this_month"] = report.credits_left
    return figures


def minute_close_asset(start: date) -> dg.AssetsDefinition:
    """The asset, with hourly partitions from `start` on."""
    partitions = partitions_of(MINUTE, start)

    @dg.asset(
        key=KEY,
        partitions_def=partitions,
        deps=[COIN_PRIORITIES, SIMPLE_PRICE],
        group_name=GROUP,
        kinds=KINDS,
        owners=OWNERS,
        metadata=table_metadata(MINUTE.table, close_columns(MINUTE)),
        description=with_query(
            "One close per coin and minute: the last price the provider told in it. The sensor "
            "`coingecko_price_sensor` adds to the open hour at every poll; materializing the open "
            "hour by hand polls once more. Rows are kept for 60 minutes, and longer until their "
            "hour carries them.",
            _QUERY,
        ),
    )
    def minute_close(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        """Poll once, into the open hour."""
        now = platform.clock()
        hour = context.partition_time_window
        if not hour.start <= now < hour.end:
            raise dg.Failure(_not_open(context.partition_key, hour, now), allow_retries=False)
        with platform.connect() as connection:
            try:
                report = poll_by_hand(platform, connection, now=now, until=now + _PATIENCE)
            except (PollFailed, NoCoins) as failure:
                raise dg.Failure(str(failure)) from failure
        return dg.MaterializeResult(metadata=poll_metadata(report, platform.clock()))

    return minute_close


def _not_open(key: str, hour: dg.TimeWindow, now: datetime) -> str:
    if now < hour.start:
        return f"The hour {key} has not begun. Materialize the newest partition, the open hour."
    return (
        f"The hour {key} is over. The provider's live prices are those of now; stored under a past "
        "minute they would be an invented close. Materialize the newest partition to poll once "
        "more; the hour's own close is in hourly_close."
    )
