"""Collection cycles as rows of `collection_status`, and what they set aside.

Belongs here: the life of such a row. Does not: what a cycle does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import psycopg
from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from pulseguard_assets.warehouse.statements import one_row

# Any number that no other advisory lock of the database uses as its first key.
_LOCK_CLASS = 1886678900

# A cycle that waits for its next tick gives a sign of life at every tick, 20 s apart.
SILENT_FOR = timedelta(minutes=10)
# The clocks of processes may differ by so much. What lies further ahead was written by a clock
# that has been set back since.
CLOCKS_DIFFER = timedelta(seconds=60)


class CollectorBusy(RuntimeError):  # noqa: N818 - reads as what it says
    """Another process is collecting at this moment."""


@dataclass(frozen=True)
class Collection:
    """One cycle, as its row stands.

    Attributes:
        id: number of the row.
        kind: `complete`, `continuous`, `priority_refresh` or `manual`.
        started_at: UTC.
        status: `running`, `completed`, `failed` or `cancelled`.
        coins_processed: coins stored so far.
        coins_failed: coins asked for and not stored.
        api_calls_made: calls so far.
        error: why it failed.
        ended_at: UTC; None while running.
        details: free figures, JSON.
        heard_at: its last sign of life, UTC.
    """

    id: int
    kind: str
    started_at: datetime
    heard_at: datetime
    status: str = "running"
    coins_processed: int = 0
    coins_failed: int = 0
    api_calls_made: int = 0
    error: str | None = None
    ended_at: datetime | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def lies_ahead(self, now: datetime) -> bool:
        """Whether the clock was set back since: then none of its times says anything."""
        return max(self.started_at, self.heard_at) > now + CLOCKS_DIFFER


_COLUMNS = sql.SQL(
    "id, collection_type, start_time, heartbeat_at, status, coins_processed, coins_failed, "
    "api_calls_made, error_message, end_time, coalesce(batch_details, '{}')"
)


@contextmanager
def only_collector(connection: Connection, kind: str, *, patience: bool = False) -> Iterator[None]:
    """Be the only one that collects this kind, until the block ends or the process dies.

    Args:
        kind: any word; two blocks with the same word exclude each other.
        patience: wait for the other one, as long as the connection's `lock_timeout` allows.

    Raises:
        CollectorBusy: somebody else is, and goes on being.
    """
    key = (_LOCK_CLASS, kind)
    if patience:
        with suppress(psycopg.errors.LockNotAvailable):
            # Held only to wait; what counts is the lock taken below.
            one_row(connection, "SELECT pg_advisory_lock(%s, hashtext(%s))", key)
            one_row(connection, "SELECT pg_advisory_unlock(%s, hashtext(%s))", key)
    if not one_row(connection, "SELECT pg_try_advisory_lock(%s, hashtext(%s))", key)[0]:
        raise CollectorBusy(
            f"Another process is collecting ({kind}) right now; wait for it to end. It is the row "
            "of collection_status whose status is 'running'."
        )
    try:
        yield
    finally:
        # A session that is lost took its locks along, and its own error is the better story.
        with suppress(psycopg.OperationalError):
            connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", key)


def begin_collection(
    connection: Connection, kind: str, now: datetime, details: dict[str, Any]
) -> Collection:
    """Open a row for a cycle that begins now."""
    statement = sql.SQL(
        "INSERT INTO collection_status "
        "(collection_type, start_time, created_at, heartbeat_at, batch_details) "
        "VALUES (%s, %s, %s, %s, %s) RETURNING {}"
    ).format(_COLUMNS)
    return Collection(*one_row(connection, statement, (kind, now, now, now, Jsonb(details))))


def save_collection(connection: Connection, cycle: Collection, now: datetime) -> None:
    """Write a cycle's figures, state and sign of life."""
    connection.execute(
        "UPDATE collection_status SET status = %s, coins_processed = %s, coins_failed = %s, "
        "api_calls_made = %s, error_message = %s, end_time = %s, batch_details = %s, "
        "heartbeat_at = %s WHERE id = %s",
        (
            cycle.status,
            cycle.coins_processed,
            cycle.coins_failed,
            cycle.api_calls_made,
            cycle.error,
            cycle.ended_at,
            Jsonb(cycle.details),
            now,
            cycle.id,
        ),
    )


def recent_collections(
    connection: Connection, kinds: Sequence[str], limit: int
) -> list[Collection]:
    """The newest cycles of these kinds, newest first."""
    statement = sql.SQL(
        "SELECT {} FROM collection_status WHERE collection_type = ANY (%s) "
        "ORDER BY id DESC LIMIT %s"
    ).format(_COLUMNS)
    rows = connection.execute(statement, (list(kinds), limit)).fetchall()
    return [Collection(*row) for row in rows]


def fail_crashed(
    connection: Connection, kinds: Sequence[str], now: datetime, resumable: int | None = None
) -> int:
    """Close the rows whose process died, as failed; returns how many.

    Call it as the only collector of these kinds: then a row that says `running` and is not the one
    that waits to be resumed has nobody working on it. Runs that read history are another's: they
    are filed as `manual` too, and go on beside the polls. Of whatever kind, a row without a sign of
    life for `SILENT_FOR` is taken for crashed; should it live, it writes how it ended itself.
    """
    cursor = connection.execute(
        "UPDATE collection_status SET status = 'failed', end_time = %s, "
        "error_message = 'The process that ran this cycle ended before the cycle did.' "
        "WHERE status = 'running' AND (heartbeat_at NOT BETWEEN %s AND %s "
        "OR collection_type = ANY (%s) "
        "AND id IS DISTINCT FROM %s AND NOT coalesce(batch_details ? 'history', false))",
        (now, now - SILENT_FOR, now + SILENT_FOR, list(kinds), resumable),
    )
    return cursor.rowcount


def reject(
    connection: Connection, rejected: pl.DataFrame, *, collection_id: int | None, now: datetime
) -> int:
    """File rows that were no observations at all (`coin_id`, `reason`, `payload` as JSON text).

    Until its transaction ends, others who file wait for this one: call it after everything in the
    transaction that may wait for others. Of a row given twice the later payload stays.

    Returns:
        How many there were; those filed in the same hour before are counted, not repeated.
    """
    if rejected.is_empty():
        return 0
    columns = (rejected[name].to_list() for name in ("coin_id", "reason", "payload"))
    filed = one_row(
        connection,
        "SELECT set_aside_all(%s, %s, %s::text[], %s::text[], %s::text[]::jsonb[])",
        (collection_id, now, *columns),
    )
    return int(filed[0])
