"""`pulseguard incidents` and `pulseguard alert-test`, as somebody types them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from alerts_support import SECRETS, Addresses, Sink, after, finding
from click.testing import CliRunner, Result

from pulseguard_assets.alerts.incidents import Round
from pulseguard_assets.cli import main

Command = Callable[..., Result]
Watch = Callable[..., Round]


@pytest.fixture
def pulseguard(only_our_settings: None) -> Command:
    """`pulseguard("incidents", DATABASE_URL=...)`: the command with settings from outside."""

    def run(*arguments: str, **settings: Any) -> Result:
        environment = {f"PULSEGUARD_{k}": v for k, v in settings.items()}
        return CliRunner().invoke(main, list(arguments), env=environment)

    return run


def test_incidents_are_shown_with_what_since_when_how_often_and_what_to_do(
    pulseguard: Command, database: str, watch: Watch
) -> None:
    watch(0, finding("past", title="\x1b[31mlate data", help=None, link=None))
    watch(5)
    watch(8)
    watch(10, finding(occurrences=1_200))
    grave = finding("grave", severity="critical", title="credits are spent", link=None, help=None)
    watch(11, finding(occurrences=1_201), grave)

    result = pulseguard("incidents", DATABASE_URL=database, UI_URL="https://pulse.example.com/")

    assert result.exit_code == 0, result.output
    shown = (
        "critical  credits are spent\n"
        "          since 2026-11-22 12:11 UTC, once\n"
        "          The provider answers 503 & says <nothing>.\n"
        "\n"
        "error     prices fails\n"
        "          since 2026-11-22 12:10 UTC, 1,201 times\n"
        "          The provider answers 503 & says <nothing>.\n"
        "          do: pulseguard collect --once\n"
        "          https://pulse.example.com/locations/pulseguard/sensors/prices\n"
    )
    assert result.output == shown
    with_the_past = pulseguard(
        "incidents", "--all", DATABASE_URL=database, UI_URL="https://pulse.example.com/"
    )
    assert with_the_past.output == shown + (
        "\n"
        "over      [31mlate data\n"
        "          2026-11-22 12:00 UTC, for 5 min, once\n"
        "          The provider answers 503 & says <nothing>.\n"
    )


def test_incidents_are_written_for_a_machine(
    pulseguard: Command, database: str, watch: Watch
) -> None:
    watch(0, finding())

    result = pulseguard("incidents", "--json", DATABASE_URL=database)

    (incident,) = json.loads(result.output)
    assert incident["cause"] == "sensor:prices:FAILING"
    assert incident["first_seen"] == after(0).isoformat()
    assert incident["resolved_at"] is None
    assert incident["occurrences"] == 1


def test_when_all_is_well_incidents_says_so(pulseguard: Command, database: str) -> None:
    for arguments, said in (
        ([], "No incident is open.\n"),
        (["--all"], "No incident is recorded.\n"),
        (["--json"], "[]\n"),
    ):
        result = pulseguard("incidents", *arguments, DATABASE_URL=database)
        assert (result.exit_code, result.output) == (0, said)


def test_without_a_database_incidents_says_what_to_do(pulseguard: Command, tmp_path: Any) -> None:
    nowhere = pulseguard("incidents", DATA_DIR=str(tmp_path))
    unreachable = pulseguard("incidents", DATABASE_URL="postgresql://me:s3cret@127.0.0.1:1/x")

    assert (nowhere.exit_code, unreachable.exit_code) == (2, 2)
    assert "pulseguard up" in nowhere.stderr
    assert "PULSEGUARD_DATABASE_URL" in unreachable.stderr
    assert "s3cret" not in unreachable.output


def test_a_test_message_reaches_every_channel_without_a_database(
    pulseguard: Command, addresses: Addresses, webhook: Sink, mailbox: Sink
) -> None:
    result = pulseguard("alert-test", ALERT_URLS=",".join(addresses.all()), PORT="3100")

    assert result.exit_code == 0, result.output
    assert result.output == (
        "json (1): accepted\nmmost (2): accepted\nslack (3): accepted\nmailto (4): accepted\n"
    )
    received = webhook.received + mailbox.received
    assert [each.title for each in received] == ["PulseGuard test: alerts reach you here"] * 4
    labels = ["json (1)", "mmost (2)", "slack (3)", "mailto (4)"]
    for label, each in zip(labels, received):  # noqa: B905 - Python 3.10
        assert each.text.startswith(f"Sent to {label} at 20")
        assert each.text.endswith("Nothing is wrong.\n\nLink: http://127.0.0.1:3100")


def test_a_channel_that_refuses_is_told_after_the_others_were_tried(
    pulseguard: Command,
    addresses: Addresses,
    webhook: Sink,
    mailbox: Sink,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    webhook.accepting = False

    result = pulseguard("alert-test", ALERT_URLS=f"{addresses.json}\n{addresses.mail}")

    assert result.exit_code == 2
    assert result.stdout == "json (1): refused\nmailto (2): accepted\n"
    assert result.stderr == (
        "pulseguard: 1 of 2 channels did not accept the test message. json (1): Failed to send "
        "JSON POST notification: Servers are overloaded., error=503. See that the service "
        "answers, and that its address in PULSEGUARD_ALERT_URLS is right.\n"
    )
    assert len(mailbox.received) == 1


def test_without_a_channel_the_test_fails_and_says_how_to_have_one(pulseguard: Command) -> None:
    result = pulseguard("alert-test")

    assert result.exit_code == 2
    assert "Set PULSEGUARD_ALERT_URLS to one or more addresses" in result.stderr


def test_a_wrong_address_is_refused_before_anything_is_sent(
    pulseguard: Command, addresses: Addresses, webhook: Sink
) -> None:
    result = pulseguard("alert-test", ALERT_URLS=f"{addresses.json},slack://{SECRETS[2]}")

    assert result.exit_code == 2
    assert "PULSEGUARD_ALERT_URLS: address 2 (not shown)" in result.stderr
    assert all(secret not in result.output for secret in SECRETS)
    assert webhook.received == []


def test_the_help_names_both_commands(pulseguard: Command) -> None:
    said = pulseguard("--help").output

    assert "alert-test" in said
    assert "incidents" in said
