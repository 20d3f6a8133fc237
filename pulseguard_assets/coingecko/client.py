"""A thin client for the provider's five endpoints that PulseGuard uses.

Belongs here: one call, counted, bounded in time and size, tried again where that can help.
Does not: which calls to make, in what order, or what becomes of the answers. It knows neither
the database nor Dagster: calls are counted by whatever `CallLedger` it is given.

The key is in one header of the requests and nowhere else. Nothing here prints a request, no
message repeats one, and redirects are not followed, so it reaches only the host it is meant for.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx
import polars as pl

from pulseguard_assets.coingecko.deadline import Deadline
from pulseguard_assets.coingecko.errors import (
    Asked,
    CallNotFree,
    CreditsExhausted,
    Misconfigured,
    ProviderError,
    ProviderUnavailable,
    RateLimitReached,
    UnreadableAnswer,
    error_in,
    rate_limited,
)
from pulseguard_assets.coingecko.frames import (
    ROWS_OF_A_PAGE,
    KeyUsage,
    parse_coins_markets,
    parse_key,
    parse_market_chart,
    parse_ping,
    parse_simple_price,
)
from pulseguard_assets.coingecko.packing import encode_id, join_ids
from pulseguard_assets.coingecko.plans import Plan

T = TypeVar("T")

_log = logging.getLogger(__name__)

# The provider refuses requests that do not say who they are.
USER_AGENT = "PulseGuard (self-hosted price collector)"

# A body's bound, after decompression; about ten times the largest that was ever asked for.
_MOST_BYTES = {
    "/simple/price": 4 * 1024 * 1024,
    "/coins/markets": 4 * 1024 * 1024,
    "/coins/{id}/market_chart/range": 8 * 1024 * 1024,
    "/key": 256 * 1024,
    "/ping": 256 * 1024,
}
# The finest grade of a chart, for as long as the provider gives any finer than days.
_POINTS_OF_A_DAY = 288
_FINE_DAYS = 100

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# A ledger whose clock runs ahead of ours must not make us ask it in a busy loop.
_SHORTEST_WAIT = timedelta(milliseconds=50)


def utc_now() -> datetime:
    """The current instant, aware, in UTC."""
    return datetime.now(timezone.utc)


class Reservation(Protocol):
    """A ledger's word on one call: granted with a `call_id`, or refused with a reason."""

    @property
    def call_id(self) -> int | None:
        """The granted call, to be settled; None if refused."""

    @property
    def next_free_at(self) -> datetime | None:
        """When refused: when to try again (aware)."""

    @property
    def refusal(self) -> str | None:
        """None, `rate`, `credits` or `retry_after`."""

    @property
    def calls_left_this_minute(self) -> int:
        """Calls still free in this minute, this one taken off."""

    @property
    def credits_left_this_month(self) -> int | None:
        """Credits still free this month, this one taken off; None if the plan has no limit."""


class CallLedger(Protocol):
    """Counts calls over all processes. Every attempt is reserved before and settled after."""

    def reserve(self, endpoint: str, now: datetime) -> Reservation:
        """Take one call of `endpoint` at `now`, or say when one is free."""

    def settle(
        self,
        call_id: int,
        *,
        outcome: str,
        status: int | None,
        elapsed_ms: int,
        now: datetime,
        retry_at: datetime | None,
    ) -> None:
        """Say how a reserved call ended: `successful`, `failed` or `rate_limited`."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one call.

    Attributes:
        connect_seconds: for the connection, and for a free one of the pool.
        read_seconds: between two pieces of the answer (also for sending).
        total_seconds: for the whole attempt, the body included; looked at whenever a piece
            of the body arrives, so that one more `read_seconds` can be added to it. Whatever
            else the answer does, it is cut then.
        body_bytes: of the body after decompression, whatever is asked; most endpoints have a
            lower bound of their own.
        attempts: how often a call is made at most, the first time included.
        backoff_seconds: the first pause lies between 0 and this, the next ones between 0 and
            twice the one before (full jitter).
        longest_backoff_seconds: where the doubling ends.
    """

    connect_seconds: float = 5.0
    read_seconds: float = 10.0
    total_seconds: float = 20.0
    body_bytes: int = 8 * 1024 * 1024
    attempts: int = 3
    backoff_seconds: float = 1.0
    longest_backoff_seconds: float = 20.0


