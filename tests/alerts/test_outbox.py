"""The outbox: nothing is lost, nothing is sent twice, and a broken channel is not silent."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import psycopg
import pytest
from alerts_support import UI, Addresses, Sink, after, channels, finding

from pulseguard_assets.alerts.backlog import Backlog, backlog
from pulseguard_assets.alerts.channels import Channel
from pulseguard_assets.alerts.incidents import Round
from pulseguard_assets.alerts.outbox import (
    ChannelsFailing,
    Delivery,
    deliver,
    wait_after,
)
from pulseguard_assets.warehouse.connection import connect

Watch = Callable[..., Round]


def try_to_deliver(
    connection: psycopg.Connection, to: Sequence[Channel], minutes: float
) -> Delivery:
    """What was done, whether or not a channel fails."""
    try:
        return deliver(connection, to, now=after(minutes))
    except ChannelsFailing as failing:
        return failing.delivery


def test_a_person_reads_of_an_incident_from_its_beginning_to_its_end(
    watch: Watch,
    connection: psycopg.Connection,
    addresses: Addresses,
    webhook: Sink,
    mailbox: Sink,
) -> None:
    to = channels(addresses.mattermost, addresses.mail)
    wrong = finding(occurrences=3)

    def minute(minutes: float, *findings: object) -> Delivery:
        watch(minutes, *findings, channels=to)
        return deliver(connection, to, now=after(minutes))

    assert minute(0, wrong) == Delivery(sent=2, failed=0, waiting=0)
    for number in (1, 2, 359):
        assert minute(number, wrong) == Delivery(0, 0, 0)
    assert minute(360, finding(occurrences=363)) == Delivery(2, 0, 0)
    assert minute(361) == Delivery(0, 0, 0)
    assert minute(364) == Delivery(2, 0, 0)

    read = [(each.title, each.text) for each in webhook.received]
    assert read == [
        (
            "PulseGuard error: prices fails",
            "The provider answers 503 & says <nothing>.\n\n"
            "Since: 2026-11-22 12:00 UTC\n"
            "How often: 3 times\n"
            "What to do: pulseguard collect --once\n"
            f"Link: {UI}/locations/pulseguard/sensors/prices",
        ),
        (
            "PulseGuard error, still: prices fails",
            "The provider answers 503 & says <nothing>.\n\n"
            "Since: 2026-11-22 12:00 UTC (6 h)\n"
            "How often: 363 times\n"
            "What to do: pulseguard collect --once\n"
            f"Link: {UI}/locations/pulseguard/sensors/prices",
        ),
        (
            "PulseGuard recovered: prices fails",
            "It is over. It was: The provider answers 503 & says <nothing>.\n\n"
            "Lasted: 2026-11-22 12:00 UTC to 2026-11-22 18:01 UTC (6 h 1 min)\n"
            "How often: 363 times\n"
            f"Link: {UI}/locations/pulseguard/sensors/prices",
        ),
    ]
    assert [(each.title, each.text) for each in mailbox.received] == read


def test_while_the_webhook_is_down_nothing_is_lost_and_it_is_told_once_when_it_is_back(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses, webhook: Sink
) -> None:
    to = channels(addresses.json)
    webhook.accepting = False
    watch(0, finding(), channels=to)

    tries = []
    for minute in range(200):
        watch(minute, finding(), channels=to)
        before = webhook.refused
        with pytest.raises(ChannelsFailing):
            deliver(connection, to, now=after(minute))
        if webhook.refused > before:
            tries.append(minute)

    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    (waiting,) = backlog(connection)
    assert waiting == Backlog("json (1)", 1, after(0), 1, waiting.last_error)
    webhook.accepting = True
    with pytest.raises(ChannelsFailing):  # until it was told, nobody knows that it could be
        deliver(connection, to, now=after(242))
    assert deliver(connection, to, now=after(243)) == Delivery(1, 0, 0)
    assert deliver(connection, to, now=after(244)) == Delivery(0, 0, 0)
    assert webhook.titles() == ["PulseGuard error: prices fails"]
    assert backlog(connection) == []


def test_a_refused_message_waits_1_2_4_and_so_on_to_60_minutes() -> None:
    waits = [wait_after(refusals) / timedelta(minutes=1) for refusals in (1, 2, 3, 6, 7, 8, 5000)]

    assert waits == [1, 2, 4, 32, 60, 60, 60]


def test_a_failing_channel_is_named_with_the_reason_after_all_others_were_served(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses, mailbox: Sink, webhook: Sink
) -> None:
    webhook.accepting = False
    to = channels(addresses.json, addresses.mail)
    for number in range(3):
        watch(number, *[finding(f"cause {n}") for n in range(number + 1)], channels=to)

    with pytest.raises(ChannelsFailing) as failing:
        deliver(connection, to, now=after(5))

    assert failing.value.delivery == Delivery(sent=3, failed=1, waiting=3)
    assert len(mailbox.received) == 3
    assert webhook.refused == 1, "a channel that refused is left alone until the next delivery"
    assert str(failing.value) == (
        "Alerts do not get through. json (1): Failed to send JSON POST notification: Servers are "
        "overloaded., error=503 (3 messages waiting since 2026-11-22 12:00 UTC). They are kept "
        "and tried again. See that the service answers and that its address in "
        "PULSEGUARD_ALERT_URLS is right; `pulseguard alert-test` tries it at once."
    )


def test_a_channel_that_is_back_gets_all_it_has_refused_before(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses, webhook: Sink
) -> None:
    to = channels(addresses.json)
    webhook.accepting = False
    watch(0, finding("a", title="a"), channels=to)
    for minute in (0, 1, 3, 7):
        try_to_deliver(connection, to, minute)
    webhook.accepting = True
    watch(8, finding("a", title="a"), finding("b", title="b"), channels=to)

    assert deliver(connection, to, now=after(8)) == Delivery(2, 0, 0)
    assert webhook.titles() == ["PulseGuard error: b", "PulseGuard error: a"]


def test_a_channel_is_not_tried_sooner_because_another_one_works(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses, webhook: Sink
) -> None:
    to = channels(addresses.json, addresses.mail)
    webhook.accepting = False
    watch(0, finding(), channels=to)

    assert try_to_deliver(connection, to, 0) == Delivery(sent=1, failed=1, waiting=1)
    assert try_to_deliver(connection, to, 0.9) == Delivery(0, 0, 1)
    assert try_to_deliver(connection, to, 1) == Delivery(0, 1, 1)


def test_two_deliverers_at_once_send_nothing_twice(
    watch: Watch, connection: psycopg.Connection, database: str, addresses: Addresses, webhook: Sink
) -> None:
    to = channels(addresses.json)
    webhook.delay = 0.05
    watch(0, *[finding(f"cause {n}", title=f"cause {n}") for n in range(12)], channels=to)
    sent: list[int] = []

    def work() -> None:
        with connect(database) as mine:
            sent.append(deliver(mine, channels(addresses.json), now=after(0)).sent)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert sum(sent) == 12
    assert sorted(sent)[1] > 0, "they were at it at the same time"
    assert sorted(webhook.titles()) == sorted(f"PulseGuard error: cause {n}" for n in range(12))


def test_a_message_for_a_channel_that_is_gone_waits_a_day_for_it_to_come_back(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses, webhook: Sink
) -> None:
    gone, kept = channels(addresses.json)[0], channels(addresses.mail, addresses.mattermost)[1]
    watch(0, finding(), channels=[gone, kept])
    day = 24 * 60

    assert deliver(connection, [kept], now=after(day - 1)) == Delivery(1, 0, 1)
    assert [each.channel for each in backlog(connection)] == ["json (1)"]
    assert deliver(connection, [kept], now=after(day)) == Delivery(0, 0, 0)
    dropped = connection.execute(
        "SELECT dropped_at, dropped_because FROM incident_messages WHERE channel = 'json (1)'"
    ).fetchall()
    assert dropped == [(after(day), "its channel is not configured any more")]
    assert deliver(connection, [gone, kept], now=after(day + 1)) == Delivery(0, 0, 0)
    assert len(webhook.received) == 1


def test_a_slow_channel_does_not_hold_the_tick_for_longer_than_its_patience(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses, webhook: Sink
) -> None:
    to = channels(addresses.json)
    watch(0, *[finding(f"cause {n}") for n in range(5)], channels=to)
    seconds = itertools.count(0, 10)

    done = deliver(
        connection,
        to,
        now=after(0),
        patience=timedelta(seconds=30),
        clock=lambda: float(next(seconds)),
    )

    assert done == Delivery(sent=2, failed=0, waiting=3)
    assert deliver(connection, to, now=after(1)) == Delivery(3, 0, 0)


def test_without_channels_there_is_nothing_to_do(
    watch: Watch, connection: psycopg.Connection
) -> None:
    watch(0, finding())

    assert deliver(connection, [], now=after(0)) == Delivery(0, 0, 0)


def test_a_message_without_words_yet_is_not_sent(
    connection: psycopg.Connection, addresses: Addresses, webhook: Sink
) -> None:
    to = channels(addresses.json)
    connection.execute(
        "SELECT observe_incidents(jsonb_build_array(jsonb_build_object('cause', 'c', 'area', 'a', "
        "'kind', 'k', 'severity', 'error', 'subject', 's', 'title', 't', 'message', 'm')), "
        "'{a}', '{json (1)}', %s, '1 hour')",
        (after(0),),
    )

    assert deliver(connection, to, now=after(0)) == Delivery(0, 0, 1)
    assert webhook.received == []


@pytest.mark.parametrize(
    ("severity", "tone"), [("warning", "warning"), ("error", "failure"), ("critical", "failure")]
)
def test_the_colour_of_a_message_says_how_grave_it_is(
    severity: str,
    tone: str,
    watch: Watch,
    connection: psycopg.Connection,
    addresses: Addresses,
    webhook: Sink,
) -> None:
    to = channels(addresses.json)
    for minute, findings in ((0, [finding(severity=severity)]), (1, []), (4, [])):
        watch(minute, *findings, channels=to)
        deliver(connection, to, now=after(minute))

    assert [each.payload["type"] for each in webhook.received] == [tone, "success"]


def test_times_of_the_outbox_are_utc(
    watch: Watch, connection: psycopg.Connection, addresses: Addresses, webhook: Sink
) -> None:
    webhook.accepting = False
    to = channels(addresses.json)
    watch(0, finding(), channels=to)
    try_to_deliver(connection, to, 0)

    (waiting,) = backlog(connection)
    assert isinstance(waiting.since, datetime)
    assert waiting.since.utcoffset() == timedelta(0)
