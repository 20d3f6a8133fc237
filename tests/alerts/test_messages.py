"""The words: the whole text, as it stands on a phone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from alerts_support import NOON, UI, after

from pulseguard_assets.alerts.messages import LONGEST_TITLE, greeting, span, worded
from pulseguard_assets.alerts.model import Incident

INCIDENT = Incident(
    id=1,
    cause="sensor:prices:FAILING",
    area="sensors",
    kind="FAILING",
    severity="error",
    subject="prices",
    title="The sensor prices fails",
    message="100 ticks in a row failed: the provider answered 503 Service Unavailable.",
    link="/locations/pulseguard/sensors/prices",
    help="pulseguard collect --once",
    first_seen=NOON,
    last_seen=after(125),
    occurrences=100,
    rounds=125,
    absent_since=None,
    resolved_at=None,
    flaps=0,
    last_reminded_at=None,
)
OVER = replace(INCIDENT, absent_since=after(126), resolved_at=after(129))


def test_what_is_new_is_told_with_what_since_when_how_often_and_what_to_do() -> None:
    message = worded("opened", INCIDENT, now=NOON, ui_url=UI)

    assert message.title == "PulseGuard error: The sensor prices fails"
    assert message.body == (
        "100 ticks in a row failed: the provider answered 503 Service Unavailable.\n"
        "\n"
        "Since: 2026-11-22 12:00 UTC\n"
        "How often: 100 times\n"
        "What to do: pulseguard collect --once\n"
        "Link: http://127.0.0.1:3000/locations/pulseguard/sensors/prices"
    )


def test_a_reminder_says_that_it_lasts_and_for_how_long() -> None:
    flapping = replace(INCIDENT, flaps=3, severity="critical", occurrences=12_345)

    message = worded("reminder", flapping, now=after(125), ui_url=f"{UI}/")

    assert message.title == "PulseGuard critical, still: The sensor prices fails"
    assert message.body == (
        "100 ticks in a row failed: the provider answered 503 Service Unavailable.\n"
        "\n"
        "Since: 2026-11-22 12:00 UTC (2 h 5 min)\n"
        "How often: 12,345 times, and came back 3 times\n"
        "What to do: pulseguard collect --once\n"
        "Link: http://127.0.0.1:3000/locations/pulseguard/sensors/prices"
    )


def test_a_recovery_says_how_long_it_lasted_and_asks_for_nothing() -> None:
    message = worded("recovered", OVER, now=after(129), ui_url=UI)

    assert message.title == "PulseGuard recovered: The sensor prices fails"
    assert message.body == (
        "It is over. It was: 100 ticks in a row failed: the provider answered 503 Service "
        "Unavailable.\n"
        "\n"
        "Lasted: 2026-11-22 12:00 UTC to 2026-11-22 14:06 UTC (2 h 6 min)\n"
        "How often: 100 times\n"
        "Link: http://127.0.0.1:3000/locations/pulseguard/sensors/prices"
    )


def test_what_is_not_known_has_no_line() -> None:
    bare = replace(INCIDENT, help=None, link=None, occurrences=1)

    assert worded("opened", bare, now=NOON, ui_url=UI).body.splitlines()[2:] == [
        "Since: 2026-11-22 12:00 UTC",
        "How often: once",
        "Link: http://127.0.0.1:3000",
    ]


def test_a_query_to_copy_keeps_its_lines() -> None:
    query = replace(INCIDENT, help="SELECT 1\nFROM minute_close\n")

    body = worded("opened", query, now=NOON, ui_url=UI).body
    assert "What to do: SELECT 1\nFROM minute_close\nLink: " in body


@pytest.mark.parametrize("kind", ["opened", "reminder", "recovered"])
def test_a_title_is_one_line_that_a_lock_screen_shows_whole(kind: str) -> None:
    long = replace(INCIDENT, title="fails\n\x1b[31m " * 30, severity="critical")

    title = worded(kind, long, now=NOON, ui_url=UI).title

    assert len(title) == LONGEST_TITLE == 80
    assert title.endswith("…")
    assert title.isprintable()


def test_a_traceback_does_not_bury_what_to_do() -> None:
    endless = replace(INCIDENT, message="Traceback\n" + "line\n" * 10_000, help="x" * 10_000)

    body = worded("opened", endless, now=NOON, ui_url=UI).body

    assert len(body) < 1_500
    assert body.splitlines()[-1].startswith("Link: http")


def test_a_test_message_says_that_nothing_is_wrong() -> None:
    message = greeting("slack (1)", now=NOON, ui_url=UI)

    assert message.title == "PulseGuard test: alerts reach you here"
    assert message.body == (
        "Sent to slack (1) at 2026-11-22 12:00 UTC by pulseguard alert-test. Nothing is wrong.\n"
        "\n"
        "Link: http://127.0.0.1:3000"
    )


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(seconds=59), "less than 1 min"),
        (timedelta(minutes=1), "1 min"),
        (timedelta(minutes=60), "1 h"),
        (timedelta(minutes=125), "2 h 5 min"),
        (timedelta(days=1), "1 d"),
        (timedelta(days=1, minutes=59), "1 d"),
        (timedelta(days=3, hours=4, minutes=5), "3 d 4 h"),
        (timedelta(minutes=-1), "less than 1 min"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(duration: timedelta, words: str) -> None:
    assert span(duration) == words
