"""The secrets of an address are in what is sent, and nowhere else: looked for wherever text is."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

import psycopg
import pytest
from alerts_support import HEADER_TOKEN, PATH_TOKEN, SECRETS, Addresses, Sink, after, finding
from alerts_support import channels as channels_at
from psycopg import sql

from pulseguard_assets.alerts.backlog import backlog
from pulseguard_assets.alerts.channels import ChannelRefused, send
from pulseguard_assets.alerts.incidents import Round
from pulseguard_assets.alerts.outbox import ChannelsFailing, deliver
from pulseguard_assets.settings import SettingsError, load_settings


def everything_in(connection: psycopg.Connection) -> str:
    """All rows of all our tables, as text."""
    tables = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') "
        "AND relnamespace = 'public'::regnamespace"
    ).fetchall()
    return "\n".join(
        row[0]
        for table in tables
        for row in connection.execute(
            sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(*table))
        )
    )


def test_the_secrets_of_an_address_are_in_no_table_no_log_and_no_traceback(
    only_our_settings: None,
    addresses: Addresses,
    webhook: Sink,
    mailbox: Sink,
    watch: Callable[..., Round],
    connection: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("apprise", "urllib3", "urllib3.connectionpool", "requests", "psycopg"):
        caplog.set_level(logging.DEBUG, logger=name)
    said: list[str] = []

    def failure(work: Callable[[], object], kind: type[Exception]) -> None:
        with pytest.raises(kind) as caught:
            work()
        said.append("".join(traceback.format_exception(caught.value)))
        said.append(repr(caught.value))

    settings = load_settings(alert_urls=",".join(addresses.all()))
    to = channels_at(*[url.get_secret_value() for url in settings.alert_urls])
    said += [repr(settings), str(settings), repr(settings.public()), repr(to), str(to)]
    wrong = f"{addresses.json},https://{PATH_TOKEN}.example.com/{HEADER_TOKEN}"
    failure(lambda: load_settings(alert_urls=f"{wrong} {PATH_TOKEN}"), SettingsError)
    failure(lambda: channels_at(*wrong.split(",")), SettingsError)
    failure(lambda: channels_at(f"mailto://x:{PATH_TOKEN}@"), SettingsError)
    for accepting in (True, False):
        webhook.accepting = mailbox.accepting = accepting
        watch(0 if accepting else 400, finding(), channels=to)
        if accepting:
            deliver(connection, to, now=after(0))
        else:
            failure(lambda: deliver(connection, to, now=after(400)), ChannelsFailing)
            for channel in to:
                failure(lambda channel=channel: send(channel, "t", "b"), ChannelRefused)  # type: ignore[misc]
    said.append(repr(backlog(connection)))

    assert len(webhook.received) == 3, "or the addresses were never used"
    tables = everything_in(connection)
    assert "error=503" in tables, "or the reasons of refusals are not looked at"
    assert "Failed to send JSON" in caplog.text, "or the logs of Apprise are not looked at"
    out, err = capfd.readouterr()
    for place, text in {
        "tables": tables,
        "logs": caplog.text,
        "tracebacks": "\n".join(said),
        "output": out + err,
    }.items():
        for secret in SECRETS:
            assert secret not in text, place


def test_a_password_too_short_to_be_told_from_a_word_is_in_no_log_either(
    webhook: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    caplog.set_level(1, logger="apprise")

    (channel,) = channels_at(f"json://me:zqx@127.0.0.1:{webhook.port}/zqx")
    send(channel, "t", "b")

    assert len(webhook.received) == 1
    assert "zqx" not in caplog.text


def test_what_others_write_into_the_log_of_the_same_library_is_left_alone(
    addresses: Addresses, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (channel,) = channels_at(addresses.json)
    send(channel, "t", "b")

    logging.getLogger("urllib3.connectionpool").debug("somebody else's %s", PATH_TOKEN)

    assert f"somebody else's {PATH_TOKEN}" in caplog.text
