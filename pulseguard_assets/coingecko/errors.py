"""What can go wrong with the provider, as a small family of exceptions.

Belongs here: the family, and the one place where an answer that is no success is turned into
a member of it. Does not: deciding when to try again, which is the client's.

A caller needs no more than the classes tell: `RateLimitReached` and `CreditsExhausted` are a
matter of time, `ProviderUnavailable` is the provider's, `Misconfigured` is the user's,
`TooFarBack` and `UnknownCoin` are definite answers, `BadRequest` is a mistake of ours.
"""

# Named for what happened, as a caller reads them in an `except`; the base says they are errors.
# ruff: noqa: N818

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

# The provider counts calls by the minute, so a refusal that names no time ends with the minute.
PAUSE_WITHOUT_RETRY_AFTER = timedelta(seconds=60)
# A longer Retry-After is taken for a mistake: nobody would notice a platform asleep for a year.
LONGEST_RETRY_AFTER = timedelta(hours=24)

_LONGEST_QUOTE = 300
# What is looked at for a quote: white space in it counts for one.
_LONGEST_MESSAGE = 4_000
# The provider's own errors have a few hundred bytes. Taking JSON apart takes 50 times its bytes.
_LONGEST_ERROR = 1024 * 1024
_MISCONFIGURED_CODES = frozenset({10002, 10005, 10010, 10011})


class ProviderError(Exception):
    """Anything that kept the provider from answering. The message says what to change.

    All arguments go to `args`, so that every member of the family survives pickling.
    """

    def __str__(self) -> str:
        return str(self.args[0])


class RateLimitReached(ProviderError):
    """No call is free now, by the provider's word or by our own ledger.

    Attributes:
        retry_at: when the next call may be made (aware, UTC).
    """

    def __init__(self, message: str, retry_at: datetime) -> None:
        super().__init__(message, retry_at)
        self.retry_at = retry_at


class CallNotFree(RateLimitReached):
    """Our own ledger paces the calls, and none is free yet: nothing failed, go on at `retry_at`."""


class CreditsExhausted(ProviderError):
    """The month's credits less the reserve are spent; our own ledger refused the call.

    Attributes:
        limit: the plan's credits a month; None if the plan has none.
        credits_left: what the ledger says is left, which may be the reserve; None if unknown.
        free_at: when the next month begins; None if the ledger did not say.
    """

    def __init__(
        self,
        message: str,
        limit: int | None = None,
        credits_left: int | None = None,
        free_at: datetime | None = None,
    ) -> None:
        super().__init__(message, limit, credits_left, free_at)
        self.limit = limit
        self.credits_left = credits_left
        self.free_at = free_at


class TooFarBack(ProviderError):
    """The history asked for begins before the plan's reach. Definite: do not ask again.

    Attributes:
        reach_days: how far the plan reaches back; None if the plan is believed to reach all.
    """

    def __init__(self, message: str, reach_days: int | None) -> None:
        super().__init__(message, reach_days)
        self.reach_days = reach_days


class Misconfigured(ProviderError):
    """A setting does not fit the provider. Definite until somebody changes it.

    Attributes:
        setting: the environment variable to change.
    """

    def __init__(self, message: str, setting: str) -> None:
        super().__init__(message, setting)
        self.setting = setting


class UnknownCoin(ProviderError):
    """The provider knows no such coin. Definite for that coin.

    Attributes:
        coin_id: the id that was asked for.
    """

    def __init__(self, message: str, coin_id: str) -> None:
        super().__init__(message, coin_id)
        self.coin_id = coin_id


class BadRequest(ProviderError):
    """The provider did not understand the request: a bug of ours, to be reported.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status


class UriTooLong(BadRequest):
    """Too many ids for one address (414): ask again with half of them (`packing.halve`)."""


class ProviderUnavailable(ProviderError):
    """The provider, or the way to it, failed: 408, 5xx, HTML, broken connection, time limit.

    Attributes:
        status: the HTTP status; None if there was no answer.
        retry_at: when the provider asked to be called again; None if it did not say.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_at: datetime | None = None
    ) -> None:
        super().__init__(message, status, retry_at)
        self.status = status
        self.retry_at = retry_at


class UnreadableAnswer(ProviderUnavailable):
    """A success by its status, but not the JSON that this endpoint gives."""


