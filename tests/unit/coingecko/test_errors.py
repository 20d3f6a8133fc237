"""What an answer that is no success stands for, in every shape it has been seen in."""

from __future__ import annotations

import json
import os
import pickle
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulseguard_assets.coingecko.errors import (
    LONGEST_RETRY_AFTER,
    PAUSE_WITHOUT_RETRY_AFTER,
    Asked,
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
    error_in,
    retry_after,
)

NOW = datetime(2025, 6, 1, 12, 0, tzinfo=timezone.utc)
KEY = "CG-thisIsVerySecret"
PRICE = Asked("/simple/price", "demo", 365, secret=KEY)
CHART = Asked("/coins/{id}/market_chart/range", "demo", 365, "bitcoin", KEY)
KEYLESS = Asked("/simple/price", "keyless", 365)


def outcome(
    status: int,
    body: object = b"",
    headers: dict[str, str] | None = None,
    asked: Asked = PRICE,
) -> ProviderError | None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_in(status, headers or {}, raw, received_at=NOW, asked=asked)


def coded(code: object) -> list[dict[str, object]]:
    """The code in each of the three places it has been seen in."""
    said = {"error_code": code, "error_message": "said"}
    return [
        {"error": {"status": said}},
        {"status": said},
        {"error_code": code, "status": {"error_message": "said"}},
    ]


SHAPES = pytest.mark.parametrize("shape", [0, 1, 2], ids=["error.status", "status", "top"])


@SHAPES
@pytest.mark.parametrize("status", [200, 429, 500])
def test_a_rate_limit_is_told_by_its_code_even_under_another_status(
    shape: int, status: int
) -> None:
    error = outcome(status, coded(429)[shape], {"retry-after": "119"})

    assert isinstance(error, RateLimitReached)
    assert error.retry_at == NOW + timedelta(seconds=119)
    assert "12:01:59 UTC" in str(error)
    assert "PULSEGUARD_CALLS_PER_MINUTE" in str(error)
    assert "said" in str(error)


@pytest.mark.parametrize("body", [b"", b"<html>slow down</html>", b"[]"])
def test_a_429_is_a_rate_limit_whatever_its_body_and_ends_with_the_minute(body: bytes) -> None:
    error = outcome(429, body)

    assert isinstance(error, RateLimitReached)
    assert error.retry_at == NOW + PAUSE_WITHOUT_RETRY_AFTER


@SHAPES
def test_too_far_back_tells_the_reach_of_the_plan(shape: int) -> None:
    error = outcome(401, coded(10012)[shape], asked=CHART)

    assert isinstance(error, TooFarBack)
    assert error.reach_days == 365
    assert "365 days" in str(error)
    assert "PULSEGUARD_HISTORY_START" in str(error)


def test_too_far_back_on_a_plan_believed_to_be_unlimited_doubts_that_belief() -> None:
    error = outcome(401, coded(10012)[0], asked=Asked("/x", "pro", None, "bitcoin"))

    assert isinstance(error, TooFarBack)
    assert error.reach_days is None
    assert "PULSEGUARD_HISTORY_DAYS" in str(error)


@SHAPES
@pytest.mark.parametrize(
    ("status", "code", "setting", "advice"),
    [
        (401, 10002, "PULSEGUARD_API_KEY", "PULSEGUARD_PLAN=demo"),
        (403, 10005, "PULSEGUARD_PLAN", "higher plan than 'demo'"),
        (400, 10010, "PULSEGUARD_PLAN", "paid plan"),
        (400, 10011, "PULSEGUARD_PLAN", "Set PULSEGUARD_PLAN=demo"),
        (401, 99999, "PULSEGUARD_API_KEY", "did not accept the key"),
        (403, None, "PULSEGUARD_API_KEY", "did not accept the key"),
    ],
)
def test_a_key_or_plan_that_does_not_fit_names_the_setting(
    shape: int, status: int, code: int | None, setting: str, advice: str
) -> None:
    error = outcome(status, coded(code)[shape])

    assert isinstance(error, Misconfigured)
    assert error.setting == setting
    assert setting in str(error)
    assert advice in str(error)


