"""Rounds of looking: what they enter, and the words they queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import psycopg
import pytest
from alerts_support import Addresses, after, channels, finding

from pulseguard_assets.alerts import incidents as rooms
from pulseguard_assets.alerts.incidents import Incident, Round, incidents, open_incidents

Watch = Callable[..., Round]


def outbox(connection: psycopg.Connection) -> list[tuple[str, str, str, str]]:
    return connection.execute(
        "SELECT kind, channel, title, body FROM incident_messages ORDER BY id"
    ).fetchall()


def test_a_round_queues_its_messages_in_words(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses
) -> None:
    to = channels(addresses.json, addresses.mail)

    assert watch(0, finding(occurrences=3), channels=to) == Round(1, 0, 0, 0)
    assert watch(1, finding(occurrences=4), channels=to) == Round(0, 1, 0, 0)

    text = (
        "The provider answers 503 & says <nothing>.\n"
        "\n"
        "Since: 2026-11-22 12:00 UTC\n"
        "How often: 3 times\n"
        "What to do: pulseguard collect --once\n"
        "Link: http://127.0.0.1:3000/locations/pulseguard/sensors/prices"
    )
    assert outbox(connection) == [
        ("opened", label, "PulseGuard error: prices fails", text)
        for label in ("json (1)", "mailto (2)")
    ]


def test_nothing_is_entered_of_a_round_that_fails(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses
) -> None:
    to = channels(addresses.json)
    with pytest.raises(psycopg.errors.CheckViolation, match="chk_severity_known"):
        watch(0, finding("a"), finding("b", severity="dreadful"), channels=to)

    assert incidents(connection) == []
    assert outbox(connection) == []


def test_no_incident_is_entered_without_the_words_that_tell_of_it(
    watch: Watch,
    connection: psycopg.Connection,
    addresses: Addresses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def speechless(*_: object, **__: object) -> None:
        raise RuntimeError("no words")

    monkeypatch.setattr(rooms, "worded", speechless)
    with pytest.raises(RuntimeError, match="no words"):
        watch(0, finding(), channels=channels(addresses.json))

    assert incidents(connection) == []


def test_an_error_that_no_table_can_hold_does_not_silence_the_watchdog(
    watch: Watch, connection: psycopg.Connection
) -> None:
    odd = finding(message="before\0after \ud83d half", title="\0", help="y" * 100_000)

    assert watch(0, odd) == Round(1, 0, 0, 0)

    (found,) = open_incidents(connection)
    assert found.message == "beforeafter ? half"
    assert found.title == ""
    assert found.help is not None
    assert len(found.help) == 4_000


def test_an_incident_is_read_as_its_row_stands(
    watch: Watch, connection: psycopg.Connection
) -> None:
    watch(0, finding(occurrences=7))
    watch(1, finding(occurrences=8))

    (found,) = open_incidents(connection)

    assert found.is_open
    known = {field.name: getattr(found, field.name) for field in fields(Incident)}
    assert known == {
        "id": found.id,
        "cause": "sensor:prices:FAILING",
        "area": "sensors",
        "kind": "FAILING",
        "severity": "error",
        "subject": "prices",
        "title": "prices fails",
        "message": "The provider answers 503 & says <nothing>.",
        "link": "/locations/pulseguard/sensors/prices",
        "help": "pulseguard collect --once",
        "first_seen": after(0),
        "last_seen": after(1),
        "occurrences": 8,
        "rounds": 2,
        "absent_since": None,
        "resolved_at": None,
        "flaps": 0,
        "last_reminded_at": None,
    }


def test_the_open_come_first_by_gravity_and_age_then_the_newest_of_the_past(
    watch: Watch, connection: psycopg.Connection
) -> None:
    watch(0, finding("early"), finding("past"))
    watch(1, finding("early"))
    watch(4, finding("early"))
    watch(5, finding("early"), finding("late"), finding("past later"))
    kept = [finding("early"), finding("late"), finding("grave", severity="critical")]
    for minute in (6, 9):
        watch(minute, *kept, finding("slight", severity="warning"))

    assert [each.cause for each in open_incidents(connection)] == [
        "grave",
        "early",
        "late",
        "slight",
    ]
    everything = [each.cause for each in incidents(connection)]
    assert everything[4:] == ["past later", "past"]
    assert len(incidents(connection, limit=2)) == 2
