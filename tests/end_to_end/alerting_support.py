"""A platform that alerts, and what it has told of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from alerts_support import Sink
from up_support import Up

from pulseguard_assets.simulator.server import RunningSimulator

KEY, HOOK_TOKEN, MAIL_PASSWORD = "CG-NurFuerDieseProbe", "gehe1mes-T0ken", "Pass-W0rt-der-Post"
# What an alert may take, by the promise.
NAMED_WITHIN = timedelta(minutes=2)
MINUTES = "SELECT count(DISTINCT minute_ts) FROM minute_close"


def alerting(
    start: Callable[..., Up], provider: RunningSimulator, hook: Sink, mail: Sink, **settings: str
) -> Up:
    """Collecting from this provider every minute, and telling these two."""
    up = start(
        "up",
        PULSEGUARD_PLAN="pro",
        PULSEGUARD_API_KEY=KEY,
        PULSEGUARD_BASE_URL=provider.url,
        PULSEGUARD_MODE="20",
        PULSEGUARD_ALERT_URLS=f"json://127.0.0.1:{hook.port}/{HOOK_TOKEN},"
        f"mailto://pulse:{MAIL_PASSWORD}@127.0.0.1:{mail.port}"
        "?from=pulse@example.com&to=me@example.com",
        **settings,
    )
    up.wait_until_up()
    return up


def open_incidents(up: Up) -> dict[str, tuple[datetime, int]]:
    """The causes of the open incidents: since when, and how often."""
    found = up.rows(
        "SELECT cause, first_seen, occurrences FROM incidents WHERE resolved_at IS NULL",
    )
    return {cause: (since, times) for cause, since, times in found}


def messages(sink: Sink, *words: str) -> list[str]:
    """Titles of what a sink has received that have all these words."""
    return [title for title in sink.titles() if all(word in title for word in words)]
