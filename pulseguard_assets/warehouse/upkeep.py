"""Keeping the warehouse in shape: cleanup, partitions, sizes, indexes.

Belongs here: the calls of the rules in `sql/`, and REINDEX, which no function of SQL can execute.
Does not: what may be deleted and which index is worth it (`sql/`), nor when (`automation/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg
from psycopg import Connection, sql

from pulseguard_assets.timeframes import MINUTE, Timeframe
from pulseguard_assets.warehouse.statements import one_row

MONTHS_AHEAD = 12
WORTH_BYTES = 8 * 1024 * 1024
# REINDEX CONCURRENTLY waits for whoever uses the table, and nobody waits for it meanwhile.
PATIENCE = timedelta(seconds=60)

_ONE_REBUILDER = "pulseguard.rebuild_indexes"
_REINDEX = sql.SQL("REINDEX INDEX CONCURRENTLY {}")
_DROP = sql.SQL("DROP INDEX CONCURRENTLY {}")


class RebuilderBusy(RuntimeError):  # noqa: N818 - reads as what it says
    """Another session is rebuilding indexes at this moment."""


@contextmanager
def warnings_of(connection: Connection) -> Iterator[list[str]]:
    """What PostgreSQL warns of during the block, each with its hint, as it is said."""
    said: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            said.append(" ".join(filter(None, (notice.message_primary, notice.message_hint))))

    connection.add_notice_handler(hear)
    try:
        yield said
    finally:
        connection.remove_notice_handler(hear)


# --- rows ---


def clean_up(connection: Connection, *, now: datetime) -> dict[str, int]:
    """Delete what `retention_policy` no longer keeps; returns rows deleted by table.

    One transaction. What no rollup carries yet stays, with a warning of PostgreSQL.

    Raises:
        psycopg.Error: nothing was deleted.
    """
    rows = connection.execute("SELECT * FROM cleanup_old_data(%s)", (now,)).fetchall()
    return {str(table): int(deleted) for table, deleted in rows}


def blocked_rows(connection: Connection, *, now: datetime) -> dict[str, int]:
    """By close table: rows older than their period that stay because nothing carries them yet."""
    rows = connection.execute("SELECT * FROM retention_blocked(%s)", (now,)).fetchall()
    return {str(table): int(kept) for table, kept, _ in rows}


@dataclass(frozen=True)
class Expiry:
    """Where a table's retention ends.

    Attributes:
        cutoff: rows with a label before it may be gone; None if the table keeps all.
        stored: the hours (of `minute_close`) or the labels before it that have rows nevertheless.
    """

    cutoff: datetime | None
    stored: frozenset[datetime]


def expiry_of(connection: Connection, timeframe: Timeframe, *, now: datetime) -> Expiry:
    """What retention has left of a close table, at `now`."""
    (keep,) = one_row(
        connection,
        "SELECT keep FROM retention_policy WHERE table_name = %s",
        (timeframe.table,),
    )
    if keep is None:
        return Expiry(None, frozenset())
    cutoff = now - keep
    label = sql.Identifier(timeframe.label)
    shown = sql.SQL("date_trunc('hour', {}, 'UTC')" if timeframe is MINUTE else "{}").format(label)
    rows = connection.execute(
        sql.SQL("SELECT DISTINCT {} FROM {} WHERE {} < %s").format(
            shown, sql.Identifier("public", timeframe.table), label
        ),
        (cutoff,),
    ).fetchall()
    return Expiry(cutoff, frozenset(row[0] for row in rows))


# --- partitions and sizes ---


def ensure_partitions(connection: Connection, *, now: datetime, months: int = MONTHS_AHEAD) -> int:
    """Make the partitions of this month and of so many to come; returns how many were missing."""
    return int(
        one_row(
            connection,
            "SELECT ensure_partitions(%s, %s + make_interval(months => %s))",
            (now, now, months),
        )[0]
    )


def expiring_tables(connection: Connection) -> list[str]:
    """The close tables whose rows are not kept for ever, narrow before wide."""
    rows = connection.execute(
        "SELECT t.table_name FROM timeframes t JOIN retention_policy r USING (table_name) "
        "WHERE r.keep IS NOT NULL ORDER BY t.ordinal"
    ).fetchall()
    return [str(row[0]) for row in rows]


def drop_old_partitions(connection: Connection, table: str, *, now: datetime) -> int:
    """Drop the months of a table that are wholly older than its period; returns how many.

    A month that holds a close which nothing carries yet stays, and so does one in use, each with
    a warning of PostgreSQL.
    """
    # 0 months on top: the function itself goes back as far as retention_policy says.
    return int(one_row(connection, "SELECT drop_old_partitions(%s, 0, %s)", (table, now))[0])


@dataclass(frozen=True)
class TableSize:
    """One logical table, its partitions counted in; `bytes` with indexes and TOAST."""

    table: str
    bytes: int
    index_bytes: int
    live_rows: int
    dead_rows: int
    partitions: int


def table_sizes(connection: Connection) -> list[TableSize]:
    """All tables of the product, the largest first."""
    rows = connection.execute(
        "SELECT tablename, total_bytes, index_bytes, live_tuples, dead_tuples, partitions "
        "FROM table_stats ORDER BY total_bytes DESC, tablename"
    ).fetchall()
    return [TableSize(*row) for row in rows]


# --- indexes ---


@dataclass(frozen=True)
class IndexUpkeep:
    """What was done about the indexes.

    Attributes:
        judged: how many were looked at.
        rebuilt: those rebuilt, with their bytes before and after.
        dropped: what interrupted rebuilds had left behind, and is gone.
        failed: those that could not be rebuilt or dropped, with PostgreSQL's reason.
        invalid: other invalid indexes. Somebody else's, so they are left alone.
    """

    judged: int = 0
    rebuilt: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    invalid: tuple[str, ...] = ()


def rebuild_indexes(
    connection: Connection, *, worth_bytes: int = WORTH_BYTES, patience: timedelta = PATIENCE
) -> IndexUpkeep:
    """Rebuild the indexes that `maintain_indexes()` judges bloated, one after another.

    Readers and writers of the tables go on meanwhile. An index that cannot be rebuilt in time is
    named with the reason, what its attempt left behind is dropped, and the next one is done.

    Args:
        connection: in autocommit mode; REINDEX CONCURRENTLY runs in no transaction.
        worth_bytes: smaller indexes are left alone.
        patience: how long to wait for others to let go of a table; per wait.

    Raises:
        RebuilderBusy: another session is at it.
        psycopg.OperationalError: the connection was lost.
    """
    key = (_ONE_REBUILDER,)
    if not one_row(connection, "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key)[0]:
        raise RebuilderBusy(
            "Another session is rebuilding indexes. Let it finish; it does what this one would."
        )
    try:
        with _lock_timeout(connection, patience):
            return _rebuild_all(connection, worth_bytes)
    finally:
        # A lost session took its lock along.
        if not connection.closed:
            one_row(connection, "SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)


@contextmanager
def _lock_timeout(connection: Connection, patience: timedelta) -> Iterator[None]:
    before = one_row(connection, "SELECT current_setting('lock_timeout')")[0]
    statement = "SELECT set_config('lock_timeout', %s, false)"
    connection.execute(statement, (f"{round(patience.total_seconds() * 1000)}ms",))
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute(statement, (before,))


def _rebuild_all(connection: Connection, worth_bytes: int) -> IndexUpkeep:
    failed: dict[str, str] = {}
    rebuilt: dict[str, tuple[int, int]] = {}
    dropped = _drop_leftovers(connection, failed)
    judged = connection.execute(
        "SELECT index_name, action, index_bytes FROM maintain_indexes(worth_bytes => %s)",
        (worth_bytes,),
    ).fetchall()
    for name, action, size in judged:
        if action == "reindex" and _tried(connection, _REINDEX, name, failed):
            rebuilt[name] = (size, _bytes_of(connection, name))
    if failed:
        dropped += _drop_leftovers(connection, failed)
    return IndexUpkeep(len(judged), rebuilt, dropped, failed, _invalid(connection, leftover=False))


def _tried(connection: Connection, statement: sql.SQL, index: str, failed: dict[str, str]) -> bool:
    """Whether it worked; if not, `failed` says why."""
    due = statement.format(sql.Identifier("public", index))
    try:
        connection.execute(due)
    except psycopg.Error as error:
        if connection.closed:
            raise
        failed[index] = " ".join(str(error).split())
        # A mere writer may not drop, and before PostgreSQL 17 not rebuild either.
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            failed[index] += f". Have a member of pulseguard_owner run: {due.as_string()}"
        return False
    return True


def _drop_leftovers(connection: Connection, failed: dict[str, str]) -> tuple[str, ...]:
    found = _invalid(connection, leftover=True)
    return tuple(name for name in found if _tried(connection, _DROP, name, failed))


# What an interrupted REINDEX CONCURRENTLY leaves behind is invalid, has its suffix, and is the
# copy of a valid index of the same table. Writers have to feed it all the same. One that is still
# being built looks just so, but its builder holds locks that neither a reader nor a writer takes.
_INVALID = """
SELECT c.relname
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i'
CROSS JOIN LATERAL (
    SELECT c.relname ~ '_cc(new|old)[0-9]*$'
       AND EXISTS (
            SELECT FROM pg_index twin
            WHERE twin.indrelid = i.indrelid AND twin.indexrelid <> i.indexrelid AND twin.indisvalid
              AND twin.indkey = i.indkey AND twin.indclass = i.indclass
              AND pg_get_expr(twin.indexprs, twin.indrelid)
                  IS NOT DISTINCT FROM pg_get_expr(i.indexprs, i.indrelid)
              AND pg_get_expr(twin.indpred, twin.indrelid)
                  IS NOT DISTINCT FROM pg_get_expr(i.indpred, i.indrelid)
       ) AS leftover,
       EXISTS (
            SELECT FROM pg_locks l
            WHERE l.locktype = 'relation' AND l.relation = i.indexrelid
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
       ) AS being_built
) AS judged
WHERE c.relnamespace = 'public'::regnamespace AND NOT i.indisvalid
  AND NOT judged.being_built AND judged.leftover = %s
ORDER BY 1
"""


def _invalid(connection: Connection, *, leftover: bool) -> tuple[str, ...]:
    rows = connection.execute(_INVALID, (leftover,)).fetchall()
    return tuple(str(row[0]) for row in rows)


def _bytes_of(connection: Connection, index: str) -> int:
    name = sql.Identifier("public", index).as_string(connection)
    return int(one_row(connection, "SELECT pg_relation_size(%s::regclass)", (name,))[0])
