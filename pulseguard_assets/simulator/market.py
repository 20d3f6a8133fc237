"""The invented market: what each coin is worth in each minute, and the truth for tests.

Belongs here: observations, closes and ranks as pure functions of (seed, coin, instant).
Does not: HTTP, faults, or what the provider's charts leave out (`charts`).

A price is constant within a UTC minute. So whoever asks during a minute gets that minute's price,
however late in it, and a chart point stamped within the minute carries the very same value. A
price needs no history: it is an exponential of a few waves, whose sines are shared by all coins
of a minute, and of one hashed step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from pulseguard_assets.simulator.catalogue import (
    WAVES,
    Coin,
    build,
    instant_of,
    minute_of,
    ms_of,
)

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FREQUENCIES: Final = tuple(2 * math.pi / period for period, _ in WAVES)
#: How long the rank of a coin stays as it is. Ranks lag behind the market caps they are made
#: of, which is why a page sorted by market cap is not monotone in rank.
RANK_MINUTES: Final = 5
#: How long before the end of its bucket an hourly or daily history point was taken.
HISTORY_LEAD: Final = timedelta(minutes=5)

Grade = Literal["live", "history"]


class Quote(NamedTuple):
    """Price, market cap and 24 h volume in USD; None where the provider has none.

    Values that are whole by nature are `int`: JSON shows them without a decimal point.
    """

    price: float | None
    market_cap: float | None
    volume: float | None


class Observation(NamedTuple):
    """What the provider says of a coin at an instant. Values in USD, time in UTC."""

    price: float | None
    market_cap: float | None
    volume: float | None
    last_updated: datetime


class Close(NamedTuple):
    """The close of a bucket, and the minute (UTC label) whose observation it is."""

    price: float | None
    market_cap: float | None
    volume: float | None
    close_ts: datetime
    last_updated: datetime


class UnknownCoinError(LookupError):
    """The market has no coin of that id."""


def mix(value: int) -> int:
    """A well-stirred 64-bit hash of a 64-bit integer (the finalizer of splitmix64)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def draw(coin: Coin, purpose: int, number: int) -> int:
    """64 deterministic bits for one coin, one purpose and one bucket number."""
    return mix((coin.salt ^ mix(purpose) + number * _GOLDEN) & _MASK)


@lru_cache(maxsize=20_000)
def _sines(minute: int) -> tuple[float, ...]:
    sines: list[float] = []
    for frequency in _FREQUENCIES:
        angle = frequency * minute
        sines += (math.sin(angle), math.cos(angle))
    return tuple(sines)


