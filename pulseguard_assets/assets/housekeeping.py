"""Dagster's own tables: what may go from them, and that the partition status stays true.

Belongs here: every statement about tables of Dagster, which are no public interface (tried on
dagster 1.13; `tests/platform/on_postgres/test_housekeeping.py` holds their shape).
Does not: when it is done.

Dagster deletes nothing but ticks. A run leaves some 17 event rows, a poll one, so:

* finished runs go after `KEEP_DAYS`, and every other event with them;
* what Dagster still derives a state from stays however old it is: the newest materialization and
  observation of each partition, the newest evaluation of each check, the newest freshness state.
  A run that recorded one of them keeps that event and its own row, and loses the rest of its log;
* a partition whose rows retention has deleted loses its materializations at once, and every asset
  its cached partition status, which Dagster then computes anew from what is left. So a partition
  is shown as materialized exactly as long as its rows are there.

Everything goes in small transactions, so that the daemon, which writes all the time, never waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.dagster_run import FINISHED_STATUSES, NOT_FINISHED_STATUSES
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from psycopg import Connection

from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.timeframes import MINUTE, TIMEFRAMES, Timeframe
from pulseguard_assets.warehouse.upkeep import Expiry, expiry_of

# A rollup's run with its checks comes to 110 KB, so a day to 10 MB.
KEEP_DAYS = 10
BATCH = 5_000

_EVENTS = SqlEventLogStorageTable.c
_CHECKS = AssetCheckExecutionsTable.c
_TAGS = AssetEventTagsTable.c

# Of these the newest is the state of something.
_STATES = ("ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "FRESHNESS_STATE_CHANGE")
# And these make up the status of a partition.
_OF_PARTITIONS = ("ASSET_MATERIALIZATION", "ASSET_MATERIALIZATION_PLANNED", "ASSET_OBSERVATION")


@dataclass(frozen=True)
class Housekeeping:
    """What was deleted.

    Attributes:
        runs: runs, with all that belongs to them.
        old_events: events older than the period, of runs or of none.
        expired_events: events of partitions whose rows retention has deleted.
        check_results: results of asset checks.
        runs_kept: old runs that stay, because they recorded what still is the state of something.
    """

    runs: int
    old_events: int
    expired_events: int
    check_results: int
    runs_kept: int


def housekeep(
    instance: dg.DagsterInstance,
    connection: Connection,
    *,
    now: datetime,
    keep_days: int = KEEP_DAYS,
) -> Housekeeping:
    """Delete what Dagster keeps for ever and nobody needs. Repeated, it deletes nothing.

    Args:
        instance: whose tables are in an SQL database.
        connection: to the warehouse, which knows what retention has left.
        now: the instant ages are measured from.
        keep_days: how long runs and events are kept.

    Raises:
        psycopg.Error, sqlalchemy.exc.SQLAlchemyError: a database failed. What was deleted before
            stays deleted; the next housekeeping goes on.
    """
    storage = _sql_storage(instance)
    oldest = now - timedelta(days=keep_days)
    # Not what runs under way recorded, nor anything recorded from here on.
    until = _newest_event(storage)
    busy = _unfinished(instance)
    expired_events = sum(
        _delete_expired(storage, timeframe, expiry_of(connection, timeframe, now=now), until, busy)
        for timeframe in TIMEFRAMES
    )
    wipe_cached_status(instance)
    results, states = _delete_old_checks(storage, oldest, busy), _newest_states(storage)
    old_events = _delete(storage, _older(oldest, until), keep=states, busy=busy)
    runs, runs_kept = _delete_runs(instance, storage, oldest)
    return Housekeeping(runs, old_events, expired_events, results, runs_kept)


def wipe_cached_status(instance: dg.DagsterInstance) -> None:
    """Have Dagster compute the partition status of every close asset anew.

    Each time, and not only after a deletion: a page that had read the old status a moment before
    may have written it back.
    """
    for timeframe in TIMEFRAMES:
        _sql_storage(instance).wipe_asset_cached_status(dg.AssetKey(timeframe.table))


def storage_sizes(instance: dg.DagsterInstance) -> dict[str, int]:
    """Bytes of each of Dagster's tables with indexes and TOAST; empty if not on PostgreSQL."""
    with _sql_storage(instance).index_connection() as connection:
        if connection.dialect.name != "postgresql":
            return {}
        rows = connection.execute(
            sa.text(
                "SELECT relname, pg_total_relation_size(oid) FROM pg_class "
                "WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' "
                "ORDER BY 2 DESC, 1"
            )
        )
        return {str(name): int(size) for name, size in rows}


def _sql_storage(instance: dg.DagsterInstance) -> SqlEventLogStorage:
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise TypeError(
            f"Dagster keeps its events in {type(storage).__name__}, which is no SQL database. "
            "Name PostgreSQL as the storage in dagster.yaml."
        )
    return storage


def _newest_event(storage: SqlEventLogStorage) -> int:
    return storage.get_maximum_record_id() or 0


def _unfinished(instance: dg.DagsterInstance) -> frozenset[str]:
    return frozenset(
        run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    )


# --- partitions that retention has emptied ---


