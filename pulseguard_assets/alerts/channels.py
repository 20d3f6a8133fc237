"""Where alerts go: Slack, mail, Telegram, a webhook, whatever the library Apprise can write to.

Belongs here: making channels of addresses, and sending one message by one of them. Does not: what
is sent (`messages.py`), nor keeping it until it could be (`outbox.py`).

An address holds tokens and passwords. It stays within a `Channel`; what is said of one is its
label, and what Apprise says of a failure loses every piece of the address before anybody reads it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

import apprise
from pydantic import SecretStr

from pulseguard_assets.alerts.errors import AlertsError
from pulseguard_assets.settings import SettingsError, variable_of, wrong_alert_url

Tone = Literal["info", "success", "warning", "failure"]

# Less than a tick, with room for the slowest mail server: 15 s to connect and pass its greeting.
_SECONDS_PER_MESSAGE = 20

# No message of ours shows pictures from somebody else's server.
_ASSET = apprise.AppriseAsset(
    app_id="PulseGuard",
    app_desc="PulseGuard",
    app_url="",
    image_url_mask="",
    image_url_logo="",
)

_LONGEST_REASON = 400

# Shorter pieces of an address are words such as "to" and "me", and no secrets.
_SHORTEST_SECRET = 4

# The address in use, in this thread and in those that Apprise sends from.
_in_use: ContextVar[SecretStr | None] = ContextVar("address_in_use", default=None)
# Of an address that is none, any part may be a secret, the kind too: nothing of it is let through.
_untried: ContextVar[bool] = ContextVar("address_untried", default=False)

# They write addresses and headers into the log. What the rest of the process does by them is left
# alone.
_TALKERS = (
    apprise.LOGGER_NAME,
    "urllib3.connectionpool",
    "urllib3.util.retry",
    "requests_oauthlib.oauth1_auth",
    "requests_oauthlib.oauth2_session",
)


def _discreet(record: logging.LogRecord) -> bool:
    """Let through warnings without any piece of the address in use, and nothing below them."""
    address = _in_use.get()
    if address is None:
        return True
    if _untried.get():
        return False
    record.msg = _without_secrets(record.getMessage(), address)
    record.args = record.exc_info = record.exc_text = None
    return record.levelno >= logging.WARNING


def _without_secrets(text: str, url: SecretStr) -> str:
    address = url.get_secret_value().partition("://")[2]
    pieces = {address, *re.split(r"[/:@?&=#,]+", address)}
    pieces |= {unquote(piece) for piece in pieces}
    # The longest first: one may be a part of another.
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) >= _SHORTEST_SECRET:
            text = text.replace(piece, "***")
    return text


def _hush() -> None:
    # A refusal is an error of ours, with Apprise's reason in it: it need not be told twice.
    said = logging.getLogger(apprise.LOGGER_NAME)
    said.propagate = False
    said.addHandler(logging.NullHandler())
    for name in _TALKERS:
        logging.getLogger(name).addFilter(_discreet)


_hush()


@contextmanager
def _using(url: SecretStr, *, untried: bool = False) -> Iterator[None]:
    tokens = _in_use.set(url), _untried.set(untried)
    try:
        yield
    finally:
        _in_use.reset(tokens[0])
        _untried.reset(tokens[1])


class ChannelRefused(AlertsError):  # noqa: N818 - reads as what it says
    """A channel did not accept a message. The message says why, and holds no secret."""


@dataclass(frozen=True)
class Channel:
    """One place that alerts go to.

    Attributes:
        label: scheme and place in PULSEGUARD_ALERT_URLS, e.g. `slack (1)`. Fit to be shown.
    """

    label: str
    _url: SecretStr = field(repr=False)
    # Kept from message to message: it waits as long between two as the service wants.
    _service: apprise.NotifyBase = field(repr=False, compare=False)


def channels_of(urls: Sequence[SecretStr]) -> tuple[Channel, ...]:
    """Make channels of `Settings.alert_urls`, in their order.

    Raises:
        SettingsError: an address is none of Apprise's.
    """
    return tuple(_channel(url, position) for position, url in enumerate(urls, start=1))


def _channel(url: SecretStr, position: int) -> Channel:
    with _using(url, untried=True):
        service = apprise.Apprise.instantiate(url.get_secret_value(), asset=_ASSET)
    if service is None:
        raise SettingsError([(variable_of("alert_urls"), wrong_alert_url(position))])
    # Both are options of an address, and would let a message count as sent that was not accepted: a
    # redirected POST is repeated as a GET, which any page answers with 200.
    service.redirects = False
    service.optional = False
    # Not the scheme that was written: https://hooks.slack.com/... is Slack's.
    known_as: str = service.url(privacy=True)  # type: ignore[no-untyped-call]
    scheme = known_as.partition(":")[0]
    return Channel(f"{scheme} ({position})", url, service)


def send(channel: Channel, title: str, body: str, *, tone: Tone = "info") -> None:
    """Send one message, and return when the channel has accepted it.

    Args:
        title: one line.
        body: plain text of several lines.
        tone: shown as a colour or a sign, by channels that have such.

    Raises:
        ChannelRefused: it did not, or not within 20 s.
    """
    sender = apprise.Apprise(asset=_ASSET)
    sender.add(channel._service)
    with _using(channel._url):
        result = sender.notify(
            body,
            title,
            notify_type=tone,
            body_format=apprise.NotifyFormat.TEXT,
            timeout=_SECONDS_PER_MESSAGE,
        )
    if not result:
        reasons = dict.fromkeys(" ".join(entry.message.split()) for entry in result.logs())
        reason = "; ".join(filter(None, reasons)) or "it gave no reason"
        raise ChannelRefused(f"{channel.label}: {reason[:_LONGEST_REASON].rstrip('.')}")
