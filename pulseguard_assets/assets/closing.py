"""What all close tables have in common as assets: how one is declared, filled and reported.

Belongs here: the figures of a filled window, and when a run has failed. Does not: which windows
there are (`partitions.py`), or how a window is filled (`collecting/history.py`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

import warnings
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Optional

import dagster as dg
from psycopg import Connection
from pydantic import Field

from pulseguard_assets.assets.tables import KINDS, OWNERS, close_columns, table_metadata
from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.history import WindowReport, materialize_window
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import Timeframe
from pulseguard_assets.warehouse.closes import count_rows
from pulseguard_assets.warehouse.history import without_close

GROUP = "closes"

# Run monitoring ends a run after six hours; this one ends by itself before, with what it has.
_PATIENCE = timedelta(hours=5, minutes=30)


class HistoryConfig(dg.Config):
    """What a run may spend on the provider's history."""

    spend_reserve: bool = Field(
        default=False,
        description="Spend the credits that PULSEGUARD_RESERVE_PERCENT leaves aside as well.",
    )
    # Spelled so for Dagster on Python 3.10.
    max_calls: Optional[int] = Field(  # noqa: UP045
        default=None,
        ge=0,
        description="Most charts to ask for, one or more a coin; 0 only rolls up what is stored. "
        "A run that comes to this end is no failure, whatever still lacks.",
    )
    known_only: bool = Field(
        default=False,
        description="Leave out what lies before a coin was first seen by a sweep. Repairs do so.",
    )


def close_asset(
    timeframe: Timeframe,
    partitions: dg.TimeWindowPartitionsDefinition,
    *,
    deps: Iterable[dg.AssetKey | dg.AssetDep],
    partitions_per_run: int,
    description: str,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator that makes a function the asset of a close table.

    Args:
        partitions_per_run: most windows of a backfill in one run, whose events a crash can lose.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        with warnings.catch_warnings():
            # Beta in 1.13. Without it a backfill is one process for every hour.
            warnings.filterwarnings(
                "ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning
            )
            return dg.asset(
                key=dg.AssetKey(timeframe.table),
                partitions_def=partitions,
                deps=list(deps),
                group_name=GROUP,
                kinds=KINDS,
                owners=OWNERS,
                metadata=table_metadata(timeframe.table, close_columns(timeframe)),
                backfill_policy=dg.BackfillPolicy.multi_run(partitions_per_run),
                description=description,
            )(function)

    return decorate


def fill(
    context: dg.AssetExecutionContext,
    platform: Platform,
    connection: Connection,
    timeframe: Timeframe,
    config: HistoryConfig,
    *,
    now: datetime,
) -> dg.MaterializeResult[None]:
    """Fill the windows of a run, and report; what could be had is stored also if it fails.

    Raises:
        dg.Failure: a closed window could not be had. The sentence says what can be had instead.
    """
    window = context.partition_time_window
    try:
        report = materialize_window(
            platform,
            connection,
            timeframe,
            window.start,
            window.end,
            now=now,
            until=now + _PATIENCE,
            max_calls=config.max_calls,
            spend_reserve=config.spend_reserve,
            known_only=config.known_only,
            with_history=config.max_calls != 0,
            log=context.log.info,
        )
    except CollectingError as failure:
        raise dg.Failure(str(failure), allow_retries=False) from failure
    without = without_close(connection, timeframe, window.start, window.end)
    metadata = _figures(report, without) | {"dagster/row_count": count_rows(connection, timeframe)}
    if len(context.partition_keys) == 1:
        metadata["dagster/partition_row_count"] = report.held.rows
    failure_said = _why_failed(report, without, _named(context.partition_keys))
    if failure_said is not None:
        raise dg.Failure(failure_said, metadata=metadata, allow_retries=False)
    return dg.MaterializeResult(metadata=metadata)


def _figures(report: WindowReport, without: list[tuple[str, str]]) -> dict[str, Any]:
    """Numbers, so that the UI plots them; closes are counted per coin and window."""
    held = report.held
    figures: dict[str, Any] = {
        "rows_written": report.rows_written,
        "history_written": report.from_history,
        "rows_held": held.rows,
        "coins_expected": held.coins_expected,
        "coins_seen": held.coins_seen,
        "coverage": round(held.coins_seen / held.coins_expected, 4) if held.coins_expected else 0.0,
        "from_live": held.live,
        "from_history": held.history,
        "api_calls": report.calls,
        "still_lacking": report.still_lacking,
    }
    if report.credits_left is not None:
        figures["credits_left"] = report.credits_left
    if report.waiting_until is not None:
        figures["history_from"] = dg.MetadataValue.timestamp(report.waiting_until)
    if report.refused is not None:
        figures["stopped"] = report.refused
    if without:
        figures["without_close"] = dg.MetadataValue.md(_table(without))
    return figures


def _why_failed(report: WindowReport, without: list[tuple[str, str]], named: str) -> str | None:
    if report.refused is not None and report.still_lacking and not report.capped:
        return report.refused
    if report.held.rows or report.waiting_until is not None:
        return None
    table, child = report.timeframe.table, report.timeframe.child
    source = "" if child is None else f", nor of {child}_close to merge"
    why = f" {without[0][0]}: {without[0][1]}" if without else ""
    return (
        f"Nothing is stored of {named}: no row of {table}{source}, and nothing that history gave."
        f"{why}"
    )


def _named(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"


def _table(rows: list[tuple[str, str]]) -> str:
    """Coins and reasons in markdown; a bar in a coin's id would begin another column."""
    lines = [f"| {coin.replace('|', '/')} | {why.replace('|', '/')} |" for coin, why in rows]
    return "\n".join(["| coin | why |", "| --- | --- |", *lines])