@dataclass(frozen=True)
class Asked:
    """What was asked, as far as an error message needs it. Holds no key.

    Attributes:
        endpoint: the path without parameters, e.g. `/simple/price`.
        plan: the name of the plan in force.
        history_days: how far that plan reaches back; None means all.
        coin_id: the coin in the path, if there is one.
        secret: text that no message may repeat; empty if there is none.
    """

    endpoint: str
    plan: str
    history_days: int | None = None
    coin_id: str | None = None
    secret: str = ""

    def __repr__(self) -> str:
        return f"Asked({self.endpoint!r}, plan={self.plan!r})"


def error_in(
    status: int, headers: Mapping[str, str], body: bytes, *, received_at: datetime, asked: Asked
) -> ProviderError | None:
    """The error that an answer stands for; None if it is a 200 without an error in it.

    The provider's own code decides before the HTTP status does, for it is the more exact of the
    two, and a rate limit has been seen under a 200. Its three places: `error.status.error_code`,
    `status.error_code`, `error_code`.

    Args:
        status: the HTTP status.
        headers: the answer's headers, looked up by lower-case names.
        body: the decoded body.
        received_at: when the answer arrived; Retry-After is counted from here.
        asked: what was asked.
    """
    if status == 200 and b'"error_code"' not in body:
        return None
    document = _json_object(body)
    code, quote = _code_and_message(document)
    if status == 200 and code is None:
        # A coin may well be called "status"; only a code makes a success an error.
        return None
    said = _quoted(quote, asked.secret)
    retry_at = retry_after(headers.get("retry-after"), received_at)
    by_code = _by_code(code, said, retry_at or received_at + PAUSE_WITHOUT_RETRY_AFTER, asked)
    if by_code is not None:
        return by_code
    if status == 200:
        return UnreadableAnswer(
            f"CoinGecko answered {asked.endpoint} with the error code {code} under a 200{said}. "
            "It will be asked again.",
            status,
            retry_at,
        )
    return _by_status(status, document is not None, said, headers, retry_at, received_at, asked)