def _delete_expired(
    storage: SqlEventLogStorage,
    timeframe: Timeframe,
    expiry: Expiry,
    until: int,
    busy: Collection[str],
) -> int:
    asset = dg.AssetKey(timeframe.table).to_string()
    of_asset = sa.and_(
        _EVENTS.asset_key == asset,
        _EVENTS.dagster_event_type.in_(_OF_PARTITIONS),
        _EVENTS.partition.is_not(None),
    )
    keys = _rows(storage, sa.select(_EVENTS.partition).where(of_asset).distinct())
    expired = [str(key) for (key,) in keys if has_expired(timeframe, str(key), expiry)]
    return sum(
        _delete(
            storage,
            sa.and_(of_asset, _EVENTS.partition.in_(some), _EVENTS.id <= until),
            busy=busy,
        )
        for some in _batches(expired)
    )


def has_expired(timeframe: Timeframe, key: str, expiry: Expiry) -> bool:
    """Whether retention may delete every row of a partition, and has."""
    # The definition's first day is of no account to the meaning of a key.
    partitions = partitions_of(timeframe, datetime(2000, 1, 1, tzinfo=timezone.utc).date())
    try:
        window = partitions.time_window_for_partition_key(key)
    except ValueError:
        return False  # Of some other definition that the asset once had: not ours to judge.
    last = window.end - timedelta(minutes=1) if timeframe is MINUTE else window.start
    return expiry.cutoff is not None and last < expiry.cutoff and window.start not in expiry.stored


# --- what is old ---


def _older(oldest: datetime, until: int) -> sa.ColumnElement[bool]:
    # Dagster writes UTC into columns without a time zone.
    when = oldest.astimezone(timezone.utc).replace(tzinfo=None)
    return sa.and_(_EVENTS.timestamp < when, _EVENTS.id <= until)


def _newest_states(storage: SqlEventLogStorage) -> frozenset[int]:
    """The events that something's state is still derived from."""
    newest = (
        sa.select(sa.func.max(_EVENTS.id))
        .where(_EVENTS.asset_key.is_not(None), _EVENTS.dagster_event_type.in_(_STATES))
        .group_by(_EVENTS.asset_key, _EVENTS.dagster_event_type, _EVENTS.partition)
    )
    checks = sa.select(_CHECKS.evaluation_event_storage_id).where(
        _CHECKS.id.in_(_newest_results()), _CHECKS.evaluation_event_storage_id.is_not(None)
    )
    return frozenset(int(row[0]) for each in (newest, checks) for row in _rows(storage, each))


def _newest_results() -> sa.Select[Any]:
    return sa.select(sa.func.max(_CHECKS.id)).group_by(
        _CHECKS.asset_key, _CHECKS.check_name, _CHECKS.partition
    )


def _delete_old_checks(storage: SqlEventLogStorage, oldest: datetime, busy: Collection[str]) -> int:
    """Delete results of checks, which go neither with their run nor with their event."""
    when = oldest.astimezone(timezone.utc).replace(tzinfo=None)
    old = sa.select(_CHECKS.id).where(
        _CHECKS.create_timestamp < when,
        _CHECKS.id.not_in(_newest_results()),
        sa.func.coalesce(_CHECKS.run_id, "").not_in(busy),
    )
    found = [int(row[0]) for row in _rows(storage, old)]
    for some in _batches(found):
        with storage.index_transaction() as connection:
            connection.execute(sa.delete(AssetCheckExecutionsTable).where(_CHECKS.id.in_(some)))
    return len(found)


def _delete_runs(
    instance: dg.DagsterInstance, storage: SqlEventLogStorage, oldest: datetime
) -> tuple[int, int]:
    """Delete the old runs that have no event left; returns how many, and how many have one.

    Last, so that whatever interrupts the housekeeping leaves no events without their run.
    """
    old = [
        record.dagster_run.run_id
        for record in instance.get_run_records(
            dg.RunsFilter(statuses=FINISHED_STATUSES, updated_before=oldest)
        )
    ]
    kept: set[str] = set()
    for some in _batches(old):
        left = sa.select(_EVENTS.run_id).where(_EVENTS.run_id.in_(some)).distinct()
        kept.update(str(row[0]) for row in _rows(storage, left))
    for run_id in old:
        if run_id not in kept:
            instance.delete_run(run_id)
    return len(old) - len(kept), len(kept)


# --- statements ---


def _delete(
    storage: SqlEventLogStorage,
    which: sa.ColumnElement[bool],
    *,
    keep: Collection[int] = (),
    busy: Collection[str],
) -> int:
    """Delete events with their tags, oldest first, a batch at a time; returns how many."""
    after, deleted = 0, 0
    while True:
        rows = _rows(
            storage,
            sa.select(_EVENTS.id, _EVENTS.run_id)
            .where(which, _EVENTS.id > after)
            .order_by(_EVENTS.id)
            .limit(BATCH),
        )
        if not rows:
            return deleted
        after = int(rows[-1][0])
        some = [int(row[0]) for row in rows if row[0] not in keep and row[1] not in busy]
        with storage.index_transaction() as connection:
            connection.execute(sa.delete(AssetEventTagsTable).where(_TAGS.event_id.in_(some)))
            connection.execute(sa.delete(SqlEventLogStorageTable).where(_EVENTS.id.in_(some)))
        deleted += len(some)


def _rows(storage: SqlEventLogStorage, query: sa.Select[Any]) -> Sequence[Any]:
    with storage.index_connection() as connection:
        return connection.execute(query).fetchall()


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
