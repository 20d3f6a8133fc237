"""Hostile answers: whatever the provider sends, sound frames or a sentence, in bounded memory.

Belongs here: every field of every endpoint the client reads, bodies and headers that nobody sane
would send. Does not: what a proper answer means (test_frames), nor trying again (test_client).
"""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulseguard_assets.coingecko.client import CoinGecko, FrameAnswer, KeyAnswer, Limits
from pulseguard_assets.coingecko.errors import (
    ProviderError,
    RateLimitReached,
    UnreadableAnswer,
    retry_after,
)
from pulseguard_assets.coingecko.frames import (
    CHART_SCHEMA,
    LONGEST_ID,
    MARKETS_SCHEMA,
    PRICES_SCHEMA,
    REJECTED_SCHEMA,
)
from pulseguard_assets.coingecko.plans import plan_for

KEY = "CG-thisIsVerySecret"
NOW = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)
UNTIL = NOW + timedelta(hours=1)
STAMP = 1_748_779_200  # seconds; that instant
ASKED = ["bitcoin", "a'; DROP TABLE coin_priorities; --", "ether"]
LONGEST_SENTENCE = 1_500
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Granted:
    call_id: int | None = 1
    next_free_at: datetime | None = None
    refusal: str | None = None
    calls_left_this_minute: int = 29
    credits_left_this_month: int | None = 9_000


class Ledger:
    """Grants every call."""

    def reserve(self, endpoint: str, now: datetime) -> Granted:
        assert endpoint.startswith("/")
        assert now == NOW
        return Granted()

    def settle(self, call_id: int, **told: Any) -> None:
        assert call_id == 1
        assert told["outcome"] in ("successful", "failed", "rate_limited")
        assert told["retry_at"] is None or NOW <= told["retry_at"] <= NOW + DAY


Call = Callable[[CoinGecko], Any]


@dataclass(frozen=True)
class Endpoint:
    """A call, and an answer to it that is sound."""

    call: Call
    sound: Any


ENDPOINTS = {
    "simple_price": Endpoint(
        lambda client: client.simple_price(ASKED, until=UNTIL),
        {
            "bitcoin": {
                "usd": 104_000.5,
                "usd_market_cap": 2e12,
                "usd_24h_vol": 3e10,
                "last_updated_at": STAMP,
            },
            "ether": {"usd": 2_500},
        },
    ),
    "coins_markets": Endpoint(
        lambda client: client.coins_markets_page(1, until=UNTIL),
        [
            {
                "id": "bitcoin",
                "symbol": "btc",
                "name": "Bitcoin",
                "image": "https://example.org/b.png",
                "market_cap_rank": 1,
                "market_cap": 2e12,
                "current_price": 104_000.5,
                "total_volume": 3e10,
                "last_updated": "2025-06-01T12:00:00.000Z",
            },
            {"id": "ether", "symbol": "eth", "name": "Ether"},
        ],
    ),
    "market_chart_range": Endpoint(
        lambda client: client.market_chart_range("bitcoin", NOW - DAY, NOW, until=UNTIL),
        {
            "prices": [[STAMP * 1000, 104_000.5], [STAMP * 1000 + 300_000, 2.5e-9]],
            "market_caps": [[STAMP * 1000, 2e12]],
            "total_volumes": [[STAMP * 1000, 3e10]],
        },
    ),
    "key": Endpoint(
        lambda client: client.key(until=UNTIL),
        {
            "plan": "Analyst",
            "rate_limit_request_per_minute": 500,
            "monthly_call_credit": 500_000,
            "current_total_monthly_calls": 1_234,
            "current_remaining_monthly_calls": 498_766,
        },
    ),
    "ping": Endpoint(lambda client: client.ping(until=UNTIL), {"gecko_says": "(V3) To the Moon!"}),
}
SCHEMAS = {
    "simple_price": PRICES_SCHEMA,
    "coins_markets": MARKETS_SCHEMA,
    "market_chart_range": CHART_SCHEMA,
}