def test_a_missing_key_on_the_keyless_plan_asks_for_key_and_plan() -> None:
    error = outcome(401, coded(10002)[1], asked=KEYLESS)

    assert isinstance(error, Misconfigured)
    assert "Set PULSEGUARD_API_KEY, and PULSEGUARD_PLAN" in str(error)


def test_an_unknown_coin_is_definite_for_that_coin() -> None:
    error = outcome(404, {"error": "coin not found"}, asked=CHART)

    assert isinstance(error, UnknownCoin)
    assert error.coin_id == "bitcoin"
    assert "'bitcoin'" in str(error)


@pytest.mark.parametrize(
    ("asked", "body"), [(PRICE, b'{"error": "not found"}'), (CHART, b"<html>"), (CHART, b"")]
)
def test_any_other_404_doubts_the_address_and_not_the_coin(asked: Asked, body: bytes) -> None:
    error = outcome(404, body, asked=asked)

    assert isinstance(error, Misconfigured)
    assert error.setting == "PULSEGUARD_BASE_URL"


@pytest.mark.parametrize("status", [400, 405, 422, 431])
def test_a_request_not_understood_is_said_to_be_our_mistake(status: int) -> None:
    error = outcome(status, {"error": "Missing parameter ids"})

    assert type(error) is BadRequest
    assert error.status == status
    assert "mistake in PulseGuard" in str(error)
    assert "Missing parameter ids" in str(error)


def test_an_address_too_long_is_told_apart_so_that_it_can_be_halved() -> None:
    assert isinstance(outcome(414, b"<html>"), UriTooLong)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"status":500,"error":"Internal Server Error"}'),
        (502, b"<html>bad gateway</html>"),
        (503, b""),
        (408, b""),
        (403, b"<html>blocked</html>"),
        (401, b"<html>blocked</html>"),
    ],
)
def test_a_failing_server_or_a_page_of_the_cdn_is_the_providers_failure(
    status: int, body: bytes
) -> None:
    error = outcome(status, body, {"retry-after": "7"})

    assert type(error) is ProviderUnavailable
    assert error.status == status
    assert error.retry_at == NOW + timedelta(seconds=7)
    assert "html" not in str(error)


def test_a_success_that_is_not_a_200_is_unreadable() -> None:
    assert isinstance(outcome(204), UnreadableAnswer)


@SHAPES
def test_an_unknown_code_under_a_200_is_unreadable(shape: int) -> None:
    assert isinstance(outcome(200, coded(12345)[shape]), UnreadableAnswer)


@pytest.mark.parametrize(
    "body",
    [
        {"bitcoin": {"usd": 1}},
        {"status": {"usd": 0.00984876}},
        {"error": {"usd": 1}, "error_code": {"usd": 1}},
        {"status": {"usd": 1, "error_code": "none"}},
        [],
    ],
)
def test_coins_named_like_parts_of_an_error_are_no_error(body: object) -> None:
    assert outcome(200, body) is None


@pytest.mark.parametrize("location", ["https://elsewhere.example/x?key=1", "/relative", ""])
def test_a_redirect_is_a_matter_of_the_base_url_and_its_query_is_not_repeated(
    location: str,
) -> None:
    error = outcome(302, headers={"location": location})

    assert isinstance(error, Misconfigured)
    assert error.setting == "PULSEGUARD_BASE_URL"
    assert "key=1" not in str(error)
    assert ("elsewhere.example" in str(error)) is location.startswith("https")


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422, 429, 500])
def test_a_key_the_provider_repeats_is_not_repeated_by_us(status: int) -> None:
    for code in (None, 429, 10002, 10005, 10010, 10011, 10012, 77):
        body = {"status": {"error_code": code, "error_message": f"bad key {KEY}!"}}
        error = outcome(status, body)
        if error is not None:
            assert KEY not in str(error)
            assert KEY not in repr(error)
    assert KEY not in repr(PRICE)


