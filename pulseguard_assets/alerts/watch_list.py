"""The sensors and schedules that the code defines, in the table `watch_list`.

Belongs here: keeping and reading it. Does not: asking the code (`automation/`), nor the verdict
(`instigators.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import Connection

from pulseguard_assets.alerts.instigators import Watched


def record(connection: Connection, watched: Sequence[Watched]) -> None:
    """Make the list what the code defines. Writes only what differs.

    Raises:
        psycopg.Error: nothing was changed.
    """
    if read(connection) == sorted(watched, key=_place):
        return
    columns = list(zip(*map(_row, watched), strict=True)) or [()] * 5
    with connection.transaction():
        # Rows that somebody else updates and deletes in another order would be a deadlock.
        connection.execute("LOCK TABLE watch_list IN SHARE ROW EXCLUSIVE MODE")
        connection.execute(
            "DELETE FROM watch_list WHERE (kind, name) NOT IN ("
            "SELECT * FROM unnest(%s::text[], %s::text[]))",
            [list(column) for column in columns[:2]],
        )
        connection.execute(
            "INSERT INTO watch_list (kind, name, runs_by_default, every, cron) "
            "SELECT * FROM unnest("
            "%s::text[], %s::text[], %s::boolean[], %s::interval[], %s::text[]) "
            "ON CONFLICT (kind, name) DO UPDATE SET runs_by_default = excluded.runs_by_default, "
            "every = excluded.every, cron = excluded.cron "
            "WHERE (watch_list.runs_by_default, watch_list.every, watch_list.cron) "
            "IS DISTINCT FROM (excluded.runs_by_default, excluded.every, excluded.cron)",
            [list(column) for column in columns],
        )


def read(connection: Connection) -> list[Watched]:
    """What is to be watched, by name; empty until a watchdog has run."""
    rows = connection.execute(
        "SELECT name, kind, runs_by_default, every, cron FROM watch_list"
    ).fetchall()
    # Sorted here: a database's collation need not be Python's.
    return sorted((Watched(*row) for row in rows), key=_place)


def _place(watched: Watched) -> tuple[str, str]:
    return watched.name, watched.kind


def _row(watched: Watched) -> tuple[object, ...]:
    return (
        watched.kind,
        watched.name,
        watched.runs_by_default,
        watched.every,
        watched.cron,
    )