TEXTS = [
    "",
    " ",
    "\x00",
    "nul\x00inside",
    "line\nbreak\r\n",
    "tab\tbell\x07\x1b[31m",
    "'; DROP TABLE minute_close; --",
    '"); SELECT pg_sleep(1000); --',
    "$(touch /tmp/x)`id`|;&& rm -rf /",
    "{{7*7}}${jndi:ldap://x}%s%n%(name)s{0}",
    "../../../../etc/passwd",
    "\\.",
    "\\N",
    "NULL",
    "\u202egnp.exe\u202c\u200f\u2066",
    "\ufeff\ufffd\ufffe",
    "\ud800",
    "😀" * 100,
    "x" * 10_000,
    "ß" * 10_000,
    "__proto__",
    "NaN",
    "Infinity",
    "1e400",
    "0x10",
    "１２",
    "2025-06-01T12:00:00+99:99",
    "9999-12-31T23:59:59.999999999+23:59",
    "9999-12-31T23:59:59.999-23:59",
    "0001-01-01T00:00:00+23:59",
    "0000-00-00T00:00:00Z",
    "2025-02-30T25:61:61Z",
]
# As they stand in the body: not all of them are JSON.
RAW = [
    *map(json.dumps, TEXTS),
    *("null", "true", "false", "[]", "{}", "[[1]]", '[{"a":[]}]', '{"usd":1}', "-0", "-1", "0"),
    *("1e400", "-1e400", "1e-400", "1e308", "-1e308", "5e-324", "NaN", "Infinity", "-Infinity"),
    *("9007199254740993", "9" * 400, "9" * 5_000, "-" + "9" * 401, "0." + "1" * 5_000, "1E+9"),
    *("253402300800", "253402300800000", "1e300", "2147483648", "1.5", "1" + "0" * 30),
    *("[" * 900 + "]" * 900, "[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000),
    *("", "01", "1.", "+1", "nul", "'x'", "undefined", '"\\ud83d"', '"\\u0000"', '"\x01"', ",,"),
]


def client_of(
    answer: Callable[[httpx.Request], httpx.Response], limits: Limits | None = None
) -> CoinGecko:
    return CoinGecko(
        plan=plan_for("pro"),
        ledger=Ledger(),
        api_key=KEY,
        clock=lambda: NOW,
        sleep=lambda _: None,
        rng=lambda: 0.5,
        transport=httpx.MockTransport(answer),
        limits=limits or Limits(attempts=1),
    )


def outcome(
    name: str, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Any:
    """Return the answer after looking whether it is sound, or the error after the same.

    Anything else than a `ProviderError` flies.
    """
    with client_of(lambda _: httpx.Response(status, headers=headers, content=body)) as client:
        return outcome_of(name, client)


def outcome_of(name: str, client: CoinGecko) -> Any:
    try:
        answer = ENDPOINTS[name].call(client)
    except ProviderError as error:
        assert_sentence(error)
        return error
    if isinstance(answer, FrameAnswer):
        assert_sound(name, answer)
    elif isinstance(answer, KeyAnswer):
        json.dumps(str(answer.usage.plan).encode().decode())
        for figure in list(vars(answer.usage).values())[1:]:
            assert figure is None or type(figure) is int
    return answer


def assert_sentence(error: ProviderError) -> None:
    text = str(error)
    assert text.isprintable()
    assert 20 < len(text) < LONGEST_SENTENCE
    assert text[0].isupper()
    assert KEY not in text
    assert KEY not in repr(error)


def assert_sound(name: str, answer: FrameAnswer) -> None:
    assert answer.frame.schema == SCHEMAS[name]
    assert answer.rejected.schema == REJECTED_SCHEMA
    for frame in (answer.frame, answer.rejected):
        for column in frame.select(pl.col(pl.String())).iter_columns():
            for text in column.drop_nulls():
                assert "\x00" not in text
                text.encode()
    for reason, payload in answer.rejected.select("reason", "payload").iter_rows():
        assert reason
        assert len(payload) < 10_000
        json.loads(payload, parse_constant=pytest.fail)
    for column in answer.frame.select(pl.col(pl.Datetime)).iter_columns():
        for at in column.drop_nulls():
            assert at.year >= 1
    if name == "simple_price":
        assert set(answer.frame["coin_id"]) <= set(ASKED)
    if name != "market_chart_range":
        assert answer.frame["coin_id"].is_unique().all()
        assert "" not in set(answer.frame["coin_id"])
    if name != "coins_markets":
        assert answer.frame["price_usd"].null_count() == 0


# -- every field -----------------------------------------------------------------------------------

Path = tuple[str | int, ...]


def places(document: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of everything in a document, itself included."""
    yield path
    inside: list[tuple[str | int, Any]] = []
    if isinstance(document, dict):
        inside = list(document.items())
    elif isinstance(document, list):
        inside = list(enumerate(document))
    for key, value in inside:
        yield from places(value, (*path, key))


def with_raw(document: Any, path: Path, raw: str) -> bytes:
    """Return the JSON of a document with the text `raw` at the place of a value."""
    mark = "the place of a value"

    def replaced(value: Any, rest: Path) -> Any:
        if not rest:
            return mark
        if isinstance(value, dict):
            return {k: replaced(v, rest[1:]) if k == rest[0] else v for k, v in value.items()}
        return [replaced(v, rest[1:]) if i == rest[0] else v for i, v in enumerate(value)]

    return json.dumps(replaced(document, path)).replace(json.dumps(mark), raw).encode()


FIELDS = [(name, path) for name, end in ENDPOINTS.items() for path in places(end.sound)]


@pytest.mark.parametrize(
    ("name", "path"), FIELDS, ids=[".".join(map(str, (n, *path))) for n, path in FIELDS]
)
def test_whatever_stands_in_a_field_is_sound_set_aside_or_told(name: str, path: Path) -> None:
    sound = ENDPOINTS[name].sound
    for raw in RAW:
        answer = outcome(name, with_raw(sound, path, raw))
        if isinstance(answer, FrameAnswer) and len(path) > 1:
            # One bad coin, or point, never costs the others.
            assert answer.frame.height + answer.rejected.height >= 1
    assert not isinstance(outcome(name, json.dumps(sound).encode()), ProviderError)


@pytest.mark.parametrize("text", TEXTS)
def test_a_hostile_id_is_stored_as_it_is_or_set_aside_and_the_others_stay(text: str) -> None:
    prices = ENDPOINTS["simple_price"].sound | {text: {"usd": 1}}
    answer = outcome("simple_price", json.dumps(prices).encode())
    assert set(answer.frame["coin_id"]) == {"bitcoin", "ether"}
    assert answer.rejected["reason"].to_list() == ["not asked for"]
    page = [*ENDPOINTS["coins_markets"].sound, {"id": text, "symbol": text, "name": text}]
    answer = outcome("coins_markets", json.dumps(page).encode())
    assert {"bitcoin", "ether"} <= set(answer.frame["coin_id"])
    assert answer.frame.height + answer.rejected.height == len(page)


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59.999-23:59", "0001-01-01T00:00:00+23:59"])
def test_a_time_that_leaves_the_calendar_by_its_zone_is_none(at: str) -> None:
    body = with_raw(ENDPOINTS["coins_markets"].sound, (0, "last_updated"), json.dumps(at))
    answer = outcome("coins_markets", body)
    assert answer.frame["coin_id"].to_list() == ["ether"]
    assert answer.rejected["reason"].to_list() == ["last_updated is no time with its zone"]


def test_an_id_longer_than_any_index_holds_is_set_aside_without_its_page() -> None:
    longest, longer = "\U0001f600" * LONGEST_ID, "x" * (LONGEST_ID + 1)
    rows = [{"id": coin, "symbol": "s", "name": "n"} for coin in ("a", longer, longest, "z")]
    answer = outcome("coins_markets", json.dumps(rows).encode())
    assert answer.frame["coin_id"].to_list() == ["a", longest, "z"]
    assert answer.rejected["coin_id"].to_list() == [longer[:LONGEST_ID]]
    assert answer.rejected["reason"].to_list() == ["id is longer than 200 characters"]


def test_of_a_key_that_stands_twice_the_last_value_counts() -> None:
    body = b'{"bitcoin": 7, "bitcoin": {"usd": "x", "usd": 1.5}, "ether": {"usd": 1}, "ether": 0}'
    answer = outcome("simple_price", body)
    assert dict(answer.frame.select("coin_id", "price_usd").iter_rows()) == {"bitcoin": 1.5}
    assert answer.rejected["coin_id"].to_list() == ["ether"]
    body = b'[{"id": "", "id": "bitcoin", "symbol": 1, "symbol": "btc", "name": "Bitcoin"}]'
    assert outcome("coins_markets", body).frame["coin_id"].to_list() == ["bitcoin"]
    body = b'{"prices": 1, "prices": [], "market_caps": 1, "market_caps": null}'
    assert outcome("market_chart_range", body).frame.is_empty()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(TEXTS),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["bitcoin", "usd", "id", "prices"]), inner
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", ENDPOINTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_json_and_any_bytes_at_all_end_well(name: str, data: st.DataObject) -> None:
    outcome(name, json.dumps(data.draw(json_values)).encode())
    outcome(name, data.draw(st.binary(max_size=60)))
    sound = ENDPOINTS[name].sound
    path = data.draw(st.sampled_from(list(places(sound))))
    outcome(name, with_raw(sound, path, json.dumps(data.draw(json_values))))


# -- bodies ----------------------------------------------------------------------------------------


NO_ANSWERS = [
    b"",
    b"\xff\xfe\xfd",
    b'{"bitcoin": {"usd": 1, "x": "\xc3\x28"}}',
    "[]".encode("utf-16"),
    "{}".encode("utf-32"),
    b"\xef\xbb\xbf{}",
    b"<!DOCTYPE html><html>Just a moment...</html>",
    b"{" * 100_000,
    b"[" * 1_000_000,
    b'{"status": {"error_code": "429; DROP", "error_message": "\\u0000\\ud800"}}',
    b'{"error": {"status": {"error_code": ' + b"9" * 5_000 + b"}}}",
    b'{"error_code": -1e999}',
]


@pytest.mark.parametrize("status", [200, 204, 302, 400, 404, 414, 429, 500, 599])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_body_that_is_no_answer_is_a_sentence_whatever_its_status(name: str, status: int) -> None:
    for body in NO_ANSWERS:
        answer = outcome(name, body, status)
        assert status == 200 or isinstance(answer, ProviderError), body[:20]


@pytest.mark.parametrize("kind", ["text/html", "image/png", "", "application/json; charset=utf-7"])
def test_the_content_decides_and_not_what_it_is_called(kind: str) -> None:
    body = json.dumps(ENDPOINTS["simple_price"].sound).encode()
    assert outcome("simple_price", body, headers={"content-type": kind}).frame.height == 2


class Pieces(httpx.SyncByteStream):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


def a_gigabyte_of_zeros() -> Iterator[bytes]:
    """Gzip, a mebibyte in each piece; after a full flush a block can be repeated."""
    packer = zlib.compressobj(9, wbits=31)
    yield packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(1023):
        yield block


def fifty_megabytes() -> Iterator[bytes]:
    for _ in range(50):
        yield b" " * (1 << 20)


@pytest.mark.parametrize(
    ("encoding", "pieces"), [("gzip", a_gigabyte_of_zeros), ("identity", fifty_megabytes)]
)
@pytest.mark.parametrize("status", [200, 500])
def test_a_bomb_is_put_down_before_it_takes_the_memory(
    encoding: str, pieces: Callable[[], Iterator[bytes]], status: int
) -> None:
    limits = Limits(attempts=1)

    def answer(_: httpx.Request) -> httpx.Response:
        stream = Pieces(pieces())
        return httpx.Response(status, headers={"content-encoding": encoding}, stream=stream)

    with client_of(answer, limits) as client:
        tracemalloc.start()
        try:
            error = outcome_of("simple_price", client)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(error, ProviderError)
    assert ("larger than" if status == 200 else "HTTP 500") in str(error)
    assert peak < 4 * limits.body_bytes


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "deflate", "gzip, gzip", "gzip;q=1", "compress", "\x7f", "x" * 5_000]
)
def test_an_encoding_that_was_not_asked_for_is_told(encoding: str) -> None:
    body = gzip.compress(b"{}")
    assert isinstance(outcome("ping", body, headers={"content-encoding": encoding}), ProviderError)


MEBIBYTE = 1 << 20


def peak_of(work: Callable[[], Any]) -> int:
    """The most memory that was taken at once, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def repeated(begin: str, piece: str, end: str, size: int = 4_000_000) -> bytes:
    body = begin + piece * ((size - len(begin) - len(end)) // len(piece)) + end
    return body.encode()


def many_keys(value: str) -> bytes:
    return ("{" + ",".join(f'"{n:x}":{value}' for n in range(350_000)) + "}").encode()


CROWDS = {
    "lists": repeated("[", "[],", "[]]"),
    "objects": repeated("[", '{"a":0},', "{}]"),
    "numbers": repeated("[", "1.5,", "1]"),
    "texts": repeated("[", '"ab",', "1]"),
    "coins": repeated("[", '{"id":"a","symbol":"","name":""},', "1]"),
    "keys": many_keys("1"),
    "coins nobody asked for": many_keys('{"usd":1}'),
    "points": repeated('{"prices":[', "[1,1],", "[1,1]]}"),
    "prices": repeated('{"prices":[', "1.5,", "1]}"),
    "caps": repeated('{"prices":[],"market_caps":[', "null,", "1]}"),
    "one object in another": repeated('{"error":{"status":', '{"a":', "1"),
    "error": repeated('{"error_code":429,"error":"', "x", '"}'),
}


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_crowd_takes_little_memory_and_is_counted_or_refused(name: str, crowd: str) -> None:
    body = CROWDS[crowd]
    answers: list[Any] = []
    assert peak_of(lambda: answers.append(outcome(name, body))) < 80_000_000
    (answer,) = answers
    if isinstance(answer, FrameAnswer):
        assert answer.frame.height <= 4 * 250
        assert answer.rejected.height <= 1_001
        if answer.rejected.height == 1_001:
            counted = int(answer.rejected["payload"][-1].removeprefix('{"more": ').rstrip("}"))
            assert answer.rejected["reason"][-1].startswith(f"and {counted:,} more rows")
            assert counted > 200_000


@pytest.mark.parametrize("status", [200, 401, 404, 429, 500])
def test_a_crowd_of_errors_takes_little_memory_and_is_an_error(status: int) -> None:
    body = repeated("[", '{"error_code":1},', "{}]")
    answers: list[Any] = []
    assert peak_of(lambda: answers.append(outcome("coins_markets", body, status))) < 30_000_000
    assert isinstance(answers[0], ProviderError)
    assert isinstance(answers[0], RateLimitReached) == (status == 429)


@pytest.mark.parametrize("rejected", [999, 1_000, 1_001, 5_000])
def test_beyond_a_thousand_rejects_are_counted_in_one_row(rejected: int) -> None:
    coins = {f"nobody-asked-{n}": {"usd": 1} for n in range(rejected)} | {"bitcoin": {"usd": 2}}
    answer = outcome("simple_price", json.dumps(coins).encode())
    assert answer.frame["coin_id"].to_list() == ["bitcoin"]
    more = answer.rejected.filter(pl.col("coin_id") == "").rows()
    assert answer.rejected.height - len(more) == min(rejected, 1_000)
    count = rejected - 1_000
    reason = f"and {count:,} more rows than belong in an answer"
    assert more == ([("", reason, f'{{"more": {count}}}')] if count > 0 else [])


def test_a_page_may_hold_four_times_what_was_asked_and_the_rest_is_counted() -> None:
    rows = [{"id": f"c{n}", "symbol": "s", "name": "n"} for n in range(1_007)]
    answer = outcome("coins_markets", json.dumps(rows).encode())
    assert answer.frame["coin_id"].to_list() == [f"c{n}" for n in range(1_000)]
    assert answer.rejected["payload"].to_list() == ['{"more": 7}']
    assert answer.rows == 1_007


@pytest.mark.parametrize(
    ("days", "points"), [(1, 288), (30, 30 * 288), (90, 90 * 288), (5_000, 5_000)]
)
def test_a_chart_of_any_grade_is_taken_whole(days: int, points: int) -> None:
    series = [[STAMP * 1000 + n, 1.5] for n in range(points)]
    chart = json.dumps(dict.fromkeys(("prices", "market_caps", "total_volumes"), series))
    answer = chart_of(days, chart.encode())
    assert (answer.frame.height, answer.rejected.height) == (points, 0)


def test_points_far_beyond_the_range_of_a_chart_are_counted() -> None:
    series = [[STAMP * 1000 + n, 1.5] for n in range(1_300)]
    chart = {"prices": series, "market_caps": series[:1_288], "total_volumes": series[:1_290]}
    answer = chart_of(1, json.dumps(chart).encode())
    assert answer.frame.height == 1_288
    assert answer.rejected["payload"].to_list() == ['{"more": 14}']


def chart_of(days: int, body: bytes) -> Any:
    with client_of(lambda _: httpx.Response(200, content=body)) as client:
        return client.market_chart_range("bitcoin", NOW - days * DAY, NOW, until=UNTIL)


@pytest.mark.parametrize(("name", "most"), [("coins_markets", 4), ("market_chart_range", 8)])
def test_an_answer_far_larger_than_its_endpoint_gives_is_not_read_to_its_end(
    name: str, most: int
) -> None:
    sound = json.dumps(ENDPOINTS[name].sound).encode()
    fits = sound + b" " * (most * MEBIBYTE - len(sound))
    assert isinstance(outcome(name, fits), FrameAnswer)
    error = outcome(name, fits + b" ")
    assert isinstance(error, UnreadableAnswer)
    assert f"larger than {most * MEBIBYTE:,} bytes" in str(error)


@pytest.mark.parametrize("status", [200, 401, 404, 429, 500])
def test_a_long_error_takes_little_memory(status: int) -> None:
    body = json.dumps({"error_code": 429, "error": "x" * 900_000}).encode()
    assert peak_of(lambda: outcome("simple_price", body, status)) < 6 * len(body)


# -- headers ---------------------------------------------------------------------------------------

RETRY_AFTERS = [
    *("-1", "1e9", "9" * 18, "9" * 5_000, "0", "0.000000001", "nan", "inf", "soon", "", " "),
    *(
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "Thu, 32 Foo 2025 25:61:61",
    ),
    *("Thu, 01 Jan 1970 00:00:00 +9999999999", "2025-06-01T12:00:00Z", "12;DROP TABLE", "1,2"),
]


@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("header", RETRY_AFTERS, ids=lambda header: header[:12])
def test_a_hostile_retry_after_is_kept_within_a_day(header: str, status: int) -> None:
    answer = outcome("ping", b"{}", status, {"retry-after": header})
    if status == 429:
        assert isinstance(answer, RateLimitReached)
        assert NOW <= answer.retry_at <= NOW + DAY


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.floats().map(str) | st.integers().map(str))
def test_any_retry_after_is_a_time_within_a_day_or_none(header: str) -> None:
    at = retry_after(header, NOW)
    assert at is None or NOW <= at <= NOW + DAY


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "location", "content-type", "x-request-id", "date"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60),
    ),
    st.sampled_from([200, 301, 308, 403, 404, 429, 502]),
)
def test_hostile_headers_end_in_a_sentence_that_repeats_no_key(
    headers: dict[str, str], status: int
) -> None:
    body = json.dumps({"error": f"your key {KEY} \x1b]0;title\x07\u202e", "error_code": 10_002})
    latin = [(name, value.encode("latin-1")) for name, value in headers.items()]
    response = httpx.Response(status, headers=[(n.encode(), v) for n, v in latin], text=body)
    with client_of(lambda _: response) as client:
        assert isinstance(outcome_of("ping", client), ProviderError)


def test_a_number_that_no_float_holds_is_never_stored_as_another() -> None:
    for raw in ("1e400", "-1e400", "1e-400", "9" * 400, "9007199254740993"):
        body = with_raw(ENDPOINTS["simple_price"].sound, ("bitcoin", "usd"), raw)
        answer = outcome("simple_price", body)
        assert answer.frame["coin_id"].to_list() == ["ether"]
        assert math.isclose(answer.frame["price_usd"][0], 2_500)
        assert answer.rejected["coin_id"].to_list() == ["bitcoin"]
