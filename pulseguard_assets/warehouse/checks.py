"""Looking for what is wrong with the close tables: the calls of `sql/012_checks.sql`.

Belongs here: what was found, and the statement that found it. Does not: how bad it is, which
`assets/checks.py` judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import ClientCursor, Connection, sql

from pulseguard_assets.timeframes import Timeframe
from pulseguard_assets.warehouse.statements import one_row


@dataclass(frozen=True)
class Found:
    """What a statement found.

    Attributes:
        count: how many rows it has.
        columns: their names.
        first: the first of them, in its order.
        query: the statement with its values filled in, to be copied into psql.
    """

    count: int
    columns: tuple[str, ...]
    first: tuple[tuple[Any, ...], ...]
    query: str


def newest_label(connection: Connection, timeframe: Timeframe) -> Found:
    """The newest label of the table, as one row of one column; None if the table is empty."""
    statement = sql.SQL("SELECT max({}) AS newest FROM {}").format(
        sql.Identifier(timeframe.label), sql.Identifier(timeframe.table)
    )
    return _found(connection, statement, ())


def polling_tolerance(connection: Connection) -> timedelta:
    """How far apart polls may be: their cadence, at least 5 minutes."""
    tolerance: timedelta = one_row(connection, "SELECT tolerance FROM collection_scope")[0]
    return tolerance


def known_since(connection: Connection) -> datetime | None:
    """When a sweep first saw any coin; None before that."""
    since: datetime | None = one_row(
        connection, "SELECT min(created_at) FROM coin_priorities WHERE isfinite(created_at)"
    )[0]
    return since


def coins_expected(connection: Connection) -> int:
    """How many coins are collected now."""
    return int(one_row(connection, "SELECT count(*) FROM expected_coins()")[0])


def coins_unseen(
    connection: Connection, timeframe: Timeframe, start: datetime, end: datetime
) -> Found:
    """Coins that are collected now and have no close at all with `start <= label < end`."""
    statement = "SELECT * FROM coins_unseen(%s, %s, %s)"
    return _found(connection, statement, (timeframe.name, start, end))


def misaligned(connection: Connection, timeframe: Timeframe, *, now: datetime) -> Found:
    """Closes of the last 60 buckets that are not labelled with the start of their own bucket."""
    statement = "SELECT * FROM misaligned_closes(%s, %s)"
    return _found(connection, statement, (timeframe.name, now))


def parents_behind(
    connection: Connection,
    timeframe: Timeframe,
    start: datetime,
    end: datetime,
    *,
    recorded_before: datetime | None = None,
) -> Found:
    """Closes that disagree with their children with `start <= label < end`.

    Args:
        timeframe: one of the four rollups.
        recorded_before: children recorded at this instant or later are not asked.
    """
    if recorded_before is None:
        return _found(
            connection, "SELECT * FROM parents_behind(%s, %s, %s)", (timeframe.name, start, end)
        )
    return _found(
        connection,
        "SELECT * FROM parents_behind(%s, %s, %s, %s)",
        (timeframe.name, start, end, recorded_before),
    )


def overdue(
    connection: Connection, timeframe: Timeframe, *, now: datetime, patience: timedelta
) -> Found:
    """Labels, with their numbers of dominated closes, that a cleanup should have deleted."""
    return _found(
        connection,
        "SELECT * FROM overdue_closes(%s, %s, %s)",
        (timeframe.name, now, patience),
        limit=60,
    )


def audit_failures(connection: Connection, timeframe: Timeframe, *, now: datetime) -> Found:
    """Cleanups of this table that deleted more than they had proved."""
    statement = "SELECT * FROM retention_audit_failures(%s) WHERE table_name = %s"
    return _found(connection, statement, (now, timeframe.table))


def partition_runway(connection: Connection, timeframe: Timeframe, *, now: datetime) -> int:
    """Months after that of `now` that have a partition, without a gap; -1 if that one has none."""
    statement = "SELECT partition_runway(%s, %s)"
    return int(one_row(connection, statement, (timeframe.table, now))[0])


def price_jumps(
    connection: Connection, timeframe: Timeframe, *, now: datetime, span: timedelta | None
) -> Found:
    """Prices of closed buckets more than ten times away from what is usual for their coin.

    Args:
        span: how far back to look; None for 8 buckets, of minutes 15.
    """
    statement = "SELECT * FROM price_jumps(%s, %s, %s)"
    return _found(connection, statement, (timeframe.name, now, span))


def stale_provider_times(connection: Connection, timeframe: Timeframe, *, now: datetime) -> Found:
    """Coins of the newest label whose price was over an hour old when it was observed."""
    statement = "SELECT * FROM stale_provider_times(%s, %s)"
    return _found(connection, statement, (timeframe.name, now))


def _found(
    connection: Connection,
    statement: str | sql.Composed,
    parameters: Sequence[Any],
    *,
    limit: int = 20,
) -> Found:
    query = ClientCursor(connection).mogrify(statement, parameters)
    inner = sql.SQL(statement) if isinstance(statement, str) else statement
    counted = sql.SQL("SELECT count(*) OVER (), found.* FROM ({}) AS found LIMIT {}").format(
        inner, sql.Literal(limit)
    )
    cursor = connection.execute(counted, parameters)
    rows = cursor.fetchall()
    columns = tuple(column.name for column in (cursor.description or ())[1:])
    return Found(
        int(rows[0][0]) if rows else 0, columns, tuple(tuple(row[1:]) for row in rows), f"{query};"
    )
