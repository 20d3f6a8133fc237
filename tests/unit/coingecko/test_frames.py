"""Answers into frames: every good row exactly, every bad one with its reason, nothing raised."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulseguard_assets.coingecko.errors import UnreadableAnswer
from pulseguard_assets.coingecko.frames import (
    CHART_SCHEMA,
    MARKETS_SCHEMA,
    PRICES_SCHEMA,
    REJECTED_SCHEMA,
    Parsed,
    json_text,
    parse_coins_markets,
    parse_key,
    parse_market_chart,
    parse_ping,
    parse_simple_price,
    without_partial,
)

MARKET_ROW: dict[str, Any] = {
    "id": "baby-coin",
    "symbol": "baby",
    "name": "Baby Coin",
    "image": "https://images.example/baby.png",
    "current_price": 2.264e-09,
    "market_cap": 365799037,
    "market_cap_rank": 232,
    "total_volume": 23101498.5,
    "last_updated": "2024-11-21T22:24:16.605Z",
}


def prices(body: str | bytes, *asked: str) -> Any:
    return parse_simple_price(body.encode() if isinstance(body, str) else body, asked)


def markets(*rows: object) -> Any:
    return parse_coins_markets(json.dumps(rows).encode())


def chart(**series: object) -> Parsed:
    return parse_market_chart(json.dumps(series).encode(), "bitcoin")


def reasons(parsed: Parsed) -> list[str]:
    return parsed.rejected["reason"].to_list()


# --- /simple/price ---


def test_a_price_answer_becomes_a_typed_frame() -> None:
    parsed = prices(
        '{"bitcoin": {"usd": 98109, "usd_market_cap": 1942082111924.5, "usd_24h_vol": 1.2e11,'
        ' "last_updated_at": 1732227858}, "tiny": {"usd": 2.264e-09}}',
        "bitcoin",
        "tiny",
    )

    assert parsed.frame.schema == PRICES_SCHEMA
    assert parsed.frame.rows() == [
        (
            "bitcoin",
            98109.0,
            1942082111924.5,
            1.2e11,
            datetime(2024, 11, 21, 22, 24, 18, tzinfo=timezone.utc),
        ),
        ("tiny", 2.264e-09, None, None, None),
    ]
    assert parsed.rejected.schema == REJECTED_SCHEMA
    assert parsed.rejected.is_empty()
    assert parsed.missing == []


def test_integers_before_a_tiny_price_do_not_round_it_to_zero() -> None:
    asked = [f"c{number}" for number in range(200)]
    body = {coin: {"usd": 1} for coin in asked[:-1]} | {asked[-1]: {"usd": 3.271e-09}}

    parsed = prices(json.dumps(body), *asked)

    assert parsed.frame["price_usd"][-1] == 3.271e-09


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{}", "no price"),
        ('{"usd": null}', "no price"),
        ('{"usd": "1.5"}', "usd is not a number"),
        ('{"usd": true}', "usd is not a number"),
        ('{"usd": [1]}', "usd is not a number"),
        ('{"usd": {"value": 1}}', "usd is not a number"),
        ("[1]", "not an object"),
        ("null", "not an object"),
        ('{"usd": 1, "usd_market_cap": "9"}', "usd_market_cap is not a number"),
        ('{"usd": 1, "usd_24h_vol": false}', "usd_24h_vol is not a number"),
        ('{"usd": 1, "last_updated_at": "now"}', "last_updated_at is no time in seconds"),
        ('{"usd": 1, "last_updated_at": true}', "last_updated_at is no time in seconds"),
        ('{"usd": 1, "last_updated_at": 1732227858000}', "last_updated_at is no time in seconds"),
        ('{"usd": 1, "last_updated_at": -1}', "last_updated_at is no time in seconds"),
        ('{"usd": 1, "last_updated_at": NaN}', "last_updated_at is no time in seconds"),
        ('{"usd": 1e999}', "usd is outside the range of a 64-bit float"),
        ('{"usd": 1e-999}', "usd is outside the range of a 64-bit float"),
        (f'{{"usd": 1{"0" * 310}}}', "usd is outside the range of a 64-bit float"),
        (f'{{"usd": 1{"0" * 5000}}}', "usd is outside the range of a 64-bit float"),
        ('{"usd": 9007199254740993}', "usd has more digits than a 64-bit float keeps"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason_and_the_rest_is_kept(
    entry: str, reason: str
) -> None:
    parsed = prices(f'{{"bad": {entry}, "good": {{"usd": 2}}}}', "bad", "good")

    assert parsed.frame["coin_id"].to_list() == ["good"]
    assert parsed.rejected["coin_id"].to_list() == ["bad"]
    assert reasons(parsed) == [reason]
    assert parsed.missing == []


def test_a_rejected_row_keeps_its_payload_as_json() -> None:
    parsed = prices('{"bad": {"usd": "x", "n": [NaN, null, 1.5]}}', "bad")

    payload = json.loads(parsed.rejected["payload"][0])
    assert payload == {"usd": "x", "n": ["nan", None, 1.5]}


def test_what_is_a_legal_price_is_left_to_the_database() -> None:
    parsed = prices(
        '{"a": {"usd": 0}, "b": {"usd": -1}, "c": {"usd": NaN}, "d": {"usd": Infinity}}',
        *"abcd",
    )

    values = parsed.frame["price_usd"].to_list()
    assert values[:2] == [0.0, -1.0]
    assert math.isnan(values[2])
    assert values[3] == math.inf
    assert parsed.rejected.is_empty()


def test_an_asked_coin_that_is_absent_is_missing_and_a_coin_not_asked_for_is_rejected() -> None:
    parsed = prices('{"b": {"usd": 1}, "x": {"usd": 2}}', "a", "b", "c", "a")

    assert parsed.missing == ["a", "c"]
    assert parsed.frame["coin_id"].to_list() == ["b"]
    assert parsed.rejected.rows() == [("x", "not asked for", '{"usd": 2}')]


def test_of_a_coin_that_comes_twice_the_last_one_counts() -> None:
    parsed = prices('{"a": {"usd": 1}, "a": {"usd": 2}}', "a")

    assert parsed.frame["price_usd"].to_list() == [2.0]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_through_exactly(value: float) -> None:
    (seen,) = prices(f'{{"a": {{"usd": {value!r}}}}}', "a").frame["price_usd"]

    assert (seen, math.copysign(1, seen)) == (value, math.copysign(1, value))


@given(st.integers(-(10**30), 10**30))
def test_an_integer_comes_through_digit_for_digit_or_not_at_all(value: int) -> None:
    parsed = prices(f'{{"a": {{"usd": {value}}}}}', "a")

    if parsed.frame.is_empty():
        assert reasons(parsed) == ["usd has more digits than a 64-bit float keeps"]
        assert json.loads(parsed.rejected["payload"][0]) == {"usd": value}
        assert abs(value) > 2**53
    else:
        # As the database will read it: the shortest decimal of the float.
        assert Decimal(repr(parsed.frame["price_usd"][0])) == value


# --- /coins/markets ---


def test_a_markets_row_becomes_a_typed_frame() -> None:
    parsed = markets(MARKET_ROW)

    assert parsed.frame.schema == MARKETS_SCHEMA
    assert parsed.frame.rows() == [
        (
            "baby-coin",
            "baby",
            "Baby Coin",
            "https://images.example/baby.png",
            232,
            365799037.0,
            2.264e-09,
            23101498.5,
            datetime(2024, 11, 21, 22, 24, 16, 605_000, tzinfo=timezone.utc),
        )
    ]
    assert parsed.rows == 1


@pytest.mark.parametrize(
    "field",
    ["image", "current_price", "market_cap", "market_cap_rank", "total_volume", "last_updated"],
)
@pytest.mark.parametrize("gone", [True, False])
def test_what_the_provider_may_leave_null_or_out_is_null(field: str, gone: bool) -> None:
    row = MARKET_ROW | {field: None}
    if gone:
        del row[field]

    parsed = markets(row)

    assert parsed.rejected.is_empty()
    assert parsed.frame.null_count().sum_horizontal().item() == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "no id"),
        ({"id": ""}, "id is empty"),
        ({"id": 4}, "id is not text"),
        ({"symbol": None}, "no symbol"),
        ({"name": None}, "no name"),
        ({"name": ["x"]}, "name is not text"),
        ({"name": "a\x00b"}, "name holds characters that no database stores"),
        ({"id": "a\ud800"}, "id holds characters that no database stores"),
        ({"image": 7}, "image is not text"),
        ({"market_cap_rank": 0}, "market_cap_rank is no rank"),
        ({"market_cap_rank": 1.5}, "market_cap_rank is no rank"),
        ({"market_cap_rank": "1"}, "market_cap_rank is no rank"),
        ({"market_cap_rank": True}, "market_cap_rank is no rank"),
        ({"market_cap_rank": 2**31}, "market_cap_rank is no rank"),
        ({"current_price": "1"}, "current_price is not a number"),
        ({"last_updated": "yesterday"}, "last_updated is no time with its zone"),
        ({"last_updated": "2024-11-21T22:24:16.605"}, "last_updated is no time with its zone"),
        ({"last_updated": "2024-13-21T22:24:16Z"}, "last_updated is no time with its zone"),
        ({"last_updated": 1732227858}, "last_updated is no time with its zone"),
    ],
)
def test_a_bad_markets_row_is_set_aside_and_the_rest_is_kept(
    change: dict[str, object], reason: str
) -> None:
    parsed = markets(MARKET_ROW | change, MARKET_ROW)

    assert parsed.frame["coin_id"].to_list() == ["baby-coin"]
    assert reasons(parsed) == [reason]
    assert parsed.rows == 2


def test_odd_but_real_names_and_symbols_are_kept_as_they_are() -> None:
    odd = [
        ("_", "", 'A "quoted", name\u00a0'),
        ("1move token", "牛", "🚀"),
        ("boringdao-[old]", "[old]", ""),
        ("-10", "x" * 40, "y" * 88),
    ]

    parsed = markets(*(MARKET_ROW | {"id": i, "symbol": s, "name": n} for i, s, n in odd))

    assert parsed.frame.select("coin_id", "symbol", "name").rows() == odd


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2024-11-21T22:24:16Z", 0),
        ("2024-11-21T22:24:16.6Z", 600_000),
        ("2024-11-21T22:24:16.605123+00:00", 605_123),
        ("2024-11-21T23:24:16.605123999+0100", 605_123),
    ],
)
def test_every_iso_form_of_a_time_is_read_alike_by_every_python(
    text: str, microsecond: int
) -> None:
    parsed = markets(MARKET_ROW | {"last_updated": text})

    expected = datetime(2024, 11, 21, 22, 24, 16, microsecond, tzinfo=timezone.utc)
    assert parsed.frame["last_updated"].to_list() == [expected]


def test_of_a_coin_twice_on_a_page_the_last_good_row_counts_in_its_later_place() -> None:
    parsed = markets(
        MARKET_ROW | {"current_price": 1},
        MARKET_ROW | {"id": "other"},
        MARKET_ROW | {"current_price": 2},
        MARKET_ROW | {"current_price": "junk"},
    )

    assert parsed.frame.select("coin_id", "price_usd").rows() == [
        ("other", 2.264e-09),
        ("baby-coin", 2.0),
    ]
    assert parsed.rejected["coin_id"].to_list() == ["baby-coin"]
    assert parsed.rows == 4


def test_a_row_that_is_no_object_is_set_aside_without_an_id() -> None:
    parsed = markets(7, MARKET_ROW)

    assert parsed.rejected.rows() == [("", "not an object", "7")]


# --- charts ---


def test_a_chart_joins_its_three_series_by_stamp_sorted_and_without_repeats() -> None:
    parsed = chart(
        prices=[[3000, 3], [1000, 1], [3000, 33], [2000, 2]],
        market_caps=[[1000, 10], [3000, None]],
        total_volumes=[[2000, 200.5]],
    )

    assert parsed.frame.schema == CHART_SCHEMA
    assert parsed.rejected.is_empty()
    assert [(row[0].timestamp(), *row[1:]) for row in parsed.frame.iter_rows()] == [
        (1.0, 1.0, 10.0, None),
        (2.0, 2.0, None, 200.5),
        (3.0, 33.0, None, None),
    ]


def test_an_empty_chart_is_an_empty_frame() -> None:
    parsed = chart(prices=[], market_caps=[], total_volumes=[])

    assert parsed.frame.schema == CHART_SCHEMA
    assert parsed.frame.is_empty()


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ({"prices": [[1000, None]]}, "prices: no price"),
        ({"prices": [[1000, "1"]]}, "prices: value is not a number"),
        ({"prices": [[1000]]}, "prices: a point is not [stamp, value]"),
        ({"prices": ["x"]}, "prices: a point is not [stamp, value]"),
        ({"prices": [["1000", 1]]}, "prices: the stamp is no time in milliseconds"),
        ({"prices": [[True, 1]]}, "prices: the stamp is no time in milliseconds"),
        ({"prices": [[-1, 1]]}, "prices: the stamp is no time in milliseconds"),
        ({"prices": [[10**18, 1]]}, "prices: the stamp is no time in milliseconds"),
        ({"prices": [], "market_caps": [[1000, 5]]}, "a market cap without a price"),
        ({"prices": [], "total_volumes": [[1000, 5]]}, "a volume without a price"),
        (
            {"prices": [[5000, 1]], "market_caps": [[5000, "x"]]},
            "market_caps: value is not a number",
        ),
    ],
)
def test_a_bad_point_is_set_aside_and_the_others_are_kept(
    series: dict[str, list[Any]], reason: str
) -> None:
    series["prices"].append([9000, 9])

    parsed = chart(**series)

    assert parsed.frame["price_usd"].to_list()[-1] == 9.0
    assert reasons(parsed) == [reason]
    assert parsed.rejected["coin_id"].to_list() == ["bitcoin"]


@pytest.mark.parametrize(
    "body", [{}, {"prices": {}}, {"prices": None}, {"prices": [], "market_caps": 1}]
)
def test_a_chart_of_another_shape_is_unreadable(body: dict[str, Any]) -> None:
    with pytest.raises(UnreadableAnswer):
        chart(**body)


def test_the_running_price_at_the_end_of_a_chart_is_dropped_even_when_it_is_not_last() -> None:
    # The order of a recorded chart: the point "now" is stamped before its predecessor.
    now = datetime(2021, 5, 15, 14, 39, 55, tzinfo=timezone.utc)
    stamps = [
        now - timedelta(hours=1),
        now - timedelta(milliseconds=45),
        now - timedelta(seconds=1),
    ]
    parsed = chart(prices=[[round(s.timestamp() * 1000), 1] for s in stamps])

    assert without_partial(parsed.frame, now)["stamp"].to_list() == stamps[:1]


def test_a_chart_of_the_past_loses_no_point() -> None:
    parsed = chart(prices=[[1_000_000, 1], [2_000_000, 2]])
    now = datetime.fromtimestamp(2000 + 15 * 60, timezone.utc)

    assert without_partial(parsed.frame, now).height == 2
    assert without_partial(parsed.frame, now - timedelta(seconds=1)).height == 1


# --- anything at all ---

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=[]), max_size=5), inner, max_size=4
        )
    ),
    max_leaves=12,
)
price_like = st.dictionaries(
    st.sampled_from(["a", "b", "\x00", "\ud800"]),
    st.dictionaries(
        st.sampled_from(["usd", "usd_market_cap", "usd_24h_vol", "last_updated_at"]), json_values
    )
    | json_values,
)
market_like = st.lists(
    st.fixed_dictionaries(
        {name: st.just(value) | json_values for name, value in MARKET_ROW.items()}
    )
    | json_values,
    max_size=3,
)
point_like = st.lists(st.lists(st.integers(0, 10**13) | json_values, max_size=3), max_size=4)
chart_like = st.fixed_dictionaries(
    {"prices": point_like}, optional={"market_caps": point_like, "total_volumes": point_like}
)
PARSERS: list[Callable[[bytes], Any]] = [
    lambda body: parse_simple_price(body, ["a", "b", "c"]),
    parse_coins_markets,
    lambda body: parse_market_chart(body, "a"),
    parse_key,
    parse_ping,
]


def survives(body: bytes) -> None:
    for parse in PARSERS:
        try:
            parsed = parse(body)
        except UnreadableAnswer:
            continue
        if isinstance(parsed, Parsed):
            for coin_id, reason, payload in parsed.rejected.iter_rows():
                assert "\x00" not in coin_id
                assert reason
                json.loads(payload, parse_constant=lambda token: pytest.fail(token))
                assert "\\u0000" not in payload or "\\\\u0000" in payload
                payload.encode()


@given(json_values | price_like | market_like | chart_like)
def test_no_json_whatever_raises_anything_but_unreadable(document: object) -> None:
    survives(json.dumps(document).encode())


@given(st.binary())
def test_no_bytes_whatever_raise_anything_but_unreadable(body: bytes) -> None:
    survives(body)


@given(price_like)
def test_every_asked_coin_is_in_the_frame_or_rejected_or_missing_exactly_once(
    document: dict[str, object],
) -> None:
    parsed = parse_simple_price(json.dumps(document).encode(), ["a", "b", "c"])

    asked = parsed.rejected.filter(pl.col("reason") != "not asked for")
    seen = [*parsed.frame["coin_id"], *asked["coin_id"], *parsed.missing]
    assert sorted(seen) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b'{"a": {"usd": 1',
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"\xff\xfe",
        b"null",
    ],
)
def test_what_is_no_answer_of_the_endpoint_is_unreadable_and_not_quoted(body: bytes) -> None:
    for parse in (*PARSERS[:1], *PARSERS[2:]):
        with pytest.raises(UnreadableAnswer) as caught:
            parse(body)
        assert "html" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_payload_is_bounded_and_still_json() -> None:
    text = json_text({"usd": "x" * 1_000_000})

    assert len(text) < 10_000
    assert json.loads(text)["cut_off"].startswith('{"usd": "xxx')


def test_a_payload_nested_too_deeply_is_named_as_that() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    assert json.loads(json_text(nested)) == {"cut_off": "nested too deeply"}


def test_the_usage_of_a_key_is_read_and_what_it_does_not_tell_is_none() -> None:
    usage = parse_key(
        b'{"plan": "Analyst", "rate_limit_request_per_minute": 500, "monthly_call_credit": 500000,'
        b' "current_total_monthly_calls": 104.0}'
    )

    assert (usage.plan, usage.calls_per_minute, usage.credits_per_month) == ("Analyst", 500, 500000)
    assert (usage.credits_used, usage.credits_left) == (104, None)


# --- recorded answers, where they are at hand ---


def recorded(name: str) -> bytes:
    beside = Path(__file__).resolve().parents[4] / "shared" / "samples"
    folder = Path(os.environ.get("PULSEGUARD_SAMPLES", beside))
    found = sorted(folder.glob(name)) if folder.is_dir() else []
    if not found:
        pytest.skip(f"no recorded answer {name}: set PULSEGUARD_SAMPLES to the folder of samples")
    return found[0].read_bytes()


def test_a_recorded_markets_page_is_read_to_the_last_digit() -> None:
    body = recorded("coins_markets_*.json")
    parsed = parse_coins_markets(body)

    assert parsed.rejected.is_empty()
    assert parsed.frame.height == parsed.rows == 250
    tiny = parsed.frame.row(by_predicate=pl.col("coin_id") == "baby-doge-coin", named=True)
    assert tiny["price_usd"] == 2.264e-09
    assert tiny["market_cap_rank"] == 232
    for row, entry in zip(parsed.frame.iter_rows(named=True), json.loads(body), strict=True):
        assert row["price_usd"] == entry["current_price"]
        assert row["market_cap_usd"] == entry["market_cap"]
        assert row["volume_24h_usd"] == entry["total_volume"]
        stamp = row["last_updated"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert stamp == entry["last_updated"]


@pytest.mark.parametrize(
    ("name", "points", "settled"),
    [
        ("*_1d_auto_5min_*", 288, 284),
        ("*_30d_auto_hourly_*", 722, 720),
        ("*_90d_*_daily_*", 91, 90),
    ],
)
def test_a_recorded_chart_is_read_whole_and_loses_only_its_unsettled_end(
    name: str, points: int, settled: int
) -> None:
    body = recorded(f"market_chart_{name}.json")
    parsed = parse_market_chart(body, "bitcoin")

    assert parsed.rejected.is_empty()
    assert parsed.frame.height == points
    assert parsed.frame["stamp"].is_sorted()
    assert parsed.frame.null_count().sum_horizontal().item() == 0
    by_stamp = dict(json.loads(body)["prices"])
    assert (
        dict(zip(parsed.frame["stamp"].dt.epoch("ms"), parsed.frame["price_usd"], strict=True))
        == by_stamp
    )
    now = parsed.frame["stamp"].max()
    assert isinstance(now, datetime)
    assert without_partial(parsed.frame, now).height == settled


def test_recorded_price_answers_in_dollars_are_read_exactly() -> None:
    exchanges = json.loads(recorded("simple_price_recorded_with_headers.json"))
    seen = 0
    for exchange in exchanges:
        document = json.loads(exchange["body"])
        parsed = parse_simple_price(exchange["body"].encode(), document)
        expected = {coin: entry["usd"] for coin, entry in document.items() if "usd" in entry}
        assert (
            dict(zip(parsed.frame["coin_id"], parsed.frame["price_usd"], strict=True)) == expected
        )
        assert parsed.frame.height + parsed.rejected.height == len(document)
        seen += len(expected)
    assert seen > 10