class Market:
    """A market of `coins` coins, wholly determined by `seed`.

    Args:
        churn: coins are born and vanish (2024 to 2028); False keeps all listed since 2013.
        irregular_charts: hourly charts miss an hour now and then, or have a late or doubled
            point, as the recorded ones do; False makes them complete.
    """

    def __init__(
        self,
        seed: int = 0,
        coins: int = 20_000,
        *,
        churn: bool = True,
        irregular_charts: bool = True,
    ) -> None:
        if coins < 1:
            raise ValueError(f"coins is {coins}; a market needs at least 1.")
        self.seed = seed
        self.irregular_charts = irregular_charts
        self.coins: Sequence[Coin] = tuple(build(seed, coins, churn=churn))
        self._by_id = {coin.id: coin for coin in self.coins}
        self._paged_at = lru_cache(maxsize=4)(self._sort_all)
        self._ranked_at = lru_cache(maxsize=8)(self._sort_ranked)
        self._ranks_at = lru_cache(maxsize=8)(self._number_ranked)

    def get(self, coin_id: str) -> Coin | None:
        """The coin of that exact id, listed or not; None when the market never has it."""
        return self._by_id.get(coin_id)

    def coin(self, coin_id: str) -> Coin:
        """The coin of that exact id. Raises UnknownCoinError."""
        try:
            return self._by_id[coin_id]
        except KeyError:
            raise UnknownCoinError(
                f"the market of seed {self.seed} has no coin {coin_id!r} "
                f"among its {len(self.coins)}"
            ) from None

    def listed(self, instant: datetime) -> list[str]:
        """Ids of all coins the provider knows at that instant, in catalogue order."""
        minute = minute_of(instant)
        return [coin.id for coin in self.coins if coin.listed_at(minute)]

    # --- values -----------------------------------------------------------------------------

    def quote(self, coin: Coin, minute: int) -> Quote:
        """The coin's values in a minute since 1970, whether it is listed then or not."""
        if coin.values != "plain":
            return Quote(None, None, None)
        updated = coin.updated_minute(minute)
        a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5, a6, b6 = coin.waves
        s0, c0, s1, c1, s2, c2, s3, c3, s4, c4, s5, c5, s6, c6 = _sines(updated)
        bits = mix((coin.salt + updated * _GOLDEN) & _MASK)
        step = (bits >> 32) / 2147483648.0 - 1.0
        bustle = (bits & 0xFFFFFFFF) / 2147483648.0 - 1.0
        price = coin.base * math.exp(
            a0 * s0 + b0 * c0 + a1 * s1 + b1 * c1 + a2 * s2 + b2 * c2 + a3 * s3 + b3 * c3
            + a4 * s4 + b4 * c4 + a5 * s5 + b5 * c5 + a6 * s6 + b6 * c6 + coin.jitter * step
        )  # fmt: skip
        if coin.whole:
            price = max(1, round(price))
        volume = coin.turnover * (1.0 + 0.3 * bustle + 0.4 * c4 * s5)
        cap = price * coin.supply
        return Quote(price, round(cap) if coin.whole_cap else cap, volume)

    def updated_ms(self, coin: Coin, instant_ms: int) -> int:
        """Milliseconds since 1970 of the provider's latest update as seen at an instant.

        It lies in the minute whose price is shown, never after the instant, and never goes back.
        """
        updated = coin.updated_minute(instant_ms // 60_000)
        delay = draw(coin, 1, updated) % 20_000
        return updated * 60_000 + min(delay, instant_ms - updated * 60_000)

    def observation(self, coin_id: str, instant: datetime) -> Observation | None:
        """What the provider says of a coin at an instant; None when it is not listed then.

        Raises UnknownCoinError for an id the market never has, ValueError for a naive instant.
        """
        coin, ms = self.coin(coin_id), ms_of(instant)
        if not coin.listed_at(ms // 60_000):
            return None
        values = self.quote(coin, ms // 60_000)
        return Observation(*values, instant_of(self.updated_ms(coin, ms)))

    def observations(self, coin_ids: Iterable[str], instant: datetime) -> dict[str, Observation]:
        """`observation` of many coins at once, those that are not listed left out."""
        found = {coin_id: self.observation(coin_id, instant) for coin_id in coin_ids}
        return {coin_id: seen for coin_id, seen in found.items() if seen is not None}

    # --- truth ------------------------------------------------------------------------------

    def close(self, coin_id: str, bucket_end: datetime, grade: Grade) -> Close | None:
        """The true close of the bucket that ends (exclusively) at `bucket_end`.

        Grade `live`: the observation of the bucket's last minute, what somebody who polls every
        minute ends with. Grade `history`: the one of five minutes before the end, what hourly
        and daily chart points carry. None when the coin was not listed in that minute. Whether
        a chart really has the point is another matter: ask `charts.hourly_close_stamp`.

        The width of the bucket does not matter: an hour, a day, a week and a month that end
        together have the same close. Raises UnknownCoinError and ValueError.
        """
        lead = timedelta(minutes=1) if grade == "live" else HISTORY_LEAD
        label = instant_of(minute_of(bucket_end - lead) * 60_000)
        seen = self.observation(coin_id, label + timedelta(milliseconds=59_999))
        return None if seen is None else Close(*seen[:3], label, seen.last_updated)

    # --- ranks ------------------------------------------------------------------------------

    def page_order(self, minute: int) -> list[Coin]:
        """All listed coins by market cap, largest first; those without a rank come last."""
        return list(self._paged_at(minute))

    def rank(self, coin: Coin, minute: int) -> int | None:
        """The coin's rank as shown in a minute, from 1; None for coins without one.

        Ranks are renewed every `RANK_MINUTES`, have ties (every 97th shares its neighbour's)
        and two gaps, as the provider's do.
        """
        return self._ranks_at(minute // RANK_MINUTES * RANK_MINUTES).get(coin.index)

    def _sort_all(self, minute: int) -> tuple[Coin, ...]:
        rest = (c for c in self.coins if not c.ranked and c.listed_at(minute))
        return (*self._ranked_at(minute), *rest)

    def _sort_ranked(self, minute: int) -> tuple[Coin, ...]:
        caps = []
        for coin in self.coins:
            if coin.ranked and coin.listed_at(minute):
                caps.append((-(self.quote(coin, minute).market_cap or 0), coin.index))
        caps.sort()
        coins = self.coins
        return tuple(coins[index] for _, index in caps)

    def _number_ranked(self, minute: int) -> dict[int, int]:
        return {
            coin.index: _rank_at(position)
            for position, coin in enumerate(self._ranked_at(minute), start=1)
        }


def _rank_at(position: int) -> int:
    tied = position - 1 if position % 97 == 0 else position
    return tied + (tied >= 150) + (tied >= 700)
