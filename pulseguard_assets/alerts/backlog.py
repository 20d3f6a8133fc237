"""What waits in the outbox: messages that no channel has accepted yet.

Belongs here: looking at it. Does not: sending (`outbox.py`), which takes the library of channels to
load; who only looks need not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection


@dataclass(frozen=True)
class Backlog:
    """What waits for one channel.

    Attributes:
        channel: label of the channel.
        waiting: how many messages.
        since: when the oldest of them was queued, UTC.
        refused: how many of them were tried and refused.
        last_error: why, most recently, without any secret; None if none was refused.
    """

    channel: str
    waiting: int
    since: datetime
    refused: int
    last_error: str | None


def backlog(connection: Connection) -> list[Backlog]:
    """What waits, by channel; empty when all is sent."""
    rows = connection.execute(
        "SELECT channel, count(*), min(created_at), count(*) FILTER (WHERE attempts > 0), "
        "(array_agg(last_error ORDER BY next_attempt_at DESC) "
        " FILTER (WHERE last_error IS NOT NULL))[1] "
        "FROM incident_messages WHERE sent_at IS NULL AND dropped_at IS NULL "
        "GROUP BY channel ORDER BY channel"
    ).fetchall()
    return [Backlog(*row) for row in rows]
