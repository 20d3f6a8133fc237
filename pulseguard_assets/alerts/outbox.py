"""The outbox: messages stay in `incident_messages` until their channel has accepted them.

Belongs here: trying, and what follows from success and refusal. Does not: which message is due to
be written (`sql/`), nor how a channel works (`channels.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import Connection

from pulseguard_assets.alerts.backlog import Backlog, backlog
from pulseguard_assets.alerts.channels import Channel, ChannelRefused, Tone, send
from pulseguard_assets.alerts.errors import AlertsError

LONGEST_WAIT = timedelta(minutes=60)
# A message for a channel that is configured no more waits so long for it to come back.
ORPHANED_FOR = timedelta(days=1)
# Of a tick that is cut at 60 s. One message begun before it ends takes up to 20 s more.
PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True)
class Delivery:
    """What a delivery did.

    Attributes:
        sent: messages accepted.
        failed: messages refused.
        waiting: messages left in the outbox.
    """

    sent: int
    failed: int
    waiting: int


class ChannelsFailing(AlertsError):  # noqa: N818 - reads as what it says
    """Messages do not get through. The message names the channels and why, without secrets.

    Attributes:
        delivery: what was done nevertheless.
    """

    def __init__(self, failing: Iterable[Backlog], delivery: Delivery) -> None:
        self.delivery = delivery
        told = "; ".join(
            f"{each.last_error} ({each.waiting} {'message' if each.waiting == 1 else 'messages'} "
            f"waiting since {each.since:%Y-%m-%d %H:%M} UTC)"
            for each in failing
        )
        super().__init__(
            f"Alerts do not get through. {told}. They are kept and tried again. See that the "
            "service answers and that its address in PULSEGUARD_ALERT_URLS is right; "
            "`pulseguard alert-test` tries it at once."
        )


def deliver(
    connection: Connection,
    channels: Sequence[Channel],
    *,
    now: datetime,
    patience: timedelta = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> Delivery:
    """Send what is due, each message in a transaction of its own. Several may do so at once.

    A channel that refuses a message is left alone for the rest of this delivery. A message whose
    process dies between the channel's yes and the commit is sent a second time: better than never.

    Args:
        connection: in autocommit mode, outside any transaction.
        channels: those configured. What waits for others is dropped when it is a day old.
        now: decides what is due.
        patience: no further message is begun after it; the rest waits for the next delivery.
        clock: seconds that pass, to measure `patience` by.

    Raises:
        ChannelsFailing: everything due was tried, and a channel has refused messages that wait
            still, now or before. For as long as it lasts, so that the caller's tick shows it.
        psycopg.Error: the outbox cannot be read or written.
    """
    by_label = {channel.label: channel for channel in channels}
    _drop_orphans(connection, list(by_label), now)
    until = clock() + patience.total_seconds()
    sent, refused = 0, set[str]()
    while clock() < until:
        left = {label: each for label, each in by_label.items() if label not in refused}
        tried = _deliver_one(connection, left, now)
        if tried is None:
            break
        label, accepted = tried
        if accepted:
            sent += 1
            _hurry(connection, label, now)
        else:
            refused.add(label)
    outbox = backlog(connection)
    delivery = Delivery(sent, len(refused), sum(each.waiting for each in outbox))
    failing = [each for each in outbox if each.channel in by_label and each.refused]
    if failing:
        raise ChannelsFailing(failing, delivery)
    return delivery


def wait_after(refusals: int) -> timedelta:
    """How long a message waits that was refused so often: 1, 2, 4 and so on to 60 minutes."""
    # The exponent is bounded: after a month of refusals the power alone would not fit.
    return min(timedelta(minutes=2 ** min(refusals - 1, 6)), LONGEST_WAIT)


def _deliver_one(
    connection: Connection, channels: Mapping[str, Channel], now: datetime
) -> tuple[str, bool] | None:
    """Try the message that has been due the longest: its channel, and whether that accepted it."""
    with connection.transaction():
        # The lock is held while it is sent. Who comes second goes on to the next message.
        row = connection.execute(
            "SELECT m.id, m.channel, m.title, m.body, m.attempts, m.kind, i.severity "
            "FROM incident_messages m JOIN incidents i ON i.id = m.incident_id "
            "WHERE m.sent_at IS NULL AND m.dropped_at IS NULL AND m.title IS NOT NULL "
            "AND m.next_attempt_at <= %s AND m.channel = ANY (%s) "
            "ORDER BY m.next_attempt_at, m.id LIMIT 1 FOR UPDATE OF m SKIP LOCKED",
            (now, list(channels)),
        ).fetchone()
        if row is None:
            return None
        message_id, label, title, body, attempts, kind, severity = row
        try:
            send(channels[label], title, body, tone=_tone(kind, severity))
        except ChannelRefused as refusal:
            connection.execute(
                "UPDATE incident_messages SET attempts = attempts + 1, last_error = %s, "
                "next_attempt_at = %s WHERE id = %s",
                (str(refusal), now + wait_after(attempts + 1), message_id),
            )
            return label, False
        connection.execute(
            "UPDATE incident_messages SET sent_at = %s WHERE id = %s", (now, message_id)
        )
        return label, True


def _tone(kind: str, severity: str) -> Tone:
    if kind == "recovered":
        return "success"
    return "warning" if severity == "warning" else "failure"


def _hurry(connection: Connection, label: str, now: datetime) -> None:
    """What a channel refused before is due now: it has just shown that it is back."""
    # Never waiting for a lock: an observer may hold one message of these and want another.
    connection.execute(
        "UPDATE incident_messages SET next_attempt_at = %(now)s WHERE id IN ("
        "SELECT id FROM incident_messages WHERE channel = %(label)s AND sent_at IS NULL "
        "AND dropped_at IS NULL AND next_attempt_at > %(now)s FOR UPDATE SKIP LOCKED)",
        {"now": now, "label": label},
    )


def _drop_orphans(connection: Connection, labels: Sequence[str], now: datetime) -> None:
    connection.execute(
        "UPDATE incident_messages SET dropped_at = %(now)s, "
        "dropped_because = 'its channel is not configured any more' WHERE id IN ("
        "SELECT id FROM incident_messages WHERE sent_at IS NULL AND dropped_at IS NULL "
        "AND channel <> ALL (%(labels)s) AND created_at <= %(before)s FOR UPDATE SKIP LOCKED)",
        {"now": now, "labels": list(labels), "before": now - ORPHANED_FOR},
    )
