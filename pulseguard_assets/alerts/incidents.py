"""Incidents in PostgreSQL: entering what a round of looking found, and reading what is open.

Belongs here: the calls of the rules in `sql/`. Does not: the rules, the words of a message
(`messages.py`), sending (`outbox.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from pulseguard_assets.alerts.messages import worded
from pulseguard_assets.alerts.model import Finding, Incident
from pulseguard_assets.warehouse.statements import one_row

__all__ = [
    "HOLD",
    "REOPEN",
    "Finding",
    "Incident",
    "Round",
    "incidents",
    "observe",
    "open_incidents",
]

HOLD = timedelta(minutes=3)
REOPEN = timedelta(minutes=30)

# A traceback of a megabyte says no more than its first lines.
_LONGEST_TEXT = 4_000

_COLUMNS = sql.SQL(", ").join(sql.Identifier("i", field.name) for field in fields(Incident))


@dataclass(frozen=True)
class Round:
    """What a round changed: incidents opened, found again, taken for gone, and come back soon."""

    opened: int
    continued: int
    resolved: int
    reopened: int


def observe(
    connection: Connection,
    findings: Sequence[Finding],
    areas: Sequence[str],
    *,
    channels: Sequence[str],
    now: datetime,
    reminder: timedelta,
    ui_url: str,
    hold: timedelta = HOLD,
    reopen: timedelta = REOPEN,
) -> Round:
    """Enter what was found, and queue the messages that follow from it. One transaction.

    Any number of watchdogs may do so at once. A message that is being sent about an incident that
    is over just now is waited for, as long as the connection's `lock_timeout` allows.

    Args:
        findings: all that is wrong.
        areas: what could be looked at. An incident of another area stays as it is, since not
            having looked is no sign that it is gone.
        channels: labels of the channels that are told; see `Channel.label`.
        now: the instant of the look.
        reminder: how often an incident that stays open is told again.
        ui_url: address of the web interface, for the links in messages.
        hold: how long a cause must be absent before its incident is over.
        reopen: a cause that comes back within this time is the same incident, of which nobody is
            told again.

    Raises:
        psycopg.Error: nothing was entered.
    """
    with connection.transaction():
        connection.execute("SELECT pull_back_incidents(%s)", (now,))
        counts = one_row(
            connection,
            "SELECT opened, continued, resolved, reopened "
            "FROM observe_incidents(%s, %s, %s, %s, %s, %s, %s)",
            (
                Jsonb([_as_json(finding) for finding in findings]),
                list(areas),
                list(channels),
                now,
                reminder,
                hold,
                reopen,
            ),
        )
        _word_messages(connection, now=now, ui_url=ui_url)
    return Round(*counts)


def incidents(
    connection: Connection, limit: int = 100, *, only_open: bool = False
) -> list[Incident]:
    """The open incidents, the gravest and then the oldest first; then those that are over, newest
    first, unless `only_open`.
    """
    statement = sql.SQL(
        "SELECT {} FROM incidents i WHERE i.resolved_at IS NULL OR NOT %s "
        "ORDER BY i.resolved_at DESC NULLS FIRST, "
        "array_position(ARRAY['critical', 'error', 'warning'], i.severity), i.first_seen, i.id "
        "LIMIT %s"
    ).format(_COLUMNS)
    rows = connection.execute(statement, (only_open, limit)).fetchall()
    return [Incident(*row) for row in rows]


def open_incidents(connection: Connection) -> list[Incident]:
    """What is wrong now, the gravest and then the oldest first."""
    return incidents(connection, limit=1_000, only_open=True)


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        name: _storable(value) if isinstance(value, str) else value
        for name, value in asdict(finding).items()
    }


def _storable(text: str) -> str:
    # PostgreSQL takes neither NUL nor half a surrogate pair, and an error's own words may hold
    # either. They must not silence the watchdog.
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")[:_LONGEST_TEXT]


def _word_messages(connection: Connection, *, now: datetime, ui_url: str) -> None:
    """Give their words to the messages just queued.

    Here and not at sending: the words are of the moment that is told about.
    """
    statement = sql.SQL(
        "SELECT m.id, m.kind, {} FROM incident_messages m JOIN incidents i ON i.id = m.incident_id "
        "WHERE m.title IS NULL AND m.sent_at IS NULL AND m.dropped_at IS NULL"
    ).format(_COLUMNS)
    for message_id, kind, *columns in connection.execute(statement).fetchall():
        text = worded(kind, Incident(*columns), now=now, ui_url=ui_url)
        connection.execute(
            "UPDATE incident_messages SET title = %s, body = %s WHERE id = %s",
            (text.title, text.body, message_id),
        )