def test_what_the_provider_said_is_cut_and_freed_of_control_characters() -> None:
    error = outcome(422, {"error": "a\x1b[31m\n\nb" + "x" * 10_000})

    assert len(str(error)) < 700
    assert "\x1b" not in str(error)
    assert "a [31m b" in str(error)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("119", 119),
        (" 0 ", 0),
        ("1.5", 1.5),
        ("Sun, 01 Jun 2025 12:00:30 GMT", 30),
        ("Sun, 01 Jun 2025 14:00:30 +0200", 30),
        ("Sun, 01 Jun 2025 12:00:30 -0000", 30),
        ("Sun, 01 Jun 2025 11:00:00 GMT", 0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("999999999999", LONGEST_RETRY_AFTER.total_seconds()),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER.total_seconds()),
    ],
)
def test_retry_after_is_read_in_both_its_forms_and_kept_within_a_day(
    header: str | None, seconds: float | None
) -> None:
    expected = None if seconds is None else NOW + timedelta(seconds=seconds)

    assert retry_after(header, NOW) == expected


@given(st.text())
def test_no_retry_after_whatever_raises_or_leaves_its_bounds(header: str) -> None:
    moment = retry_after(header, NOW)

    assert moment is None or NOW <= moment <= NOW + LONGEST_RETRY_AFTER


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "status", "error_code", "error_message"]), inner, max_size=4
        )
    ),
)


@given(st.integers(100, 599), json_values.map(lambda v: json.dumps(v).encode()) | st.binary())
def test_no_answer_whatever_raises_and_all_but_a_200_are_errors(status: int, body: bytes) -> None:
    error = outcome(status, body)

    assert error is not None or status == 200


@pytest.mark.parametrize(
    "error",
    [
        RateLimitReached("m", NOW),
        CallNotFree("m", NOW),
        CreditsExhausted("m", 10, 1, NOW),
        TooFarBack("m", 365),
        Misconfigured("m", "PULSEGUARD_PLAN"),
        UnknownCoin("m", "bitcoin"),
        BadRequest("m", 422),
        UriTooLong("m", 414),
        ProviderUnavailable("m", 500, NOW),
        UnreadableAnswer("m", 200),
    ],
)
def test_every_error_survives_the_way_between_processes(error: ProviderError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == "m"


def test_the_recorded_errors_are_what_they_were_recorded_as() -> None:
    beside = Path(__file__).resolve().parents[4] / "shared" / "samples"
    path = Path(os.environ.get("PULSEGUARD_SAMPLES", beside)) / "errors" / "errors.json"
    if not path.is_file():
        pytest.skip("no recorded errors: set PULSEGUARD_SAMPLES to the folder of samples")
    expected = {
        "Missing parameter": BadRequest,
        "Internal Server Error": ProviderUnavailable,
        "Rate Limit": RateLimitReached,
        '"error_code":10012': TooFarBack,
        '"error_code":10011': Misconfigured,
        '"error_code":10005': Misconfigured,
        "coin not found": UnknownCoin,
    }

    seen = 0
    for entry in json.loads(path.read_text()):
        found = outcome(entry["http_status"], entry["body"].encode(), asked=CHART)
        kinds = [kind for mark, kind in expected.items() if mark in entry["body"]]
        if kinds:
            assert type(found) is kinds[0]
            seen += 1
        elif entry["http_status"] == 200:
            assert found is None
    assert seen >= 10


@pytest.mark.parametrize("before", [*range(3_975, 4_005), 250, 299])
@pytest.mark.parametrize("space", [" ", "x"])
def test_a_key_is_not_repeated_wherever_a_long_message_is_cut(before: int, space: str) -> None:
    message = "x" + space * before + KEY + "y" * 5_000
    error = error_in(500, {}, json.dumps({"error": message}).encode(), received_at=NOW, asked=PRICE)
    assert error is not None
    assert KEY[:4] not in str(error)
    assert len(str(error)) < 1_000


def test_a_long_message_without_a_key_to_hide_is_quoted_to_its_bound() -> None:
    body = json.dumps({"error": "x" * 9_000}).encode()
    error = error_in(500, {}, body, received_at=NOW, asked=Asked("/ping", "keyless"))
    assert f"('{'x' * 300}')" in str(error)
