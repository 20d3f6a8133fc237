"""A clock that was ahead and is set back: incidents end, reminders come, messages go."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest
from alerts_support import Addresses, Sink, after, channels, finding

from pulseguard_assets.alerts.incidents import Round, open_incidents
from pulseguard_assets.alerts.outbox import ChannelsFailing, deliver

Watch = Callable[..., Round]
DAY = 24 * 60.0
LEAPS = pytest.mark.parametrize("leap", [7.0, 366 * DAY], ids=["minutes", "a year"])


@LEAPS
def test_what_was_found_while_the_clock_was_ahead_is_over_three_minutes_after_it_is_gone(
    watch: Watch, connection: psycopg.Connection, leap: float
) -> None:
    watch(leap, finding())
    watch(leap + 1)  # absent, by the wrong clock

    # Absent again since the clock is right; before that is taken for now.
    assert watch(0) == Round(0, 0, 0, 0)
    assert watch(3) == Round(0, 0, 1, 0)

    assert open_incidents(connection) == []


@LEAPS
def test_what_lasts_is_told_again_after_six_hours_and_not_after_a_year(
    watch: Watch,
    connection: psycopg.Connection,
    addresses: Addresses,
    webhook: Sink,
    leap: float,
) -> None:
    to = channels(addresses.json)
    for minutes in (leap, 0, 6 * 60 - 1, 6 * 60, 6 * 60 + 1):
        watch(minutes, finding(), channels=to)
        deliver(connection, to, now=after(minutes))

    kinds = connection.execute("SELECT kind FROM incident_messages ORDER BY id").fetchall()
    assert [kind for (kind,) in kinds] == ["opened", "reminder"]
    assert len(webhook.received) == 2
    (incident,) = open_incidents(connection)
    assert incident.first_seen == after(0), "not in a year to come"


@LEAPS
def test_a_message_that_was_refused_while_the_clock_was_ahead_is_tried_now(
    watch: Watch,
    connection: psycopg.Connection,
    addresses: Addresses,
    webhook: Sink,
    leap: float,
) -> None:
    leap += 60  # more than the longest pause
    to = channels(addresses.json)
    webhook.accepting = False
    watch(leap, finding(), channels=to)
    with pytest.raises(ChannelsFailing):
        deliver(connection, to, now=after(leap))
    webhook.accepting = True

    watch(0, finding(), channels=to)
    deliver(connection, to, now=after(0))

    assert len(webhook.received) == 1


@LEAPS
def test_what_comes_back_after_its_end_in_another_time_is_told_again_half_an_hour_later(
    watch: Watch, connection: psycopg.Connection, leap: float
) -> None:
    watch(leap, finding())
    watch(leap + 1)
    watch(leap + 4)
    assert open_incidents(connection) == []

    # Its end is taken for now, so that this is the same incident for a while, and no longer.
    watch(0)
    assert watch(29, finding()) == Round(0, 0, 0, reopened=1)
    watch(30)
    watch(33)
    assert watch(33 + 31, finding()) == Round(opened=1, continued=0, resolved=0, reopened=0)


def test_times_that_differ_by_less_than_clocks_do_are_left_as_they_are(
    watch: Watch, connection: psycopg.Connection
) -> None:
    watch(0.9, finding())

    watch(0, finding())

    (incident,) = open_incidents(connection)
    assert incident.last_seen - after(0) == timedelta(minutes=0.9)
