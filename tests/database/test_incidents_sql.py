"""Incidents: one per cause, over when it is over, and told of exactly as often as is useful."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from closes_support import (
    Background,
    clean_up,
    one,
    prepared_by,
    refused,
    shared_connection,
    undone,
    utc,
)
from psycopg.types.json import Jsonb

from pulseguard_assets.warehouse.connection import connect

NOON = utc(2026, 11, 22, 12)
SLACK, MAIL = "slack (1)", "mailto (2)"
REMINDER = timedelta(hours=6)


class Counts(NamedTuple):
    opened: int = 0
    continued: int = 0
    resolved: int = 0
    reopened: int = 0


def prepare(connection: psycopg.Connection) -> None:
    """Nothing but the migrations."""


prepared = prepared_by(prepare)
shared = shared_connection
incidents = undone


def finding(cause: str = "sensor:prices:FAILING", **changed: Any) -> dict[str, Any]:
    return {
        "area": "sensors",
        "cause": cause,
        "kind": "FAILING",
        "severity": "error",
        "subject": "prices",
        "title": "prices fails",
        "message": "The provider answers 503.",
        "link": "/sensors/prices",
        "help": "pulseguard collect --once",
        "occurrences": 1,
    } | changed


def after(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def look(
    connection: psycopg.Connection,
    minutes: float,
    *findings: dict[str, Any],
    areas: Sequence[str] = ("sensors",),
    channels: Sequence[str] = (SLACK,),
    reminder: timedelta = REMINDER,
) -> Counts:
    """One round, so many minutes after noon."""
    row = connection.execute(
        "SELECT opened, continued, resolved, reopened FROM observe_incidents(%s, %s, %s, %s, %s)",
        (Jsonb(list(findings)), list(areas), list(channels), after(minutes), reminder),
    ).fetchone()
    assert row is not None
    return Counts(*row)


def accept(connection: psycopg.Connection, minutes: float, channel: str = SLACK) -> None:
    """The channel accepts what waits for it."""
    connection.execute(
        "UPDATE incident_messages SET sent_at = %s "
        "WHERE sent_at IS NULL AND dropped_at IS NULL AND channel = %s",
        (after(minutes), channel),
    )


def messages(connection: psycopg.Connection, channel: str = SLACK) -> list[tuple[str, str]]:
    """Kind and state of a channel's messages, in the order they were queued."""
    return connection.execute(
        "SELECT kind, CASE WHEN sent_at IS NOT NULL THEN 'sent' "
        "ELSE coalesce(dropped_because, 'waits') END "
        "FROM incident_messages WHERE channel = %s ORDER BY id",
        (channel,),
    ).fetchall()