def retry_after(header: str | None, received_at: datetime) -> datetime | None:
    """When a Retry-After header (seconds, or an HTTP date) allows the next call.

    Never earlier than `received_at`, never more than a day later. None if the header is absent
    or makes no sense.
    """
    if header is None:
        return None
    text = header.strip()
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", text):
        seconds = min(float(text), LONGEST_RETRY_AFTER.total_seconds())
        return received_at + timedelta(seconds=seconds)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        # At either end of the calendar its zone may take it beyond.
        moment = moment.astimezone(timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return max(received_at, min(moment, received_at + LONGEST_RETRY_AFTER))


def _json_object(body: bytes) -> dict[str, Any] | None:
    if len(body) > _LONGEST_ERROR:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _code_and_message(document: Mapping[str, Any] | None) -> tuple[int | None, str]:
    if document is None:
        return None, ""
    error, status = document.get("error"), document.get("status")
    nested = error.get("status") if isinstance(error, dict) else None
    messages: list[Any] = [error]
    code = None
    for place in (nested, status, document):
        if isinstance(place, dict):
            code = code if code is not None else _whole(place.get("error_code"))
            messages.append(place.get("error_message"))
    return code, next((text for text in messages if isinstance(text, str) and text), "")


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return int(value) if re.fullmatch(r"[0-9]{1,9}", str(value)) else None


def _quoted(message: str, secret: str) -> str:
    begin = message[:_LONGEST_MESSAGE]
    if secret:
        begin = begin.replace(secret, "***")
        if len(message) > _LONGEST_MESSAGE:
            # The cut may have gone through the secret, and left the first part of it.
            begin = begin[: -len(secret)]
    text = " ".join("".join(c if c.isprintable() else " " for c in begin).split())
    if not text:
        return ""
    return f" ({text[:_LONGEST_QUOTE]!r})"


def _by_code(code: int | None, said: str, retry_at: datetime, asked: Asked) -> ProviderError | None:
    if code == 429:
        return rate_limited(said, retry_at, asked)
    if code == 10012:
        return _too_far_back(said, asked)
    if code in _MISCONFIGURED_CODES:
        return _misconfigured(code, said, asked)
    return None


def _by_status(
    status: int,
    is_json: bool,
    said: str,
    headers: Mapping[str, str],
    retry_at: datetime | None,
    received_at: datetime,
    asked: Asked,
) -> ProviderError:
    if status == 429:
        return rate_limited(said, retry_at or received_at + PAUSE_WITHOUT_RETRY_AFTER, asked)
    if status in (401, 403) and is_json:
        return _misconfigured(None, said, asked)
    if status in (401, 403, 408) or status >= 500:
        return ProviderUnavailable(
            f"CoinGecko failed on {asked.endpoint} with HTTP {status}{said}. If it lasts, look at "
            "https://status.coingecko.com; nothing here needs changing.",
            status,
            retry_at,
        )
    if 300 <= status < 400:
        return _redirected(status, headers.get("location", ""), asked)
    if status == 404:
        return _not_found(is_json, said, asked)
    if status == 414:
        return UriTooLong(
            f"The address for {asked.endpoint} was too long (HTTP 414); ask for fewer coins in a "
            "call.",
            status,
        )
    if status < 400:
        return UnreadableAnswer(
            f"CoinGecko answered {asked.endpoint} with HTTP {status} where it gives 200.", status
        )
    return BadRequest(
        f"CoinGecko did not understand {asked.endpoint} (HTTP {status}{said}). This is a mistake "
        "in PulseGuard, not in your settings: please report it.",
        status,
    )


def rate_limited(said: str, retry_at: datetime, asked: Asked) -> RateLimitReached:
    """The error for a call that may be made again at `retry_at`; `said` is put in as it is."""
    return RateLimitReached(
        f"The rate limit of the plan {asked.plan!r} is reached at {asked.endpoint}{said}; the next "
        f"call is free at {retry_at:%Y-%m-%d %H:%M:%S} UTC. If this happens often, another program "
        "uses the same key or address: lower PULSEGUARD_CALLS_PER_MINUTE or PULSEGUARD_MODE.",
        retry_at,
    )


def _too_far_back(said: str, asked: Asked) -> TooFarBack:
    if asked.history_days is None:
        reach = f"The plan {asked.plan!r} was taken to reach back without limit, but does not"
    else:
        reach = f"The plan {asked.plan!r} reaches {asked.history_days} days back"
    return TooFarBack(
        f"{reach}{said}. Set PULSEGUARD_HISTORY_START to a day within its reach, correct "
        "PULSEGUARD_HISTORY_DAYS, or use a plan with more history (PULSEGUARD_PLAN).",
        asked.history_days,
    )


def _misconfigured(code: int | None, said: str, asked: Asked) -> Misconfigured:
    plan, key = "PULSEGUARD_PLAN", "PULSEGUARD_API_KEY"
    if code == 10005:
        sentence = f"needs a higher plan than {asked.plan!r}. Set {plan} to the plan of your key"
        setting = plan
    elif code == 10010:
        sentence = f"got the key of a paid plan at the public host. Set {plan} to that paid plan"
        setting = plan
    elif code == 10011:
        sentence = f"got a demo key at the host of the paid plans. Set {plan}=demo"
        setting = plan
    elif asked.plan == "keyless":
        sentence = f"wants a key. Set {key}, and {plan} to the plan it belongs to"
        setting = key
    else:
        sentence = f"did not accept the key. Check {key}, and that {plan}={asked.plan} is its plan"
        setting = key
    return Misconfigured(
        f"CoinGecko, asked for {asked.endpoint}, {sentence}; if PULSEGUARD_BASE_URL is set, check "
        f"it too.{said}",
        setting,
    )


def _redirected(status: int, location: str, asked: Asked) -> Misconfigured:
    # Only the host is named: what follows it may repeat what we sent.
    match = re.match(r"https?://([A-Za-z0-9.:-]{1,100})", location)
    where = f"to {match[1]}" if match else "elsewhere"
    return Misconfigured(
        f"The provider's address redirects {asked.endpoint} {where} (HTTP {status}), and a key is "
        "never sent after a redirect. Set PULSEGUARD_BASE_URL to the final address, or leave it "
        "out.",
        "PULSEGUARD_BASE_URL",
    )


def _not_found(is_json: bool, said: str, asked: Asked) -> ProviderError:
    if asked.coin_id is not None and is_json:
        return UnknownCoin(
            f"CoinGecko knows no coin {asked.coin_id!r}{said}. Take it out of "
            "PULSEGUARD_ALWAYS_INCLUDE if it stands there.",
            asked.coin_id,
        )
    return Misconfigured(
        f"There is no {asked.endpoint} at the provider's address (HTTP 404{said}). Correct "
        "PULSEGUARD_BASE_URL (it ends before /simple/price), or leave it out.",
        "PULSEGUARD_BASE_URL",
    )