@dataclass(frozen=True)
class Answer:
    """What every answer tells beside its content.

    Attributes:
        received_at: the instant its last byte arrived (UTC).
        elapsed_ms: how long the successful attempt took.
        calls_left: calls left in the minute, by the ledger.
        credits_left: credits left in the month, by the ledger; None if the plan has no limit.
    """

    received_at: datetime
    elapsed_ms: int
    calls_left: int
    credits_left: int | None


@dataclass(frozen=True)
class FrameAnswer(Answer):
    """An answer read into a frame.

    Attributes:
        frame: the good rows; the schema is that of the endpoint in `frames.py`.
        rejected: the rows set aside, `REJECTED_SCHEMA`.
    """

    frame: pl.DataFrame
    rejected: pl.DataFrame


@dataclass(frozen=True)
class PriceAnswer(FrameAnswer):
    """Live prices (`PRICES_SCHEMA`), and the asked-for ids the provider did not mention."""

    missing: list[str]


@dataclass(frozen=True)
class MarketsAnswer(FrameAnswer):
    """One page of coins by market cap (`MARKETS_SCHEMA`).

    Attributes:
        rows: rows the provider sent, the rejected ones included: fewer than asked for means
            that this was the last page.
    """

    rows: int


@dataclass(frozen=True)
class ChartAnswer(FrameAnswer):
    """History of one coin (`CHART_SCHEMA`), the unfinished last point still in it."""


@dataclass(frozen=True)
class KeyAnswer(Answer):
    """The provider's own count of a paid key's use."""

    usage: KeyUsage


@dataclass(frozen=True)
class PingAnswer(Answer):
    """The provider is alive."""


