"""The assets of the platform's own upkeep: cleanup, maintenance, Dagster's tables.

Belongs here: the assets, and their figures as metadata. Does not: what may be deleted (`sql/`,
`housekeeping.py`), nor when (`automation/upkeep.py`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import dagster as dg
import psycopg
from psycopg import Connection

from pulseguard_assets.assets.housekeeping import KEEP_DAYS, housekeep, storage_sizes
from pulseguard_assets.assets.tables import OWNERS, with_query
from pulseguard_assets.collecting.errors import reason_of
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.warehouse.upkeep import (
    MONTHS_AHEAD,
    IndexUpkeep,
    RebuilderBusy,
    TableSize,
    blocked_rows,
    clean_up,
    drop_old_partitions,
    ensure_partitions,
    expiring_tables,
    rebuild_indexes,
    table_sizes,
    warnings_of,
)

GROUP = "operations"
CLEANUP = dg.AssetKey("retention_cleanup")
MAINTENANCE = dg.AssetKey("maintenance")
HOUSEKEEPING = dg.AssetKey("dagster_housekeeping")

_KINDS = {"postgresql"}


def operations_assets() -> list[dg.AssetsDefinition]:
    """The three assets of upkeep, none of which is partitioned."""
    return [retention_cleanup, maintenance, dagster_housekeeping]


# --- cleanup ---


@dg.asset(
    key=CLEANUP,
    group_name=GROUP,
    kinds=_KINDS,
    owners=OWNERS,
    description=with_query(
        "Deletes what `retention_policy` no longer keeps, every 15 minutes. A close goes only when "
        "the wider tables carry it; they are brought up to date first if some rollup was late. "
        "What cannot be carried stays, and is counted as blocked.",
        "SELECT table_name, keep, rows_kept AS blocked, oldest AS oldest_blocked\n"
        "FROM retention_policy LEFT JOIN retention_blocked() USING (table_name)\n"
        "ORDER BY table_name;",
    ),
)
def retention_cleanup(
    context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
) -> dg.MaterializeResult[None]:
    """Clean up once."""
    now, begun = platform.clock(), time.perf_counter()
    with platform.connect() as connection:
        try:
            with warnings_of(connection) as warnings:
                deleted = clean_up(connection, now=now)
        except psycopg.Error as error:
            raise dg.Failure(_not_cleaned(error)) from error
        took = time.perf_counter() - begun
        blocked = blocked_rows(connection, now=now)
    for warning in warnings:
        context.log.warning(warning)
    return dg.MaterializeResult(
        metadata={
            "rows_deleted": sum(deleted.values()),
            "rows_blocked": sum(blocked.values()),
            "duration_seconds": round(took, 3),
            **{f"deleted_{table}": rows for table, rows in deleted.items()},
            **{f"blocked_{table}": rows for table, rows in blocked.items()},
            **_shown_warnings(warnings),
        }
    )


def _not_cleaned(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return (
            "The cleanup waited too long for another session's locks, and nothing was deleted. "
            "Nothing is lost by that: the next one, 15 minutes later, does the same work. If it "
            "goes on, look in pg_stat_activity for the session that holds them, and end it."
        )
    return f"The cleanup deleted nothing. {reason_of(error)}"


# --- maintenance ---


@dg.asset(
    key=MAINTENANCE,
    group_name=GROUP,
    kinds=_KINDS,
    owners=OWNERS,
    description=with_query(
        f"Keeps the warehouse in shape, daily: partitions {MONTHS_AHEAD} months ahead, months "
        "that retention has emptied dropped, bloated indexes rebuilt while readers and writers go "
        "on, and the sizes of all tables.",
        "SELECT tablename, size, live_tuples, dead_tuples, partitions\nFROM table_stats;",
    ),
)
def maintenance(
    context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
) -> dg.MaterializeResult[None]:
    """Maintain the warehouse. What fails is named at the end; the rest is done all the same."""
    now, begun, problems = platform.clock(), time.perf_counter(), list[str]()
    with platform.connect() as connection, warnings_of(connection) as warnings:
        figures = {
            **_partitions(connection, now, problems),
            **_indexes(connection, context, problems),
            **_sizes(connection, problems),
        }
    for warning in warnings:
        context.log.warning(warning)
    figures |= {
        "duration_seconds": round(time.perf_counter() - begun, 3),
        **_shown_warnings(warnings),
    }
    if problems:
        raise dg.Failure(
            "Not everything could be maintained. The rest was, and the next maintenance tries "
            "again:\n" + "\n".join(f"- {problem}" for problem in problems),
            metadata=figures,
        )
    return dg.MaterializeResult(metadata=figures)


@contextmanager
def _noting(problems: list[str], what: str) -> Iterator[None]:
    """Note what PostgreSQL refuses, so that the work after it is done nevertheless."""
    try:
        yield
    except psycopg.Error as error:
        problems.append(f"{what}: {reason_of(error)}")


def _partitions(connection: Connection, now: datetime, problems: list[str]) -> dict[str, Any]:
    made, dropped, tables = 0, 0, list[str]()
    with _noting(problems, "partitions ahead"):
        made = ensure_partitions(connection, now=now)
    with _noting(problems, "retention_policy"):
        tables = expiring_tables(connection)
    for table in tables:
        with _noting(problems, f"old partitions of {table}"):
            dropped += drop_old_partitions(connection, table, now=now)
    return {"partitions_made": made, "partitions_dropped": dropped}


def _indexes(
    connection: Connection, context: dg.AssetExecutionContext, problems: list[str]
) -> dict[str, Any]:
    done = IndexUpkeep()
    try:
        with _noting(problems, "indexes"):
            done = rebuild_indexes(connection)
    except RebuilderBusy as busy:
        problems.append(f"indexes: {busy}")
    problems += [f"index {name}: {reason}" for name, reason in done.failed.items()]
    for name in done.invalid:
        context.log.warning(
            f"The index {name} is invalid: no query uses it, and every write pays for it. It is "
            "nothing that this platform made. Rebuild it (REINDEX INDEX CONCURRENTLY) or drop it."
        )
    return {
        "indexes_judged": done.judged,
        "indexes_rebuilt": len(done.rebuilt),
        "indexes_failed": len(done.failed),
        "indexes_invalid": len(done.invalid),
        "leftover_indexes_dropped": len(done.dropped),
        "index_bytes_freed": sum(before - after for before, after in done.rebuilt.values()),
        **({"rebuilt": dg.MetadataValue.md(_rebuilt_table(done.rebuilt))} if done.rebuilt else {}),
    }


def _rebuilt_table(rebuilt: Mapping[str, tuple[int, int]]) -> str:
    rows = [(name, f"{before:,}", f"{after:,}") for name, (before, after) in rebuilt.items()]
    return _markdown(("index", "bytes before", "bytes after"), rows)


def _sizes(connection: Connection, problems: list[str]) -> dict[str, Any]:
    sizes: list[TableSize] = []
    with _noting(problems, "table_stats"):
        sizes = table_sizes(connection)
    rows = [
        (size.table, f"{size.bytes:,}", f"{size.index_bytes:,}", f"{size.live_rows:,}")
        for size in sizes
    ]
    return {
        "bytes_total": sum(size.bytes for size in sizes),
        **{f"bytes_{size.table}": size.bytes for size in sizes},
        "tables": dg.MetadataValue.md(
            _markdown(("table", "bytes", "of which indexes", "rows, estimated"), rows)
        ),
    }


# --- Dagster's own tables ---


@dg.asset(
    key=HOUSEKEEPING,
    group_name=GROUP,
    kinds=_KINDS,
    owners=OWNERS,
    description=with_query(
        f"Keeps Dagster's own tables small, daily: runs and events older than {KEEP_DAYS} days go, "
        "and the materializations of partitions whose rows retention has deleted, so that the "
        "status of a partition says what is stored.",
        "SELECT relname, pg_size_pretty(pg_total_relation_size(oid)) AS size\n"
        "FROM pg_class\n"
        "WHERE relnamespace = 'dagster'::regnamespace AND relkind = 'r'\n"
        "ORDER BY pg_total_relation_size(oid) DESC;",
    ),
)
def dagster_housekeeping(
    context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
) -> dg.MaterializeResult[None]:
    """Clean up Dagster's tables once."""
    begun = time.perf_counter()
    with platform.connect() as connection:
        done = housekeep(context.instance, connection, now=platform.clock())
    sizes = storage_sizes(context.instance)
    return dg.MaterializeResult(
        metadata={
            "runs_deleted": done.runs,
            "runs_kept_for_their_state": done.runs_kept,
            "old_events_deleted": done.old_events,
            "expired_events_deleted": done.expired_events,
            "check_results_deleted": done.check_results,
            "duration_seconds": round(time.perf_counter() - begun, 3),
            "bytes_total": sum(sizes.values()),
            **{f"bytes_{table}": size for table, size in list(sizes.items())[:5]},
        }
    )


# --- shown ---


def _shown_warnings(warnings: Sequence[str]) -> dict[str, Any]:
    return {
        "warnings": len(warnings),
        **(
            {"warned": dg.MetadataValue.md("\n".join(f"* {each}" for each in warnings))}
            if warnings
            else {}
        ),
    }


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
