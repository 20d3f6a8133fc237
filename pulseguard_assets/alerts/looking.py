"""From what was found to what is told: consequences left out, incidents entered, messages sent.

Belongs here: the way that every watchdog's findings go. Does not: looking, nor what becomes of an
incident (`incidents.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from psycopg import Connection

from pulseguard_assets.alerts.channels import Channel
from pulseguard_assets.alerts.incidents import Round, observe, open_incidents
from pulseguard_assets.alerts.model import Finding, Look
from pulseguard_assets.alerts.outbox import deliver
from pulseguard_assets.settings import Settings

# A check that runs hourly, or a share of the last 15 minutes, sees an outage longer than it lasts.
LINGERS = timedelta(minutes=30)


def without_consequences(
    findings: Sequence[Finding], lasting: Collection[str], *, known: Collection[str] = ()
) -> list[Finding]:
    """The findings that nothing else explains, in their order.

    What is explained by something that is explained itself goes with it. Findings that explain
    each other, and that nothing else does, all stay: else nobody would be told.

    Args:
        lasting: causes that last, or have just ended, whether they were found now or not.
        known: causes of open incidents. They stay, whatever explains them by now: to leave them out
            would be to say that they are over.
    """
    found = {finding.cause for finding in findings}
    doubtful = [
        finding
        for finding in findings
        if finding.cause not in known and _explained(finding, found.union(lasting))
    ]
    certain = found.union(lasting) - {finding.cause for finding in doubtful}
    dropped: list[Finding] = []
    while explained := [each for each in doubtful if _explained(each, certain)]:
        doubtful = [each for each in doubtful if each not in explained]
        certain |= {each.cause for each in explained}
        dropped += explained
    return [finding for finding in findings if finding not in dropped]


def _explained(finding: Finding, causes: Collection[str]) -> bool:
    return any(cause.startswith(finding.explained_by) for cause in causes if cause != finding.cause)


def lasting_causes(connection: Connection, *, now: datetime) -> set[str]:
    """Causes of the incidents that are open, or were resolved less than 30 minutes before `now`."""
    rows = connection.execute(
        "SELECT DISTINCT cause FROM incidents WHERE resolved_at IS NULL OR resolved_at > %s",
        (now - LINGERS,),
    ).fetchall()
    return {cause for (cause,) in rows}


def enter(
    connection: Connection,
    look: Look,
    settings: Settings,
    channels: Sequence[Channel],
    *,
    now: datetime,
) -> Round:
    """Enter what was found, less the consequences, and queue the messages that follow.

    Raises:
        psycopg.Error: nothing was entered.
    """
    findings = without_consequences(
        look.findings,
        lasting_causes(connection, now=now),
        known={incident.cause for incident in open_incidents(connection)},
    )
    return observe(
        connection,
        findings,
        look.areas,
        channels=[channel.label for channel in channels],
        now=now,
        reminder=settings.alert_reminder,
        ui_url=settings.ui_address,
    )


def tell(
    connection: Connection,
    look: Look,
    settings: Settings,
    channels: Sequence[Channel],
    *,
    now: datetime,
) -> Round:
    """Enter what was found, and send what is due.

    Args:
        connection: in autocommit mode, outside any transaction.

    Raises:
        ChannelsFailing: everything is entered and kept; some of it was not accepted.
        psycopg.Error: nothing was entered, or nothing could be sent.
    """
    entered = enter(connection, look, settings, channels, now=now)
    deliver(connection, channels, now=now)
    return entered
