"""A connection that is kept from one use to the next.

Belongs here: how long one lasts, and when it is replaced. Does not: making one (`connection.py`).

A session plans a statement once and reads the catalog once; whoever comes back every few seconds
would do both each time anew, which takes longer than what he came for.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from psycopg import Connection


class KeptConnection:
    """One connection for many uses, one after the other; safe to share between threads."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Keep what `connect` makes: at the first use, and again after a connection was lost."""
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    @contextmanager
    def lent(self) -> Iterator[Connection]:
        """The connection, for a block; whoever else wants it waits.

        A block that ends by an exception closes it. Nobody knows in which state it left the
        session, and one that lost its server, or may only read, would fail the next as well.

        Raises:
            as `connect`.
        """
        with self._lock, self._replaced_after_a_failure() as connection:
            yield connection

    @contextmanager
    def lent_or_new(self) -> Iterator[Connection]:
        """As `lent`, but one of its own for whoever finds it in use: he waits for nobody.

        Raises:
            as `connect`.
        """
        if self._lock.acquire(blocking=False):
            try:
                with self._replaced_after_a_failure() as connection:
                    yield connection
            finally:
                self._lock.release()
        else:
            with closing(self._connect()) as connection:
                yield connection

    def close(self) -> None:
        """Close it; the next use opens another."""
        with self._lock:
            self._close()

    @contextmanager
    def _replaced_after_a_failure(self) -> Iterator[Connection]:
        if self._connection is None or _ended(self._connection):
            self._close()
            self._connection = self._connect()
        try:
            yield self._connection
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _ended(connection: Connection) -> bool:
    """Whether the server has closed a connection since it was last used.

    It says nothing to one that rests, unless it ends it. So a server that was restarted between two
    uses fails none of them.
    """
    if connection.closed:
        return True
    said = select.poll()
    said.register(connection.fileno(), select.POLLIN)
    return bool(said.poll(0))
