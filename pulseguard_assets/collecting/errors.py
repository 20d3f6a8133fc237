"""What collecting can come to instead of data. Each message is a sentence for the user.

Belongs here: the exceptions and their words, without anything heavy to import. Does not: raising
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pulseguard_assets.warehouse.connection import DatabaseUnavailable
from pulseguard_assets.warehouse.failures import what_failed

# A statement failed, or a connection that it needs cannot be had.
WAREHOUSE_FAILURES = (psycopg.Error, DatabaseUnavailable)


class CollectingError(RuntimeError):
    """Collecting could not do what it was asked to; the message says why, and what to do."""


class NoCoins(CollectingError):  # noqa: N818 - reads as what it says
    """`coin_priorities` is empty: there is nobody to poll before the first sweep."""


class SweepFailed(CollectingError):  # noqa: N818 - reads as what it says
    """A sweep ended early; the pages before it are stored."""


class WarehouseFailed(CollectingError):  # noqa: N818 - reads as what it says
    """PostgreSQL failed before anything was asked of the provider."""


def reason_of(error: Exception) -> str:
    """What went wrong, for a person: the provider's errors are sentences, PostgreSQL's are not."""
    if isinstance(error, psycopg.Error):
        return f"{what_failed(error)} What was committed before is kept."
    return " ".join(str(error).split())


@contextmanager
def plainly_said() -> Iterator[None]:
    """Have what PostgreSQL fails with come out as a sentence. A context manager, or a decorator.

    Raises:
        WarehouseFailed: PostgreSQL failed.
    """
    try:
        yield
    except psycopg.Error as error:
        raise WarehouseFailed(reason_of(error)) from error
