"""What each endpoint says: query in, table of values out.

Belongs here: parameters, defaults, paging and the fields of a record.
Does not: who may ask (`limits`, `app`), faults, or how a value is spelt (`answers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pulseguard_assets.simulator import answers, charts
from pulseguard_assets.simulator.answers import AnsweredError, Table, iso, rounded
from pulseguard_assets.simulator.catalogue import Coin, instant_of, ms_of
from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.market import Market, Quote

PER_PAGE_DEFAULT: Final = 100
PER_PAGE_MAX: Final = 250
CURRENCY: Final = "usd"
#: How wide a window may be when its granularity is asked for.
WIDEST_DAYS: Final[dict[charts.Granularity, int]] = {"5m": 10, "hourly": 100, "daily": 100_000}


@dataclass(frozen=True)
class Asked:
    """One request for data: where, with what, of which market, at what time.

    `shift` moves every page but the first by so many coins (the drift between two fetches).
    """

    query: Mapping[str, str]
    market: Market
    now: datetime
    limits: Limits
    coin_id: str = ""
    shift: int = 0

    def needed(self, name: str) -> str:
        """A parameter that must be there. Raises AnsweredError with a 422."""
        if value := self.query.get(name, ""):
            return value
        raise AnsweredError(answers.missing_parameter(name, self.now))

    def wants(self, name: str) -> bool:
        """Whether a yes-or-no parameter says yes."""
        return self.query.get(name, "").lower() == "true"

    def seconds(self, name: str) -> float:
        """A parameter in UNIX seconds. Raises AnsweredError when it is none."""
        return self._number(name, self.needed(name))

    def whole(self, name: str, default: int) -> int:
        """A whole number that falls back to its default, as the provider does."""
        value = self.query.get(name, "")
        return int(value) if value.isdecimal() and len(value) <= 9 else default

    def _number(self, name: str, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise AnsweredError(answers.invalid_parameter(name, self.now))
        # Far beyond any clock either way; keeps milliseconds within what arithmetic likes.
        return min(max(number, -1e12), 1e12)


def requested_coins(endpoint: str, asked: Asked) -> set[str]:
    """The ids a request names, however oddly."""
    named = set(asked.query.get("ids", "").split(",")) - {""}
    return named | {asked.coin_id} if endpoint.startswith("market_chart") else named


def simple_price(asked: Asked) -> Table:
    """`/simple/price`: one record per listed coin asked for, sorted by id.

    Ids are taken literally: one with a blank before it is not that coin, and is left out.
    """
    ids = asked.needed("ids").split(",")
    currencies = asked.needed("vs_currencies").lower().split(",")
    now_ms = ms_of(asked.now)
    coins = (asked.market.get(coin_id) for coin_id in sorted(set(ids)))
    listed = [coin for coin in coins if coin is not None and coin.listed_at(now_ms // 60_000)]
    write = _simple_writer(asked, now_ms, known_currency=CURRENCY in currencies)
    return Table("simple_price", [(coin.id, write(coin)) for coin in listed])


def _simple_writer(
    asked: Asked, now_ms: int, *, known_currency: bool
) -> Callable[[Coin], dict[str, Any]]:
    precision = asked.query.get("precision")
    cap, volume = asked.wants("include_market_cap"), asked.wants("include_24hr_vol")
    change, updated = asked.wants("include_24hr_change"), asked.wants("include_last_updated_at")
    market, minute = asked.market, now_ms // 60_000

    def write(coin: Coin) -> dict[str, Any]:
        if coin.values == "absent" or not known_currency:
            return {}
        quote = market.quote(coin, minute)
        record: dict[str, Any] = {"usd": rounded(quote.price, precision)}
        if cap:
            record["usd_market_cap"] = quote.market_cap
        if volume:
            record["usd_24h_vol"] = quote.volume
        if change:
            record["usd_24h_change"] = _change(quote, market.quote(coin, minute - 1440))
        if updated:
            plain = quote.price is not None
            record["last_updated_at"] = market.updated_ms(coin, now_ms) // 1000 if plain else None
        return record

    return write


def _change(quote: Quote, before: Quote) -> float | None:
    if quote.price is None or before.price is None:
        return None
    return (quote.price / before.price - 1) * 100


def coins_markets(asked: Asked) -> Table:
    """`/coins/markets`: one page of records; a page beyond the last is empty."""
    if asked.needed("vs_currency").lower() != CURRENCY:
        raise AnsweredError(answers.invalid_parameter("vs_currency", asked.now))
    minute = ms_of(asked.now) // 60_000
    coins = _ordered(asked, minute)
    per_page = min(max(asked.whole("per_page", PER_PAGE_DEFAULT), 1), PER_PAGE_MAX)
    page = max(asked.whole("page", 1), 1)
    start = max(0, (page - 1) * per_page - (asked.shift if page > 1 else 0))
    chosen = coins[start : start + per_page]
    return Table("coins_markets", [(coin.id, _market_record(asked, coin)) for coin in chosen])


def _ordered(asked: Asked, minute: int) -> Sequence[Coin]:
    order = asked.query.get("order", "market_cap_desc")
    coins = asked.market.page_order(minute)
    if "ids" in asked.query:
        named = set(asked.query["ids"].split(","))
        coins = [coin for coin in coins if coin.id in named]
    if order.startswith("id_"):
        coins.sort(key=lambda coin: coin.id)
    elif order.startswith("volume_"):
        coins.sort(key=lambda coin: -(asked.market.quote(coin, minute).volume or 0))
    return coins[::-1] if order in ("market_cap_asc", "volume_asc", "id_desc") else coins


def _market_record(asked: Asked, coin: Coin) -> dict[str, Any]:
    now_ms, market = ms_of(asked.now), asked.market
    minute = now_ms // 60_000
    quote, before = market.quote(coin, minute), market.quote(coin, minute - 1440)
    return {
        "id": coin.id,
        "symbol": coin.symbol,
        "name": coin.name,
        "image": coin.image,
        **_present_fields(asked, coin, quote),
        **_day_fields(quote, before, coin, asked.query.get("precision")),
        **_supply_fields(coin),
        **_record_fields(coin, quote),
        "roi": _roi(coin),
        "last_updated": iso(instant_of(market.updated_ms(coin, now_ms))),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _present_fields(asked: Asked, coin: Coin, quote: Quote) -> dict[str, Any]:
    volume = quote.volume
    minute = ms_of(asked.now) // 60_000
    rank = None if quote.price is None else asked.market.rank(coin, minute)
    if volume is not None:
        volume = round(volume) if volume >= 1e5 else round(volume, 2)
    # A coin's fully diluted value counts the tenth of its supply that is not out yet.
    diluted = None if quote.price is None else round(quote.price * coin.supply * 1.1)
    return {
        "current_price": rounded(quote.price, asked.query.get("precision")),
        "market_cap": _whole(quote.market_cap),
        "market_cap_rank": rank,
        "fully_diluted_valuation": diluted,
        "total_volume": volume,
    }


def _day_fields(quote: Quote, before: Quote, coin: Coin, precision: str | None) -> dict[str, Any]:
    if quote.price is None or before.price is None:
        return dict.fromkeys(
            (
                "high_24h",
                "low_24h",
                "price_change_24h",
                "price_change_percentage_24h",
                "market_cap_change_24h",
                "market_cap_change_percentage_24h",
            )
        )
    change = round((quote.price / before.price - 1) * 100, 5)
    moved = (quote.price - before.price) * coin.supply
    return {
        "high_24h": rounded(max(quote.price, before.price) * 1.004, precision),
        "low_24h": rounded(min(quote.price, before.price) * 0.996, precision),
        "price_change_24h": float(quote.price - before.price),
        "price_change_percentage_24h": change,
        "market_cap_change_24h": round(moved) if coin.index % 9 else float(moved),
        "market_cap_change_percentage_24h": change,
    }


def _supply_fields(coin: Coin) -> dict[str, Any]:
    total = coin.supply * 1.1
    return {
        "circulating_supply": coin.supply,
        "total_supply": total,
        "max_supply": total if coin.index % 2 else None,
    }


def _record_fields(coin: Coin, quote: Quote) -> dict[str, Any]:
    reach = coin.jitter + sum(
        math.hypot(sine, cosine)
        for sine, cosine in zip(coin.waves[::2], coin.waves[1::2], strict=True)
    )
    ath, atl = coin.base * math.exp(reach) + coin.whole, coin.base * math.exp(-reach)
    price = quote.price
    return {
        "ath": rounded(ath, None),
        "ath_change_percentage": None if price is None else round((price / ath - 1) * 100, 5),
        "ath_date": "2024-03-14T07:10:36.635Z",
        "atl": rounded(atl, None),
        "atl_change_percentage": None if price is None else round((price / atl - 1) * 100, 5),
        "atl_date": "2015-10-20T00:00:00.000Z",
    }


def _roi(coin: Coin) -> dict[str, Any] | None:
    if coin.index % 7 != 1:
        return None
    times = 0.5 + coin.salt % 10_000 / 100
    return {"times": times, "currency": "btc", "percentage": times * 100}


def market_chart_range(asked: Asked) -> Table:
    """`/coins/{id}/market_chart/range`: three series of `[ms, value]` between two instants."""
    asked.needed("vs_currency")
    start, end = asked.seconds("from"), asked.seconds("to")
    return _chart(asked, int(start * 1000), int(end * 1000))


def market_chart(asked: Asked) -> Table:
    """`/coins/{id}/market_chart`: the same, for so many days up to now."""
    asked.needed("vs_currency")
    now_ms = ms_of(asked.now)
    if asked.needed("days") == "max":
        return _chart(asked, asked.market.coins[0].born * 60_000, now_ms)
    return _chart(asked, now_ms - int(asked.seconds("days") * charts.DAY_MS), now_ms)


def _chart(asked: Asked, start_ms: int, end_ms: int) -> Table:
    now_ms = ms_of(asked.now)
    if asked.query["vs_currency"].lower() != CURRENCY:
        raise AnsweredError(answers.invalid_parameter("vs_currency", asked.now))
    grain = _grain(asked)
    coin = asked.market.get(asked.coin_id)
    if coin is None or not coin.listed_at(now_ms // 60_000):
        raise AnsweredError(answers.coin_not_found(asked.now))
    days = asked.limits.history_days
    if days is not None and start_ms < now_ms - days * charts.DAY_MS:
        raise AnsweredError(answers.too_far_back(asked.now, days))
    if grain is not None and end_ms - start_ms > WIDEST_DAYS[grain] * charts.DAY_MS:
        raise AnsweredError(answers.invalid_parameter("interval", asked.now))
    chart = charts.points(asked.market, coin, start_ms, end_ms, now_ms, grain)
    quotes = charts.values(asked.market, coin, chart)
    stamps = [point.stamp for point in chart]
    series = {
        "prices": [[s, q.price] for s, q in zip(stamps, quotes, strict=True)],
        "market_caps": [[s, q.market_cap] for s, q in zip(stamps, quotes, strict=True)],
        "total_volumes": [[s, q.volume] for s, q in zip(stamps, quotes, strict=True)],
    }
    return Table("chart", [(coin.id, series)])


def _grain(asked: Asked) -> charts.Granularity | None:
    """The granularity asked for. All but daily need a paid plan, as does asking on `/range`."""
    interval = asked.query.get("interval")
    if not interval:
        return None
    if interval not in ("5m", "hourly", "daily"):
        raise AnsweredError(answers.invalid_parameter("interval", asked.now))
    if asked.limits.host == "public" and interval != "daily":
        raise AnsweredError(answers.paid_only(asked.now))
    grains: dict[str, charts.Granularity] = {"5m": "5m", "hourly": "hourly", "daily": "daily"}
    return grains[interval]


#: The endpoints that answer with a table.
DATA: Final[dict[str, Callable[[Asked], Table]]] = {
    "simple_price": simple_price,
    "coins_markets": coins_markets,
    "market_chart_range": market_chart_range,
    "market_chart": market_chart,
}
