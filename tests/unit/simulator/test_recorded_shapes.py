"""The simulator's answers beside the provider's own, as recorded."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pulseguard_assets.simulator.answers import rounded
from pulseguard_assets.simulator.server import RunningSimulator

Get = Callable[..., httpx.Response]
Recorded = Callable[[str], Any]
HOUR, DAY = 3_600_000, 86_400_000


def kinds(values: list[Any]) -> set[str]:
    return {type(value).__name__ for value in values}


def skeleton(value: Any) -> Any:
    """Keys and kinds of a body, values forgotten."""
    if isinstance(value, dict):
        return {key: skeleton(inner) for key, inner in value.items()}
    return type(value).__name__


def test_simple_price_carries_the_recorded_headers(get: Get, recorded: Recorded) -> None:
    answers = recorded("simple_price_recorded_with_headers.json")
    names = set.intersection(*(set(answer["headers"]) for answer in answers))
    ours = get("/simple/price/", ids="bitcoin", vs_currencies="usd").headers
    assert names <= set(ours)
    typical = next(
        a["headers"] for a in answers if "must-revalidate" in a["headers"]["cache-control"]
    )
    assert ours["vary"] == typical["vary"]
    assert ours["cache-control"] == typical["cache-control"]
    assert ours["etag"].startswith('W/"')
    assert len(ours["etag"]) == len(typical["etag"])
    assert len(ours["date"]) == len(typical["date"])
    assert "server" not in ours


def test_simple_price_sorts_its_coins_as_recorded(get: Get, recorded: Recorded) -> None:
    for answer in recorded("simple_price_recorded_with_headers.json"):
        assert list(json.loads(answer["body"])) == sorted(json.loads(answer["body"]))
    ours = get("/simple/price", ids="tron,bitcoin,cardano", vs_currencies="usd").json()
    assert list(ours) == ["bitcoin", "cardano", "tron"]


def test_the_default_rounding_leaves_every_recorded_price_as_it_is(recorded: Recorded) -> None:
    page = recorded("coins_markets_*.json")
    prices = [coin["current_price"] for coin in page]
    for answer in recorded("simple_price_recorded_with_headers.json"):
        for values in json.loads(answer["body"]).values():
            prices += [v for currency, v in values.items() if currency in ("usd", "eur")]
    assert len(prices) > 300
    for price in prices:
        shown = rounded(float(price), None)
        assert shown == price
        assert type(shown) is type(price)


def test_coins_markets_has_the_recorded_keys_kinds_and_order(get: Get, recorded: Recorded) -> None:
    theirs = recorded("coins_markets_*.json")
    ours = get("/coins/markets", vs_currency="usd", per_page=200).json()
    assert len(ours) == 200
    assert all(list(coin) == list(theirs[0]) for coin in ours)
    # Never null, by the provider's description; all else may be, and is in places.
    for key in ("id", "symbol", "name", "image", "last_updated"):
        assert kinds([coin[key] for coin in ours]) == {"str"}
    for key in theirs[0]:
        known = kinds([coin[key] for coin in theirs])
        seen = kinds([coin[key] for coin in ours])
        assert seen <= known | {"NoneType"}, key
        assert seen & known, key
    assert {"int", "float"} <= kinds([coin["current_price"] for coin in ours])
    lengths = {len(coin["last_updated"]) for coin in theirs}
    assert {len(coin["last_updated"]) for coin in ours} == lengths
    assert kinds([c["roi"] for c in ours]) == {"dict", "NoneType"}
    theirs_roi = next(coin["roi"] for coin in theirs if coin["roi"])
    assert skeleton(next(c["roi"] for c in ours if c["roi"])) == skeleton(theirs_roi)


def describe(chart: dict[str, list[list[float]]]) -> dict[str, Any]:
    """What a chart looks like, whatever its values."""
    stamps = [point[0] for point in chart["prices"]]
    values = [point[1] for point in chart["prices"]]
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    return {
        "keys": list(chart),
        "same stamps in all": all([p[0] for p in s] == stamps for s in chart.values()),
        "kinds": (kinds(stamps), kinds(values)),
        "minutes between": round(statistics.median(gaps) / 60_000 / 5) * 5,
        "midnights": all(stamp % DAY == 0 for stamp in stamps[:-1]),
        "present to the second": stamps[-1] % 1000 == 0,
        "present repeats the last": values[-1] == values[-2],
        "present before the last": stamps[-1] < stamps[-2],
        "other stamps to the millisecond": len({stamp % 1000 for stamp in stamps[:-1]}) > 100,
    }


@pytest.mark.parametrize(
    ("pattern", "params", "slack"),
    [
        ("market_chart_*_1d_auto_*.json", {"days": 1}, 5),
        ("market_chart_*_30d_auto_*.json", {"days": 30}, 15),
        ("market_chart_*_90d_interval_daily_*.json", {"days": 90, "interval": "daily"}, 0),
    ],
)
def test_charts_look_like_the_recorded_ones(
    get: Get, recorded: Recorded, pattern: str, params: dict[str, Any], slack: int
) -> None:
    theirs = recorded(pattern)
    ours = get("/coins/bitcoin/market_chart", vs_currency="usd", **params).json()
    assert describe(ours) == describe(theirs)
    assert abs(len(ours["prices"]) - len(theirs["prices"])) <= slack


def test_hourly_points_repeat_earlier_five_minute_points_as_recorded(
    get: Get, recorded: Recorded
) -> None:
    ours = [
        get("/coins/bitcoin/market_chart", vs_currency="usd", days=days).json() for days in (1, 30)
    ]
    theirs = [recorded(f"market_chart_*_{days}d_auto_*.json") for days in (1, 30)]
    for fine, coarse in (ours, theirs):
        sampled = {value: stamp for stamp, value in fine["prices"]}
        last_day = [point for point in coarse["prices"] if point[0] > fine["prices"][12][0]][1:-1]
        shared = [point for point in last_day if point[1] in sampled]
        assert len(shared) >= len(last_day) - 2
        assert all(0 < stamp - sampled[value] < 25 * 60_000 for stamp, value in shared)


def test_daily_points_repeat_the_hourly_point_after_midnight_as_recorded(
    get: Get, recorded: Recorded
) -> None:
    ours = [
        get("/coins/bitcoin/market_chart", vs_currency="usd", days=30).json(),
        get("/coins/bitcoin/market_chart", vs_currency="usd", days=90, interval="daily").json(),
    ]
    theirs = [
        recorded("market_chart_*_30d_auto_*"),
        recorded("market_chart_*_90d_interval_daily_*"),
    ]
    for hourly, daily in (ours, theirs):
        stamps = {value: stamp for stamp, value in hourly["prices"]}
        shared = [(p[0], stamps[p[1]]) for p in daily["prices"][:-1] if p[1] in stamps]
        assert len(shared) >= 20
        assert all(0 < hourly_stamp - day < 15 * 60_000 for day, hourly_stamp in shared)


def _provoke(sim: RunningSimulator, get: Get, error: dict[str, Any]) -> httpx.Response | None:
    """Bring about a recorded error; None for those of endpoints that are not in use."""
    body, status = error["body"], error["http_status"]
    if "Missing parameter ids" in body:
        return get("/simple/price")
    if "Missing parameter vs_currency" in body:
        return get("/coins/bitcoin/market_chart")
    if '"error_code":429' in body and status == 200:
        sim.fault("rate_limit_200", count=1)
        return get("/ping")
    if '"error_code":429' in body:
        sim.fault("rate_limit", count=1)
        return get("/ping")
    if "10012" in body:
        sim.set_limits(history_days=365)
        return get("/coins/bitcoin/market_chart", vs_currency="usd", days=400)
    if "10011" in body:
        sim.set_limits(host="pro")
        return get("/ping", headers={"x-cg-demo-api-key": "CG-demo"})
    if "10005" in body:
        sim.set_limits(host="public")
        return get("/key")
    if "coin not found" in body:
        return get("/coins/no-such/market_chart", vs_currency="usd", days=1)
    if status == 500:
        sim.fault("server_error", count=1)
        return get("/ping")
    return None


def test_error_bodies_have_the_recorded_shapes(
    sim: RunningSimulator, get: Get, recorded: Recorded
) -> None:
    compared = 0
    for error in recorded("errors/errors.json"):
        ours = _provoke(sim, get, error)
        if ours is None:
            continue
        compared += 1
        assert ours.status_code == error["http_status"], error["body"]
        theirs = json.loads(error["body"])
        assert skeleton(ours.json()) == skeleton(theirs)
        if error.get("content_type"):
            assert ours.headers["content-type"] == error["content_type"]
        if error.get("cache_control"):
            assert ours.headers["cache-control"] == error["cache_control"]
        if "error" in theirs:
            assert str(ours.json()["error"])[:20] == str(theirs["error"])[:20]
    assert compared >= 8


def test_a_blank_before_an_id_drops_the_coin_as_recorded(get: Get, recorded: Recorded) -> None:
    error = next(e for e in recorded("errors/errors.json") if "bitcoin,%20eth" in e.get("url", ""))
    assert list(json.loads(error["body"])) == ["bitcoin"]
    ours = get("/simple/price", ids="bitcoin, ethereum", vs_currencies="usd")
    assert list(ours.json()) == ["bitcoin"]


def test_an_unknown_currency_leaves_an_empty_coin_as_recorded(get: Get, recorded: Recorded) -> None:
    error = recorded("errors/errors.json")[0]
    ours = get("/simple/price", ids="bitcoin", vs_currencies="ethereum")
    assert ours.text == error["body"]
    assert ours.status_code == 200
