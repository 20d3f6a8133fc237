"""The asset `minute_close`: live prices, partitioned by hour.

Belongs here: the asset, and the figures of a poll as metadata. Does not: polling (`collecting/`),
nor the sensor that does it every minute (`automation/`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import dagster as dg
from psycopg import Connection

from pulseguard_assets.assets.closing import HistoryConfig, close_asset, fill
from pulseguard_assets.assets.coin_priorities import KEY as COIN_PRIORITIES
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.assets.provider import MARKET_CHART, SIMPLE_PRICE
from pulseguard_assets.assets.tables import with_query
from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import PollReport, poll_by_hand
from pulseguard_assets.timeframes import HOURLY, MINUTE

KEY = dg.AssetKey(MINUTE.table)

# Five-minute points reach a day back.
_HOURS_PER_RUN = 24
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

    @close_asset(
        MINUTE,
        partitions_of(MINUTE, start),
        deps=[COIN_PRIORITIES, SIMPLE_PRICE, MARKET_CHART],
        partitions_per_run=_HOURS_PER_RUN,
        description=with_query(
            "One close per coin and minute: the last price the provider told in it. The sensor "
            "`coingecko_price_sensor` adds to the open hour at every poll; materializing the open "
            "hour by hand polls once more. A past hour of the last day is filled with one point "
            "in five minutes from the provider's history, which never replaces a minute that was "
            "seen. Rows are kept for 60 minutes, and longer until their hour carries them.",
            _QUERY,
        ),
    )
    def minute_close(
        context: dg.AssetExecutionContext,
        config: HistoryConfig,
        platform: dg.ResourceParam[Platform],
    ) -> dg.MaterializeResult[None]:
        """Poll once, into the open hour, or fill past hours from history."""
        now = platform.clock()
        hours = context.partition_time_window
        keys = context.partition_keys
        if now < hours.start or (now < hours.end and len(keys) > 1):
            raise dg.Failure(_not_past(keys, hours, now), allow_retries=False)
        with platform.connect() as connection:
            if hours.end <= now:
                return _past(context, platform, connection, config, now)
            try:
                report = poll_by_hand(platform, connection, now=now, until=now + _PATIENCE)
            except CollectingError as failure:
                raise dg.Failure(str(failure)) from failure
        return dg.MaterializeResult(metadata=poll_metadata(report, platform.clock()))

    return minute_close


def _past(
    context: dg.AssetExecutionContext,
    platform: Platform,
    connection: Connection,
    config: HistoryConfig,
    now: datetime,
) -> dg.MaterializeResult[None]:
    """The provider's live prices are those of now: under a past minute they would be invented."""
    try:
        return fill(context, platform, connection, MINUTE, config, now=now)
    except dg.Failure as failure:
        raise dg.Failure(
            f"{failure.description} The closes of past hours are in {HOURLY.table}.",
            metadata=failure.metadata,
            allow_retries=False,
        ) from failure


def _not_past(keys: Sequence[str], hours: dg.TimeWindow, now: datetime) -> str:
    if now < hours.start:
        return f"The hour {keys[0]} has not begun. Materialize the newest partition, the open hour."
    return (
        f"The hours {keys[0]} to {keys[-1]} hold the open one, which is polled, while past hours "
        "are filled from history. Materialize the open hour by itself, and the others without it."
    )
