"""Sinks on loopback, and rounds of a watchdog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import psycopg
import pytest
from alerts_support import (
    HEADER_TOKEN,
    HOOK,
    PASSWORD,
    PATH_TOKEN,
    SLACK,
    UI,
    USER,
    Addresses,
    Sink,
    after,
    serving_mailbox,
    serving_webhook,
)
from apprise.plugins.email import NotifyEmail
from apprise.plugins.mattermost import NotifyMattermost
from apprise.plugins.slack import NotifySlack

from pulseguard_assets.alerts.channels import Channel
from pulseguard_assets.alerts.incidents import Finding, Round, observe


@pytest.fixture
def webhook() -> Iterator[Sink]:
    """See `serving_webhook`."""
    with serving_webhook() as sink:
        yield sink


@pytest.fixture
def mailbox() -> Iterator[Sink]:
    """See `serving_mailbox`."""
    with serving_mailbox() as sink:
        yield sink


@pytest.fixture
def addresses(webhook: Sink, mailbox: Sink, monkeypatch: pytest.MonkeyPatch) -> Addresses:
    """What a user would write into PULSEGUARD_ALERT_URLS."""
    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{webhook.port}/services")
    # Apprise spares real services, by seconds between two messages.
    for service in (NotifyEmail, NotifyMattermost, NotifySlack):
        monkeypatch.setattr(service, "request_rate_per_sec", 0)
    return Addresses(
        json=f"json://{USER}:{PASSWORD}@127.0.0.1:{webhook.port}/{PATH_TOKEN}"
        f"?+X-Token={HEADER_TOKEN}",
        mattermost=f"mmost://127.0.0.1:{webhook.port}/{HOOK}",
        slack=f"slack://{SLACK}",
        mail=f"mailto://{USER}:{PASSWORD}@127.0.0.1:{mailbox.port}"
        "?from=pulse@example.com&to=me@example.com",
    )


@pytest.fixture
def watch(connection: psycopg.Connection) -> Callable[..., Round]:
    """`watch(minutes, finding(), channels=[...])`: a round, so many minutes after noon."""

    def watch(minutes: float, *findings: Finding, channels: Sequence[Channel] = ()) -> Round:
        return observe(
            connection,
            findings,
            ["sensors"],
            channels=[channel.label for channel in channels],
            now=after(minutes),
            reminder=timedelta(hours=6),
            ui_url=UI,
        )

    return watch
