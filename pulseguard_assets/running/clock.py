"""A clock that was ahead and is set back, and what of Dagster's would wait until it is there again.

Belongs here: noticing it, and freeing Dagster. Does not: our own tables, whose rules bear it
(`sql/`), nor restarting the daemon, which measures its pauses by the time of day (`platform.py`).

Dagster evaluates a sensor an interval after its last tick, and a schedule at the first time after
its last one. Were they a day ahead, nothing would be collected for a day, and nobody would be told,
since the watchdog is a schedule too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from psycopg import Connection

from pulseguard_assets.warehouse.connection import DAGSTER_SCHEMA

# Clocks are corrected by less than this all the time, and what waits so long is not late.
LEAST = timedelta(seconds=60)

# Of a sensor and of a schedule: when it ticked last, and when it was switched on.
_MARKS = [
    "last_tick_timestamp",
    "last_tick_start_timestamp",
    "last_sensor_start_timestamp",
    "last_iteration_timestamp",
    "start_timestamp",
]

# Dagster keeps times of day in UTC, without a zone; in its JSON, in seconds.
_FREE_TICKS = """
UPDATE dagster.job_ticks SET
    timestamp = %(now)s AT TIME ZONE 'UTC',
    tick_body = (
        tick_body::jsonb || jsonb_build_object('timestamp', extract(epoch FROM %(now)s))
    )::text
WHERE timestamp > %(latest)s AT TIME ZONE 'UTC'
RETURNING selector_id
"""
_FREE_MARKS = """
UPDATE dagster.instigators AS instigator SET
    instigator_body = jsonb_set(instigator_body::jsonb, '{job_specific_data}', data || pulled)::text
FROM (
    SELECT id, data, jsonb_object_agg(mark, extract(epoch FROM %(now)s)) AS pulled
    FROM dagster.instigators,
        LATERAL (SELECT instigator_body::jsonb -> 'job_specific_data' AS data) AS body,
        unnest(%(marks)s::text[]) AS mark
    WHERE (data ->> mark)::double precision > extract(epoch FROM %(latest)s)
    GROUP BY id, data
) AS ahead
WHERE instigator.id = ahead.id
RETURNING selector_id
"""


class ClockWatch:
    """Notices that the time of day went back, by a clock that only goes forward.

    Args:
        wall: the time of day, in seconds.
        steady: seconds since any instant, whatever becomes of the time of day.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def set_back(self) -> timedelta | None:
        """By how much the clock was set back since the last look; None if it was not."""
        before, self._offset = self._offset, self._wall() - self._steady()
        back = timedelta(seconds=before - self._offset)
        return back if back >= LEAST else None


def free_dagster(connection: Connection, now: datetime) -> int:
    """Set to `now` what Dagster has noted of sensors and schedules for times yet to come.

    Returns:
        How many sensors and schedules would have waited. 0 also while Dagster has no tables.
    """
    known = connection.execute("SELECT to_regclass(%s)", (f"{DAGSTER_SCHEMA}.instigators",))
    if known.fetchone() == (None,):
        return 0
    given = {"now": now, "latest": now + LEAST, "marks": _MARKS}
    with connection.transaction():
        ticks = connection.execute(_FREE_TICKS, given).fetchall()
        marks = connection.execute(_FREE_MARKS, given).fetchall()
    return len({*ticks, *marks})
