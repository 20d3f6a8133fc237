"""Channels: a person reads what was sent, and only a yes of the service counts as one."""

from __future__ import annotations

import logging
import time
from urllib.parse import unquote

import pytest
from alerts_support import SECRETS, USER, Addresses, Sink, channels
from apprise.manager_plugins import NotificationManager
from pydantic import SecretStr

from pulseguard_assets import settings as settings_module
from pulseguard_assets.alerts import channels as rooms
from pulseguard_assets.alerts.channels import ChannelRefused, channels_of, send
from pulseguard_assets.settings import SettingsError

TITLE = "PulseGuard error: prices fails"
BODY = """The provider answers 503 & says <nothing>: a_b *c*.

Since: 2026-11-22 12:00 UTC
What to do: SELECT * FROM minute_close WHERE price_usd > 1
Link: http://127.0.0.1:3000/locations/pulseguard/sensors/prices"""


def test_a_webhook_receives_the_text_as_it_was_written(addresses: Addresses, webhook: Sink) -> None:
    for channel in channels(addresses.json, addresses.mattermost, addresses.slack):
        send(channel, TITLE, BODY)

    assert [(each.title, each.text) for each in webhook.received] == [(TITLE, BODY)] * 3


def test_a_mailbox_receives_the_text_as_it_was_written(addresses: Addresses, mailbox: Sink) -> None:
    (channel,) = channels(addresses.mail)

    send(channel, TITLE, BODY)

    (mail,) = mailbox.received
    assert mail.title == TITLE
    assert mail.text == BODY
    assert mail.payload["To"] == "me@example.com"
    assert mail.payload["From"] == "pulse@example.com"
    assert mailbox.logins == [(USER, "p@ss-Geheim")]


def test_no_message_shows_a_picture_from_somebody_elses_server(
    addresses: Addresses, webhook: Sink, mailbox: Sink
) -> None:
    for channel in channels(*addresses.all()):
        send(channel, TITLE, BODY)

    for each in webhook.received + mailbox.received:
        assert "github" not in str(each.payload)


def test_the_tone_is_told_to_channels_that_show_one(addresses: Addresses, webhook: Sink) -> None:
    (channel,) = channels(addresses.json)
    for tone in ("success", "warning", "failure", "info"):
        send(channel, TITLE, BODY, tone=tone)  # type: ignore[arg-type]

    shown = [each.payload["type"] for each in webhook.received]
    assert shown == ["success", "warning", "failure", "info"]


def test_a_channel_is_called_by_its_scheme_and_its_place(addresses: Addresses) -> None:
    made = channels(
        addresses.json,
        addresses.mail,
        "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
    )

    assert [channel.label for channel in made] == ["json (1)", "mailto (2)", "slack (3)"]
    assert repr(made[0]) == "Channel(label='json (1)')"


def test_a_refusal_is_told_once_by_its_error_and_not_by_the_log_as_well() -> None:
    heard: list[logging.LogRecord] = []
    root = logging.Handler()
    root.emit = heard.append  # type: ignore[method-assign]
    (channel,) = channels("json://127.0.0.1:1/x")
    logging.getLogger().addHandler(root)
    try:
        with pytest.raises(ChannelRefused):
            send(channel, TITLE, BODY)
    finally:
        logging.getLogger().removeHandler(root)

    assert heard == []


@pytest.mark.parametrize("which", ["json", "mattermost", "slack"])
def test_a_webhook_that_says_no_has_refused(
    which: str, addresses: Addresses, webhook: Sink
) -> None:
    webhook.accepting = False
    (channel,) = channels(getattr(addresses, which))

    with pytest.raises(ChannelRefused, match=r"\(1\): Failed to send .*error=503"):
        send(channel, TITLE, BODY)
    assert webhook.refused == 1


def test_a_mail_server_that_says_no_has_refused(addresses: Addresses, mailbox: Sink) -> None:
    mailbox.accepting = False
    (channel,) = channels(addresses.mail)

    with pytest.raises(ChannelRefused, match=r"^mailto \(1\): "):
        send(channel, TITLE, BODY)


def test_nobody_listening_is_a_refusal() -> None:
    for channel in channels(
        "json://127.0.0.1:1/x", "mailto://127.0.0.1:1?from=a@example.com&to=me@example.com"
    ):
        with pytest.raises(ChannelRefused, match="onnection"):
            send(channel, TITLE, BODY)


def test_a_page_that_sends_elsewhere_has_not_accepted_what_was_posted(webhook: Sink) -> None:
    for option in ("", "?redirect=yes"):
        (channel,) = channels(f"json://127.0.0.1:{webhook.port}/moved{option}")
        with pytest.raises(ChannelRefused, match="302"):
            send(channel, TITLE, BODY)


def test_a_refusal_counts_even_where_the_address_calls_the_channel_optional(
    addresses: Addresses, webhook: Sink
) -> None:
    webhook.accepting = False
    (channel,) = channels(f"{addresses.json}&optional=yes")

    with pytest.raises(ChannelRefused):
        send(channel, TITLE, BODY)


def test_a_service_that_never_answers_is_given_up_in_time(
    addresses: Addresses, webhook: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "_SECONDS_PER_MESSAGE", 0.3)
    webhook.delay = 1.5
    (channel,) = channels(addresses.json)
    begun = time.monotonic()

    with pytest.raises(ChannelRefused, match="did not finish within"):
        send(channel, TITLE, BODY)
    assert time.monotonic() - begun < 1.2


def test_an_address_that_is_none_is_refused_without_repeating_it() -> None:
    with pytest.raises(SettingsError, match=r"address 2 \(not shown\)") as caught:
        channels_of([SecretStr("json://127.0.0.1/x"), SecretStr("bogus://Geheim")])

    assert "Geheim" not in str(caught.value)
    assert caught.value.variables == ("PULSEGUARD_ALERT_URLS",)


TOKEN = "tokenOfAChannel"


@pytest.mark.parametrize(
    "url",
    [
        f"{TOKEN}://x",
        f"slack://{TOKEN}",
        f"postgresql://me:{TOKEN}@db:5432/x",
        f"json://me:{TOKEN}@",
        f"https://{TOKEN}.example.com/{TOKEN}",
        f"mailto://me:{TOKEN}@?to=x",
        "json://[",
        "://",
    ],
)
def test_what_apprise_cannot_send_to_is_refused_and_repeated_nowhere(
    url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    with pytest.raises(SettingsError) as caught:
        channels_of([SecretStr(url)])

    assert caught.value.__context__ is None
    for said in (str(caught.value), caplog.text, *capfd.readouterr()):
        assert TOKEN.lower() not in said.lower()


def test_the_kinds_that_settings_name_are_those_of_apprise() -> None:
    known = set(NotificationManager().schemas())
    assert settings_module._NAMED_KINDS - known == {"http", "https"}


def test_what_a_library_says_loses_every_piece_of_the_address(
    addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in addresses.all():
        (channel,) = channels(url)

        def blab(*_: object, url: str = url, **__: object) -> bool:
            logging.getLogger("apprise").warning(
                "Failed at %s, with %s.", url, " and ".join(SECRETS)
            )
            return False

        monkeypatch.setattr(type(channel._service), "send", blab)
        with pytest.raises(ChannelRefused) as caught:
            send(channel, TITLE, BODY)

        told = str(caught.value)
        assert "Failed at" in told
        for secret in SECRETS:
            assert secret not in told or secret not in url + unquote(url), told
