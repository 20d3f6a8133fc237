"""The client: every attempt counted, bounded and secret, and tried again only where it helps."""

from __future__ import annotations

import gzip
import json
import logging
import random
import socket
import threading
import traceback
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from pulseguard_assets.coingecko.client import USER_AGENT, CoinGecko, Limits
from pulseguard_assets.coingecko.errors import (
    BadRequest,
    CallNotFree,
    CreditsExhausted,
    Misconfigured,
    ProviderError,
    ProviderUnavailable,
    RateLimitReached,
    TooFarBack,
    UnknownCoin,
    UnreadableAnswer,
    UriTooLong,
)
from pulseguard_assets.coingecko.packing import MAX_URL_BYTES, URL_OVERHEAD, pack_ids
from pulseguard_assets.coingecko.plans import plan_for

KEY = "CG-thisIsVerySecret"
START = datetime(2025, 6, 1, 12, 0, tzinfo=timezone.utc)
PRICES = b'{"bitcoin": {"usd": 1.5}}'
TOO_MANY = b'{"status": {"error_code": 429, "error_message": "slow down"}}'

Handler = Callable[[httpx.Request], httpx.Response]


class Time:
    """A clock that only sleeping, or a slow answer, moves."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds


@dataclass(frozen=True)
class Granted:
    call_id: int | None = None
    next_free_at: datetime | None = None
    refusal: str | None = None
    calls_left_this_minute: int = 29
    credits_left_this_month: int | None = 9_000


@dataclass
class Ledger:
    """Grants every call but those it was told to refuse; remembers all it heard."""

    refusals: list[Granted] = field(default_factory=list)
    reserved: list[tuple[str, datetime]] = field(default_factory=list)
    settled: list[dict[str, Any]] = field(default_factory=list)

    def reserve(self, endpoint: str, now: datetime) -> Granted:
        if self.refusals:
            return self.refusals.pop(0)
        self.reserved.append((endpoint, now))
        return Granted(call_id=len(self.reserved))

    def settle(self, call_id: int, **told: Any) -> None:
        self.settled.append({"call_id": call_id, **told})

    def outcomes(self) -> list[tuple[str, int | None]]:
        assert [told["call_id"] for told in self.settled] == list(range(1, len(self.reserved) + 1))
        return [(told["outcome"], told["status"]) for told in self.settled]


@dataclass
class Bench:
    """A client on a scripted transport; each answer of the script is one attempt."""

    script: list[httpx.Response | Exception | Handler]
    plan: str = "demo"
    key: str | None = KEY
    rng: float = 0.5
    ledger: Ledger = field(default_factory=Ledger)
    time: Time = field(default_factory=Time)
    limits: Limits = field(default_factory=Limits)
    base_url: str | None = None
    requests: list[httpx.Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = CoinGecko(
            base_url=self.base_url,
            plan=plan_for(self.plan),
            api_key=self.key,
            ledger=self.ledger,
            clock=self.time.now,
            sleep=self.time.sleep,
            monotonic=self.time.monotonic,
            rng=lambda: self.rng,
            transport=httpx.MockTransport(self._answer),
            limits=self.limits,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step(request) if callable(step) else step

    def price(self, *ids: str, seconds: float = 300) -> Any:
        return self.client.simple_price(
            ids or ("bitcoin",), until=START + timedelta(seconds=seconds)
        )

    def failure(self, kind: type[ProviderError], seconds: float = 300) -> Any:
        with pytest.raises(kind) as caught:
            self.price(seconds=seconds)
        assert type(caught.value) is kind
        return caught.value


def ok(body: bytes = PRICES, **more: Any) -> httpx.Response:
    return httpx.Response(200, content=body, **more)


def refused(seconds: float | None, refusal: str = "rate") -> Granted:
    free_at = None if seconds is None else START + timedelta(seconds=seconds)
    return Granted(next_free_at=free_at, refusal=refusal, credits_left_this_month=0)


class Pieces(httpx.SyncByteStream):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


# --- what is sent ---


def test_a_price_call_asks_for_everything_the_tables_hold_with_plain_commas() -> None:
    bench = Bench([ok()])

    bench.price("bitcoin", "1move token", "boringdao-[old]")

    (request,) = bench.requests
    assert str(request.url) == (
        "https://api.coingecko.com/api/v3/simple/price?vs_currencies=usd&include_market_cap=true"
        "&include_24hr_vol=true&include_last_updated_at=true&precision=full"
        "&ids=bitcoin,1move%20token,boringdao-%5Bold%5D"
    )
    assert request.headers["user-agent"] == USER_AGENT


@pytest.mark.parametrize(
    ("plan", "key", "host", "header"),
    [
        ("keyless", None, "api.coingecko.com", None),
        ("demo", KEY, "api.coingecko.com", "x-cg-demo-api-key"),
        ("analyst", KEY, "pro-api.coingecko.com", "x-cg-pro-api-key"),
    ],
)
def test_the_key_travels_in_the_header_of_the_plan_and_nowhere_else(
    plan: str, key: str | None, host: str, header: str | None
) -> None:
    bench = Bench([ok()], plan=plan, key=key)

    bench.price()

    (request,) = bench.requests
    assert request.url.host == host
    sent = {name: value for name, value in request.headers.items() if name.startswith("x-cg")}
    assert sent == ({header: KEY} if header else {})
    assert KEY not in str(request.url)
    assert not request.content


@pytest.mark.parametrize("plan", ["demo", "pro"])
def test_a_packed_call_stays_within_the_bytes_it_was_packed_for(plan: str) -> None:
    ids = [f"{'long-coin-name' * 4}-{number}" for number in range(300)]
    bench = Bench([ok() for _ in range(10)], plan=plan)

    for call in pack_ids(ids):
        bench.price(*call)

    sizes = [len(str(request.url)) for request in bench.requests]
    assert len(sizes) > 1
    assert max(sizes) <= MAX_URL_BYTES
    assert max(sizes) > MAX_URL_BYTES - URL_OVERHEAD - 60


def test_a_base_url_of_ones_own_replaces_the_host_of_the_plan() -> None:
    bench = Bench([ok()], base_url="http://127.0.0.1:8080/api/v3/")

    bench.price()

    assert str(bench.requests[0].url).startswith("http://127.0.0.1:8080/api/v3/simple/price?")


def test_a_page_of_markets_is_asked_for_by_market_cap_and_counts_the_rows_sent() -> None:
    row = {"id": "a", "symbol": "a", "name": "A"}
    bench = Bench([ok(json.dumps([row, row, 7]).encode())])

    answer = bench.client.coins_markets_page(3, until=START)

    assert bench.requests[0].url.path == "/api/v3/coins/markets"
    assert dict(bench.requests[0].url.params) == {
        "vs_currency": "usd",
        "order": "market_cap_desc",
        "per_page": "250",
        "page": "3",
        "precision": "full",
        "include_rehypothecated": "true",
    }
    assert (answer.frame.height, answer.rejected.height, answer.rows) == (1, 1, 3)


def test_a_chart_is_asked_for_in_unix_seconds_with_an_escaped_id_and_no_interval() -> None:
    bench = Bench([ok(b'{"prices": [[1000, 2]], "market_caps": [], "total_volumes": []}')])
    start = datetime(2025, 1, 1, tzinfo=timezone(timedelta(hours=1)))

    answer = bench.client.market_chart_range(
        "a/b [old]", start, start + timedelta(seconds=1, microseconds=1), until=START
    )

    assert bench.requests[0].url.raw_path == (
        b"/api/v3/coins/a%2Fb%20%5Bold%5D/market_chart/range"
        b"?vs_currency=usd&from=1735686000&to=1735686002"
    )
    assert bench.ledger.reserved[0][0] == "/coins/{id}/market_chart/range"
    assert answer.frame["price_usd"].to_list() == [2.0]


def test_a_chart_that_goes_wrong_names_the_coin_or_the_reach() -> None:
    too_far = b'{"error": {"status": {"error_code": 10012, "error_message": "past 365 days"}}}'
    bench = Bench(
        [
            httpx.Response(404, json={"error": "coin not found"}),
            httpx.Response(401, content=too_far),
        ]
    )

    with pytest.raises(UnknownCoin) as unknown:
        bench.client.market_chart_range("gone", START, START, until=START)
    with pytest.raises(TooFarBack) as beyond:
        bench.client.market_chart_range("bitcoin", START, START, until=START)

    assert unknown.value.coin_id == "gone"
    assert beyond.value.reach_days == 365
    assert bench.ledger.outcomes() == [("failed", 404), ("failed", 401)]


def test_the_usage_of_the_key_is_asked_for_on_paid_plans_only() -> None:
    paid = Bench([ok(b'{"plan": "Analyst", "current_remaining_monthly_calls": 7}')], plan="analyst")
    free = Bench([])

    assert paid.client.key(until=START).usage.credits_left == 7
    assert str(paid.requests[0].url) == "https://pro-api.coingecko.com/api/v3/key"
    with pytest.raises(Misconfigured, match="PULSEGUARD_PLAN"):
        free.client.key(until=START)
    assert free.ledger.reserved == []


def test_a_ping_counts_as_a_call() -> None:
    bench = Bench([ok(b'{"gecko_says": "(V3) To the Moon!"}')])

    bench.client.ping(until=START)

    assert bench.ledger.outcomes() == [("successful", 200)]


def test_nonsense_is_refused_before_it_costs_a_call() -> None:
    bench = Bench([])
    naive = datetime(2025, 1, 1)  # noqa: DTZ001

    with pytest.raises(ValueError, match="at least one coin"):
        bench.client.simple_price([], until=START)
    with pytest.raises(ValueError, match="zone"):
        bench.client.simple_price(["bitcoin"], until=naive)
    with pytest.raises(ValueError, match="zone"):
        bench.client.market_chart_range("bitcoin", naive, START, until=START)
    with pytest.raises(ValueError, match="coin id"):
        bench.client.market_chart_range("", START, START, until=START)
    assert bench.ledger.reserved == []


# --- what comes back ---


def test_an_answer_tells_its_arrival_its_duration_and_what_is_left() -> None:
    bench = Bench([])

    def slow(request: httpx.Request) -> httpx.Response:
        bench.time.passed += 0.25
        return ok()

    bench.script.append(slow)
    answer = bench.price("bitcoin", "absent")

    assert answer.frame["price_usd"].to_list() == [1.5]
    assert answer.missing == ["absent"]
    assert answer.received_at == START + timedelta(seconds=0.25)
    assert answer.elapsed_ms == 250
    assert (answer.calls_left, answer.credits_left) == (29, 9_000)
    assert bench.ledger.settled == [
        {
            "call_id": 1,
            "outcome": "successful",
            "status": 200,
            "elapsed_ms": 250,
            "now": START + timedelta(seconds=0.25),
            "retry_at": None,
        }
    ]


def test_a_compressed_answer_is_unpacked() -> None:
    packed = gzip.compress(PRICES)
    pieces = Pieces(iter([packed[:9], b"", packed[9:], b"trailing"]))
    bench = Bench([httpx.Response(200, headers={"content-encoding": "gzip"}, stream=pieces)])

    assert bench.price().frame.height == 1
    assert bench.requests[0].headers["accept-encoding"] == "gzip"


def bomb() -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=31)
    for _ in range(10_000):
        yield packer.compress(bytes(1_000_000))
    yield packer.flush()


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_a_body_without_end_is_given_up_at_its_bound(encoding: str) -> None:
    produced = 0

    def pieces() -> Iterator[bytes]:
        nonlocal produced
        source = bomb() if encoding == "gzip" else (b" " * 65_536 for _ in range(1_000_000))
        for piece in source:
            produced += len(piece)
            yield piece

    bench = Bench(
        [httpx.Response(200, headers={"content-encoding": encoding}, stream=Pieces(pieces()))],
        limits=Limits(body_bytes=1_000_000, attempts=1),
    )

    assert "larger than 1,000,000 bytes" in str(bench.failure(UnreadableAnswer))
    assert produced < 1_200_000


def test_a_single_piece_that_unpacks_to_a_hundred_megabytes_never_takes_them() -> None:
    packed = gzip.compress(bytes(100_000_000))
    bench = Bench(
        [httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Pieces(iter([packed])))],
        limits=Limits(body_bytes=1_000_000, attempts=1),
    )

    tracemalloc.start()
    try:
        bench.failure(UnreadableAnswer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"no gzip at all"),
        # Without the time of packing, by which two workers would know the test by two names.
        ("gzip", gzip.compress(PRICES, mtime=0)[:-6]),
        ("br", b"x"),
        ("", b""),
        ("", b"<html>"),
        ("", b'{"bitcoin": {"us'),
        ("", b"[]"),
    ],
)
def test_an_answer_that_cannot_be_read_is_asked_for_again(encoding: str, body: bytes) -> None:
    headers = {"content-encoding": encoding} if encoding else {}
    bench = Bench([httpx.Response(200, headers=headers, stream=Pieces(iter([body]))), ok()])

    assert bench.price().frame.height == 1
    assert bench.ledger.outcomes() == [("failed", 200), ("successful", 200)]


def test_an_answer_that_trickles_is_given_up_at_the_total_time() -> None:
    bench = Bench([], limits=Limits(total_seconds=20, attempts=1))

    def trickle() -> Iterator[bytes]:
        while True:
            bench.time.passed += 4
            yield b" "

    bench.script.append(httpx.Response(200, stream=Pieces(trickle())))

    assert "longer than 20 seconds" in str(bench.failure(ProviderUnavailable))
    assert bench.time.passed == 24
    assert bench.ledger.settled[0]["elapsed_ms"] == 24_000


# --- trying again ---


@pytest.mark.parametrize(
    "first",
    [
        httpx.Response(408),
        httpx.Response(500),
        httpx.Response(502, text="<html>"),
        httpx.Response(403, text="<html>"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
    ],
    ids=repr,
)
def test_a_passing_failure_is_tried_again_after_a_jittered_pause(
    first: httpx.Response | Exception,
) -> None:
    bench = Bench([first, ok()], rng=0.25)

    assert bench.price().frame.height == 1
    assert bench.time.slept == [0.25]
    status = first.status_code if isinstance(first, httpx.Response) else None
    assert bench.ledger.outcomes() == [("failed", status), ("successful", 200)]


@pytest.mark.parametrize("status", [400, 401, 404, 414, 422, 301])
def test_a_definite_failure_is_not_tried_again(status: int) -> None:
    bench = Bench([httpx.Response(status, json={"error": "no"})])

    with pytest.raises(ProviderError):
        bench.price()
    assert bench.time.slept == []
    assert bench.ledger.outcomes() == [("failed", status)]


def test_an_address_too_long_and_a_request_not_understood_are_told_apart() -> None:
    assert isinstance(Bench([httpx.Response(414)]).failure(UriTooLong), BadRequest)
    Bench([httpx.Response(422)]).failure(BadRequest)


def test_the_pauses_double_up_to_their_bound_and_the_attempts_end() -> None:
    limits = Limits(attempts=5, backoff_seconds=1, longest_backoff_seconds=3)
    bench = Bench([httpx.Response(500) for _ in range(5)], rng=1.0, limits=limits)

    assert bench.failure(ProviderUnavailable).status == 500
    assert bench.time.slept == [1, 2, 3, 3]
    assert bench.ledger.outcomes() == [("failed", 500)] * 5


@pytest.mark.parametrize("status", [200, 429])
def test_a_rate_limit_is_waited_out_counted_and_told_to_the_ledger(status: int) -> None:
    limited = httpx.Response(status, content=TOO_MANY, headers={"retry-after": "119"})
    bench = Bench([limited, ok()], rng=0.5)

    bench.price()

    assert bench.time.slept == [119.5]
    assert bench.ledger.outcomes() == [("rate_limited", status), ("successful", 200)]
    assert bench.ledger.settled[0]["retry_at"] == START + timedelta(seconds=119)


def test_a_rate_limit_longer_than_there_is_time_is_raised_at_once() -> None:
    bench = Bench([httpx.Response(429, headers={"retry-after": "119"})])

    error = bench.failure(RateLimitReached, seconds=118)

    assert error.retry_at == START + timedelta(seconds=119)
    assert bench.time.slept == []


def test_the_jitter_after_a_rate_limit_gives_way_to_the_end() -> None:
    bench = Bench([httpx.Response(429, headers={"retry-after": "10"}), ok()], rng=1.0)

    bench.price(seconds=10.2)

    assert bench.time.slept == [pytest.approx(10.2)]


def test_a_server_that_names_a_time_is_left_alone_until_then() -> None:
    bench = Bench([httpx.Response(503, headers={"retry-after": "8"}), ok()], rng=0.0)

    bench.price()

    assert bench.time.slept == [8]
    assert bench.ledger.settled[0]["retry_at"] == START + timedelta(seconds=8)


def broken_off() -> Iterator[bytes]:
    yield b"{"
    raise httpx.ReadError("reset by peer")


@pytest.mark.parametrize(("status", "outcome"), [(429, "rate_limited"), (503, "failed")])
@pytest.mark.parametrize(
    ("encoding", "pieces"),
    [
        ("identity", broken_off),
        ("identity", lambda: iter([b" " * (1 << 20)] * 5)),
        ("gzip", lambda: iter([b"no gzip"])),
        ("br", lambda: iter([b"\x0b"])),
    ],
    ids=["broken off", "too large", "cannot be unpacked", "of another encoding"],
)
def test_a_refusal_and_its_time_are_heard_whatever_becomes_of_its_body(
    status: int, outcome: str, encoding: str, pieces: Callable[[], Iterator[bytes]]
) -> None:
    headers = {"retry-after": "8", "content-encoding": encoding}
    bench = Bench([httpx.Response(status, headers=headers, stream=Pieces(pieces())), ok()], rng=0.0)

    bench.price()

    assert bench.time.slept == [8]
    assert bench.ledger.outcomes() == [(outcome, status), ("successful", 200)]
    assert bench.ledger.settled[0]["retry_at"] == START + timedelta(seconds=8)


def test_a_pause_that_ends_too_late_is_not_begun() -> None:
    bench = Bench([httpx.Response(500)], rng=1.0)

    bench.failure(ProviderUnavailable, seconds=0.9)

    assert bench.time.slept == []


# --- the ledger ---


def test_a_call_refused_for_the_rate_is_waited_for() -> None:
    bench = Bench([ok()], ledger=Ledger([refused(12), refused(13)]))

    bench.price()

    assert bench.time.slept == [12, 1]
    assert bench.ledger.reserved == [("/simple/price", START + timedelta(seconds=13))]


@pytest.mark.parametrize(
    ("reason", "kind"), [("rate", CallNotFree), ("retry_after", RateLimitReached)]
)
def test_a_call_that_is_free_too_late_is_raised_with_its_time_and_costs_nothing(
    reason: str, kind: type[RateLimitReached]
) -> None:
    bench = Bench([], ledger=Ledger([refused(60, reason)]))

    error = bench.failure(kind, seconds=59)

    assert error.retry_at == START + timedelta(seconds=60)
    assert bench.requests == []
    assert bench.time.slept == []
    assert bench.ledger.settled == []


@pytest.mark.parametrize("seconds", [None, 86_400 * 20])
def test_spent_credits_are_raised_with_the_limit_and_the_settings_that_help(
    seconds: float | None,
) -> None:
    bench = Bench([], ledger=Ledger([refused(seconds, "credits")]))

    error = bench.failure(CreditsExhausted)

    assert (error.limit, error.credits_left) == (10_000, 0)
    assert "PULSEGUARD_CREDITS_PER_MONTH" in str(error)


def test_credits_that_come_back_in_time_are_waited_for() -> None:
    bench = Bench([ok()], ledger=Ledger([refused(30, "credits")]))

    bench.price()

    assert bench.time.slept == [30]


def test_a_ledger_whose_clock_runs_behind_is_not_asked_in_a_busy_loop() -> None:
    bench = Bench([], ledger=Ledger([refused(-5) for _ in range(1000)]))

    bench.failure(CallNotFree, seconds=1)

    assert len(bench.time.slept) <= 20


def test_when_a_failed_call_cannot_be_repeated_in_time_its_own_failure_is_told() -> None:
    ledger = Ledger()

    def failing(request: httpx.Request) -> httpx.Response:
        ledger.refusals.append(refused(1000))
        return httpx.Response(502)

    bench = Bench([failing], ledger=ledger)

    assert bench.failure(ProviderUnavailable).status == 502


@pytest.mark.parametrize("surprise", [KeyboardInterrupt(), ZeroDivisionError("bug")], ids=repr)
def test_a_call_is_settled_also_when_something_unforeseen_flies(surprise: BaseException) -> None:
    def explode(request: httpx.Request) -> httpx.Response:
        raise surprise

    bench = Bench([explode])

    with pytest.raises(type(surprise)):
        bench.price()
    assert bench.ledger.outcomes() == [("failed", None)]


def test_every_attempt_of_any_script_is_reserved_once_and_settled_once() -> None:
    steps: list[Callable[[], httpx.Response | Exception]] = [
        lambda: ok(),
        lambda: httpx.Response(429, headers={"retry-after": "1"}),
        lambda: httpx.Response(200, content=TOO_MANY, headers={"retry-after": "1"}),
        lambda: httpx.Response(500),
        lambda: httpx.Response(422),
        lambda: httpx.ReadError("cut"),
        lambda: ok(b"nonsense"),
    ]
    rng = random.Random(7)
    bench = Bench([])
    for _ in range(200):
        bench.script[:] = [rng.choice(steps)() for _ in range(3)]
        try:
            bench.price(seconds=10_000)
        except ProviderError:
            continue

    outcomes = [outcome for outcome, _ in bench.ledger.outcomes()]
    assert len(outcomes) == len(bench.requests) == len(bench.ledger.reserved)
    assert set(outcomes) == {"successful", "failed", "rate_limited"}


# --- the secret ---


@pytest.mark.parametrize(
    "answer",
    [
        ok(),
        httpx.Response(
            401, json={"error": {"status": {"error_code": 10002, "error_message": KEY}}}
        ),
        httpx.Response(400, json={"error": f"key {KEY} is bad"}),
        httpx.Response(500, text=KEY),
        httpx.Response(302, headers={"location": f"https://evil.example/{KEY}"}),
        httpx.ConnectError("refused"),
    ],
    ids=repr,
)
def test_the_key_shows_in_no_log_no_message_and_no_representation(
    answer: httpx.Response | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bench = Bench([answer] * 3, limits=Limits(attempts=2))
    seen = [repr(bench.client), str(bench.client)]

    try:
        seen.append(repr(bench.price()))
    except ProviderError as error:
        seen += [str(error), repr(error), "".join(traceback.format_exception(error))]

    seen += [record.getMessage() for record in caplog.records]
    assert not [text for text in seen if KEY in text]


@pytest.mark.parametrize("key", [f"{KEY}\r\nx: y", f"{KEY} ", f"{KEY}é", "", None])
def test_a_key_no_header_can_carry_is_refused_before_a_library_would_quote_it(
    key: str | None,
) -> None:
    with pytest.raises(Misconfigured) as caught:
        Bench([], key=key)

    assert caught.value.setting == "PULSEGUARD_API_KEY"
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_key_on_the_keyless_plan_is_refused_and_not_sent_silently_nowhere() -> None:
    with pytest.raises(Misconfigured, match="PULSEGUARD_PLAN"):
        Bench([], plan="keyless")


def test_a_redirect_is_not_followed_so_the_key_goes_to_no_other_host() -> None:
    bench = Bench([httpx.Response(307, headers={"location": "https://evil.example/"})])

    assert bench.failure(Misconfigured).setting == "PULSEGUARD_BASE_URL"
    assert [request.url.host for request in bench.requests] == ["api.coingecko.com"]


# --- a real connection ---


class _Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = gzip.compress(PRICES)
        self.send_response(200)
        self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        peers.add(self.client_address)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


peers: set[object] = set()


def test_over_a_real_connection_answers_are_unpacked_and_the_connection_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A proxy cannot reach this machine's own address, and is not asked to.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    peers.clear()
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        until = datetime.now(timezone.utc)
        with CoinGecko(
            base_url=f"http://127.0.0.1:{server.server_port}/api/v3",
            plan=plan_for("keyless"),
            ledger=Ledger(),
        ) as client:
            for _ in range(3):
                assert client.simple_price(["bitcoin"], until=until).frame.height == 1
        server.shutdown()
        thread.join(10)

    assert len(peers) == 1


def test_a_server_that_accepts_and_says_nothing_costs_the_read_limit_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ledger = Ledger()
        with (
            CoinGecko(
                base_url=f"http://127.0.0.1:{silent.getsockname()[1]}/api/v3",
                plan=plan_for("keyless"),
                ledger=ledger,
                limits=Limits(read_seconds=0.05, attempts=1),
            ) as client,
            pytest.raises(ProviderUnavailable, match="in time"),
        ):
            client.ping(until=datetime.now(timezone.utc))

    assert ledger.outcomes() == [("failed", None)]