@dataclass(frozen=True)
class _Received:
    """One HTTP answer, read to its end, or as far as it goes without its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    received_at: datetime

    @property
    def is_refusal(self) -> bool:
        """Whether the status alone says that the provider will not, or cannot, answer now."""
        return self.status == 429 or self.status >= 500


@dataclass
class _Attempt:
    """How an attempt went, as far as it has gone: what the ledger will be told."""

    started: float
    outcome: str = "failed"
    head: _Received | None = None
    retry_at: datetime | None = None
    ended: float | None = None


@dataclass(frozen=True)
class _Call:
    """One call to be made, as often as it takes."""

    url: str = field(repr=False)
    asked: Asked
    until: datetime


class CoinGecko:
    """The provider. Safe to share between threads; close it, or use it as a context manager.

    Every method takes `until` (aware): it never begins to wait for a free call, a Retry-After or
    a pause that ends later. A request already under way may last `limits.total_seconds` more.

    All methods raise:
        RateLimitReached: no call is free before `until`.
        CreditsExhausted: the month's credits less the reserve are spent.
        ProviderUnavailable, UnreadableAnswer: it failed, after the attempts that were possible.
        Misconfigured: plan, key and address do not fit each other.
        BadRequest: a mistake of ours.

    Args:
        base_url: address up to `/api/v3`; None means the plan's own host.
        plan: decides the host, and the header the key travels in.
        api_key: None for the keyless plan.
        ledger: asked before every attempt and told how it went.
        clock: the current instant, aware.
        sleep: waits so many seconds; an `Event.wait` makes the waiting interruptible.
        monotonic: seconds, for measuring time spans only.
        rng: a number from 0 to 1, for the jitter.
        transport: httpx transport in place of the network.
        limits: bounds of one call.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        ledger: CallLedger,
        base_url: str | None = None,
        api_key: str | None = None,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], object] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
        transport: httpx.BaseTransport | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._base = (base_url or plan.host).rstrip("/")
        self._secret = api_key or ""
        self._clock, self._sleep, self._monotonic, self._rng = clock, sleep, monotonic, rng
        self._limits = limits or Limits()
        timeout = httpx.Timeout(self._limits.read_seconds, connect=self._limits.connect_seconds)
        timeout.pool = self._limits.connect_seconds
        self._http = httpx.Client(
            transport=transport,
            timeout=timeout,
            follow_redirects=False,
            headers={
                "user-agent": USER_AGENT,
                "accept": "application/json",
                # The one compression whose output can be bounded while it is unpacked.
                "accept-encoding": "gzip",
                **_key_header(plan, api_key),
            },
            # A proxy of the environment cannot reach the simulator on this machine.
            trust_env=urlsplit(self._base).hostname not in _LOOPBACK,
        )
        self._deadline = Deadline()
        self._deadline.watch(self._http)

    def __repr__(self) -> str:
        return f"CoinGecko({self._base!r}, plan={self._plan.name!r})"

    def __enter__(self) -> CoinGecko:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._http.close()

    # --- endpoints ---

    def simple_price(self, coin_ids: Sequence[str], *, until: datetime) -> PriceAnswer:
        """Live prices of `coin_ids` in one call; see `packing.pack_ids` for how many fit.

        Raises:
            UriTooLong: the address was too long; halve the ids.
            ValueError: no ids.
        """
        if not coin_ids:
            raise ValueError("simple_price needs at least one coin id")
        query = (
            "vs_currencies=usd&include_market_cap=true&include_24hr_vol=true"
            f"&include_last_updated_at=true&precision=full&ids={join_ids(coin_ids)}"
        )
        parsed, answer = self._call(
            "/simple/price", query, until, lambda body: parse_simple_price(body, coin_ids)
        )
        return PriceAnswer(
            **answer, frame=parsed.frame, rejected=parsed.rejected, missing=parsed.missing
        )

    def coins_markets_page(
        self, page: int, *, per_page: int = ROWS_OF_A_PAGE, until: datetime
    ) -> MarketsAnswer:
        """Page `page` (from 1) of all coins, largest market cap first; at most 250 to a page.

        Rehypothecated tokens (wrapped and staked ones) are asked for too: left out, as they are
        by default, a coin would vanish from the sweep that still has prices.
        """
        return self._markets(f"order=market_cap_desc&per_page={per_page}&page={page}", until)

    def coins_markets_of(self, coin_ids: Sequence[str], *, until: datetime) -> MarketsAnswer:
        """The rows of at most 250 named coins, whatever their rank.

        Raises:
            ValueError: no ids, or more than a page holds.
        """
        if not 0 < len(coin_ids) <= ROWS_OF_A_PAGE:
            raise ValueError(
                f"coins_markets_of takes 1 to {ROWS_OF_A_PAGE} coin ids, not {len(coin_ids)}"
            )
        return self._markets(f"per_page={ROWS_OF_A_PAGE}&ids={join_ids(coin_ids)}", until)

    def _markets(self, which: str, until: datetime) -> MarketsAnswer:
        query = f"vs_currency=usd&precision=full&include_rehypothecated=true&{which}"
        parsed, answer = self._call("/coins/markets", query, until, parse_coins_markets)
        return MarketsAnswer(
            **answer, frame=parsed.frame, rejected=parsed.rejected, rows=parsed.rows
        )

    def market_chart_range(
        self, coin_id: str, start: datetime, end: datetime, *, until: datetime
    ) -> ChartAnswer:
        """History of `coin_id` over `[start, end]` (aware), at the grade the provider chooses.

        That is 5 minutes for the last day, an hour up to 90 days, a day beyond.

        Raises:
            UnknownCoin: the provider knows no such coin.
            TooFarBack: `start` lies beyond the plan's reach.
            ValueError: no id, or a time without a zone.
        """
        if not coin_id or start.tzinfo is None or end.tzinfo is None:
            raise ValueError("market_chart_range needs a coin id and times with a zone")
        query = (
            f"vs_currency=usd&from={math.floor(start.timestamp())}&to={math.ceil(end.timestamp())}"
        )
        parsed, answer = self._call(
            "/coins/{id}/market_chart/range",
            query,
            until,
            lambda body: parse_market_chart(body, coin_id, most_points=_most_points(start, end)),
            coin_id=coin_id,
        )
        return ChartAnswer(**answer, frame=parsed.frame, rejected=parsed.rejected)

    def key(self, *, until: datetime) -> KeyAnswer:
        """What the provider has counted for this key. Only paid plans have it."""
        if not self._plan.is_paid:
            raise Misconfigured(
                f"The plan {self._plan.name!r} has no usage report; only paid plans do. Set "
                "PULSEGUARD_PLAN to the plan of your key if it is a paid one.",
                "PULSEGUARD_PLAN",
            )
        usage, answer = self._call("/key", "", until, parse_key)
        return KeyAnswer(**answer, usage=usage)

    def ping(self, *, until: datetime) -> PingAnswer:
        """Whether the provider answers at all. Counts as a call."""
        _, answer = self._call("/ping", "", until, parse_ping)
        return PingAnswer(**answer)

    # --- one call, as often as it takes ---

    def _call(
        self,
        endpoint: str,
        query: str,
        until: datetime,
        parse: Callable[[bytes], T],
        *,
        coin_id: str | None = None,
    ) -> tuple[T, dict[str, Any]]:
        if until.tzinfo is None:
            raise ValueError("`until` needs a zone")
        path = endpoint if coin_id is None else endpoint.replace("{id}", encode_id(coin_id))
        call = _Call(
            url=f"{self._base}{path}?{query}" if query else f"{self._base}{path}",
            asked=Asked(endpoint, self._plan.name, self._plan.history_days, coin_id, self._secret),
            until=until,
        )
        failure: RateLimitReached | ProviderUnavailable | None = None
        for number in range(1, self._limits.attempts + 1):
            reservation, call_id = self._reserve(call, failure)
            try:
                return self._attempt(call, reservation, call_id, parse)
            except (RateLimitReached, ProviderUnavailable) as error:
                if number == self._limits.attempts or not self._pause(call, error, number):
                    raise
                failure = error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _reserve(self, call: _Call, failure: ProviderError | None) -> tuple[Reservation, int]:
        """A granted call; waits for it as long as `until` allows.

        When a call that failed cannot be made again in time, its own failure is the better
        story, and is raised.
        """
        while True:
            now = self._clock()
            reservation = self._ledger.reserve(call.asked.endpoint, now)
            if reservation.call_id is not None:
                return reservation, reservation.call_id
            free_at = reservation.next_free_at
            earliest = max(free_at or now, now + _SHORTEST_WAIT)
            never = reservation.refusal == "credits" and free_at is None
            if never or earliest > call.until:
                refusal = self._refusal(call, reservation, earliest)
                raise (failure or refusal) from (refusal if failure else None)
            self._sleep((earliest - now).total_seconds())

    def _refusal(self, call: _Call, reservation: Reservation, earliest: datetime) -> ProviderError:
        if reservation.refusal == "rate":
            return CallNotFree(str(rate_limited("", earliest, call.asked)), earliest)
        if reservation.refusal != "credits":
            return rate_limited("", earliest, call.asked)
        return CreditsExhausted(
            f"The credits of the plan {self._plan.name!r} ({self._plan.credits_per_month} a month) "
            "are spent, the reserve left aside. Collecting goes on with the next month. To go on "
            "now, use a larger plan (PULSEGUARD_PLAN), lower PULSEGUARD_RESERVE_PERCENT, or "
            "correct PULSEGUARD_CREDITS_PER_MONTH; to make them last, set fewer coins "
            "(PULSEGUARD_MODE).",
            self._plan.credits_per_month,
            reservation.credits_left_this_month,
            reservation.next_free_at,
        )

    def _pause(
        self, call: _Call, error: RateLimitReached | ProviderUnavailable, number: int
    ) -> bool:
        """Wait before the next attempt; False if there is no time left for it."""
        now = self._clock()
        ceiling = min(
            self._limits.backoff_seconds * 2 ** (number - 1), self._limits.longest_backoff_seconds
        )
        begin = max(now, error.retry_at or now)
        if begin > call.until:
            return False
        resume = begin + timedelta(seconds=self._rng() * ceiling)
        if resume > call.until and not isinstance(error, RateLimitReached):
            return False
        # The jitter after a stated time is a courtesy, and gives way to the end of the tick.
        seconds = (min(resume, call.until) - now).total_seconds()
        _log.warning("attempt %d failed, next in %.1f s: %s", number, seconds, error)
        if seconds > 0:
            self._sleep(seconds)
        return True

    # --- one attempt ---

    def _attempt(
        self, call: _Call, reservation: Reservation, call_id: int, parse: Callable[[bytes], T]
    ) -> tuple[T, dict[str, Any]]:
        """One HTTP exchange. It is settled whatever happens, an interrupt included."""
        attempt = _Attempt(self._monotonic())
        try:
            received = self._exchange(call, attempt)
            error = error_in(
                received.status,
                received.headers,
                received.body,
                received_at=received.received_at,
                asked=call.asked,
            )
            if error is not None:
                raise error
            parsed = parse(received.body)
            attempt.outcome = "successful"
        except RateLimitReached as error:
            attempt.outcome, attempt.retry_at = "rate_limited", error.retry_at
            raise
        except ProviderUnavailable as error:
            attempt.retry_at = error.retry_at
            raise
        finally:
            elapsed_ms = self._elapsed_ms(attempt)
            self._ledger.settle(
                call_id,
                outcome=attempt.outcome,
                status=None if attempt.head is None else attempt.head.status,
                elapsed_ms=elapsed_ms,
                now=self._clock(),
                retry_at=attempt.retry_at,
            )
        return parsed, {
            "received_at": received.received_at,
            "elapsed_ms": elapsed_ms,
            "calls_left": reservation.calls_left_this_minute,
            "credits_left": reservation.credits_left_this_month,
        }

    def _elapsed_ms(self, attempt: _Attempt) -> int:
        ended = self._monotonic() if attempt.ended is None else attempt.ended
        return max(0, round((ended - attempt.started) * 1000))

    def _exchange(self, call: _Call, attempt: _Attempt) -> _Received:
        try:
            return self._fetch(call, attempt)
        except ProviderUnavailable:
            # What becomes of its body must hide neither a refusal nor its Retry-After.
            if attempt.head is None or not attempt.head.is_refusal:
                raise
            return attempt.head
        finally:
            attempt.ended = self._monotonic()

    def _fetch(self, call: _Call, attempt: _Attempt) -> _Received:
        endpoint, limits = call.asked.endpoint, self._limits
        try:
            with (
                self._deadline.within(limits.total_seconds + limits.read_seconds),
                self._http.stream("GET", call.url) as response,
            ):
                status, headers = response.status_code, dict(response.headers)
                attempt.head = _Received(status, headers, b"", self._clock())
                body = self._body(response, endpoint, attempt.started)
                return _Received(status, headers, body, self._clock())
        except httpx.TimeoutException as error:
            raise ProviderUnavailable(
                f"CoinGecko did not answer {endpoint} in time ({type(error).__name__}). Check the "
                "network of this machine if it lasts."
            ) from error
        except httpx.HTTPError as error:
            raise ProviderUnavailable(
                f"The connection to CoinGecko failed on {endpoint} ({type(error).__name__}). Check "
                "the network of this machine, and PULSEGUARD_BASE_URL if it is set."
            ) from error
        except httpx.InvalidURL as error:
            raise Misconfigured(
                "The provider's address cannot be used. Correct PULSEGUARD_BASE_URL, or leave it "
                "out.",
                "PULSEGUARD_BASE_URL",
            ) from error

    def _body(self, response: httpx.Response, endpoint: str, started: float) -> bytes:
        """The decoded body, read piece by piece so that neither time nor size runs away."""
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise UnreadableAnswer(
                f"CoinGecko answered {endpoint} in an encoding it was not asked for.",
                response.status_code,
            )
        pieces = self._in_time(_raw(response), endpoint, started)
        unpack = _gunzipped if encoding.endswith("gzip") else _bounded
        most = min(self._limits.body_bytes, _MOST_BYTES[endpoint])
        try:
            return unpack(pieces, most)
        except zlib.error as error:
            raise UnreadableAnswer(
                f"CoinGecko's answer to {endpoint} cannot be unpacked.", response.status_code
            ) from error
        except _TooLarge as error:
            raise UnreadableAnswer(
                f"CoinGecko's answer to {endpoint} is larger than {most:,} bytes.",
                response.status_code,
            ) from error

    def _in_time(self, pieces: Iterator[bytes], endpoint: str, started: float) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            if self._monotonic() - started > self._limits.total_seconds:
                raise ProviderUnavailable(
                    f"CoinGecko's answer to {endpoint} took longer than "
                    f"{self._limits.total_seconds:g} seconds. It came too slowly to be of use."
                )


