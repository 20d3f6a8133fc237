"""Every fault of the catalogue over a real socket."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from pulseguard_assets.simulator.faults import KINDS, FaultBook, FaultError
from pulseguard_assets.simulator.server import RunningSimulator

Get = Callable[..., httpx.Response]
IDS = "bitcoin,cardano,ethereum"
ALL = {
    "include_market_cap": "true",
    "include_24hr_vol": "true",
    "include_last_updated_at": "true",
    "precision": "full",
}


def prices(get: Get, ids: str = IDS) -> httpx.Response:
    return get("/simple/price", ids=ids, vs_currencies="usd", **ALL)


def markets(get: Get, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get("/coins/markets", vs_currency="usd", **params).json()
    return found


def chart(get: Get) -> dict[str, list[list[Any]]]:
    found: dict[str, list[list[Any]]] = get(
        "/coins/bitcoin/market_chart", vs_currency="usd", days=2
    ).json()
    return found


# --- instead of the answer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "header", "outcome"),
    [
        ({"kind": "rate_limit"}, 429, "119", "rate_limited"),
        ({"kind": "rate_limit", "retry_after": 5}, 429, "5", "rate_limited"),
        ({"kind": "rate_limit", "retry_after": "Wed, 21 Oct"}, 429, "Wed, 21 Oct", "rate_limited"),
        ({"kind": "rate_limit", "retry_after": None}, 429, None, "rate_limited"),
        ({"kind": "rate_limit_200"}, 200, None, "rate_limited"),
        ({"kind": "server_error"}, 500, None, "failed"),
        ({"kind": "server_error", "status": 503}, 503, None, "failed"),
        ({"kind": "not_found"}, 404, None, "failed"),
        ({"kind": "api_error", "code": 10002}, 401, None, "failed"),
        ({"kind": "api_error", "code": 10005}, 401, None, "failed"),
        ({"kind": "api_error", "code": 10010}, 400, None, "failed"),
        ({"kind": "api_error", "code": 10012}, 401, None, "failed"),
    ],
)
def test_an_error_on_demand_has_its_status_header_and_outcome(
    sim: RunningSimulator,
    get: Get,
    fault: dict[str, Any],
    status: int,
    header: str | None,
    outcome: str,
) -> None:
    sim.fault(**fault, count=1)
    answer = prices(get)
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == header
    assert answer.headers["content-type"].startswith("application/json")
    assert "bitcoin" not in answer.json()
    assert sim.calls()["outcomes"][outcome] == 1
    assert sim.calls()["faults"] == {fault["kind"]: 1}
    assert prices(get).json()["bitcoin"]["usd"] > 0


@pytest.mark.parametrize("status", [403, 502])
def test_html_comes_from_the_cdn(sim: RunningSimulator, get: Get, status: int) -> None:
    sim.fault("html", status=status)
    answer = prices(get)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.startswith("<html>")


def test_raw_and_deep_bodies_are_sent_as_ordered(sim: RunningSimulator, get: Get) -> None:
    sim.fault(
        "raw", status=418, body="tea", content_type="text/plain", headers={"x-pot": "1"}, count=1
    )
    answer = prices(get)
    assert (answer.status_code, answer.text, answer.headers["x-pot"]) == (418, "tea", "1")
    sim.fault("deep_json", depth=5_000)
    assert prices(get).text == "[" * 5_000 + "]" * 5_000


# --- on the values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ({"kind": "null"}, lambda value, _: value is None),
        ({"kind": "nan"}, lambda value, _: math.isnan(value)),
        ({"kind": "infinity"}, lambda value, _: value == math.inf),
        ({"kind": "negative"}, lambda value, true: value == -true),
        ({"kind": "zero"}, lambda value, _: value == 0),
        ({"kind": "absurd"}, lambda value, _: value == 1e30),
        ({"kind": "absurd", "factor": 1000}, lambda value, true: value == true * 1000),
        ({"kind": "string_number"}, lambda value, true: value == str(true)),
        ({"kind": "replace", "value": {"a": [1]}}, lambda value, _: value == {"a": [1]}),
    ],
)
def test_values_are_spoilt_for_the_coins_named_and_only_there(
    sim: RunningSimulator,
    get: Get,
    fault: dict[str, Any],
    check: Callable[[Any, float], bool],
) -> None:
    true_prices = prices(get).json()
    true_page = {coin["id"]: coin for coin in markets(get)}
    true_chart = chart(get)
    sim.fault(**fault, coins=["bitcoin"])

    spoilt = prices(get).json()
    assert check(spoilt["bitcoin"].pop("usd"), true_prices["bitcoin"].pop("usd"))
    assert spoilt == true_prices

    page = {coin["id"]: coin for coin in markets(get)}
    true_price = true_page["bitcoin"].pop("current_price")
    assert check(page["bitcoin"].pop("current_price"), true_price)
    assert page == true_page

    series = chart(get)
    pairs = zip(series.pop("prices"), true_chart.pop("prices"), strict=True)
    assert all(check(ours[1], theirs[1]) for ours, theirs in pairs)
    assert series == true_chart


def test_nan_and_infinity_are_bare_tokens(sim: RunningSimulator, get: Get) -> None:
    sim.fault("nan", coins=["bitcoin"])
    sim.fault("infinity", coins=["cardano"], fields=["market_cap"])
    text = prices(get).text
    assert '"bitcoin":{"usd":NaN,' in text
    assert '"usd_market_cap":Infinity' in text


def test_any_field_can_be_named_in_either_words_and_every_nth_record_struck(
    sim: RunningSimulator, get: Get
) -> None:
    sim.fault("null", fields=["rank", "total_volume"], every=3, endpoint="coins_markets")
    page = markets(get)
    nulls = [i for i, coin in enumerate(page) if coin["market_cap_rank"] is None]
    assert nulls == list(range(0, 100, 3))
    assert all(page[i]["total_volume"] is None for i in nulls)
    sim.clear_faults()
    sim.fault("missing_field", fields=["market_cap", "last_updated"])
    assert set(prices(get).json()["bitcoin"]) == {"usd", "usd_24h_vol"}


def test_times_can_be_stale_or_ahead(sim: RunningSimulator, get: Get) -> None:
    now = sim.now.timestamp()
    sim.fault("stale", seconds=1_036_800, coins=["cardano"])
    sim.fault("future", seconds=3_600, coins=["ethereum"])
    seen = {coin: values["last_updated_at"] for coin, values in prices(get).json().items()}
    assert 0 <= now - seen["bitcoin"] < 60
    assert 1_036_800 <= now - seen["cardano"] < 1_036_860
    assert 3_540 < seen["ethereum"] - now <= 3_600
    page = {coin["id"]: coin["last_updated"] for coin in markets(get)}
    ahead = datetime.fromisoformat(page["ethereum"].replace("Z", "+00:00")) - sim.now
    assert timedelta(minutes=59) < ahead <= timedelta(hours=1)


def test_unknown_ids_appear_and_wanted_ones_vanish(sim: RunningSimulator, get: Get) -> None:
    sim.fault("unknown_ids", ids=["ghost", "'; DROP TABLE x"])
    assert set(prices(get).json()) == {*IDS.split(","), "ghost", "'; DROP TABLE x"}
    assert [coin["id"] for coin in markets(get)][-2:] == ["ghost", "'; DROP TABLE x"]
    sim.clear_faults()
    sim.fault("missing_ids", coins=["cardano"])
    assert set(prices(get).json()) == {"bitcoin", "ethereum"}
    assert "cardano" not in {coin["id"] for coin in markets(get)}


def test_a_coin_can_come_twice_with_two_prices(sim: RunningSimulator, get: Get) -> None:
    sim.fault("duplicate_ids", coins=["bitcoin"])
    pairs = json.loads(prices(get).text, object_pairs_hook=list)
    assert [key for key, _ in pairs] == ["bitcoin", "bitcoin", "cardano", "ethereum"]
    assert pairs[0][1] != pairs[1][1]
    twice = [coin for coin in markets(get) if coin["id"] == "bitcoin"]
    assert len(twice) == 2
    assert twice[0]["current_price"] != twice[1]["current_price"]
    stamps = [point[0] for point in chart(get)["prices"]]
    assert len(stamps) == 2 * len(set(stamps))


def test_fields_that_nobody_knows_can_be_added(sim: RunningSimulator, get: Get) -> None:
    sim.fault("extra_field", name="usd_vibes", value=[1, {"x": None}])
    assert prices(get).json()["bitcoin"]["usd_vibes"] == [1, {"x": None}]


@pytest.mark.parametrize(("shift", "repeated", "missed"), [(2, 2, 0), (-3, 0, 3)])
def test_pages_drift_between_two_fetches(
    sim: RunningSimulator, get: Get, shift: int, repeated: int, missed: int
) -> None:
    true = [coin["id"] for page in (1, 2) for coin in markets(get, per_page=50, page=page)]
    sim.fault("page_drift", shift=shift)
    pages = [[coin["id"] for coin in markets(get, per_page=50, page=page)] for page in (1, 2, 3)]
    assert pages[0] == true[:50]
    assert len(set(pages[0]) & set(pages[1])) == repeated
    assert len([coin for coin in true if coin not in itertools.chain(*pages)]) == missed


def test_an_answer_can_be_as_old_as_a_cache_makes_it(sim: RunningSimulator, get: Get) -> None:
    sim.fault("cached", age=120, count=1)
    answer = prices(get)
    assert answer.headers["cf-cache-status"] == "HIT"
    assert answer.headers["age"] == "120"
    before = sim.market.observation("bitcoin", sim.now - timedelta(seconds=120))
    assert before is not None
    assert answer.json()["bitcoin"]["usd"] == before.price


# --- on the wire ----------------------------------------------------------------------------


def test_a_slow_answer_comes_late_and_whole(sim: RunningSimulator, get: Get) -> None:
    true = prices(get).content
    sim.fault("delay", seconds=0.2, count=1)
    sim.fault("trickle", seconds=0.02, chunks=5, count=1)
    answer = prices(get)
    assert answer.content == true
    assert answer.elapsed >= timedelta(seconds=0.2)
    assert sim.calls()["outcomes"]["successful"] == 2


def test_a_caller_who_does_not_wait_is_counted_as_failed(sim: RunningSimulator) -> None:
    sim.fault("delay", seconds=600)
    with httpx.Client(timeout=0.2) as client, pytest.raises(httpx.ReadTimeout):
        client.get(sim.url + "/ping")
    sim.clear_faults()
    with httpx.Client() as client:
        for _ in range(200):  # the server learns of the hang-up by its own loop
            client.get(sim.admin_url + "/clock")
            if sim.calls()["outcomes"]["failed"]:
                break
    assert sim.calls()["outcomes"] == {"successful": 0, "failed": 1, "rate_limited": 0}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "reset"}, httpx.ReadError),
        ({"kind": "reset", "after_bytes": 20}, httpx.TransportError),
        ({"kind": "disconnect"}, httpx.RemoteProtocolError),
    ],
)
def test_a_connection_can_break(
    sim: RunningSimulator, get: Get, fault: dict[str, Any], error: type[Exception]
) -> None:
    sim.fault(**fault, count=1)
    with pytest.raises(error):
        prices(get)
    assert sim.calls()["outcomes"]["failed"] == 1
    assert prices(get).status_code == 200


def test_bodies_can_be_cut_emptied_and_mislabelled(sim: RunningSimulator, get: Get) -> None:
    true = prices(get).content
    sim.fault("truncated", part=0.5, count=1)
    cut = prices(get)
    assert cut.status_code == 200
    assert cut.content == true[: len(true) // 2]
    sim.fault("empty", count=1)
    assert prices(get).content == b""
    sim.fault("wrong_content_type", count=1)
    mislabelled = prices(get)
    assert mislabelled.headers["content-type"].startswith("text/html")
    assert mislabelled.content == true
    assert sim.calls()["outcomes"] == {"successful": 1, "failed": 3, "rate_limited": 0}


@pytest.mark.parametrize(
    ("refusal", "wire", "outcome"),
    [
        ("rate_limit", {"kind": "truncated"}, "rate_limited"),
        ("rate_limit", {"kind": "reset", "after_bytes": 0}, "rate_limited"),
        ("rate_limit", {"kind": "reset"}, "failed"),
        ("rate_limit", {"kind": "disconnect"}, "failed"),
        ("rate_limit_200", {"kind": "truncated"}, "failed"),
    ],
)
def test_a_refusal_that_breaks_off_is_counted_by_what_the_caller_can_know(
    sim: RunningSimulator, get: Get, refusal: str, wire: dict[str, Any], outcome: str
) -> None:
    sim.fault(refusal)
    sim.fault(**wire)
    with suppress(httpx.TransportError):
        get("/ping")
    assert {name for name, times in sim.calls()["outcomes"].items() if times} == {outcome}


def test_a_bomb_is_small_on_the_wire_and_huge_when_unpacked(sim: RunningSimulator) -> None:
    sim.fault("bomb", megabytes=20, count=1)
    with httpx.Client() as client, client.stream("GET", sim.url + "/ping") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        packed = b"".join(answer.iter_raw())
    assert len(packed) < 100_000
    unpacked = zlib.decompress(packed, 31)
    assert len(unpacked) == 20 * (1 << 20) + 2
    assert json.loads(unpacked) == {}


# --- when they strike -----------------------------------------------------------------------


def test_a_fault_strikes_its_endpoint_after_so_many_so_often(
    sim: RunningSimulator, get: Get
) -> None:
    rule = sim.fault("server_error", endpoint="simple_price", skip=1, count=2)
    assert get("/ping").status_code == 200
    assert [prices(get).status_code for _ in range(5)] == [200, 500, 500, 200, 200]
    assert sim.faults()[0]["struck"] == 2
    sim.clear_faults(rule["id"])
    assert sim.faults() == []


def test_a_fault_for_a_coin_leaves_requests_without_it_alone(
    sim: RunningSimulator, get: Get
) -> None:
    sim.fault("server_error", coins=["cardano"], count=1)
    assert prices(get, "bitcoin").status_code == 200
    assert chart(get)["prices"]
    assert prices(get, "bitcoin,cardano").status_code == 500


def test_chance_is_seeded() -> None:
    def struck(seed: int) -> list[bool]:
        book = FaultBook(seed)
        book.add({"kind": "zero", "probability": 0.3})
        return [bool(book.draw({"values"}, "ping", ())) for _ in range(300)]

    assert struck(1) == struck(1) != struck(2)
    assert 60 < sum(struck(1)) < 120


def test_several_faults_strike_one_answer(sim: RunningSimulator, get: Get) -> None:
    sim.fault("zero", coins=["bitcoin"])
    sim.fault("null", coins=["cardano"])
    sim.fault("delay", seconds=0.01)
    answer = prices(get).json()
    assert (answer["bitcoin"]["usd"], answer["cardano"]["usd"]) == (0, None)
    assert sim.calls()["faults"] == {"zero": 1, "null": 1, "delay": 1}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("path", ["/ping", "/simple/price", "/coins/markets", "/coins/bitcoin"])
def test_no_fault_breaks_the_simulator_itself(
    sim: RunningSimulator, get: Get, kind: str, path: str
) -> None:
    path += "/market_chart" if path == "/coins/bitcoin" else ""
    small = {"seconds": 0.001} if kind in ("delay", "trickle") else {}
    small |= {"megabytes": 1} if kind == "bomb" else {}
    sim.fault(kind, **small)
    params = {"vs_currency": "usd", "vs_currencies": "usd", "ids": "bitcoin", "days": 2}
    try:
        status = get(path, **params).status_code
    except httpx.TransportError:
        assert kind in ("reset", "disconnect")
        status = 200
    assert status < 500 or kind in ("server_error", "html")
    sim.clear_faults()
    assert get("/ping").status_code == 200


@pytest.mark.parametrize("kind", sorted(name for name in KINDS if KINDS[name].stage == "values"))
def test_a_fault_leaves_alone_what_it_cannot_change(
    sim: RunningSimulator, get: Get, kind: str
) -> None:
    """Texts are no numbers, and what another fault has spoilt is no time."""
    text = ("price", "last_updated", "symbol")
    sim.fault("replace", value="spoilt", fields=("price", "last_updated"))
    sim.fault(kind, **({"fields": text} if "fields" in KINDS[kind].defaults else {}))
    assert prices(get).status_code == 200
    assert markets(get) or kind == "missing_ids"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"kind": "gremlins"}, "write one of absurd, "),
        ({"kind": ["zero"]}, "write one of"),
        ({"kind": "zero", "endpoint": "prices"}, "simple_price"),
        ({"kind": "zero", "status": 500}, "no parameter status"),
        ({"kind": "disconnect", "x": 1}, "it has none"),
        ({"kind": "zero", "coins": "bitcoin"}, "a list of ids"),
        ({"kind": "zero", "count": -1}, "a whole number"),
        ({"kind": "zero", "every": 0}, "1 for all"),
        ({"kind": "zero", "probability": 2}, "0 to 1"),
        ({"kind": "delay", "seconds": "long"}, "a number of seconds"),
        ({"kind": "html", "status": 99}, "200 to 599"),
        ({"kind": "reset", "after_bytes": "x"}, "a whole number or null"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_a_sentence(
    wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(FaultError, match=message):
        FaultBook().add(wanted)
