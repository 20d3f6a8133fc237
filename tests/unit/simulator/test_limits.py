from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

import httpx
import pytest

from pulseguard_assets.simulator.limits import Limits, Meter
from pulseguard_assets.simulator.server import RunningSimulator

Get = Callable[..., httpx.Response]
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def test_calls_beyond_the_minute_are_refused_until_the_window_has_moved_on(
    sim: RunningSimulator, get: Get
) -> None:
    sim.set_limits(calls_per_minute=3)
    for _ in range(3):
        assert get("/ping").status_code == 200
        sim.advance(timedelta(seconds=10))
    refused = get("/ping")
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "30"
    assert refused.json()["status"]["error_code"] == 429
    sim.advance(timedelta(seconds=29))
    assert get("/ping").status_code == 429
    sim.advance(timedelta(seconds=1))
    assert get("/ping").status_code == 200
    assert get("/ping").status_code == 429
    assert sim.calls()["outcomes"] == {"successful": 4, "failed": 0, "rate_limited": 3}


def test_a_plan_may_refuse_without_saying_when_to_come_back(
    sim: RunningSimulator, get: Get
) -> None:
    sim.set_limits(calls_per_minute=0, retry_after=False)
    refused = get("/ping")
    assert refused.status_code == 429
    assert "retry-after" not in refused.headers


def test_credits_end_with_the_plan_and_return_with_the_month(
    sim: RunningSimulator, get: Get
) -> None:
    sim.set_limits(monthly_credits=2)
    assert [get("/ping").status_code for _ in range(3)] == [200, 200, 429]
    assert sim.calls()["credits_used"] == 2
    sim.set_clock(datetime(2026, 12, 1, tzinfo=timezone.utc))
    assert get("/ping").status_code == 200


def test_a_clock_put_back_does_not_lock_the_caller_out() -> None:
    meter, limits = Meter(), Limits(calls_per_minute=1)
    assert meter.take(limits, NOON) is None
    assert meter.take(limits, NOON) == ("rate", 60)
    assert meter.take(limits, NOON - timedelta(hours=1)) is None


@pytest.mark.parametrize(
    ("limits", "headers", "status", "code"),
    [
        ({}, {}, 200, None),
        ({"require_key": True}, {}, 401, 10002),
        ({"require_key": True}, {"x-cg-demo-api-key": "CG-x"}, 200, None),
        ({"keys": ["CG-good"]}, {"x-cg-demo-api-key": "CG-bad"}, 401, 10002),
        ({"keys": ["CG-good"]}, {"x-cg-demo-api-key": "CG-good"}, 200, None),
        ({}, {"x-cg-pro-api-key": "CG-pro"}, 400, 10010),
        ({"host": "pro"}, {"x-cg-demo-api-key": "CG-demo"}, 400, 10011),
        ({"host": "pro"}, {}, 401, 10002),
        ({"host": "pro"}, {"x-cg-pro-api-key": "CG-pro"}, 200, None),
    ],
)
def test_keys_are_checked_against_the_host(
    sim: RunningSimulator,
    get: Get,
    limits: dict[str, object],
    headers: dict[str, str],
    status: int,
    code: int | None,
) -> None:
    sim.set_limits(**limits)
    answer = get("/ping", headers=headers)
    assert answer.status_code == status
    body = answer.json()
    assert body.get("error_code", body.get("status", {}).get("error_code")) == code


def test_the_key_endpoint_is_for_paid_plans_and_tells_what_is_left(
    sim: RunningSimulator, get: Get
) -> None:
    assert get("/key").json()["status"]["error_code"] == 10005
    sim.reset()
    sim.set_limits(host="pro", monthly_credits=1_000, calls_per_minute=30)
    key = {"x-cg-pro-api-key": "CG-pro"}
    get("/ping", headers=key)
    answer = get("/key", headers=key).json()
    assert answer["monthly_call_credit"] == 1_000
    assert answer["current_total_monthly_calls"] == 2
    assert answer["current_remaining_monthly_calls"] == 998


def test_a_caller_without_a_name_and_a_url_too_long_meet_the_cdn(
    sim: RunningSimulator, get: Get
) -> None:
    nameless = get("/ping", headers={"user-agent": ""})
    assert nameless.status_code == 403
    assert nameless.headers["content-type"].startswith("text/html")
    sim.set_limits(max_url_bytes=500)
    long = get("/simple/price", ids=",".join(["bitcoin"] * 60), vs_currencies="usd")
    assert long.status_code == 414
    assert get("/simple/price", ids="bitcoin", vs_currencies="usd").status_code == 200
    assert sim.calls()["credits_used"] == 1
    assert sim.calls()["total"] == 3


def test_a_url_of_a_hundred_kilobytes_is_still_answered(sim: RunningSimulator, get: Get) -> None:
    # Raw, because httpx itself refuses URLs of this length.
    parts = urlsplit(sim.url)
    request = (
        f"GET /api/v3/simple/price?ids={'x' * 100_000} HTTP/1.1\r\nhost: x\r\nuser-agent: t\r\n"
    )
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=10) as wire:
        wire.sendall(request.encode() + b"connection: close\r\n\r\n")
        assert wire.recv(64).startswith(b"HTTP/1.1 414")


def test_every_call_is_counted_once_by_endpoint_and_outcome(
    sim: RunningSimulator, get: Get
) -> None:
    get("/simple/price", ids="bitcoin", vs_currencies="usd")
    get("/simple/price")
    get("/coins/nope/market_chart", vs_currency="usd", days=1)
    get("/nowhere")
    sim.fault("rate_limit", count=1)
    get("/coins/markets", vs_currency="usd")
    calls = sim.calls(recent=2)
    assert calls["total"] == 5
    assert calls["open"] == 0
    assert calls["outcomes"] == {"successful": 1, "failed": 3, "rate_limited": 1}
    assert calls["endpoints"]["simple_price"] == {"successful": 1, "failed": 1}
    assert calls["endpoints"]["coins_markets"] == {"rate_limited": 1}
    assert calls["statuses"] == {"200": 1, "422": 1, "404": 2, "429": 1}
    assert calls["faults"] == {"rate_limit": 1}
    assert calls["peak_per_minute"] == 5
    assert [call["endpoint"] for call in calls["recent"]] == ["unknown", "coins_markets"]
    sim.reset()
    assert sim.calls()["total"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calls_per_minute": "many"}, "whole number"),
        ({"calls_per_minute": -1}, "0 or more"),
        ({"host": "enterprise"}, "public or pro"),
        ({"max_url_bytes": None}, "max_url_bytes is missing"),
        ({"keys": "CG-1"}, "list of texts"),
        ({"speed": 1}, "no limit is called"),
    ],
)
def test_limits_that_make_no_sense_are_refused_with_a_sentence(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Limits().changed(changes)
