from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from pulseguard_assets.simulator import charts
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator

Get = Callable[..., httpx.Response]
UTC = timezone.utc
FULL: dict[str, Any] = {
    "vs_currencies": "usd",
    "include_market_cap": "true",
    "include_24hr_vol": "true",
    "include_last_updated_at": "true",
    "precision": "full",
}


def ask_range(get: Get, coin: str, start: datetime, end: datetime) -> dict[str, Any]:
    answer = get(
        f"/coins/{coin}/market_chart/range",
        vs_currency="usd",
        from_=int(start.timestamp()),
        to=int(end.timestamp()),
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_live_prices_are_the_truth_to_the_last_bit(sim: RunningSimulator, get: Get) -> None:
    ids = [coin.id for coin in sim.market.coins]
    answer = get("/simple/price", ids=",".join(ids), **FULL).json()
    listed = {coin.id for coin in sim.market.coins if coin.id in set(sim.market.listed(sim.now))}
    assert set(answer) == listed
    for coin_id in listed - {"absent-coin"}:
        seen = sim.market.observation(coin_id, sim.now)
        assert seen is not None
        values = answer[coin_id]
        assert (values["usd"], values["usd_market_cap"], values["usd_24h_vol"]) == seen[:3]
        if seen.price is not None:
            assert values["last_updated_at"] == int(seen.last_updated.timestamp())


def test_live_and_history_agree_wherever_a_chart_has_a_point(
    sim: RunningSimulator, get: Get
) -> None:
    now = sim.now
    five = ask_range(get, "cardano", now - timedelta(hours=5), now)
    assert len(five["prices"]) > 55
    for index in range(0, len(five["prices"]), 7):
        stamp, price = five["prices"][index]
        sim.set_clock(datetime.fromtimestamp(stamp / 1000, UTC))
        live = get("/simple/price", ids="cardano", **FULL).json()["cardano"]
        assert live["usd"] == price
        assert live["usd_market_cap"] == five["market_caps"][index][1]
        assert live["usd_24h_vol"] == five["total_volumes"][index][1]


def test_what_was_polled_five_minutes_before_an_hour_ended_is_its_hourly_point(
    sim: RunningSimulator, get: Get
) -> None:
    end = datetime(2026, 11, 10, 8, tzinfo=UTC)
    stamp = charts.hourly_close_stamp(sim.market, "bitcoin", end)
    assert stamp is not None
    sim.set_clock(end - timedelta(minutes=5) + timedelta(seconds=42))
    live = get("/simple/price", ids="bitcoin", **FULL).json()["bitcoin"]["usd"]
    sim.set_clock(end + timedelta(days=5))
    points = ask_range(get, "bitcoin", end - timedelta(days=2), end + timedelta(hours=1))["prices"]
    assert [int(stamp.timestamp() * 1000), live] in points


def test_numbers_come_as_integers_floats_and_powers_of_ten(get: Get) -> None:
    text = get("/simple/price", ids="unit-coin,tiniest-coin,zero-cap,bitcoin", **FULL).text
    assert '"unit-coin":{"usd":1,' in text
    assert '"usd_market_cap":0,' in text
    assert '"usd":1.' in text or "e-13" in text
    assert "e-12" in text or "e-13" in text


def test_odd_ids_are_found_when_they_are_asked_for_exactly(get: Get) -> None:
    odd = ["_", "1move token", "boringdao-[old]", "-10", "4"]
    assert set(get("/simple/price", ids=",".join(odd), **FULL).json()) == set(odd)
    for coin_id in ("%5F", "1move%20token", "boringdao-%5Bold%5D", "-10", "4"):
        path = f"/coins/{coin_id}/market_chart"
        assert get(path, vs_currency="usd", days=1).json()["prices"], coin_id


def test_a_coin_may_have_nulls_for_values_or_nothing_at_all(get: Get) -> None:
    answer = get("/simple/price", ids="null-coin,absent-coin", **FULL).json()
    assert set(answer["null-coin"].values()) == {None}
    assert len(answer["null-coin"]) == 4
    assert answer["absent-coin"] == {}


def test_unknown_and_repeated_ids_leave_no_trace(get: Get) -> None:
    answer = get("/simple/price", ids="bitcoin,no-such,bitcoin,,", vs_currencies="usd")
    assert answer.text.count("bitcoin") == 1
    assert list(answer.json()) == ["bitcoin"]


@pytest.mark.parametrize(
    ("path", "params", "missing"),
    [
        ("/simple/price", {"vs_currencies": "usd"}, "ids"),
        ("/simple/price", {"ids": "bitcoin"}, "vs_currencies"),
        ("/simple/price", {"ids": "", "vs_currencies": "usd"}, "ids"),
        ("/coins/markets", {}, "vs_currency"),
        ("/coins/bitcoin/market_chart", {"vs_currency": "usd"}, "days"),
        ("/coins/bitcoin/market_chart/range", {"from_": 1, "to": 2}, "vs_currency"),
        ("/coins/bitcoin/market_chart/range", {"vs_currency": "usd", "to": 2}, "from"),
        ("/coins/bitcoin/market_chart/range", {"vs_currency": "usd", "from_": 1}, "to"),
    ],
)
def test_a_missing_parameter_is_named(
    get: Get, path: str, params: dict[str, Any], missing: str
) -> None:
    answer = get(path, **params)
    assert answer.status_code == 422
    assert answer.json() == {"error": f"Missing parameter {missing}"}
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("number", ["nan", "inf", "soon", "1e999", "--1"])
def test_a_time_that_is_no_number_is_refused(get: Get, number: str) -> None:
    path = "/coins/bitcoin/market_chart/range"
    assert get(path, vs_currency="usd", from_=number, to=2).status_code == 422


def test_absurd_windows_are_answered_with_nothing(get: Get) -> None:
    path = "/coins/bitcoin/market_chart/range"
    empty: dict[str, list[Any]] = {"prices": [], "market_caps": [], "total_volumes": []}
    for start, end in ((1e18, 2e18), (2, 1), (-9e30, -8e30), (1795000000000, 1795900000000)):
        assert get(path, vs_currency="usd", from_=start, to=end).json() == empty


def test_pages_are_a_hundred_long_unless_told_and_at_most_two_hundred_and_fifty(get: Get) -> None:
    def page(**params: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = get("/coins/markets", vs_currency="usd", **params).json()
        return found

    assert len(page()) == 100
    assert len(page(per_page=1000)) == 250
    first, second = page(per_page=250), page(per_page=250, page=2)
    assert 0 < len(second) < 250
    assert page(per_page=250, page=3) == []
    assert not {c["id"] for c in first} & {c["id"] for c in second}
    assert page(page="nonsense") == page(page=0) == page(page=1)
    caps = [coin["market_cap"] or 0 for coin in first]
    assert caps[:150] == sorted(caps[:150], reverse=True)
    assert any(c["market_cap"] == 0 and c["market_cap_rank"] is None for c in first + second)


def test_pages_can_be_had_in_other_orders_and_for_some_ids(get: Get) -> None:
    by_id = get("/coins/markets", vs_currency="usd", order="id_asc").json()
    assert [c["id"] for c in by_id] == sorted(c["id"] for c in by_id)
    some = get("/coins/markets", vs_currency="usd", ids="cardano,bitcoin,nothing").json()
    assert [c["id"] for c in some] == ["bitcoin", "cardano"]


def test_precision_decides_how_much_of_a_price_is_shown(sim: RunningSimulator, get: Get) -> None:
    seen = sim.market.observation("ethereum", sim.now)
    assert seen is not None
    assert seen.price is not None

    def shown(**params: Any) -> float:
        price = get("/simple/price", ids="ethereum", vs_currencies="usd", **params).json()
        return float(price["ethereum"]["usd"])

    assert shown(precision="full") == seen.price
    assert shown() == round(seen.price, 2)
    assert shown(precision="5") == round(seen.price, 5)
    page = get("/coins/markets", vs_currency="usd", ids="ethereum", precision="full").json()
    assert page[0]["current_price"] == seen.price


def test_a_coin_without_a_chart_is_not_found(sim: RunningSimulator, get: Get) -> None:
    for path in ("/coins/nope/market_chart", "/coins/%27%3B%20DROP%2F..%2F/market_chart"):
        answer = get(path, vs_currency="usd", days=1)
        assert answer.status_code == 404
        assert answer.json() == {"error": "coin not found"}
    assert get("/no/such/endpoint").status_code == 404


def test_history_beyond_the_plan_is_error_10012_nested(sim: RunningSimulator, get: Get) -> None:
    sim.set_limits(history_days=365)
    now = int(sim.now.timestamp())
    path = "/coins/bitcoin/market_chart/range"
    answer = get(path, vs_currency="usd", from_=now - 366 * 86_400, to=now)
    assert answer.status_code == 401
    assert answer.json()["error"]["status"]["error_code"] == 10012
    within = get(path, vs_currency="usd", from_=now - 365 * 86_400 + 1, to=now)
    assert within.status_code == 200


def test_asking_for_a_granularity_needs_a_paid_plan_unless_it_is_daily(
    sim: RunningSimulator, get: Get
) -> None:
    path, params = "/coins/bitcoin/market_chart", {"vs_currency": "usd", "days": 9}
    assert get(path, interval="hourly", **params).json()["status"]["error_code"] == 10005
    assert get(path, interval="daily", **params).status_code == 200
    sim.set_limits(host="pro")
    key = {"x-cg-pro-api-key": "CG-pro"}
    assert len(get(path, interval="5m", headers=key, **params).json()["prices"]) > 2_500


def test_a_coin_born_yesterday_has_no_older_history() -> None:
    market = Market(seed=1, coins=6_000)
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    minute = int(now.timestamp()) // 60
    young = next(c for c in market.coins if minute - 30 * 1440 < c.born < minute - 1440)
    with running_simulator(market=market, now=now) as sim, httpx.Client() as client:
        url = f"{sim.url}/coins/{young.id}/market_chart/range"
        born = young.born * 60
        before: dict[str, Any] = {"vs_currency": "usd", "from": born - 10 * 86_400, "to": born - 1}
        assert client.get(url, params=before).json()["prices"] == []
        after: dict[str, Any] = {
            "vs_currency": "usd",
            "from": born - 10 * 86_400,
            "to": born + 86_400,
        }
        assert client.get(url, params=after).json()["prices"][0][0] >= born * 1000
        sim.set_clock(datetime.fromtimestamp(born - 1, UTC))
        assert client.get(url, params=before).status_code == 404


def test_all_coins_can_be_swept_by_pages_in_bounded_time() -> None:
    market = Market(seed=1, coins=20_000)
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    with running_simulator(market=market, now=now) as sim, httpx.Client(timeout=30) as client:
        seen: list[str] = []
        for page in range(1, 100):
            params: dict[str, Any] = {"vs_currency": "usd", "per_page": 250, "page": page}
            rows = client.get(f"{sim.url}/coins/markets", params=params).json()
            seen += [row["id"] for row in rows]
            if len(rows) < 250:
                break
        assert len(seen) == len(set(seen))
        assert set(seen) == set(market.listed(now))
