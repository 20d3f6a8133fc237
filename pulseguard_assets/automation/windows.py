"""Which windows of a rollup still need a run, found by looking.

Belongs here: what the tables hold, what was materialized since it closed, what is under way, and
the run requests for the rest. Does not: when anybody looks (`rolling_up.py`, `repair.py`).

Ticks are not trusted: a daemon that was down for six hours has missed six of them, and only the
last is made up for. The tables tell which windows have something to merge, and Dagster tells which
were merged since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import dagster as dg
from psycopg import Connection, sql

from pulseguard_assets.assets.partitions import key_at
from pulseguard_assets.timeframes import Timeframe, bucket_end, bucket_start, timeframe_named

# Dagster's own names: a run that has them materializes every partition from one to the other.
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
_PARTITION = "dagster/partition"

# Runs that will still do what they were asked for.
UNDER_WAY = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)

# The last poll of a window may still be storing: Dagster cuts a tick after this.
_LAST_POLL = timedelta(seconds=60)


def key_of(timeframe: Timeframe) -> dg.AssetKey:
    """The asset of a timeframe's table."""
    return dg.AssetKey(timeframe.table)


def window_at(timeframe: Timeframe, instant: datetime) -> dg.TimeWindow:
    """The window that holds an instant."""
    return dg.TimeWindow(bucket_start(timeframe, instant), bucket_end(timeframe, instant))


def windows_between(timeframe: Timeframe, start: datetime, end: datetime) -> list[dg.TimeWindow]:
    """The windows that lie wholly in `[start, end)`, oldest first."""
    windows = []
    window = window_at(timeframe, start)
    while window.end <= end:
        if window.start >= start:
            windows.append(window)
        window = window_at(timeframe, window.end)
    return windows


def unfinished(
    instance: dg.DagsterInstance,
    connection: Connection,
    timeframe: Timeframe,
    partitions: dg.TimeWindowPartitionsDefinition,
    windows: Sequence[dg.TimeWindow],
    *,
    now: datetime,
) -> list[dg.TimeWindow]:
    """Those of the windows that hold something and were not materialized since they closed.

    One that is still open at `now` therefore always is among them. Windows that no partition
    stands for, and those that a run under way will materialize, are not.
    """
    busy = under_way(instance, timeframe, partitions)
    done = _Materialized(instance, timeframe, partitions)
    there = [window for window in windows if window.start >= partitions.start]
    return [
        window
        for window in holding(connection, timeframe, there)
        if not _within_any(window, busy) and (window.end > now or not done.since_it_closed(window))
    ]


def holding(
    connection: Connection, timeframe: Timeframe, windows: Sequence[dg.TimeWindow]
) -> list[dg.TimeWindow]:
    """Those of the windows of which the table, or the one below it, has any row."""
    tables = [timeframe, *([timeframe_named(timeframe.child)] if timeframe.child else [])]
    any_row = sql.SQL(" OR ").join(
        sql.SQL(
            "EXISTS (SELECT FROM {} WHERE {label} >= asked.start AND {label} < asked.stop)"
        ).format(sql.Identifier("public", each.table), label=sql.Identifier(each.label))
        for each in tables
    )
    rows = connection.execute(
        sql.SQL(
            "SELECT asked.start FROM unnest(%s::timestamptz[], %s::timestamptz[]) "
            "AS asked (start, stop) WHERE {}"
        ).format(any_row),
        ([window.start for window in windows], [window.end for window in windows]),
    ).fetchall()
    found = {row[0] for row in rows}
    return [window for window in windows if window.start in found]


def under_way(
    instance: dg.DagsterInstance,
    timeframe: Timeframe,
    partitions: dg.TimeWindowPartitionsDefinition,
) -> list[dg.TimeWindow]:
    """The spans of time that queued and running runs of the timeframe's asset materialize."""
    runs = instance.get_runs(dg.RunsFilter(statuses=list(UNDER_WAY)))
    spans = []
    for run in runs:
        first = run.tags.get(RANGE_START, run.tags.get(_PARTITION))
        last = run.tags.get(RANGE_END, run.tags.get(_PARTITION))
        if first and last and key_of(timeframe) in (run.asset_selection or ()):
            spans.append(
                dg.TimeWindow(
                    partitions.time_window_for_partition_key(first).start,
                    partitions.time_window_for_partition_key(last).end,
                )
            )
    return spans


def spans_of(windows: Iterable[dg.TimeWindow]) -> list[dg.TimeWindow]:
    """Windows that follow each other, joined: as few spans as there are, oldest first."""
    spans: list[dg.TimeWindow] = []
    for window in sorted(windows):
        if spans and spans[-1].end == window.start:
            spans[-1] = dg.TimeWindow(spans[-1].start, window.end)
        else:
            spans.append(window)
    return spans


def request_for(
    timeframe: Timeframe,
    partitions: dg.TimeWindowPartitionsDefinition,
    span: dg.TimeWindow,
    *,
    max_calls: int,
    known_only: bool = False,
    asked_at: str,
    tags: Mapping[str, str] | None = None,
) -> dg.RunRequest:
    """One run that materializes all windows of a span.

    Args:
        max_calls: how many calls to the provider's history it may make.
        known_only: not before a coin was first seen by a sweep.
        asked_at: part of the run's key, for instance the hour: asked for again by the same key, a
            span starts no second run.
    """
    first = key_at(partitions, span.start)
    last = key_at(partitions, span.end - timedelta(microseconds=1))
    config = {"max_calls": max_calls, "known_only": known_only}
    return dg.RunRequest(
        run_key=f"{timeframe.table}:{first}..{last}@{asked_at}",
        asset_selection=[key_of(timeframe)],
        run_config={"ops": {timeframe.table: {"config": config}}},
        tags={RANGE_START: first, RANGE_END: last, **(tags or {})},
    )


class _Materialized:
    """What Dagster knows of the materializations of one asset."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        timeframe: Timeframe,
        partitions: dg.TimeWindowPartitionsDefinition,
    ) -> None:
        self._instance, self._key, self._partitions = instance, key_of(timeframe), partitions
        self._began: dict[str, float] = {}

    def since_it_closed(self, window: dg.TimeWindow) -> bool:
        """Whether a run that began after the window closed has materialized it."""
        closed = (window.end + _LAST_POLL).timestamp()
        newest = self._instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=self._key,
                asset_partitions=[key_at(self._partitions, window.start)],
                after_timestamp=closed,
            ),
            limit=1,
        ).records
        return bool(newest) and self._beginning(newest[0]) > closed

    def _beginning(self, record: dg.EventLogRecord) -> float:
        # A long run materializes at its end what it merged at its beginning.
        if record.run_id not in self._began:
            run = self._instance.get_run_record_by_id(record.run_id) if record.run_id else None
            began = None if run is None else run.start_time
            self._began[record.run_id] = record.timestamp if began is None else began
        return self._began[record.run_id]


def _within_any(window: dg.TimeWindow, spans: Iterable[dg.TimeWindow]) -> bool:
    return any(span.start <= window.start and window.end <= span.end for span in spans)
