"""What collecting can come to instead of data. Each message is a sentence for the user.

Belongs here: the exceptions and their words, without anything heavy to import. Does not: raising
them.
"""

from __future__ import annotations

import psycopg


class CollectingError(RuntimeError):
    """Collecting could not do what it was asked to; the message says why, and what to do."""


class NoCoins(CollectingError):  # noqa: N818 - reads as what it says
    """`coin_priorities` is empty: there is nobody to poll before the first sweep."""


class SweepFailed(CollectingError):  # noqa: N818 - reads as what it says
    """A sweep ended early; the pages before it are stored."""


def reason_of(error: Exception) -> str:
    """What went wrong, for a person: the provider's errors are sentences, PostgreSQL's are not."""
    said = " ".join(str(error).split())
    if isinstance(error, psycopg.Error):
        return (
            f"PostgreSQL failed: {said}. What was committed before is kept. If it lasts, check "
            "that the server of PULSEGUARD_DATABASE_URL runs and has room on its disk."
        )
    return said