def rows(connection: psycopg.Connection, columns: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {columns} FROM incidents ORDER BY id").fetchall()  # type: ignore[arg-type]


def test_what_is_found_opens_one_incident_and_one_message_for_each_channel(
    incidents: psycopg.Connection,
) -> None:
    assert look(incidents, 0, finding(), channels=(SLACK, MAIL)) == Counts(opened=1)

    assert rows(
        incidents,
        "cause, area, kind, severity, subject, title, message, link, help, first_seen, last_seen, "
        "occurrences, rounds, absent_since, resolved_at, flaps, last_reminded_at",
    ) == [
        (
            "sensor:prices:FAILING",
            "sensors",
            "FAILING",
            "error",
            "prices",
            "prices fails",
            "The provider answers 503.",
            "/sensors/prices",
            "pulseguard collect --once",
            NOON,
            NOON,
            1,
            1,
            None,
            None,
            0,
            None,
        )
    ]
    assert messages(incidents) == messages(incidents, MAIL) == [("opened", "waits")]


def test_a_hundred_failing_ticks_are_one_incident_with_count_100_and_one_message(
    incidents: psycopg.Connection,
) -> None:
    counts = [
        look(incidents, tick, finding(occurrences=tick, message=f"Failure {tick}."))
        for tick in range(1, 101)
    ]

    assert counts == [Counts(opened=1)] + [Counts(continued=1)] * 99
    found = rows(incidents, "occurrences, rounds, message, first_seen, last_seen")
    assert found == [(100, 100, "Failure 100.", after(1), after(100))]
    assert messages(incidents) == [("opened", "waits")]


def test_a_hundred_failures_that_are_found_at_once_count_as_a_hundred(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding(occurrences=100))
    look(incidents, 1, finding(occurrences=100))

    assert rows(incidents, "occurrences, rounds") == [(100, 2)]


def test_failures_in_a_row_that_are_counted_anew_are_added(
    incidents: psycopg.Connection,
) -> None:
    for minute, count in enumerate((7, 8, 1, 2)):
        look(incidents, minute, finding(occurrences=count))

    assert rows(incidents, "occurrences") == [(10,)]


def test_the_newest_finding_says_what_is_wrong_and_how_grave_it_is(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding(severity="warning"))
    look(incidents, 1, finding(severity="critical", title="now", message="Worse.", help=None))

    assert rows(incidents, "severity, title, message, help") == [
        ("critical", "now", "Worse.", None)
    ]


def test_two_findings_of_one_cause_are_one_incident_with_the_graver_of_them(
    incidents: psycopg.Connection,
) -> None:
    both = [finding(severity=severity) for severity in ("warning", "critical", "error")]

    assert look(incidents, 0, *both) == Counts(opened=1)
    assert rows(incidents, "severity, rounds") == [("critical", 1)]


def test_it_is_over_when_its_cause_was_absent_for_three_minutes(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding())
    accept(incidents, 0)

    assert [look(incidents, minute) for minute in (1, 2, 3)] == [Counts()] * 3
    assert rows(incidents, "absent_since, resolved_at") == [(after(1), None)]
    assert look(incidents, 4) == Counts(resolved=1)
    assert rows(incidents, "absent_since, resolved_at") == [(after(1), after(4))]
    assert messages(incidents) == [("opened", "sent"), ("recovered", "waits")]
    accept(incidents, 4)
    assert [look(incidents, minute) for minute in (5, 500)] == [Counts()] * 2
    assert len(messages(incidents)) == 2, "one recovery"


def test_a_cause_found_again_in_between_has_not_been_absent(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding())
    look(incidents, 1)
    assert look(incidents, 3, finding()) == Counts(continued=1)
    assert rows(incidents, "absent_since, flaps") == [(None, 0)]
    assert look(incidents, 4.5) == Counts()
    assert look(incidents, 7) == Counts()
    assert look(incidents, 7.5) == Counts(resolved=1)


def test_a_look_that_could_not_be_made_resolves_nothing(incidents: psycopg.Connection) -> None:
    look(incidents, 0, finding(), finding("table:minute_close:LATE", area="tables"))
    for minute in (10, 20, 1000):
        look(incidents, minute, areas=["tables"], reminder=timedelta(days=9))

    assert rows(incidents, "cause, resolved_at") == [
        ("sensor:prices:FAILING", None),
        ("table:minute_close:LATE", after(20)),
    ]
    assert rows(incidents, "absent_since")[0] == (None,)
    look(incidents, 1001, areas=["sensors"])
    assert look(incidents, 2000, areas=["tables"]) == Counts(), "nor what was absent before"


def test_a_round_that_looked_before_another_found_it_says_nothing_of_its_absence(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 5, finding())
    for minute in (0, 5):
        look(incidents, minute)

    assert rows(incidents, "absent_since, last_seen") == [(None, after(5))]
    look(incidents, 3, finding())
    assert rows(incidents, "absent_since, last_seen") == [(None, after(5))]


def test_what_comes_back_soon_is_the_same_incident_and_mails_nobody(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding())
    accept(incidents, 0)
    look(incidents, 1)
    look(incidents, 4)

    assert look(incidents, 34, finding()) == Counts(reopened=1)

    assert rows(incidents, "resolved_at, absent_since, flaps, rounds, occurrences, first_seen") == [
        (None, None, 1, 2, 1, NOON)
    ]
    # Nobody had been told yet that it was over, and it is not.
    assert messages(incidents) == [("opened", "sent"), ("recovered", "it came back")]
    look(incidents, 35)
    look(incidents, 38)
    assert messages(incidents)[2:] == [("recovered", "waits")]


def test_what_comes_back_later_is_a_new_incident_with_a_message(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding())
    look(incidents, 1)
    look(incidents, 4)

    assert look(incidents, 34.1, finding()) == Counts(opened=1)
    assert rows(incidents, "flaps, first_seen") == [(0, NOON), (0, after(34.1))]


def test_flapping_is_told_once_when_it_begins_once_when_it_is_over_and_by_reminders(
    incidents: psycopg.Connection,
) -> None:
    flaps = 0
    for minute in range(0, 355, 5):  # nearly six hours, found in every other round
        counts = look(incidents, minute, *([finding()] if minute % 10 == 0 else []))
        accept(incidents, minute)
        look(incidents, minute + 4)
        accept(incidents, minute + 4)
        flaps += counts.reopened

    assert flaps == 35
    assert rows(incidents, "flaps") == [(35,)]
    assert messages(incidents) == [("opened", "sent"), ("recovered", "sent")]
    for minute in (360, 361):
        look(incidents, minute, finding())
    accept(incidents, 361)
    look(incidents, 362)
    look(incidents, 365)
    assert messages(incidents)[2:] == [("reminder", "sent"), ("recovered", "waits")]


def test_a_recovery_of_what_was_never_told_is_not_told_either(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding(), channels=(SLACK, MAIL))
    accept(incidents, 0, MAIL)
    look(incidents, 1, channels=(SLACK, MAIL))
    look(incidents, 4, channels=(SLACK, MAIL))

    assert messages(incidents) == [("opened", "it was over first")]
    assert messages(incidents, MAIL) == [("opened", "sent"), ("recovered", "waits")]


def test_what_comes_back_before_anybody_heard_of_it_is_told(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding(), channels=(SLACK, MAIL))
    accept(incidents, 0, MAIL)
    look(incidents, 1, channels=(SLACK, MAIL))
    look(incidents, 4, channels=(SLACK, MAIL))
    incidents.execute("UPDATE incident_messages SET title = 'old', body = 'old'")

    look(incidents, 10, finding(), channels=(SLACK, MAIL))

    assert messages(incidents) == [("opened", "waits")]
    assert messages(incidents, MAIL) == [("opened", "sent"), ("recovered", "it came back")]
    waiting = incidents.execute(
        "SELECT title, body, next_attempt_at FROM incident_messages WHERE channel = %s", (SLACK,)
    ).fetchall()
    assert waiting == [(None, None, after(10))], "to be worded anew"


def test_a_message_that_was_given_up_is_not_taken_up_for_those_who_heard_of_it_since(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding())
    incidents.execute("UPDATE incident_messages SET dropped_at = now(), dropped_because = 'gone'")
    look(incidents, 360, finding())
    accept(incidents, 360)
    look(incidents, 361)
    look(incidents, 364)
    accept(incidents, 364)

    assert look(incidents, 370, finding()) == Counts(reopened=1)
    assert messages(incidents) == [("opened", "gone"), ("reminder", "sent"), ("recovered", "sent")]


def test_what_stays_open_is_told_again_at_every_interval(incidents: psycopg.Connection) -> None:
    for minute in range(0, 14 * 60, 20):
        look(incidents, minute, finding())
        accept(incidents, minute)

    assert messages(incidents) == [("opened", "sent"), ("reminder", "sent"), ("reminder", "sent")]
    assert rows(incidents, "last_reminded_at") == [(after(12 * 60),)]


def test_a_day_between_reminders_has_24_hours_wherever_the_session_is(
    local_connection: psycopg.Connection,
) -> None:
    the_clocks_go_back = -22 * 1440  # 2026-10-31 12:00 UTC; the next day has 25 hours in New York
    for hours in (0, 23, 24):
        minute = the_clocks_go_back + hours * 60
        look(local_connection, minute, finding(), reminder=timedelta(days=1))
        accept(local_connection, minute)
        assert len(messages(local_connection)) == (2 if hours == 24 else 1)


def test_a_channel_that_has_not_accepted_the_last_message_gets_no_reminder_on_top(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding(), channels=(SLACK, MAIL))
    accept(incidents, 0, MAIL)
    look(incidents, 360, finding(), channels=(SLACK, MAIL))

    assert messages(incidents) == [("opened", "waits")]
    assert messages(incidents, MAIL) == [("opened", "sent"), ("reminder", "waits")]


def test_a_channel_that_is_added_later_hears_of_it_by_the_reminder_and_of_its_end(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding(), channels=())
    look(incidents, 360, finding())
    accept(incidents, 360)
    look(incidents, 361)
    look(incidents, 364)

    assert messages(incidents) == [("reminder", "sent"), ("recovered", "waits")]


def test_while_a_cause_is_absent_nobody_is_reminded_of_it(incidents: psycopg.Connection) -> None:
    look(incidents, 0, finding())
    accept(incidents, 0)
    look(incidents, 359)
    look(incidents, 361)

    assert messages(incidents) == [("opened", "sent")]


def test_a_channel_that_is_taken_away_is_told_nothing_more(incidents: psycopg.Connection) -> None:
    look(incidents, 0, finding(), channels=(SLACK, MAIL))
    accept(incidents, 0)
    accept(incidents, 0, MAIL)
    look(incidents, 360, finding())
    look(incidents, 361)
    look(incidents, 364)

    assert messages(incidents, MAIL) == [("opened", "sent")]


def test_resolved_incidents_go_after_ninety_days_and_open_ones_stay(
    incidents: psycopg.Connection,
) -> None:
    look(incidents, 0, finding(), finding("other"))
    accept(incidents, 0)
    look(incidents, 1, finding("other"))
    look(incidents, 4, finding("other"))
    assert len(messages(incidents)) == 3

    assert clean_up(incidents, after(4) + timedelta(days=90))["incidents"] == 0
    assert clean_up(incidents, after(5) + timedelta(days=90))["incidents"] == 1
    assert rows(incidents, "cause") == [("other",)]
    assert messages(incidents) == [("opened", "sent")]
    assert clean_up(incidents, after(0) + timedelta(days=9_000))["incidents"] == 0


def test_two_watchdogs_at_once_open_one_incident_and_queue_one_message(
    connection: psycopg.Connection, database: str
) -> None:
    causes = [f"sensor:{number}" for number in range(20)]

    def watch() -> list[Counts]:
        with connect(database) as mine:
            found = [finding(cause) for cause in causes]
            return [look(mine, minute, *found) for minute in range(5)]

    watchdogs = [Background(watch) for _ in range(4)]
    counts = [count for watchdog in watchdogs for count in watchdog.result()]

    assert sum(count.opened for count in counts) == 20
    assert sum(count.continued for count in counts) == 380
    assert rows(connection, "occurrences, rounds, resolved_at") == [(1, 20, None)] * 20
    assert messages(connection) == [("opened", "waits")] * 20


def test_a_message_that_is_being_sent_while_its_incident_ends_counts_as_told(
    connection: psycopg.Connection, database: str
) -> None:
    look(connection, 0, finding())
    look(connection, 1)

    def resolve() -> Counts:
        with connect(database) as mine:
            return look(mine, 4)

    with connect(database) as deliverer, deliverer.transaction():
        deliverer.execute("SELECT FROM incident_messages FOR UPDATE")
        watchdog = Background(resolve)
        while not one(
            connection,
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()",
        ):
            assert watchdog.running, "it must wait for the message"
        accept(deliverer, 4)

    assert watchdog.result() == Counts(resolved=1)
    assert messages(connection) == [("opened", "sent"), ("recovered", "waits")]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("UPDATE incidents SET cause = ''", "chk_cause_present"),
        ("UPDATE incidents SET severity = 'bad'", "chk_severity_known"),
        ("UPDATE incidents SET occurrences = 0", "chk_occurred"),
        ("UPDATE incidents SET resolved_at = last_seen", "chk_resolved_when_absent"),
        ("UPDATE incidents SET cause = 'same'", "idx_incidents_open"),
        ("UPDATE incident_messages SET kind = 'rumour'", "chk_message_kind_known"),
        ("UPDATE incident_messages SET dropped_at = now()", "chk_dropped_with_reason"),
        (
            "UPDATE incident_messages SET sent_at = now(), dropped_at = now(), dropped_because = 1",
            "chk_sent_or_dropped",
        ),
        ("UPDATE incident_messages SET incident_id = 0", "incident_messages_incident_id_fkey"),
    ],
)
def test_a_row_that_cannot_be_is_refused(
    incidents: psycopg.Connection, change: str, name: str
) -> None:
    look(incidents, 0, finding(), finding("other"))

    with refused(incidents, psycopg.IntegrityError, name):
        incidents.execute(change)  # type: ignore[arg-type]
