"""The platform's hold on its database: one platform to a database, and one kind of prices.

Belongs here: the session lock that says "a platform runs here", and the mark that keeps real and
simulated prices apart. Does not: the product's tables (`sql/`), or starting a server.
"""

from __future__ import annotations

import os
import platform
from types import TracebackType

import psycopg

from pulseguard_assets.running.instance import AlreadyRunning, InstanceError, other_purpose
from pulseguard_assets.warehouse.connection import connect

_LOCK = 0x50554C5352  # any constant, different from the other locks of this package

_HOLDER = """
SELECT a.application_name, a.backend_start AT TIME ZONE 'UTC'
FROM pg_locks AS l
JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32) + l.objid::bigint = %s
"""


class DatabaseHold:
    """A session that holds PostgreSQL's advisory lock for as long as the platform runs.

    The data folder's lock does not see a platform on another machine, or in another folder, that
    was given the same database; two daemons would then tick every sensor twice.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection | None = None

    def acquire(self) -> None:
        """Take the lock, or fail at once.

        Raises:
            AlreadyRunning: another platform runs on this database.
            DatabaseUnavailable, UnsupportedPostgres: see `connect`.
        """
        # PostgreSQL cuts application names at 63 bytes.
        who = f"pulseguard up, process {os.getpid()} on {platform.node()}"[:63]
        connection = connect(self._dsn, application_name=who)
        try:
            # A server may end idle sessions after a while; this one idles by design.
            connection.execute("SET idle_session_timeout = 0")
            _take_lock(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def verify(self) -> bool:
        """Make sure that the lock is still held, taking it again if the connection was lost.

        Returns:
            Whether the connection had been lost.

        Raises:
            AlreadyRunning: another platform took it in between.
            DatabaseUnavailable, UnsupportedPostgres: the server cannot be reached now.
        """
        try:
            if self._connection is not None:
                self._connection.execute("SELECT")
                return False
        except psycopg.OperationalError:
            self.release()
        self.acquire()
        return True

    def claim(self, purpose: str) -> None:
        """Set the migrated database aside for `real` or `simulated` prices, for good.

        Raises:
            InstanceError: it was set aside for the other.
        """
        assert self._connection is not None  # noqa: S101 - acquire comes first
        self._connection.execute(
            "INSERT INTO public.platform_purpose (purpose) VALUES (%s) ON CONFLICT DO NOTHING",
            (purpose,),
        )
        row = self._connection.execute("SELECT purpose FROM public.platform_purpose").fetchone()
        found = str(row[0]) if row else purpose
        if found != purpose:
            raise InstanceError(other_purpose("This database", found))

    def release(self) -> None:
        """Give the lock back. Harmless when it is not held."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> DatabaseHold:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _take_lock(connection: psycopg.Connection) -> None:
    taken = connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
    if taken != (True,):
        raise AlreadyRunning(_already_running(connection))


def _already_running(connection: psycopg.Connection) -> str:
    row = connection.execute(_HOLDER, (_LOCK,)).fetchone()
    # Another login's sessions are shown without their times.
    since = f", since {row[1]:%Y-%m-%d %H:%M} UTC" if row and row[1] else ""
    who = f" ({row[0]}{since})" if row else ""
    return (
        f"Another PulseGuard already runs on this database{who}. Two would collect every price "
        "twice. Stop that one first, or name another database in PULSEGUARD_DATABASE_URL."
    )