def _most_points(start: datetime, end: datetime) -> int:
    """Points of a chart's series, were each of its first hundred days in the finest grade."""
    days = max((end - start) / timedelta(days=1), 0)
    return math.ceil(_POINTS_OF_A_DAY * min(days, _FINE_DAYS)) + 1_000


class _TooLarge(Exception):  # noqa: N818 - never leaves this module
    """The body went beyond its bound."""


def _raw(response: httpx.Response) -> Iterator[bytes]:
    # Not `iter_bytes`: it unpacks a piece of the network at once, however large that becomes.
    stream = response.stream
    if not isinstance(stream, httpx.SyncByteStream):
        raise TypeError("the transport gave an asynchronous answer to a synchronous request")
    yield from stream


def _bounded(pieces: Iterator[bytes], most: int) -> bytes:
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) > most:
            raise _TooLarge
    return bytes(body)


def _gunzipped(pieces: Iterator[bytes], most: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    body = bytearray()
    begun = False
    for piece in pieces:
        if unpacker.eof:
            # Read on, for an answer not read to its end costs the connection.
            continue
        begun = begun or bool(piece)
        # One byte more than allowed is asked for, and shows that there was more.
        body += unpacker.decompress(piece, most + 1 - len(body))
        if len(body) > most:
            raise _TooLarge
    if begun and not unpacker.eof:
        raise zlib.error("the compressed body ends too soon")
    return bytes(body)


def _key_header(plan: Plan, api_key: str | None) -> dict[str, str]:
    if plan.header is None:
        if api_key:
            raise Misconfigured(
                f"A key was given with the plan {plan.name!r}, which sends none. Set "
                "PULSEGUARD_PLAN to the plan of the key.",
                "PULSEGUARD_PLAN",
            )
        return {}
    # A line break in a header would be refused further down, with the header quoted in full.
    if not api_key or not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise Misconfigured(
            f"The plan {plan.name!r} needs a key of plain characters without spaces. Set "
            "PULSEGUARD_API_KEY to the key as the provider's dashboard shows it.",
            "PULSEGUARD_API_KEY",
        )
    return {plan.header: api_key}
